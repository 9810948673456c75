# From bare hosts to a working cluster; killed at any moment and run again, it converges.
#   salt-run state.orchestrate indigo.deploy [test=True]
# Which hosts a step takes is what the file declares, never who happens to be up.

Every host passes preflight:
  indigo_cluster.preflight: []

# A member of etcd starts a new cluster only after this step allowed it, see docs/operations/etcd.md.
etcd may form its first quorum:
  indigo_cluster.etcd_bootstrap:
    - require:
      - indigo_cluster: Every host passes preflight

# Before the others: every host asks it for certificates.
The certificate authority is ready:
  salt.state:
    - tgt: {{ salt['indigo_model.hosts']('ca') | tojson }}
    - tgt_type: list
    - sls: indigo.authority
    - queue: True
    - require:
      - indigo_cluster: etcd may form its first quorum

# Packages, binaries, certificates and files everywhere; load balancers, etcd and containerd run.
Every host is prepared:
  salt.state:
    - tgt: {{ salt['indigo_model.hosts']() | tojson }}
    - tgt_type: list
    - sls: indigo.prepared
    - queue: True
    - require:
      - salt: The certificate authority is ready

# The holder makes them, the others receive them sealed.
The masters share their tokens and every node has its own:
  indigo_tokens.replicated:
    - require:
      - salt: Every host is prepared

# At once: a kubelet needs seconds before its first request, by then the API answers.
Masters and nodes run:
  salt.state:
    - tgt: {{ salt['indigo_model.hosts']('master', 'node') | tojson }}
    - tgt_type: list
    - sls: indigo.running
    - queue: True
    - require:
      - indigo_tokens: The masters share their tokens and every node has its own

The cluster is whole:
  indigo_cluster.whole:
    - require:
      - salt: Masters and nodes run
