{% set indigo = pillar.indigo %}

include:
  - firewall.configured

{% if indigo.firewall.kind == 'nftables' %}
The firewall guards the cluster's ports:
  indigo_service.running:
    - name: indigo-firewall
    - reload: True
    - files:
      - /etc/indigo/firewall/rules.nft
    - require:
      - file: The rules of the firewall are in place
      - file: The unit of the firewall is in place

# `nft flush ruleset`, which other tools run, takes them away, and the unit would not know.
The kernel has the rules of the firewall:
  indigo_firewall.loaded:
    - unit: indigo-firewall
    - rules: /etc/indigo/firewall/rules.nft
    - require:
      - indigo_service: The firewall guards the cluster's ports
{% else %}
firewalld guards the cluster's ports:
  indigo_firewall.firewalld:
    - files:
      - /etc/firewalld/policies/indigo-ports.xml
{%- if 'node' in indigo.roles %}
      - /etc/firewalld/policies/indigo-pods.xml
{%- endif %}
    - require:
      - sls: firewall.configured
{% endif %}
