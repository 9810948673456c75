{% set indigo = pillar.indigo %}

include:
  - firewall.installed

{% if indigo.firewall.kind == 'nftables' %}
The folder of what guards the ports exists:
  file.directory:
    - name: /etc/indigo/firewall
    - user: root
    - group: root
    - mode: '0755'
    - makedirs: True

# nft -c has the kernel judge the rules: what it would refuse never becomes the file.
The rules of the firewall are in place:
  file.managed:
    - name: /etc/indigo/firewall/rules.nft
    - source: salt://firewall/files/rules.nft.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - check_cmd: /usr/sbin/nft -c -f
    - require:
      - sls: common.packages
      - file: The folder of what guards the ports exists

The unit of the firewall is in place:
  file.managed:
    - name: /etc/systemd/system/indigo-firewall.service
    - source: salt://firewall/files/indigo-firewall.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
{% else %}
firewalld knows the cluster's ports:
  file.managed:
    - name: /etc/firewalld/policies/indigo-ports.xml
    - source: salt://firewall/files/indigo-ports.xml.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: True

{% if 'node' in indigo.roles %}
firewalld knows the pod network:
  file.managed:
    - name: /etc/firewalld/policies/indigo-pods.xml
    - source: salt://firewall/files/indigo-pods.xml.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - makedirs: True
{% endif %}
{% endif %}
