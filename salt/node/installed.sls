{% set indigo = pillar.indigo %}
{% set parts = ['kubelet', 'kube-proxy', 'kubernetes-node', 'containerd', 'runc', 'cni-plugins', 'flannel', 'cni-flannel'] %}

include:
  - common.packages
  - common.folders

{% for artifact in indigo.artifacts if artifact.name in parts %}
The node's {{ artifact.name }} is installed:
  indigo_artifact.installed:
    - name: {{ artifact.path }}
    - sources: {{ artifact.sources | tojson }}
    - members: {{ artifact.members | tojson }}
    - require:
      - sls: common.folders
{% endfor %}
