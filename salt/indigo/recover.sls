# The majority of etcd's members is lost for good, some are left: go on with what they have.
#   salt-run state.orchestrate indigo.recover                                  # says what is so
#   salt-run state.orchestrate indigo.recover pillar='{"confirm": "CLUSTER_NAME"}'
# docs/operations/restore.md
The run is watched:
  indigo_cluster.watched:
    - title: indigo.recover
    - order: 1

{% set steps = [
  ('The quorum is lost and its price is known', 'lost_quorum'),
  ('The member that knows most goes on alone', 'survived'),
  ('The others join it', 'rejoined'),
  ('Nothing remembers the lost writes', 'refreshed'),
  ('The recovery is over', 'finished'),
] %}
{% for title, step in steps %}
{{ title }}:
  indigo_restore.{{ step }}:
{%- if loop.first %}
    - confirm: {{ pillar.get('confirm') | tojson }}
{%- else %}
    - require:
      - indigo_restore: {{ loop.previtem[0] }}
{%- endif %}
{% endfor %}

# Without a requisite on purpose: it tells of a run that failed, too.
What happened is told:
  indigo_cluster.told:
    - title: indigo.recover
    - order: last
