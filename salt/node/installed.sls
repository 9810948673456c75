{% set indigo = pillar.indigo %}
{% set parts = ['kubelet', 'kube-proxy', 'kubernetes-node', 'containerd', 'runc', 'cni-plugins', 'flannel', 'cni-flannel'] %}

# What kubelet, kube-proxy and the CNI plugins call.
The node's packages are installed:
  pkg.installed:
    - pkgs:
      - iptables
      - {{ 'conntrack-tools' if grains.os_family == 'RedHat' else 'conntrack' }}
      - ethtool
      - socat
{%- if indigo.network.kind == 'routes' %}
    - require_in:
      - indigo_service: The pod network's routes are there
{%- endif %}

{% for artifact in indigo.artifacts if artifact.name in parts %}
The node's {{ artifact.name }} is installed:
  indigo_artifact.installed:
    - name: {{ artifact.path }}
    - sources: {{ artifact.sources | tojson }}
    - members: {{ artifact.members | tojson }}
{% endfor %}
