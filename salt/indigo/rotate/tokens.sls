# New tokens for everyone who has one; killed half-way and run again, it goes on.
#   salt-run state.orchestrate indigo.rotate.tokens [test=True]
# docs/operations/rotate.md
Every host passes preflight:
  indigo_cluster.preflight: []

The tokens may be exchanged:
  indigo_rotate.ready:
    - what: tokens
    - require:
      - indigo_cluster: Every host passes preflight

Every API server takes the new tokens beside the old ones:
  indigo_rotate.reached:
    - what: tokens
    - phase: trusted
    - require:
      - indigo_rotate: The tokens may be exchanged

# On nodes, too: each has its own.
Everyone uses its new token:
  indigo_rotate.reached:
    - what: tokens
    - phase: used
    - require:
      - indigo_rotate: Every API server takes the new tokens beside the old ones

No API server takes an old token:
  indigo_rotate.reached:
    - what: tokens
    - phase: dropped
    - require:
      - indigo_rotate: Everyone uses its new token

The exchange is over:
  indigo_rotate.finished:
    - what: tokens
    - require:
      - indigo_rotate: No API server takes an old token

# Without a requisite on purpose: it tells of a run that failed, too.
What happened is told:
  indigo_cluster.told:
    - title: indigo.rotate.tokens
    - order: last
