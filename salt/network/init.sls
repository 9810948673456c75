# Routes or flannel, as the cluster declares.
include:
  - network.{{ pillar.indigo.network.kind }}
{%- if pillar.indigo.network.node %}
  - network.cache
{%- endif %}
