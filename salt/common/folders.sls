{% set paths = pillar.indigo.paths %}

{% for title, path in [
  ('The folder of what Kubernetes shares exists', paths.kubernetes),
  ('The folder of Kubernetes certificates exists', paths.pki),
  ('The folder of tokens exists', paths.tokens),
  ('The folder of verified binaries exists', paths.artifacts),
] %}
{{ title }}:
  file.directory:
    - name: {{ path }}
    - user: root
    - group: root
    - mode: '0755'
{% endfor %}

{% if 'etcd' in pillar.indigo.roles %}
{% for title, path in [
  ('The etcd configuration folder exists', paths.etcd),
  ('The folder of etcd certificates exists', paths.etcd_pki),
] %}
{{ title }}:
  file.directory:
    - name: {{ path }}
    - user: root
    - group: root
    - mode: '0755'
{% endfor %}
{% endif %}
