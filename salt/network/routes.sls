# Pods of all nodes on one layer 2 network: docs/operations/network.md says how it works.
{% set indigo = pillar.indigo %}
{% set network = indigo.network %}
{% set interface = network.interface or salt['indigo_host.interface'](indigo.address) %}

{% if network.node %}
include:
  - common.packages
{% endif %}

The sysctls of the pod network are in place:
  file.managed:
    - name: /etc/sysctl.d/90-indigo-network.conf
    - source: salt://network/files/sysctl.conf.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - context:
        interface: {{ interface }}

# By default it takes routes that are not its own away whenever it starts, as after an update of systemd
# (systemd/systemd#29716). It reads this then, and needs no restart now; without networkd nobody reads it.
systemd-networkd leaves the pod network's routes alone:
  file.managed:
    - name: /etc/systemd/networkd.conf.d/90-indigo.conf
    - contents: |
        # Managed by Salt.
        [Network]
        ManageForeignRoutes=no
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: True

The unit of the pod network's routes is in place:
  file.managed:
    - name: /etc/systemd/system/indigo-routes.service
    - source: salt://network/files/indigo-routes.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - context:
        interface: {{ interface }}

{% if network.node %}
The template of the CNI configuration is in place:
  file.managed:
    - name: {{ indigo.components.containerd.cni_template }}
    - source: salt://network/files/document.json.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: True
    - context:
        document: {{ network.cni | tojson }}
{% endif %}

The pod network's routes are there:
  indigo_service.running:
    - name: indigo-routes
    - files:
      - /etc/sysctl.d/90-indigo-network.conf
    - require:
{%- if network.node %}
      - sls: common.packages
{%- endif %}
      - file: The sysctls of the pod network are in place
      - file: The unit of the pod network's routes is in place

# A restart of the host's network takes them away, and the unit would not know.
The kernel has the pod network's routes:
  indigo_network.routed:
    - interface: {{ interface }}
    - pods: {{ indigo.networks.pods }}
    - services: {{ indigo.networks.services }}
    - node: {{ network.node }}
    - require:
      - indigo_service: The pod network's routes are there
