# The inverse of the host's whole presence: its roles' layers, then what they shared.
# The keys of the certificate authorities stay: ca.absent asks for a confirmation first.
{% import_yaml 'common/accounts.yaml' as accounts %}
{% set indigo = pillar.indigo %}
{% set layers = indigo.roles | reject('equalto', 'ca') | list %}

include:
  - firewall.absent
  - zabbix.absent
{% for role in layers %}
  - {{ role }}.absent
{% endfor %}

{% if 'lb' in layers and 'master' in layers %}
# Each of the two layers leaves it to the other.
The package haproxy is gone:
  pkg.removed:
    - name: haproxy
    - require:
      - sls: lb.absent
      - sls: master.absent
{% endif %}

{% for path in [
  indigo.paths.kubernetes, indigo.paths.artifacts, '/usr/local/lib/indigo', '/var/lib/indigo/deployed.json'
] %}
{{ path }} is gone with all in it:
  file.absent:
    - name: {{ path }}
{% if layers %}
    - require:
{% for role in layers %}
      - sls: {{ role }}.absent
{% endfor %}
{% endif %}
{% endfor %}

{% for role in layers %}
{% for account in accounts.get(role, []) %}
The account {{ account }} is gone:
  user.absent:
    - name: {{ account }}
    - require:
      - sls: {{ role }}.absent
{% endfor %}
{% endfor %}
