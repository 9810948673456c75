include:
  - node.installed
  - node.configured
  - node.containerd
  - node.started
  - node.running
