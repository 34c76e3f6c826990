# The declaration goes to every minion; the key pair file gives something to masters only.
base:
  '*':
    - multimaster
    - multimaster.keypair
