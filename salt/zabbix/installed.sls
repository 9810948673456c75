# Its package comes with all others of the host.
include:
  - common.packages
