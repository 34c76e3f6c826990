# Keeps states and pillars equal on all masters, in the way that is declared.
{%- from 'multimaster/map.jinja' import multimaster, install, git, mounts, config_dir, extension_dir with context %}

include:
  - multimaster.declared
  - multimaster.install
  - multimaster.master

multimaster-credentials:
  multimaster.credentials:
    - name: {{ (config_dir ~ '/multimaster.credentials') | json }}
    - config_dir: {{ config_dir | json }}
    - require:
      - multimaster: multimaster-declaration
    - require_in:
      - multimaster: multimaster-keypair

{%- if git %}
{%- if install.method == 'pkg' %}
multimaster-git:
  pkg.installed:
    - name: {{ git.package | default('git') | json }}
    - require:
      - multimaster: multimaster-declaration
    - require_in:
      - multimaster: multimaster-git-remotes

{%- if git.provider in ['pygit2', 'gitpython'] %}
# Into the Python that Salt runs with.
multimaster-git-provider:
  pip.installed:
    - name: {{ git.provider | json }}
    - require:
      - pkg: multimaster-git
    - require_in:
      - multimaster: multimaster-master-config
{%- endif %}
{%- endif %}

multimaster-git-remotes:
  multimaster.git_remotes:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir | json }}
    - require:
      - multimaster: multimaster-credentials
    - require_in:
      - multimaster: multimaster-keypair
      {%- if install.method == 'pkg' %}
      - service: multimaster-master-held
      {%- endif %}
{%- endif %}

{%- if mounts %}
multimaster-shareable:
  multimaster.shareable:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - config_dir: {{ config_dir | json }}
    - extension_dir: {{ extension_dir | json }}
    - require:
      - multimaster: multimaster-declaration
    - require_in:
      - multimaster: multimaster-keypair
      {%- if install.method == 'pkg' %}
      - service: multimaster-master-held
      {%- endif %}

multimaster-mounts:
  mount.mounted:
    - names:
      {%- for mount in mounts %}
      - {{ mount.path | json }}:
        - device: {{ mount.device | json }}
        - fstype: {{ mount.fstype | json }}
        - opts: {{ mount.opts | default('defaults') | json }}
      {%- endfor %}
    - mkmnt: true
    - require:
      - multimaster: multimaster-shareable
    - require_in:
      - multimaster: multimaster-keypair
{%- endif %}
