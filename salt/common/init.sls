# What every host has before the layers of its roles.
include:
  - common.packages
  - common.accounts
  - common.folders
  - common.certificates

extend:
  Host certificates are valid:
    indigo_pki:
      - require:
        - sls: common.accounts
        - sls: common.folders
