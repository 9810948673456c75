include:
  - master.installed
  - master.configured
  - master.running
