# Makes the declared masters, then points every minion at them: one step after the other, each seen.
{%- from 'multimaster/map.jinja' import multimaster, extension_dir, remarks with context %}

include:
  - multimaster.orch.modules

multimaster-deploy-preflight:
  multimaster_orch.preflight:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - extension_dir: {{ extension_dir | json }}
    - remarks: {{ remarks | json }}
    - require:
      - sls: multimaster.orch.modules

multimaster-deploy-masters:
  multimaster_orch.masters_deployed:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - extension_dir: {{ extension_dir | json }}
    - require:
      - multimaster_orch: multimaster-deploy-preflight

multimaster-deploy-minions:
  multimaster_orch.minions_deployed:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - extension_dir: {{ extension_dir | json }}
    - require:
      - multimaster_orch: multimaster-deploy-masters
