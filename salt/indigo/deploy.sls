# From bare hosts to a working cluster; killed at any moment and run again, it converges.
#   salt-run state.orchestrate indigo.deploy [test=True] [pillar='{"everywhere": true}']
# Which hosts a step takes is what the file declares, never who happens to be up.

Every host passes preflight:
  indigo_cluster.preflight: []

# A member of etcd starts a new cluster only after this step allowed it, see docs/operations/etcd.md.
etcd may form its first quorum:
  indigo_cluster.etcd_bootstrap:
    - require:
      - indigo_cluster: Every host passes preflight

# The holder makes them, the others receive them sealed: before anything is installed, so that each
# host then needs one run.
The masters share their tokens and every node has its own:
  indigo_tokens.replicated:
    - require:
      - indigo_cluster: etcd may form its first quorum

# At once, on the hosts where something differs. What needs another host waits for that host's health, not
# for a step: certificates for the authority, API servers for etcd's quorum, controllers for the API. A
# kubelet needs seconds until its first request, by then the API answers.
Every host runs its roles:
  indigo_cluster.hosts_run:
    - sls: indigo.host
    - everywhere: {{ pillar.get('everywhere', False) | tojson }}
    - require:
      - indigo_tokens: The masters share their tokens and every node has its own

The cluster is whole:
  indigo_cluster.whole:
    - require:
      - indigo_cluster: Every host runs its roles

The add-ons work:
  indigo_cluster.addons_work:
    - require:
      - indigo_cluster: The cluster is whole

# Without a requisite on purpose: it tells of a run that failed, too.
What happened is told:
  indigo_cluster.told:
    - title: indigo.deploy
    - order: last
