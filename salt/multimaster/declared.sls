# Refuses an invalid declaration before anything is changed.
{%- from 'multimaster/map.jinja' import multimaster, remarks with context %}

include:
  - multimaster.modules

multimaster-declaration:
  multimaster.declared:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - remarks: {{ remarks | json }}
    - require:
      - sls: multimaster.modules
