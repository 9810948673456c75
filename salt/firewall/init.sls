# Nobody but those of docs/operations/ports.md reaches the cluster's ports; nothing else is touched.
{% set kind = pillar.indigo.firewall.kind %}

include:
{%- if kind == 'none' %}
  - firewall.absent
{%- else %}
  - firewall.installed
  - firewall.configured
  - firewall.running
  - firewall.{{ 'nftables' if kind == 'firewalld' else 'firewalld' }}_absent
{%- endif %}
