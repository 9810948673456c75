# Its table goes with the unit, whatever other rules the host has.
The firewall is stopped:
  indigo_service.stopped:
    - name: indigo-firewall

{% for path in ['/etc/systemd/system/indigo-firewall.service', '/etc/indigo/firewall'] %}
{{ path }} is gone:
  file.absent:
    - name: {{ path }}
    - require:
      - indigo_service: The firewall is stopped
{% endfor %}
