# All members start at once and wait for each other.
include:
  - etcd
