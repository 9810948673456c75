include:
  - master.installed
  - master.exchanged
  - master.configured
  - master.started
  - master.running
