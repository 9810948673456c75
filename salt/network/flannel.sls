# Pods of all nodes over an overlay: docs/operations/network.md says what of it was run.
{% set indigo = pillar.indigo %}
{% set network = indigo.network %}

{% if network.node %}
{% for name, target in network.links.items() %}
The CNI plugin {{ name }} is linked:
  file.symlink:
    - name: {{ network.plugins }}/{{ name }}
    - target: {{ target }}
    - makedirs: True
{% endfor %}

The sysctls of the pod network are in place:
  file.managed:
    - name: /etc/sysctl.d/90-indigo-network.conf
    - source: salt://network/files/sysctl.conf.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - context:
        interface: null

The network of flannel is configured:
  file.managed:
    - name: {{ network.flags['net-config-path'] }}
    - source: salt://network/files/document.json.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: True
    - context:
        document: {{ network.net_conf | tojson }}

The CNI configuration of flannel is in place:
  file.managed:
    - name: /etc/cni/net.d/10-flannel.conflist
    - source: salt://network/files/document.json.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: True
    - context:
        document: {{ network.cni | tojson }}

The unit of flannel is in place:
  file.managed:
    - name: /etc/systemd/system/flanneld.service
    - source: salt://network/files/flanneld.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
{% endif %}
