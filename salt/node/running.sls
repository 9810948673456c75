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
