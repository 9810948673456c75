{% set indigo = pillar.indigo %}

include:
  - node.started

# Both run before anything is waited for: kubelet needs seconds until its first request.
kubelet serves:
  indigo_health.serving:
    - name: kubelet
    - url: {{ indigo.components.kubelet.url }}
    - successes: 2
    - require:
      - indigo_service: kubelet runs with its configuration

{% if not indigo.network.cache.wanted %}
# From now on no new pod is told of a cache of names; those of before are, to their end.
No address of a cache of names is left:
  indigo_network.unaddressed:
    - address: {{ indigo.network.cache.address }}
    - require:
      - indigo_health: kubelet serves
{% endif %}

The node has its labels:
  indigo_object.labelled:
    - name: {{ indigo.name }}
    - labels: {{ indigo.labels | tojson }}
    - record: /var/lib/kubelet/indigo-labels.json
    - server: {{ indigo.vip.url }}
    - authority: {{ indigo.paths.pki }}/ca.crt
    - token_file: {{ indigo.paths.tokens }}/kubelet
    - require:
      - indigo_health: kubelet serves
