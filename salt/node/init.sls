include:
  - node.installed
  - node.configured
  - node.containerd
  - node.running
