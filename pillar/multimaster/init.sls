# A runnable example: three masters, every minion connected to all of them.
# Change the ids and addresses; see salt/multimaster/defaults.yaml for every other setting.
multimaster:
  mode: hot
  masters:
    - {id: saltm1, address: 192.168.50.10}
    - {id: saltm2, address: 192.168.50.100}
    - {id: saltm3, address: 192.168.50.101}
