# Takes this node back to what it was before the formula.
{%- from 'multimaster/map.jinja' import master, master_unit, minion, config_dir, extension_dir, restart_timeout with context %}
{%- set master_drop_in = config_dir ~ '/master.d/multimaster.conf' %}
{%- set minion_drop_in = config_dir ~ '/minion.d/multimaster.conf' %}
{%- set is_master = salt['file.file_exists'](master_drop_in) %}
{%- set modules = 'multimaster.joined_by_us' in salt %}
{%- set verifies = 'multimaster.verifies' in salt and salt['multimaster.verifies'](config_dir) %}
{%- set made_by_us = is_master and modules and salt['multimaster.joined_by_us'](config_dir) %}

include:
  - multimaster.modules

{%- if is_master and not modules %}
# Nobody knows yet what kind of master this is; the states below would take it for an older one.
multimaster-clean-again:
  test.fail_without_changes:
    - name: The formula's modules were not here, and are now. Apply multimaster.clean again.
    - order: 1
    - failhard: true
    - require:
      - sls: multimaster.modules
{%- endif %}

{%- if made_by_us %}
multimaster-clean-guard:
  multimaster.another_master:
    - name: multimaster
    - config_dir: {{ config_dir | json }}
    - require:
      - sls: multimaster.modules

# Whoever waits to restart it would start it again.
multimaster-clean-requests:
  multimaster.withdrawn:
    - name: {{ master.service | json }}
    - config_dir: {{ config_dir | json }}
    - require:
      - multimaster: multimaster-clean-guard

multimaster-clean-service:
  service.dead:
    - name: {{ master.service | json }}
    - enable: false
    - require:
      - multimaster: multimaster-clean-requests

multimaster-clean-keypair:
  multimaster.left:
    - name: {{ master.service | json }}
    - config_dir: {{ config_dir | json }}
    - require:
      - service: multimaster-clean-service
{%- endif %}

{%- if is_master %}
multimaster-clean-master-files:
  file.absent:
    - names:
      - {{ master_drop_in | json }}
      - {{ (config_dir ~ '/master.d/multimaster-shared.conf') | json }}
      - {{ master_unit | json }}
      - {{ (config_dir ~ '/multimaster') | json }}
      - {{ (config_dir ~ '/multimaster.credentials') | json }}
      - {{ extension_dir | json }}
    - require:
      - sls: multimaster.modules
      {%- if made_by_us %}
      - multimaster: multimaster-clean-keypair
      {%- endif %}
{%- endif %}

# Or a cut-over that still waits would put its drop-in back.
multimaster-clean-minion-requests:
  multimaster.withdrawn:
    - name: {{ minion.service | json }}
    - config_dir: {{ config_dir | json }}
    - require:
      - sls: multimaster.modules
      {%- if made_by_us %}
      - multimaster: multimaster-clean-keypair
      {%- endif %}

multimaster-clean-minion-config:
  {%- if verifies %}
  # Its masters sign: without verifying it could not sign in to them again. It follows when they end.
  file.serialize:
    - name: {{ minion_drop_in | json }}
    - serializer: yaml
    - dataset:
        verify_master_pubkey_sign: true
        engines:
          - multimaster_minion:
              service: {{ minion.service | json }}
  {%- else %}
  file.absent:
    - name: {{ minion_drop_in | json }}
  {%- endif %}
    - require:
      - multimaster: multimaster-clean-minion-requests

{%- if is_master and not made_by_us %}
# This master was there before; it goes on with the configuration that it had.
multimaster-clean-master-restart:
  multimaster.restarted:
    - name: {{ master.service | json }}
    - config_dir: {{ config_dir | json }}
    - timeout: {{ restart_timeout | json }}
    - order: last
    - onchanges:
      - file: multimaster-clean-master-files
{%- endif %}

multimaster-clean-minion-restart:
  multimaster.restarted:
    - name: {{ minion.service | json }}
    - config_dir: {{ config_dir | json }}
    - timeout: {{ restart_timeout | json }}
    - order: last
    - onchanges:
      - file: multimaster-clean-minion-config
