{% set indigo = pillar.indigo %}
{% set pki = indigo.paths.pki %}
{% set apiserver = indigo.components['kube-apiserver'] %}

include:
  - master.started
{%- if 'node' in indigo.roles %}
  # On a shared host kubelet starts beside the API server: it needs seconds until its first request.
  - node.started
{%- endif %}

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
  ('kube-controller-manager', [
    'controller-manager.kubeconfig', 'pki/controller-manager-sa.key', 'tokens/kube-controller-manager',
    'pki/kube-controller-manager.crt',
  ]),
  ('kube-scheduler', ['scheduler.kubeconfig', 'tokens/kube-scheduler', 'pki/kube-scheduler.crt']),
] %}
{{ name }} runs with its configuration:
  indigo_service.running:
    - name: {{ name }}
    - wait: False
    - tier: {{ indigo.rolling[name] | tojson }}
    - files:
      - {{ pki }}/ca.crt
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
