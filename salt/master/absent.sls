# The inverse of the role: nothing of the control plane is left; etcd's data is another layer's.
{% set indigo = pillar.indigo %}

include:
  - kubeconfig.absent

{% for name in ['kube-scheduler', 'kube-controller-manager', 'kube-apiserver'] %}
{{ name }} is stopped:
  indigo_service.stopped:
    - name: {{ name }}

The unit of {{ name }} is gone:
  file.absent:
    - name: /etc/systemd/system/{{ name }}.service
    - require:
      - indigo_service: {{ name }} is stopped
{% endfor %}
