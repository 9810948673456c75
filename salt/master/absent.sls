# The inverse of the role: nothing of the control plane is left here; etcd's data is another layer's.
# It names what it removes by itself, for a host whose role is already gone from the pillar.
{% if 'node' not in pillar.indigo.roles %}
include:
  - network.absent
{% endif %}

{% for name in ['kube-scheduler', 'kube-controller-manager', 'kube-apiserver', 'etcd-proxy'] %}
{{ name }} is stopped:
  indigo_service.stopped:
    - name: {{ name }}

The unit of {{ name }} is gone:
  file.absent:
    - name: /etc/systemd/system/{{ name }}.service
    - require:
      - indigo_service: {{ name }} is stopped
{% endfor %}

# The shared secrets first of all; the other masters have theirs.
{% for path in [
  'tokens.set', 'tokens.csv', 'encryption.yaml', 'openstack.secret',
  'pki/sa.key', 'pki/controller-manager-sa.key', 'pki/sa.pub',
  'tokens/admin', 'tokens/kube-controller-manager', 'tokens/kube-scheduler',
  'admin.kubeconfig', 'controller-manager.kubeconfig', 'scheduler.kubeconfig',
  'audit-policy.yaml', 'authentication.yaml', 'etcd-proxy.cfg',
  'pki/apiserver.crt', 'pki/apiserver.key',
  'pki/apiserver-kubelet-client.crt', 'pki/apiserver-kubelet-client.key',
  'pki/apiserver-etcd-client.crt', 'pki/apiserver-etcd-client.key',
  'pki/front-proxy-client.crt', 'pki/front-proxy-client.key',
  'pki/kube-controller-manager.crt', 'pki/kube-controller-manager.key',
  'pki/kube-scheduler.crt', 'pki/kube-scheduler.key',
  'pki/etcd-ca.crt', 'pki/front-proxy-ca.crt',
] %}
/etc/kubernetes/{{ path }} is gone:
  file.absent:
    - name: /etc/kubernetes/{{ path }}
    - require:
      - indigo_service: kube-apiserver is stopped
      - indigo_service: kube-controller-manager is stopped
{% endfor %}

kubectl is gone from the path:
  file.absent:
    - name: /usr/local/bin/kubectl

# A load balancer on the same host goes on with the package.
{% if 'lb' not in pillar.indigo.roles %}
The package haproxy is gone:
  pkg.removed:
    - name: haproxy
    - require:
      - indigo_service: etcd-proxy is stopped

# The package's own configuration stays where a package is only removed.
/etc/haproxy is gone:
  file.absent:
    - name: /etc/haproxy
    - require:
      - pkg: The package haproxy is gone
{% endif %}
