{% set indigo = pillar.indigo %}

The Kubernetes configuration folder exists:
  file.directory:
    - name: {{ indigo.paths.kubernetes }}
    - user: root
    - group: root
    - mode: '0755'

# No secret inside: each names the file of its token.
{% for config in indigo.kubeconfigs %}
The kubeconfig {{ config.name }} is in place:
  file.managed:
    - name: {{ config.path }}
    - source: salt://kubeconfig/files/kubeconfig.jinja
    - template: jinja
    - user: {{ config.user }}
    - group: {{ config.user }}
    - mode: '0600'
    - context:
        config: {{ config | tojson }}
    - require:
      - file: The Kubernetes configuration folder exists
{% endfor %}
