# Brings the formula's own modules: state.apply does not sync, unlike state.highstate.
{%- set synced = salt['multimaster.synced']() if 'multimaster.synced' in salt else false %}
{%- if opts.test and not synced %}
{#- Or a first test run could predict nothing. A highstate syncs in test mode, too. #}
{%- do salt['saltutil.sync_all'](refresh=false) %}
{%- endif %}

# Always there, to be required; without work to do, since each sync takes seconds.
multimaster-modules:
{%- if synced %}
  test.nop:
    - name: multimaster-modules
{%- else %}
  saltutil.sync_all:
    - name: multimaster-modules
    - refresh: false
    - {{ 'force_reload_modules' if opts.test else 'reload_modules' }}: true
{%- endif %}
