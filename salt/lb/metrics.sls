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

The socket that keepalived's metrics are asked at is in place:
  file.managed:
    - name: /etc/systemd/system/keepalived-metrics.socket
    - source: salt://lb/files/keepalived-metrics.socket.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'

The unit that tells keepalived's metrics is in place:
  file.managed:
    - name: /etc/systemd/system/keepalived-metrics@.service
    - source: salt://lb/files/keepalived-metrics@.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'

keepalived's metrics are served:
  indigo_service.running:
    - name: keepalived-metrics.socket
    - require:
      - file: What tells keepalived's metrics is in place
      - file: The socket that keepalived's metrics are asked at is in place
      - file: The unit that tells keepalived's metrics is in place
      - indigo_service: keepalived runs with its configuration
