# Brings the formula's own modules to the master that orchestrates, which may have nothing yet.
{#- Also for a test run, which could say nothing without. #}
{%- for kind in ['runners', 'states', 'utils'] %}
{%- do salt['saltutil.runner']('saltutil.sync_' ~ kind) %}
{%- endfor %}

multimaster-orch-modules:
  test.nop:
    - name: multimaster-orch-modules
    - force_reload_modules: true
