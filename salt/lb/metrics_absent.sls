# Nobody asks: nothing listens.
keepalived's metrics are not served:
  indigo_service.stopped:
    - name: keepalived-metrics.socket

{% for path in ['/etc/systemd/system/keepalived-metrics.socket', '/etc/systemd/system/keepalived-metrics@.service',
    '/usr/local/lib/indigo/keepalived-metrics'] %}
{{ path }} is gone:
  file.absent:
    - name: {{ path }}
    - require:
      - indigo_service: keepalived's metrics are not served
{% endfor %}
