# Installs salt-master without letting it start: it must not make a key pair of its own.
{%- from 'multimaster/map.jinja' import install, master, repository with context %}

include:
  - multimaster.declared
  - multimaster.master

{%- if install.method == 'pkg' %}
{%- if install.add_repository %}
multimaster-repository:
  pkgrepo.managed:
    {%- for argument, value in repository.items() %}
    - {{ {argument: value} | json }}
    {%- endfor %}
    - require:
      - multimaster: multimaster-declaration
    - require_in:
      - pkg: multimaster-master-package
{%- endif %}

# Distribution packages start the daemon while they are installed.
multimaster-master-held:
  service.masked:
    - name: {{ master.service | json }}
    - unless:
      - fun: pkg.version
        args:
          - {{ master.package | json }}
    - require:
      - multimaster: multimaster-declaration

multimaster-master-package:
  pkg.installed:
    - name: {{ master.package | json }}
    - require:
      - service: multimaster-master-held
    - require_in:
      - multimaster: multimaster-keypair
{%- endif %}
