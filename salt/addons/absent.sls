# The inverse of addons: whatever add-ons and services brought into the cluster goes, volumes' data with it.
{% set indigo = pillar.indigo %}

No add-on is in the cluster:
  indigo_addon.only:
    - declared: []
    - folder: {{ indigo.paths.kubernetes }}/addons
    - sources: {{ indigo.paths.kubernetes }}/services
