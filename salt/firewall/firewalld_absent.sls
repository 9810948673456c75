# What of firewalld is the site's own stays.
firewalld has forgotten the cluster:
  indigo_firewall.firewalld_absent:
    - files:
      - /etc/firewalld/policies/indigo-ports.xml
      - /etc/firewalld/policies/indigo-pods.xml
