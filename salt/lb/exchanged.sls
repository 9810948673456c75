{% set indigo = pillar.indigo %}
{% set haproxy = indigo.components.haproxy %}

include:
  - common.packages

# Versions that cluster.yaml declares, in place of what the distribution brought.
The declared packages are in place:
  indigo_package.exchanged:
    - name: {{ haproxy.binary }}
    - versions: {{ indigo.packages | tojson }}
    - unit: haproxy
    - tier: {{ indigo.rolling.haproxy | tojson }}
    - files:
      - /etc/haproxy/haproxy.cfg
      - {{ haproxy.config.check.ca }}
      - {{ haproxy.binary }}
    - require:
      - sls: common.packages
