{% set pki = pillar.indigo.pki %}

Certificate authorities are present:
  indigo_pki.authorities_managed:
    - held: {{ pki.held | json }}
    # Others, and this host itself, are waiting for it to sign.
    - order: first
