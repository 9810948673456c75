# A new key for the tokens of service accounts; killed half-way and run again, it goes on. It restarts
# the workloads whose pods have such a token ("pods": "leave" goes on where some cannot be).
#   salt-run state.orchestrate indigo.rotate.serviceaccount [test=True]
# docs/operations/rotate.md
Every host passes preflight:
  indigo_cluster.preflight: []

The service account key may be exchanged:
  indigo_rotate.ready:
    - what: serviceaccount
    - require:
      - indigo_cluster: Every host passes preflight

Every API server takes tokens of the new key:
  indigo_rotate.reached:
    - what: serviceaccount
    - phase: trusted
    - require:
      - indigo_rotate: The service account key may be exchanged

New tokens are of the new key:
  indigo_rotate.reached:
    - what: serviceaccount
    - phase: used
    - require:
      - indigo_rotate: Every API server takes tokens of the new key

Every account and every pod has a new token:
  indigo_rotate.accounts:
    - pods: {{ pillar.get('pods', 'restart') | tojson }}
    - require:
      - indigo_rotate: New tokens are of the new key

No API server takes tokens of the old key:
  indigo_rotate.reached:
    - what: serviceaccount
    - phase: dropped
    - require:
      - indigo_rotate: Every account and every pod has a new token

The exchange is over:
  indigo_rotate.finished:
    - what: serviceaccount
    - require:
      - indigo_rotate: No API server takes tokens of the old key

# Without a requisite on purpose: it tells of a run that failed, too.
What happened is told:
  indigo_cluster.told:
    - title: indigo.rotate.serviceaccount
    - order: last
