include:
  - master.installed
  - master.configured
  - master.started
  - master.running
