# The inverse of the role on this host, data included. The cluster must not count on this member any
# more: docs/operations/etcd.md says how a member is removed first.
# Backups stay, for they may be the last: docs/operations/backup.md.
{% set etcd = pillar.indigo.components.etcd %}

etcd is stopped:
  indigo_service.stopped:
    - name: etcd

{% for path in [
  '/etc/systemd/system/etcd.service',
  etcd.grant,
  etcd.data,
  pillar.indigo.paths.etcd,
  '/var/lib/indigo-restore.json',
  '/var/lib/indigo-restore.json.lock',
] %}
{{ path }} is gone:
  file.absent:
    - name: {{ path }}
    - require:
      - indigo_service: etcd is stopped
{% endfor %}
