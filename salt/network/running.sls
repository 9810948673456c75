# What of the network waits for the node: flannel speaks to the API, and containerd writes the CNI
# configuration for `routes` once, from a template.
{% set indigo = pillar.indigo %}

include:
  - network

{% if indigo.network.kind == 'flannel' and indigo.network.node %}
flannel runs with its configuration:
  indigo_service.running:
    - name: flanneld
    - wait: False
    - files:
      - {{ indigo.network.flags['net-config-path'] }}
      - {{ indigo.paths.kubernetes }}/kubelet.kubeconfig
      - /etc/sysctl.d/90-indigo-network.conf
    - require:
      - sls: network.flannel
      - sls: kubeconfig
      - sls: node.installed
      - indigo_tokens: The node has its tokens
{% endif %}

{% if indigo.network.kind == 'routes' and indigo.network.node %}
The CNI configuration is of today's template:
  indigo_network.cni_current:
    - name: {{ indigo.components.containerd.cni_config }}
    - template: {{ indigo.components.containerd.cni_template }}
    - require:
      - sls: network.routes
    - require_in:
      - indigo_service: kubelet runs with its configuration
{% endif %}
