{% set indigo = pillar.indigo %}

include:
  - node.installed
  - node.configured

containerd runs with its configuration:
  indigo_service.running:
    - name: containerd
    - files:
      - /etc/containerd/config.toml
    - require:
      - sls: node.installed
      - sls: node.configured
      - sls: network

{% if indigo.images.archives %}
The node's images are imported:
  indigo_image.imported:
    - archives: {{ indigo.images.archives | tojson }}
    - ctr: {{ indigo.binaries.ctr }}
    - require:
      - indigo_service: containerd runs with its configuration
{% endif %}
