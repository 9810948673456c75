# What needs no other host than the certificate authority; then the services the masters build on.
include:
  - common
{% for role in pillar.indigo.roles %}
  - {{ role }}.prepared
{% endfor %}
