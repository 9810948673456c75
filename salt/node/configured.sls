{% set indigo = pillar.indigo %}

include:
  - common.folders
  - common.certificates
  - kubeconfig
  - network

containerd is configured:
  file.managed:
    - name: /etc/containerd/config.toml
    - source: salt://node/files/containerd.toml.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: True

{% for name in ['kubelet', 'kube-proxy'] %}
{{ name }} is configured:
  file.managed:
    - name: {{ indigo.paths.kubernetes }}/{{ name }}.yaml
    - source: salt://node/files/{{ name }}.yaml.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0600'
    - require:
      - sls: common.folders
{% endfor %}

{% for name in ['containerd', 'kubelet', 'kube-proxy'] %}
The unit of {{ name }} is in place:
  file.managed:
    - name: /etc/systemd/system/{{ name }}.service
    - source: salt://node/files/{{ name }}.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
{% endfor %}
