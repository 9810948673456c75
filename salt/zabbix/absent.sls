# The inverse. An agent that the site has of its own stays: only with our unit is it ours.
{% import_yaml 'common/packages.yaml' as packages %}

The Zabbix agent is stopped:
  indigo_service.stopped:
    - name: zabbix-agent
    - unit_file: /etc/systemd/system/zabbix-agent.service

The Zabbix agent is gone:
  indigo_package.gone:
    - require:
      - indigo_service: The Zabbix agent is stopped
    - unit: /etc/systemd/system/zabbix-agent.service
    - pkgs: {{ packages.zabbix.get(grains.os_family, []) | tojson }}

{% for path in ['/etc/systemd/system/zabbix-agent.service', '/etc/indigo/zabbix'] %}
{{ path }} is gone:
  file.absent:
    - name: {{ path }}
    - require:
      - indigo_package: The Zabbix agent is gone
{% endfor %}

# After the pod, which goes with the add-ons, perhaps in this very run.
The database of Zabbix is gone:
  indigo_node.folder_absent:
    - name: /var/lib/indigo-zabbix
    - order: last
