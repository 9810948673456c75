{% set indigo = pillar.indigo %}
{% set proxy = indigo.components['etcd-proxy'] %}

# A host that is also a load balancer has one haproxy for both, which is exchanged there.
{% if 'lb' in indigo.roles %}
include:
  - lb.exchanged
{% else %}
include:
  - common.packages

The declared packages are in place:
  indigo_package.exchanged:
    - name: {{ proxy.binary }}
    - versions: {{ indigo.packages | tojson }}
    - unit: etcd-proxy
    - tier: {{ indigo.rolling['kube-apiserver'] | tojson }}
    - files:
      - {{ indigo.paths.kubernetes }}/etcd-proxy.cfg
      - {{ indigo.paths.pki }}/etcd-ca.crt
      - {{ indigo.paths.pki }}/apiserver-etcd-client.crt
      - {{ proxy.binary }}
    - require:
      - sls: common.packages
{% endif %}
