# keepalived's metrics for Prometheus: systemd listens, and starts a script for each question.
include:
  - lb.running

What tells keepalived's metrics is in place:
  file.managed:
    - name: /usr/local/lib/indigo/keepalived-metrics
    - source: salt://lb/files/keepalived-metrics.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0755'
    - require:
      - file: The folder of scripts exists

{% for kind in ['.socket', '@.service'] %}
/etc/systemd/system/keepalived-metrics{{ kind }} is in place:
  file.managed:
    - name: /etc/systemd/system/keepalived-metrics{{ kind }}
    - source: salt://lb/files/keepalived-metrics{{ kind }}.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - require:
      - file: What tells keepalived's metrics is in place
    - require_in:
      - indigo_service: keepalived's metrics are served
{% endfor %}

keepalived's metrics are served:
  indigo_service.running:
    - name: keepalived-metrics.socket
    - require:
      - indigo_service: keepalived runs with its configuration
