# Applies what this node is: every node is a minion, the declared ones are masters too.
{#- Its grains may be those of the device that it stands for. #}
{%- set kind = 'proxy' if opts.get('proxy') else grains.get('kernel') %}
{%- if kind != 'Linux' %}
{%- set masters = salt['pillar.get']('multimaster:masters', []) | map(attribute='address') | join(', ') %}
{%- set refusal = grains.id ~ ': kind of minion: got ' ~ kind ~ '; supported: Linux; put the masters'
  ~ ' into its configuration by hand: master: [' ~ masters ~ ']' %}

# The restart outside the job and what looks at connections are Linux's.
multimaster-supported:
  test.fail_without_changes:
    - name: {{ refusal | json }}

{%- else %}
{%- from 'multimaster/map.jinja' import master_ids with context %}

include:
  {%- if grains.id in master_ids %}
  - multimaster.master
  {%- endif %}
  - multimaster.minion
{%- endif %}
