{% for config in pillar.indigo.kubeconfigs %}
The kubeconfig {{ config.name }} is gone:
  file.absent:
    - name: {{ config.path }}
{% endfor %}
