{% set folder = pillar.indigo.zabbix.folder %}

include:
  - zabbix.installed

The folder of the Zabbix agent exists:
  file.directory:
    - name: /etc/indigo/zabbix
    - user: root
    - group: root
    - mode: '0755'
    - makedirs: True

The Zabbix agent is configured:
  file.managed:
    - name: /etc/indigo/zabbix/agent.conf
    - source: salt://zabbix/files/agent.conf.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - require:
      - file: The folder of the Zabbix agent exists

# Before the package, which starts what it brings.
The unit of the Zabbix agent is in place:
  file.managed:
    - name: /etc/systemd/system/zabbix-agent.service
    - source: salt://zabbix/files/zabbix-agent.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - require:
      - file: The Zabbix agent is configured
    - require_in:
      - indigo_package: The host's packages are installed

{% if folder %}
# Its owner and mode are kubelet's, which gives it to the database.
The folder of Zabbix' database exists:
  file.directory:
    - name: {{ folder }}
{% endif %}
