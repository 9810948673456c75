include:
  - firewall.configured

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
