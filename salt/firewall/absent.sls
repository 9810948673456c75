# The inverse of either kind.
include:
  - firewall.nftables_absent
  - firewall.firewalld_absent
