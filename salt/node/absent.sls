# The inverse of the role: pods end here, so drain the node and delete its Node object before.
# It names what it removes by itself, for a host whose role is already gone from the pillar.
include:
  - network.absent

{% for name in ['kubelet', 'kube-proxy'] %}
{{ name }} is stopped:
  indigo_service.stopped:
    - name: {{ name }}
{% endfor %}

Nothing of the pods is left:
  indigo_node.cleared:
    - require:
      - indigo_service: kubelet is stopped
      - indigo_service: kube-proxy is stopped

containerd is stopped:
  indigo_service.stopped:
    - name: containerd
    - require:
      - indigo_node: Nothing of the pods is left

{% for name in ['kubelet', 'kube-proxy', 'containerd'] %}
The unit of {{ name }} is gone:
  file.absent:
    - name: /etc/systemd/system/{{ name }}.service
    - require:
      - indigo_service: {{ name }} is stopped
{% endfor %}

{% for path in [
  '/etc/containerd', '/etc/cni/net.d/10-containerd-net.conflist',
  '/etc/kubernetes/kubelet.yaml', '/etc/kubernetes/kubelet.kubeconfig',
  '/etc/kubernetes/kube-proxy.yaml', '/etc/kubernetes/kube-proxy.kubeconfig',
  '/etc/kubernetes/tokens/kubelet', '/etc/kubernetes/tokens/kube-proxy',
  '/etc/kubernetes/pki/kubelet.crt', '/etc/kubernetes/pki/kubelet.key',
  '/run/containerd', '/var/lib/cni', '/var/lib/indigo/images',
] %}
{{ path }} is gone:
  file.absent:
    - name: {{ path }}
    - require:
      - indigo_service: containerd is stopped
{% endfor %}

# Each may be a disk of its own.
{% for path in ['/var/lib/containerd', '/var/lib/kubelet'] %}
{{ path }} is empty:
  indigo_node.emptied:
    - name: {{ path }}
    - require:
      - indigo_service: containerd is stopped
{% endfor %}
