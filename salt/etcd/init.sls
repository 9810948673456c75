# The store of the Kubernetes API, three or five members: docs/operations/etcd.md
include:
  - etcd.installed
  - etcd.configured
  - etcd.running
