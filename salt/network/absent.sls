{% for name in ['flanneld', 'indigo-routes', 'indigo-dns-cache'] %}
{{ name }} is stopped:
  indigo_service.stopped:
    - name: {{ name }}

The unit of {{ name }} is gone:
  file.absent:
    - name: /etc/systemd/system/{{ name }}.service
    - require:
      - indigo_service: {{ name }} is stopped
{% endfor %}

{% for path in [
    '/etc/sysctl.d/90-indigo-network.conf', '/etc/systemd/networkd.conf.d/90-indigo.conf',
    '/etc/cni/net.d/10-flannel.conflist', '/etc/kube-flannel', '/opt/indigo/cni',
] %}
{{ path }} is gone:
  file.absent:
    - name: {{ path }}
{% endfor %}
