# What the roles of one host need of packages and binaries, beside what runs: it takes nothing away.
include:
  - common.folders
{% for role in pillar.indigo.roles if role != 'ca' %}
  - {{ role }}.installed
{% endfor %}

The declared packages are fetched:
  indigo_package.fetched:
    - versions: {{ pillar.indigo.get('packages', {}) | tojson }}
