# An agent of Zabbix on every host, where services.zabbix wants it.
include:
{%- if pillar.indigo.zabbix %}
  - zabbix.installed
  - zabbix.configured
  - zabbix.running
{%- else %}
  - zabbix.absent
{%- endif %}
