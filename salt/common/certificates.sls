{% set pki = pillar.indigo.pki %}

Host certificates are valid:
  indigo_pki.certificates_managed:
    - ca: {{ pki.ca | json }}
    - authorities: {{ pki.authorities | json }}
    - certificates: {{ pki.certificates | json }}

{% if pki.gone %}
Certificates that are not wanted any more are gone:
  indigo_pki.certificates_absent:
    - certificates: {{ pki.gone | json }}
{% endif %}
