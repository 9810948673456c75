# The address of this node's cache of names, which the add-on coredns runs: docs/operations/network.md
{% set cache = pillar.indigo.network.cache %}

{% if cache.wanted %}
The unit of the cache's address is in place:
  file.managed:
    - name: /etc/systemd/system/indigo-dns-cache.service
    - source: salt://network/files/indigo-dns-cache.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'

The unit of the cache's address runs:
  indigo_service.running:
    - name: indigo-dns-cache
    - require:
      - file: The unit of the cache's address is in place

# Who restarts the host's network may take it away, and the unit would not know.
The kernel has the cache's address:
  indigo_network.addressed:
    - address: {{ cache.address }}
    - require:
      - indigo_service: The unit of the cache's address runs
{% endif %}
