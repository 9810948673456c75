# Roles come from pillar, which the Salt master derives by minion id: a host cannot claim one.
base:
  '*':
    - common
  'indigo:roles:ca':
    - match: pillar
    - ca
  'indigo:roles:lb':
    - match: pillar
    - lb
  'indigo:roles:etcd':
    - match: pillar
    - etcd
  'indigo:roles:master':
    - match: pillar
    - master
  'indigo:roles:node':
    - match: pillar
    - node
  # One master brings the add-ons into the cluster.
  'indigo:addons:cluster:*':
    - match: pillar
    - addons
