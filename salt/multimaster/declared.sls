# Refuses an invalid declaration before anything is changed; needs the formula's own modules first.
{%- from 'multimaster/map.jinja' import multimaster with context %}
{%- set synced = salt['multimaster.synced']() if 'multimaster.synced' in salt else false %}

{%- if not synced %}
{%- if opts.test %}
{#- Or a first test run could predict nothing. A highstate syncs in test mode, too. #}
{%- do salt['saltutil.sync_all'](refresh=false) %}
{%- endif %}

# state.apply does not sync; a minion that has never run a highstate lacks the modules.
multimaster-modules:
  saltutil.sync_all:
    - name: multimaster-modules
    - refresh: false
    - {{ 'force_reload_modules' if opts.test else 'reload_modules' }}: true
    - require_in:
      - multimaster: multimaster-declaration
{%- endif %}

multimaster-declaration:
  multimaster.declared:
    - name: multimaster
    - declaration: {{ multimaster | json }}
