# New keys and certificates for all hosts, from the authorities that are there. Run again within the
# hour, it does what is left; later, or with "older_than": 0 (minutes), all again.
#   salt-run state.orchestrate indigo.rotate.certificates [test=True]
# docs/operations/rotate.md
Every host passes preflight:
  indigo_cluster.preflight: []

Every host has new keys and certificates:
  indigo_rotate.renewed:
    - older_than: {{ pillar.get('older_than', 60) | tojson }}
    - require:
      - indigo_cluster: Every host passes preflight

The cluster is whole:
  indigo_cluster.whole:
    - require:
      - indigo_rotate: Every host has new keys and certificates

# Without a requisite on purpose: it tells of a run that failed, too.
What happened is told:
  indigo_cluster.told:
    - title: indigo.rotate.certificates
    - order: last
