{% set pki = pillar.indigo.pki %}

Certificate authorities are present:
  indigo_pki.authorities_managed:
    - held: {{ pki.held | json }}
