{% set indigo = pillar.indigo %}
{% set config = indigo.paths.kubernetes %}

include:
  - node.installed
  - node.configured
  - node.containerd
  - network.running

The node has its tokens:
  indigo_tokens.present:
    - name: {{ indigo.id }}
    - tokens: {{ indigo.tokens | tojson }}

# Both would read a new token within a minute; a restart makes sure that nobody uses the old one.
kubelet runs with its configuration:
  indigo_service.running:
    - name: kubelet
    - wait: False
    - files:
      - {{ config }}/kubelet.yaml
      - {{ config }}/kubelet.kubeconfig
      - {{ indigo.paths.pki }}/ca.crt
      - {{ indigo.paths.pki }}/kubelet.crt
      - {{ indigo.paths.tokens }}/kubelet
    - require:
      - sls: common.certificates
      - sls: kubeconfig
      - sls: node.containerd
      - indigo_tokens: The node has its tokens

kube-proxy runs with its configuration:
  indigo_service.running:
    - name: kube-proxy
    - wait: False
    - files:
      - {{ config }}/kube-proxy.yaml
      - {{ config }}/kube-proxy.kubeconfig
      - {{ indigo.paths.pki }}/ca.crt
      - {{ indigo.paths.tokens }}/kube-proxy
    - require:
      - sls: kubeconfig
      - sls: node.installed
      - sls: node.configured
      - indigo_tokens: The node has its tokens
