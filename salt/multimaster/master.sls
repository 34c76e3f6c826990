# Makes this node a master: key pair first, then configuration, then the daemon.
{%- from 'multimaster/map.jinja' import multimaster, install, master, config_dir, extension_dir, master_unit, replace_keypair, restart_timeout with context %}
{%- set drop_in = config_dir ~ '/master.d/multimaster.conf' %}
{%- set extensions = [
  'engines/multimaster.py',
  'engines/multimaster_drift.py',
  'engines/multimaster_roots.py',
  'fileserver/multimaster.py',
  'modules/multimaster.py',
  'output/multimaster.py',
  'pillar/multimaster_roots.py',
  'runners/multimaster.py',
  'runners/multimaster_orch.py',
  'utils/multimaster_cutover.py',
  'utils/multimaster_deploy.py',
  'utils/multimaster_dial.py',
  'utils/multimaster_drift.py',
  'utils/multimaster_files.py',
  'utils/multimaster_gather.py',
  'utils/multimaster_keypair.py',
  'utils/multimaster_ledger.py',
  'utils/multimaster_listener.py',
  'utils/multimaster_options.py',
  'utils/multimaster_peers.py',
  'utils/multimaster_pubkey.py',
  'utils/multimaster_remotes.py',
  'utils/multimaster_restart.py',
  'utils/multimaster_roots.py',
  'utils/multimaster_said.py',
  'utils/multimaster_sample.py',
  'utils/multimaster_seal.py',
  'utils/multimaster_signing.py',
  'utils/multimaster_topology.py',
  'utils/multimaster_trees.py',
] %}

include:
  - multimaster.declared
  - multimaster.install
  - multimaster.roots
  - multimaster.shared_config

multimaster-keypair:
  multimaster.keypair:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir | json }}
    - extension_dir: {{ extension_dir | json }}
    - replace: {{ replace_keypair | json }}
    - require:
      - multimaster: multimaster-declaration

multimaster-signing:
  multimaster.signing:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir | json }}
    - extension_dir: {{ extension_dir | json }}
    - replace: {{ replace_keypair | json }}
    - require:
      - multimaster: multimaster-keypair

multimaster-keys-seeded:
  multimaster.keys_seeded:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir | json }}
    - extension_dir: {{ extension_dir | json }}
    - require:
      - multimaster: multimaster-keypair

multimaster-extensions:
  multimaster.extended:
    - name: {{ extension_dir | json }}
    - files: {{ extensions | json }}
    - require:
      - multimaster: multimaster-keypair

# Before the configuration that names them.
multimaster-autosign:
  multimaster.autosign:
    - name: {{ (config_dir ~ '/multimaster') | json }}
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir | json }}
    - require:
      - multimaster: multimaster-keypair

multimaster-master-config:
  multimaster.master_config:
    - name: {{ drop_in | json }}
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir | json }}
    - extension_dir: {{ extension_dir | json }}
    - require:
      - multimaster: multimaster-signing
      - multimaster: multimaster-autosign

{%- if install.method == 'pkg' %}
multimaster-master-released:
  service.unmasked:
    - name: {{ master.service | json }}
    - require:
      - multimaster: multimaster-keys-seeded
      - multimaster: multimaster-master-config
      - multimaster: multimaster-extensions
    - require_in:
      - service: multimaster-master-service
{%- endif %}

multimaster-master-service:
  service.running:
    - name: {{ master.service | json }}
    - enable: true
    - require:
      - multimaster: multimaster-keys-seeded
      - multimaster: multimaster-master-config
      - multimaster: multimaster-extensions

# A master that ran already is restarted when all minions have returned from this job.
multimaster-master-restart:
  multimaster.current:
    - name: {{ master.service | json }}
    - files:
      - {{ drop_in | json }}
      # Changes when the unit's drop-in in it comes or goes.
      - {{ salt['file.dirname'](master_unit) | json }}
      {%- if master.config_dir %}
      - {{ (master.config_dir ~ '/master') | json }}
      - {{ (master.config_dir ~ '/master.d') | json }}
      - {{ (master.config_dir ~ '/master.d/*.conf') | json }}
      {%- endif %}
      {%- for path in extensions %}
      - {{ (extension_dir ~ '/' ~ path) | json }}
      {%- endfor %}
    - config_dir: {{ config_dir | json }}
    - timeout: {{ restart_timeout | json }}
    - order: last
    - require:
      - service: multimaster-master-service
