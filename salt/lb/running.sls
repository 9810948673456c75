{% set indigo = pillar.indigo %}
{% set haproxy = indigo.components.haproxy %}

include:
  - lb.configured

haproxy runs with its configuration:
  indigo_service.running:
    - name: haproxy
    - reload: True
    - tier: {{ indigo.rolling.haproxy | tojson }}
    - files:
      - /etc/haproxy/haproxy.cfg
      - {{ haproxy.config.check.ca }}
    - programs: [{{ haproxy.binary }}]
    - require:
      - indigo_host: An address of another host can be listened on
      - file: haproxy is configured
      - file: The unit of haproxy is in place

haproxy serves:
  indigo_health.serving:
    - name: haproxy
    - url: unix:{{ haproxy.alive }}
    - expect: 200 OK
    - successes: 2
    - interval: 0.1
    - timeout: 30
    - require:
      - indigo_service: haproxy runs with its configuration

# The address must not come to a host whose haproxy does not serve.
keepalived runs with its configuration:
  indigo_service.running:
    - name: keepalived
    - reload: True
    - tier: {{ indigo.rolling.keepalived | tojson }}
    - files:
      - /etc/keepalived/keepalived.conf
    - programs: [{{ indigo.components.keepalived.binary }}]
    - require:
      - indigo_health: haproxy serves
      - file: keepalived is configured
      - file: The unit of keepalived is in place
