# Everything that needs no token and no other host.
include:
  - node.installed
  - node.configured
  - node.containerd
