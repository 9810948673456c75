# What every host has before the layers of its roles.
{% import_yaml 'common/accounts.yaml' as accounts %}

include:
  - common.packages
  - firewall
  - zabbix
  - common.accounts
  - common.folders
  - common.certificates

# The accounts one by one: a host without any has an empty common.accounts, and Salt refuses a
# requisite on an SLS without states.
extend:
  Host certificates are valid:
    indigo_pki:
      - require:
        - sls: common.folders
{%- for role in pillar.indigo.roles %}
{%-   for account in accounts.get(role, []) %}
        - user: The account {{ account }} exists
{%-   endfor %}
{%- endfor %}
