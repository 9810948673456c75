{% import_yaml 'common/accounts.yaml' as accounts %}

{% for role in pillar.indigo.roles %}
{% for account in accounts.get(role, []) %}
The account {{ account }} exists:
  user.present:
    - name: {{ account }}
    - system: True
    - usergroup: True
    - home: /nonexistent
    - createhome: False
    - shell: /usr/sbin/nologin
{% endfor %}
{% endfor %}
