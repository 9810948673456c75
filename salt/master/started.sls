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

{% if 'lb' not in indigo.roles %}
# The package starts a haproxy of its own, which serves nothing.
The package's own haproxy does not run:
  indigo_service.stopped:
    - name: haproxy
    - require:
      - sls: common.packages
    - require_in:
      - indigo_service: etcd-proxy runs with its configuration
{% endif %}

etcd-proxy runs with its configuration:
  indigo_service.running:
    - name: etcd-proxy
    - reload: True
    # Its restart takes etcd from this host's API server: the others must serve meanwhile.
    - tier: {{ indigo.rolling['kube-apiserver'] | tojson }}
    - files:
      - {{ indigo.paths.kubernetes }}/etcd-proxy.cfg
      - {{ pki }}/etcd-ca.crt
      - {{ pki }}/apiserver-etcd-client.crt
    - programs: [{{ indigo.components['etcd-proxy'].binary }}]
    - require:
      - file: The way to etcd is configured
      - file: The unit of etcd-proxy is in place

# An API server started before etcd has a quorum only keeps the processor from those that form it.
etcd answers:
  indigo_health.answering:
    - name: etcd quorum
    - urls: {{ apiserver.etcd_health | tojson }}
    - need: any
    - expect: '"true"'
    - ca: {{ pki }}/etcd-ca.crt
    - cert: {{ pki }}/apiserver-etcd-client.crt
    - key: {{ pki }}/apiserver-etcd-client.key
    - require:
      - sls: common.certificates

# The API server takes up a renewed serving certificate by itself, and its etcd client reads its
# certificate at each handshake; the kubelet client's, whom kubelets' certificates must be from, and the
# shared keys it reads once.
kube-apiserver runs with its configuration:
  indigo_service.running:
    - name: kube-apiserver
    - wait: False
    - tier: {{ indigo.rolling['kube-apiserver'] | tojson }}
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
      - {{ pki }}/ca.crt
      - {{ pki }}/etcd-ca.crt
    - require:
      - sls: master.installed
      - sls: master.configured
      - sls: common.certificates
      - sls: kubeconfig
      - indigo_tokens: The master has its tokens and keys
      - indigo_health: etcd answers
      - indigo_service: etcd-proxy runs with its configuration
