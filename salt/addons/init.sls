# What runs in the cluster itself. One master brings it there, and takes away what is no longer declared.
{% set indigo = pillar.indigo %}
{% set folder = indigo.paths.kubernetes ~ '/addons' %}
{% set sources = indigo.paths.kubernetes ~ '/services' %}

include:
  - common.certificates
  - master.running

The folder of add-ons exists:
  file.directory:
    - name: {{ folder }}
    - mode: '0755'

What hands on both sides of a comparison is in place:
  file.managed:
    - name: /usr/local/lib/indigo/both-sides
    - source: salt://addons/files/both-sides.jinja
    - makedirs: True
    - mode: '0755'

{% for name, addon in indigo.addons.wanted.items() %}
{% set source = 'salt://addons/' ~ name ~ '/manifests.yaml.jinja' %}
{% set context = {'addon': addon, 'networks': indigo.networks, 'domain': indigo.cluster.domain} %}
The manifests of {{ name }} are in place:
  file.managed:
    - name: {{ folder }}/{{ name }}.yaml
    - source: {{ source }}
    - template: jinja
    - context: {{ context | tojson }}
    - mode: '0644'
    - require:
      - file: The folder of add-ons exists

{% for cloud in addon.get('clouds', []) %}
# Programs read it once, at their start: it comes before them.
The way to the cloud of {{ name }} is in the cluster:
  indigo_cloud.secret:
    - name: {{ cloud.secret }}
    - cloud: {{ cloud | tojson }}
    - require:
      - indigo_health: kube-apiserver serves
{% endfor %}

{{ name }} is in the cluster:
  indigo_addon.present:
    - name: {{ name }}
    - manifests: {{ folder }}/{{ name }}.yaml
    - key: {{ addon.key }}
    - source: {{ source }}
    - context: {{ context | tojson }}
    - require:
      - file: The manifests of {{ name }} are in place
      - file: What hands on both sides of a comparison is in place
      - indigo_health: kube-apiserver serves

{% for secret in addon.get('secrets', []) %}
The certificate of {{ name }} is in the cluster:
  indigo_object.certificate:
    - name: {{ secret.namespace }}/{{ secret.name }}
    - certificate: {{ secret.certificate }}
    - key: {{ secret.key }}
    - server: {{ indigo.components['kube-apiserver'].url }}
    - authority: {{ indigo.paths.pki }}/ca.crt
    - token_file: {{ indigo.paths.tokens }}/admin
    - require:
      - sls: common.certificates
      - indigo_addon: {{ name }} is in the cluster
{% endfor %}

{% for secret, made in addon.get('passwords', {}).items() %}
The Secret {{ secret }} of {{ name }} is in the cluster:
  indigo_addon.secret:
    - name: {{ secret }}
    - namespace: {{ made.namespace }}
    - keys: {{ made['keys'] | tojson }}
    - require:
      - indigo_addon: {{ name }} is in the cluster
{% endfor %}
{% endfor %}

{% for name, service in indigo.addons.services.items() %}
The folder of {{ name }} is in place:
  file.recurse:
    - name: {{ sources }}/{{ name }}
    - source: {{ service.source }}
    - clean: True
    # It may hold Secrets.
    - dir_mode: '0700'
    - file_mode: '0600'

The manifests of {{ name }} are in place:
  indigo_addon.built:
    - name: {{ folder }}/{{ name }}.yaml
    - folder: {{ sources }}/{{ name }}
    - service: {{ service | tojson }}
    - require:
      - file: The folder of {{ name }} is in place
      - file: The folder of add-ons exists
      - indigo_health: kube-apiserver serves

{{ name }} is in the cluster:
  indigo_addon.present:
    - name: {{ name }}
    - manifests: {{ folder }}/{{ name }}.yaml
    - require:
      - indigo_addon: The manifests of {{ name }} are in place
      - file: What hands on both sides of a comparison is in place
{% endfor %}

No other add-on is in the cluster:
  indigo_addon.only:
    - declared: {{ (indigo.addons.wanted.keys() | list + indigo.addons.services.keys() | list) | tojson }}
    - folder: {{ folder }}
    - sources: {{ sources }}
    - require:
      - indigo_health: kube-apiserver serves
