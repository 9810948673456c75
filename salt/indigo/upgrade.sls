# From the versions and settings that run to those that are declared, host by host, while the cluster
# serves; killed or stopped at any moment and run again, it goes on.
#   salt-run state.orchestrate indigo.upgrade [test=True]
#   pillar='{"removed_apis": "accepted"}'    although objects or clients use APIs that go
#   pillar='{"force": true}'                 also evict pods that nothing would bring back
# docs/operations/upgrade.md
{% set stages = [
  ('etcd members are upgraded one by one', 'etcd'),
  ('Load balancers are upgraded one by one', 'lb'),
  ('API servers are upgraded one by one', 'api'),
  ('Controllers are upgraded one by one', 'controllers'),
  ('Nodes are upgraded in batches', 'node'),
] %}

Every host passes preflight:
  indigo_cluster.preflight: []

The declared versions may follow on those that run:
  indigo_upgrade.allowed:
    - removed_apis: {{ pillar.get('removed_apis') | tojson }}
    - require:
      - indigo_cluster: Every host passes preflight

# Before the backup: its tools come with etcd's new release.
Every host has the new binaries:
  indigo_upgrade.fetched:
    - sls: indigo.fetched
    - require:
      - indigo_upgrade: The declared versions may follow on those that run

A proven backup is there:
  indigo_upgrade.backed_up:
    - require:
      - indigo_upgrade: Every host has the new binaries

{% for title, stage in stages %}
{{ title }}:
  indigo_upgrade.stage:
    - stage: {{ stage }}
    - force: {{ pillar.get('force', False) | tojson }}
    - require:
      - indigo_upgrade: {{ stages[loop.index0 - 1][0] if loop.index0 else 'A proven backup is there' }}
{% endfor %}

# The rest of what differs: files that no unit reads at start, the network, add-ons.
Every host runs its roles:
  indigo_cluster.hosts_run:
    - sls: indigo.host
    - title: indigo.upgrade
    - require:
      - indigo_upgrade: {{ stages[-1][0] }}

The cluster is whole:
  indigo_cluster.whole:
    - require:
      - indigo_cluster: Every host runs its roles

The add-ons work:
  indigo_cluster.addons_work:
    - require:
      - indigo_cluster: The cluster is whole

# Without a requisite on purpose, these two: a run that failed says what it left behind, too.
Nothing is left behind:
  indigo_upgrade.left:
    - order: -1

What happened is told:
  indigo_cluster.told:
    - title: indigo.upgrade
    - order: last
