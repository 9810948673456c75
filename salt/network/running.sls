# What of the network needs the node's tokens: flannel speaks to the API, routes do not.
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
