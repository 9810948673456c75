# etcd's data as a backup holds it, on all members; killed half-way and run again, it finishes.
#   salt-run state.orchestrate indigo.restore                                  # says what would be lost
#   salt-run state.orchestrate indigo.restore pillar='{"confirm": "CLUSTER_NAME"}'
# "backup": another set than the newest; "key": the operator's private key, a file on the Salt
# master, where all who had the cluster's keys are lost. docs/operations/restore.md
The run is watched:
  indigo_cluster.watched:
    - title: indigo.restore
    - order: 1

{% set steps = [
  ('The backup is chosen and its price is known', 'chosen'),
  ('Lost keys come back', 'keys'),
  ('The hosts of etcd are prepared', 'prepared'),
  ('Every member has the backup', 'distributed'),
  ('Every member holds the data of the backup', 'restored'),
  ('etcd serves it', 'serving'),
  ('Nothing remembers the lost time', 'refreshed'),
  ('Bare hosts are deployed', 'deployed'),
  ('The restore is over', 'finished'),
] %}
{% for title, step in steps %}
{{ title }}:
  indigo_restore.{{ step }}:
{%- if loop.first %}
    - backup: {{ pillar.get('backup') | tojson }}
    - confirm: {{ pillar.get('confirm') | tojson }}
    - key: {{ pillar.get('key') | tojson }}
{%- else %}
    - require:
      - indigo_restore: {{ loop.previtem[0] }}
{%- endif %}
{% endfor %}

# Without a requisite on purpose: it tells of a run that failed, too.
What happened is told:
  indigo_cluster.told:
    - title: indigo.restore
    - order: last
