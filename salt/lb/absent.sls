# The inverse of the role: the address first, so that another load balancer takes it over.
include:
  - lb.metrics_absent

keepalived is stopped:
  indigo_service.stopped:
    - name: keepalived

haproxy is stopped:
  indigo_service.stopped:
    - name: haproxy
    - require:
      - indigo_service: keepalived is stopped

{% for name in ['keepalived', 'haproxy'] %}
{% set kept = name == 'haproxy' and 'master' in pillar.indigo.roles %}
{% if not kept %}
The package {{ name }} is gone:
  pkg.removed:
    - name: {{ name }}
    - require:
      - indigo_service: {{ name }} is stopped
{% endif %}

# A master on the same host goes on with the package: its way to etcd is a haproxy too.
{% for path in ['/etc/systemd/system/' ~ name ~ '.service', '/etc/' ~ name] %}
{{ path }} is gone:
  file.absent:
    - name: {{ path }}
    - require:
      - {{ 'indigo_service: haproxy is stopped' if kept else 'pkg: The package ' ~ name ~ ' is gone' }}
{% endfor %}
{% endfor %}

{% for script in ['haproxy-serves', 'address-left'] %}
/usr/local/lib/indigo/{{ script }} is gone:
  file.absent:
    - name: /usr/local/lib/indigo/{{ script }}
    - require:
      - indigo_service: keepalived is stopped
{% endfor %}

An address of another host cannot be listened on:
  indigo_host.sysctl_absent:
    - name: /etc/sysctl.d/90-indigo-lb.conf
    - settings:
        net.{{ 'ipv6' if ':' in pillar.indigo.vip.address else 'ipv4' }}.ip_nonlocal_bind: '0'
