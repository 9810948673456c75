{% set indigo = pillar.indigo %}
{% set pki = indigo.paths.pki %}
{% set apiserver = indigo.components['kube-apiserver'] %}

include:
  - master.installed
  - master.configured

The master has its tokens and keys:
  indigo_tokens.present:
    - name: {{ indigo.id }}
    - tokens: {{ indigo.tokens | tojson }}
    - set: True

# The API server takes up a renewed serving certificate or authority by itself, and its etcd client
# reads its certificate at each handshake; the kubelet client's and the shared keys it reads once.
kube-apiserver runs with its configuration:
  indigo_service.running:
    - name: kube-apiserver
    - wait: False
    - files:
      - {{ indigo.paths.kubernetes }}/tokens.csv
      - {{ indigo.paths.kubernetes }}/encryption.yaml
      - {{ indigo.paths.kubernetes }}/audit-policy.yaml
{%- if apiserver.authentication %}
      - {{ indigo.paths.kubernetes }}/authentication.yaml
{%- endif %}
      - {{ pki }}/sa.key
      - {{ pki }}/sa.pub
      - {{ pki }}/apiserver-kubelet-client.crt
      - {{ pki }}/etcd-ca.crt
    - require:
      - sls: master.installed
      - sls: master.configured
      - sls: kubeconfig
      - indigo_tokens: The master has its tokens and keys

# A controller manager started before this exits once: its permissions are read here.
kube-apiserver serves:
  indigo_health.serving:
    - name: kube-apiserver
    - url: {{ apiserver.url }}/readyz
    - ca: {{ pki }}/ca.crt
    - successes: 2
    - require:
      - indigo_service: kube-apiserver runs with its configuration

{% for name, own in [
  ('kube-controller-manager', ['controller-manager.kubeconfig', 'pki/controller-manager-sa.key']),
  ('kube-scheduler', ['scheduler.kubeconfig']),
] %}
{{ name }} runs with its configuration:
  indigo_service.running:
    - name: {{ name }}
    - wait: False
    - files:
{%- for file in own %}
      - {{ indigo.paths.kubernetes }}/{{ file }}
{%- endfor %}
    - require:
      - indigo_health: kube-apiserver serves
{% endfor %}

# One GET for each object; it is written only where the live one differs.
The access rules that Kubernetes does not bring along exist:
  indigo_object.present:
    - objects: {{ indigo.rbac | tojson }}
    - server: {{ apiserver.url }}
    - authority: {{ pki }}/ca.crt
    - token_file: {{ indigo.paths.tokens }}/admin
    - require:
      - indigo_health: kube-apiserver serves

{% for name in ['kube-controller-manager', 'kube-scheduler'] %}
{{ name }} serves:
  indigo_health.serving:
    - name: {{ name }}
    - url: {{ indigo.components[name].url }}/healthz
    - ca: {{ pki }}/ca.crt
    - successes: 2
    - require:
      - indigo_service: {{ name }} runs with its configuration
{% endfor %}
