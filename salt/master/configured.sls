{% set indigo = pillar.indigo %}
{% set apiserver = indigo.components['kube-apiserver'] %}
{% set titles = {
  'kube-apiserver': 'Kubernetes API server',
  'kube-controller-manager': 'Kubernetes controller manager',
  'kube-scheduler': 'Kubernetes scheduler',
} %}

include:
  - common.folders
  - common.certificates
  - kubeconfig
  - network

The audit policy is in place:
  file.managed:
    - name: {{ indigo.paths.kubernetes }}/audit-policy.yaml
    - source: salt://master/files/document.yaml.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - context:
        document: {{ apiserver.audit | tojson }}
    - require:
      - sls: common.folders

{% if apiserver.authentication %}
Anonymous access is configured:
  file.managed:
    - name: {{ indigo.paths.kubernetes }}/authentication.yaml
    - source: salt://master/files/document.yaml.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - context:
        document: {{ apiserver.authentication | tojson }}
    - require:
      - sls: common.folders
{% endif %}

{% for name, title in titles.items() %}
The unit of {{ name }} is in place:
  file.managed:
    - name: /etc/systemd/system/{{ name }}.service
    - source: salt://master/files/component.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - context:
        name: {{ name }}
        title: {{ title }}
        component: {{ indigo.components[name] | tojson }}
        binary: {{ indigo.binaries[name] }}
{% endfor %}
