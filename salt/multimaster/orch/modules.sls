# Brings what the orchestrations consist of to the master that they run on, which may have nothing.
{%- set files = [
  'runners/multimaster_orch.py',
  'states/multimaster_orch.py',
  'utils/multimaster_deploy.py',
  'utils/multimaster_gather.py',
  'utils/multimaster_keypair.py',
  'utils/multimaster_said.py',
  'utils/multimaster_topology.py',
  'utils/multimaster_trees.py',
] %}
{#- Not by states, which do nothing in a test run: it could say nothing without them. Not by
    saltutil.sync_all, which would bring, and take away, other people's modules, too. #}
{%- for file in files %}
{%- do salt['cp.get_file']('salt://_' ~ file, opts.extension_modules | path_join(file), makedirs=true) %}
{%- endfor %}

multimaster-orch-modules:
  test.nop:
    - name: multimaster-orch-modules
    - force_reload_modules: true
