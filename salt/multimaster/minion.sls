# Makes this node a minion of every declared master.
{%- from 'multimaster/map.jinja' import multimaster, minion, config_dir, restart_timeout with context %}
{%- set drop_in = config_dir ~ '/minion.d/multimaster.conf' %}

include:
  - multimaster.declared

multimaster-minion-signing:
  multimaster.signing_pub:
    - name: multimaster
    - config_dir: {{ config_dir | json }}
    - require:
      - multimaster: multimaster-declaration

multimaster-minion-config:
  multimaster.minion_config:
    - name: {{ drop_in | json }}
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir | json }}
    - require:
      - multimaster: multimaster-declaration
      - multimaster: multimaster-minion-signing

# It may be another configuration's than that of this run.
multimaster-minion-modules:
  multimaster.provided:
    - name: multimaster
    - config_dir: {{ config_dir | json }}
    - require:
      - multimaster: multimaster-declaration

# A fresh one has none until it meets a master; its new masters are asked before that.
multimaster-minion-keypair:
  multimaster.minion_keypair:
    - name: {{ minion.service | json }}
    - config_dir: {{ config_dir | json }}
    - require:
      - multimaster: multimaster-minion-config

multimaster-minion-service:
  service.running:
    - name: {{ minion.service | json }}
    - enable: true
    - require:
      - multimaster: multimaster-minion-keypair
      - multimaster: multimaster-minion-modules

# Last, since it ends this minion's process; detached, so that the job's return is sent first.
multimaster-minion-restart:
  multimaster.current:
    - name: {{ minion.service | json }}
    - files:
      - {{ drop_in | json }}
    - config_dir: {{ config_dir | json }}
    - timeout: {{ restart_timeout | json }}
    - order: last
    - require:
      - service: multimaster-minion-service
