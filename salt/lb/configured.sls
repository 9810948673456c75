{% set indigo = pillar.indigo %}
{% set family = 'ipv6' if ':' in indigo.vip.address else 'ipv4' %}

include:
  - common.certificates
  - lb.installed
  - lb.exchanged

# haproxy listens on the address on every load balancer, also where keepalived has not put it yet.
An address of another host can be listened on:
  indigo_host.sysctl:
    - name: /etc/sysctl.d/90-indigo-lb.conf
    - settings:
        net.{{ family }}.ip_nonlocal_bind: '1'

# An SELinux policy for web servers knows neither the port of the API nor this use.
{% if grains.get('selinux', {}).get('enabled') %}
haproxy may connect to the API servers:
  selinux.boolean:
    - name: haproxy_connect_any
    - value: True
    - persist: True
    - require:
      - sls: common.packages
    - require_in:
      - file: haproxy is configured
{% endif %}

haproxy is configured:
  file.managed:
    - name: /etc/haproxy/haproxy.cfg
    - source: salt://lb/files/haproxy.cfg.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - check_cmd: {{ indigo.components.haproxy.binary }} -c -q -f
    - require:
      - indigo_package: The declared packages are in place
      - sls: common.certificates

The unit of haproxy is in place:
  file.managed:
    - name: /etc/systemd/system/haproxy.service
    - source: salt://lb/files/haproxy.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - require:
      - sls: common.packages

The folder of scripts exists:
  file.directory:
    - name: /usr/local/lib/indigo
    - user: root
    - group: root
    - mode: '0755'

The check of haproxy is in place:
  file.managed:
    - name: /usr/local/lib/indigo/haproxy-serves
    - source: salt://lb/files/haproxy-serves.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0755'
    - require:
      - file: The folder of scripts exists

What ends connections when the address leaves is in place:
  file.managed:
    - name: /usr/local/lib/indigo/address-left
    - source: salt://lb/files/address-left.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0755'
    - require:
      - file: The folder of scripts exists

# keepalived before 2.2.8 kills itself when it tests a configuration with an unprivileged script
# user: https://github.com/acassen/keepalived/issues/2587. So a copy without that user is tested.
keepalived is configured:
  file.managed:
    - name: /etc/keepalived/keepalived.conf
    - source: salt://lb/files/keepalived.conf.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - check_cmd: >-
        sh -c 'sed "s/script_user .*/script_user root/" "$0" > "$0.test" &&
        {{ indigo.components.keepalived.binary }} -t -f "$0.test"; found=$?; rm -f "$0.test"; exit $found'
    - require:
      - indigo_package: The declared packages are in place
      - file: The check of haproxy is in place
      - file: What ends connections when the address leaves is in place

The unit of keepalived is in place:
  file.managed:
    - name: /etc/systemd/system/keepalived.service
    - source: salt://lb/files/keepalived.service.jinja
    - template: jinja
    - user: root
    - group: root
    - mode: '0644'
    - require:
      - sls: common.packages
