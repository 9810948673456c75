# Everything that needs no token and no other host.
include:
  - master.installed
  - master.configured
