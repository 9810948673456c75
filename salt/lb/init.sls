# One address for the API: haproxy passes connections to healthy masters, keepalived holds the address.
include:
  - lb.installed
  - lb.exchanged
  - lb.configured
  - lb.running
  - lb.{{ 'metrics' if pillar.indigo.components.keepalived.metrics else 'metrics_absent' }}
