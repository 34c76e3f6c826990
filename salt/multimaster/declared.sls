# Refuses an invalid declaration before anything is changed.
{%- from 'multimaster/map.jinja' import multimaster, ignored with context %}

include:
  - multimaster.modules

multimaster-declaration:
  multimaster.declared:
    - name: multimaster
    - declaration: {{ multimaster | json }}
    - ignored: {{ ignored | json }}
    - require:
      - sls: multimaster.modules
