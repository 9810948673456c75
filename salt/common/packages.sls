{% import_yaml 'common/packages.yaml' as packages %}
{% set names = [] %}
{% set more = [pillar.indigo.firewall.kind] + (['zabbix'] if pillar.indigo.zabbix else []) %}
{% for part in ['all'] + pillar.indigo.roles + more %}
{%   do names.extend(packages[part].get(grains.os_family, [])) %}
{% endfor %}

# One transaction for all of them; the package index is fetched only when one is missing.
The host's packages are installed:
  indigo_package.installed:
    - pkgs: {{ names | unique | sort | tojson }}
    - versions: {{ pillar.indigo.get('packages', {}) | tojson }}
{%- if grains.os_family == 'Debian' %}
    - install_recommends: False
{%- endif %}
