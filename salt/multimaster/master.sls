# Makes this node a master: key pair first, then configuration, then the daemon.
{%- from 'multimaster/map.jinja' import multimaster, install, master, config_dir, extension_dir, replace_keypair, restart_timeout with context %}
{%- set drop_in = config_dir ~ '/master.d/multimaster.conf' %}
{%- set extensions = [
  'engines/multimaster.py',
  'modules/multimaster.py',
  'output/multimaster.py',
  'runners/multimaster.py',
  'runners/multimaster_orch.py',
  'utils/multimaster_cutover.py',
  'utils/multimaster_deploy.py',
  'utils/multimaster_dial.py',
  'utils/multimaster_keypair.py',
  'utils/multimaster_ledger.py',
  'utils/multimaster_listener.py',
  'utils/multimaster_options.py',
  'utils/multimaster_restart.py',
  'utils/multimaster_signing.py',
  'utils/multimaster_topology.py',
] %}

include:
  - multimaster.declared
  - multimaster.install
  - multimaster.roots

multimaster-keypair:
  multimaster.keypair:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir }}
    - extension_dir: {{ extension_dir }}
    - replace: {{ replace_keypair }}
    - require:
      - multimaster: multimaster-declaration

multimaster-signing:
  multimaster.signing:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir }}
    - extension_dir: {{ extension_dir }}
    - replace: {{ replace_keypair }}
    - require:
      - multimaster: multimaster-keypair

multimaster-masters-accepted:
  multimaster.masters_accepted:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir }}
    - extension_dir: {{ extension_dir }}
    - require:
      - multimaster: multimaster-keypair

multimaster-extensions:
  multimaster.extended:
    - name: {{ extension_dir }}
    - files: {{ extensions | json }}
    - require:
      - multimaster: multimaster-keypair

# Before the configuration that names them.
multimaster-autosign:
  multimaster.autosign:
    - name: {{ config_dir }}/multimaster
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir }}
    - require:
      - multimaster: multimaster-keypair

multimaster-master-config:
  multimaster.master_config:
    - name: {{ drop_in }}
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir }}
    - extension_dir: {{ extension_dir }}
    - require:
      - multimaster: multimaster-signing
      - multimaster: multimaster-autosign

{%- if install.method == 'pkg' %}
multimaster-master-released:
  service.unmasked:
    - name: {{ master.service }}
    - require:
      - multimaster: multimaster-masters-accepted
      - multimaster: multimaster-master-config
      - multimaster: multimaster-extensions
    - require_in:
      - service: multimaster-master-service
{%- endif %}

multimaster-master-service:
  service.running:
    - name: {{ master.service }}
    - enable: true
    - require:
      - multimaster: multimaster-masters-accepted
      - multimaster: multimaster-master-config
      - multimaster: multimaster-extensions

# A master that ran already is restarted when all minions have returned from this job.
multimaster-master-restart:
  multimaster.current:
    - name: {{ master.service }}
    - files:
      - {{ drop_in }}
      {%- for path in extensions %}
      - {{ extension_dir }}/{{ path }}
      {%- endfor %}
    - config_dir: {{ config_dir }}
    - timeout: {{ restart_timeout }}
    - order: last
    - require:
      - service: multimaster-master-service
