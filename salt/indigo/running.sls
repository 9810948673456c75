# What needs the replicated tokens.
include:
{% for role in pillar.indigo.roles %}
  - {{ role }}
{% endfor %}
