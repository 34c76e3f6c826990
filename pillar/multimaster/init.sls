# A runnable example: three masters, every minion connected to all of them.
# Change the ids and addresses; see salt/multimaster/defaults.yaml for every other setting.
multimaster:
  mode: hot
  masters:
    - {id: saltm1, address: 192.168.50.10}
    - {id: saltm2, address: 192.168.50.100}
    - {id: saltm3, address: 192.168.50.101}
    # Whoever is accepted under one of these ids is given the masters' key pair, unless its line
    # has the fingerprint that `salt-call --local key.finger` prints on that host:
    # - id: saltm3
    #   address: 192.168.50.101
    #   fingerprint: '8f:3c:...:d1'
