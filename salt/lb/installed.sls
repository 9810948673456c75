# Its packages come with all others of the host.
include:
  - common.packages
