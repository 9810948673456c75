{% set indigo = pillar.indigo %}
{% set apiserver = indigo.components['kube-apiserver'] %}
{% set titles = {
  'kube-apiserver': 'Kubernetes API server',
  'kube-controller-manager': 'Kubernetes controller manager',
  'kube-scheduler': 'Kubernetes scheduler',
} %}

include:
  - common.packages
  - master.exchanged
  - common.folders
  - common.certificates
  - kubeconfig
  - network

The way to etcd is configured:
  file.managed:
    - name: {{ indigo.paths.kubernetes }}/etcd-proxy.cfg
    - source: salt://master/files/etcd-proxy.cfg.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - check_cmd: {{ indigo.components['etcd-proxy'].binary }} -c -q -f
    - require:
      - indigo_package: The declared packages are in place
      - sls: common.folders
      - sls: common.certificates

The unit of etcd-proxy is in place:
  file.managed:
    - name: /etc/systemd/system/etcd-proxy.service
    - source: salt://master/files/etcd-proxy.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'

# An SELinux policy for web servers knows no etcd.
{% if grains.get('selinux', {}).get('enabled') %}
haproxy may connect to etcd:
  selinux.boolean:
    - name: haproxy_connect_any
    - value: True
    - persist: True
    - require:
      - sls: common.packages
    - require_in:
      - file: The way to etcd is configured
{% endif %}

The audit policy is in place:
  file.managed:
    - name: {{ indigo.paths.kubernetes }}/audit-policy.yaml
    - source: salt://master/files/document.yaml.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - context:
        document: {{ apiserver.audit | tojson }}
    - require:
      - sls: common.folders

{% if apiserver.authentication %}
Anonymous access is configured:
  file.managed:
    - name: {{ indigo.paths.kubernetes }}/authentication.yaml
    - source: salt://master/files/document.yaml.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - context:
        document: {{ apiserver.authentication | tojson }}
    - require:
      - sls: common.folders
{% endif %}

{% for name, title in titles.items() %}
The unit of {{ name }} is in place:
  file.managed:
    - name: /etc/systemd/system/{{ name }}.service
    - source: salt://master/files/component.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - context:
        name: {{ name }}
        title: {{ title }}
        component: {{ indigo.components[name] | tojson }}
        binary: {{ indigo.binaries[name] }}
{% endfor %}
