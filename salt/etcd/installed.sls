{% set indigo = pillar.indigo %}

{% for artifact in indigo.artifacts if artifact.name == 'etcd' %}
etcd is installed:
  indigo_artifact.installed:
    - name: {{ artifact.path }}
    - sources: {{ artifact.sources | tojson }}
    - members: {{ artifact.members | tojson }}
{% endfor %}
