# Refused unless the cluster's name is given, see docs/operations/certificates.md:
#   salt CA state.apply ca.absent pillar='{"indigo": {"pki": {"remove_authorities_of": "NAME"}}}'
{% set pki = pillar.indigo.pki %}

Certificate authorities are gone:
  indigo_pki.authorities_absent:
    - held: {{ pki.held | json }}
    - confirm: {{ pki.get('remove_authorities_of', '') | json }}
