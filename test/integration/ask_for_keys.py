"""
Asks a host's master for a page of the minions' keys, with the host's own minion key.

Run on a host with its configuration and a minion id to go under; prints as JSON whether a pillar
came back that this host can read, and what the formula has put in it.
"""

import json
import os
import signal
import sys

import salt.channel.client
import salt.config
import salt.minion

path, minion_id = sys.argv[1:]


def give_up(*_):
    """End: whoever is not let in would ask for ever."""
    print(json.dumps({"pillar": False, "error": "no answer"}), flush=True)
    os._exit(0)


signal.signal(signal.SIGALRM, give_up)
signal.alarm(30)
opts = salt.config.minion_config(path)
address = opts["master"][0] if isinstance(opts["master"], list) else opts["master"]
opts.update(master=address, auth_tries=1, acceptance_wait_time=0, request_channel_tries=1)
opts.update(salt.minion.prep_ip_port(opts))
opts.update(salt.minion.resolve_dns(opts))
asked = {"after": "", "count": 2000, "nonce": "n"}
load = {
    "id": minion_id,
    "grains": {"id": minion_id, "multimaster_keys": asked},
    "saltenv": None,
    "pillarenv": None,
    "pillar_override": {},
    "extra_minion_data": {},
    "ver": "2",
    "cmd": "_pillar",
    "clean_cache": True,
}
try:
    with salt.channel.client.ReqChannel.factory(opts) as channel:
        # Goes with every message, whoever has signed in.
        channel.obj.opts["id"] = minion_id
        pillar = channel.crypted_transfer_decode_dictentry(
            load, dictkey="pillar", tries=1, timeout=20
        )
    keypair = (pillar.get("multimaster") or {}).get("keypair") or {}
    print(json.dumps({"pillar": True, "given": sorted(set(keypair) & {"keys", "sealed"})}))
except (Exception, SystemExit) as err:
    print(json.dumps({"pillar": False, "error": type(err).__name__}))
