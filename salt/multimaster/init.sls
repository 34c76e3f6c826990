# Applies what this node is: every node is a minion, the declared ones are masters too.
{%- from 'multimaster/map.jinja' import master_ids with context %}

include:
  {%- if grains.id in master_ids %}
  - multimaster.master
  {%- endif %}
  - multimaster.minion
