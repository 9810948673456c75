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

The unit of etcd is in place:
  file.managed:
    - name: /etc/systemd/system/etcd.service
    - source: salt://etcd/files/etcd.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
