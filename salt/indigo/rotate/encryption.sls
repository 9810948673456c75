# A new key for Secrets at rest; killed half-way and run again, it goes on.
#   salt-run state.orchestrate indigo.rotate.encryption [test=True]
# docs/operations/rotate.md
Every host passes preflight:
  indigo_cluster.preflight: []

The encryption key may be exchanged:
  indigo_rotate.ready:
    - what: encryption
    - require:
      - indigo_cluster: Every host passes preflight

# Before anyone writes with it: what one API server writes, all must be able to read.
Every API server reads with the new key:
  indigo_rotate.reached:
    - what: encryption
    - phase: trusted
    - require:
      - indigo_rotate: The encryption key may be exchanged

Every API server writes with the new key:
  indigo_rotate.reached:
    - what: encryption
    - phase: used
    - require:
      - indigo_rotate: Every API server reads with the new key

Every Secret is encrypted by the new key:
  indigo_rotate.rewritten:
    - require:
      - indigo_rotate: Every API server writes with the new key

No API server knows the old key:
  indigo_rotate.reached:
    - what: encryption
    - phase: dropped
    - require:
      - indigo_rotate: Every Secret is encrypted by the new key

The exchange is over:
  indigo_rotate.finished:
    - what: encryption
    - require:
      - indigo_rotate: No API server knows the old key

# Without a requisite on purpose: it tells of a run that failed, too.
What happened is told:
  indigo_cluster.told:
    - title: indigo.rotate.encryption
    - order: last
