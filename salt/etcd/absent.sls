# The inverse of the role on this host, data included. The cluster must not count on this member any
# more: docs/operations/etcd.md says how a member is removed first.
{% set etcd = pillar.indigo.components.etcd %}

etcd is stopped:
  indigo_service.stopped:
    - name: etcd

{% for path in [
  '/etc/systemd/system/etcd.service',
  etcd.grant,
  etcd.data,
  pillar.indigo.paths.etcd,
] %}
{{ path }} is gone:
  file.absent:
    - name: {{ path }}
    - require:
      - indigo_service: etcd is stopped
{% endfor %}
