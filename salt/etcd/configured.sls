{% set etcd = pillar.indigo.components.etcd %}

include:
  - common.accounts
  - common.folders
  - common.certificates

Create the etcd data directory:
  file.directory:
    - name: {{ etcd.data }}
    - user: {{ etcd.user }}
    - group: {{ etcd.user }}
    - mode: '0700'
    - require:
      - sls: common.accounts

# Its data, and so whatever a reader of etcd may know: docs/operations/backup.md
The folder of backups exists:
  file.directory:
    - name: {{ pillar.indigo.backup.folder }}
    - user: root
    - group: root
    - mode: '0700'
    - makedirs: True

# Its time is that from which a first backup is waited for.
The first backup is waited for:
  file.managed:
    - name: {{ pillar.indigo.backup.folder }}/.since
    - contents: Managed by Salt.
    - replace: False
    - mode: '0600'
    - require:
      - file: The folder of backups exists

The unit of etcd is in place:
  file.managed:
    - name: /etc/systemd/system/etcd.service
    - source: salt://etcd/files/etcd.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
