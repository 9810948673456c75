include:
  - zabbix.configured

The Zabbix agent runs with its configuration:
  indigo_service.running:
    - name: zabbix-agent
    - files:
      - /etc/indigo/zabbix/agent.conf
    - require:
      - sls: common.packages
      - file: The Zabbix agent is configured
      - file: The unit of the Zabbix agent is in place
