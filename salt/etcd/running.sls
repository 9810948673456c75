{% set etcd = pillar.indigo.components.etcd %}

include:
  - etcd.installed
  - etcd.configured

# With data there is nothing to decide. Without, it joins those that answer, or forms a new cluster
# if the orchestration allowed it.
The way into the cluster is known:
  indigo_etcd.member_configured:
    - name: {{ etcd.initial }}
    - require:
      - sls: etcd.installed
      - sls: etcd.configured
      - sls: common.certificates

# etcd reads its certificate at each handshake, its authority only once.
etcd runs with its configuration:
  indigo_service.running:
    - name: etcd
    - wait: False
    - tier: {{ pillar.indigo.rolling.etcd | tojson }}
    - files:
      - {{ etcd.ca }}
    - require:
      - indigo_etcd: The way into the cluster is known

etcd serves:
  indigo_health.serving:
    - name: etcd
    - url: {{ etcd.url }}/health
    - ca: {{ etcd.ca }}
    - cert: {{ etcd.cert }}
    - key: {{ etcd.key }}
    - expect: '"health":"true"'
    - successes: 2
    - require:
      - indigo_service: etcd runs with its configuration

The member has settled in:
  indigo_etcd.member_settled:
    - require:
      - indigo_health: etcd serves
