# Has masters read their options from shared storage, where that is declared, or no longer.
{%- from 'multimaster/map.jinja' import multimaster, install, master, master_unit, mounts, config_dir with context %}
{%- set drop_in = config_dir ~ '/master.d/multimaster-shared.conf' %}

include:
  - multimaster.declared
  - multimaster.master
  - multimaster.roots

{%- if master.config_dir and mounts %}
multimaster-shared-config:
  multimaster.shared_config:
    - name: {{ drop_in | json }}
    - directory: {{ master.config_dir | json }}
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir | json }}
    - require:
      - mount: multimaster-mounts
      {%- if install.method == 'pkg' %}
      - pkg: multimaster-master-package
      {%- endif %}
    - require_in:
      - multimaster: multimaster-keypair

multimaster-master-unit:
  file.managed:
    - name: {{ master_unit | json }}
    - makedirs: true
    - contents:
      - '[Unit]'
      - {{ ('RequiresMountsFor=' ~ master.config_dir) | json }}
      - '[Service]'
      - ExecStart=
      - {{ ('ExecStart=' ~ (salt['cmd.which']('salt-master') or '/usr/bin/salt-master') ~ ' -c ' ~ master.config_dir) | json }}
    - require:
      - multimaster: multimaster-shared-config
      - multimaster: multimaster-master-config
    - require_in:
      - service: multimaster-master-service
{%- else %}
multimaster-own-config:
  file.absent:
    - names:
      - {{ drop_in | json }}
      - {{ master_unit | json }}
    - require:
      - multimaster: multimaster-declaration
    - require_in:
      - multimaster: multimaster-keypair
{%- endif %}
