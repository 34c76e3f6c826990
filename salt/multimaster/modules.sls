# Brings the formula's own modules: state.apply does not sync, unlike state.highstate.
{#- To ask the loader for a module that is not there makes it load all modules, which takes seconds. #}
{%- set there = salt['file.file_exists'](opts.extension_modules | path_join('modules/multimaster.py')) %}
{%- set synced = there and 'multimaster.synced' in salt and salt['multimaster.synced']() %}
{%- set kinds = ['modules', 'states', 'utils', 'engines'] %}

{%- if synced %}
# Always there, to be required; without work to do, since each sync takes a second.
multimaster-modules:
  test.nop:
    - name: multimaster-modules

{%- elif opts.test %}
{#- Or a first test run could predict nothing. A highstate syncs in test mode, too. #}
{%- for kind in kinds %}
{%- do salt['saltutil.sync_' ~ kind](refresh=false) %}
{%- endfor %}
multimaster-modules:
  saltutil.sync_modules:
    - name: multimaster-modules
    - force_reload_modules: true

{%- else %}
{%- for kind in kinds %}
multimaster-{{ kind }}:
  saltutil.sync_{{ kind }}:
    - name: multimaster-{{ kind }}
    - refresh: false
    - reload_modules: {{ loop.last | json }}
    {%- if not loop.first %}
    - require:
      - saltutil: multimaster-{{ loop.previtem }}
    {%- endif %}
{%- endfor %}
{%- endif %}
