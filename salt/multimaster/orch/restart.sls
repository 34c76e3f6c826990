# Restarts the masters one after the other, so that there is always another one that is well.
{%- from 'multimaster/map.jinja' import multimaster, extension_dir, remarks with context %}

include:
  - multimaster.orch.modules

multimaster-restart-masters:
  multimaster_orch.masters_restarted:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - extension_dir: {{ extension_dir | json }}
    - remarks: {{ remarks | json }}
    - require:
      - sls: multimaster.orch.modules
