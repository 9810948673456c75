{% set indigo = pillar.indigo %}

include:
  - common.accounts
  - common.folders

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
      - sls: common.folders
{%- if config.user != 'root' %}
      - user: The account {{ config.user }} exists
{%- endif %}
{% endfor %}
