# New certificate authorities; both are trusted in between. Killed half-way and run again, it goes on. It
# restarts workloads whose pods speak to the API ("pods": "leave" goes on where some cannot be).
#   salt-run state.orchestrate indigo.rotate.ca [test=True]
# docs/operations/rotate.md
Every host passes preflight:
  indigo_cluster.preflight: []

The authorities may be exchanged:
  indigo_rotate.authorities_ready:
    - require:
      - indigo_cluster: Every host passes preflight

Every host trusts the old and the new authorities:
  indigo_rotate.authorities_reached:
    - phase: trusted
    - require:
      - indigo_rotate: The authorities may be exchanged

Every pod trusts both:
  indigo_rotate.pods_trust:
    - pods: {{ pillar.get('pods', 'restart') | tojson }}
    - require:
      - indigo_rotate: Every host trusts the old and the new authorities

Every certificate is of the new authorities:
  indigo_rotate.authorities_reached:
    - phase: used
    - require:
      - indigo_rotate: Every pod trusts both

No host trusts the old authorities:
  indigo_rotate.authorities_reached:
    - phase: dropped
    - require:
      - indigo_rotate: Every certificate is of the new authorities

The exchange is over:
  indigo_rotate.authorities_finished:
    - require:
      - indigo_rotate: No host trusts the old authorities

# Without a requisite on purpose: it tells of a run that failed, too.
What happened is told:
  indigo_cluster.told:
    - title: indigo.rotate.ca
    - order: last
