{% set indigo = pillar.indigo %}
{% set parts = ['kube-apiserver', 'kube-controller-manager', 'kube-scheduler', 'kubectl', 'kubernetes-master'] %}

include:
  - common.folders

{% for artifact in indigo.artifacts if artifact.name in parts %}
The control plane's {{ artifact.name }} is installed:
  indigo_artifact.installed:
    - name: {{ artifact.path }}
    - sources: {{ artifact.sources | tojson }}
    - members: {{ artifact.members | tojson }}
    - require:
      - sls: common.folders
    - require_in:
      - file: kubectl is on the path
{% endfor %}

kubectl is on the path:
  file.symlink:
    - name: /usr/local/bin/kubectl
    - target: {{ indigo.binaries.kubectl }}
