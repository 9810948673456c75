# All that the roles of one host need, as `state.apply` does it, without the site's own states.
include:
  - common
{% for role in pillar.indigo.roles %}
  - {{ role }}
{% endfor %}
{% if 'addons' in pillar.indigo %}
  - addons
{% endif %}

A deploy may leave this host alone until something differs:
  indigo_deployed.recorded:
    - order: last
