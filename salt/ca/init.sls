# The CA host keeps the authorities' keys; its minion signs for the others.
# Salt brings all it needs, so there is nothing to install and no daemon to run.
include:
  - ca.configured
