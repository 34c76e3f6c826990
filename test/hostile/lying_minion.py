"""
A minion that answers in the name of every master's host that is asked something of the formula.

Started in place of a host's minion, with its configuration, and what to say as JSON.
"""

import argparse
import contextlib
import json
import sys

import salt.cli.daemons
import salt.exceptions
import salt.minion

parser = argparse.ArgumentParser()
for name in ("config", "says"):
    parser.add_argument(f"--{name}", required=True)
options = parser.parse_args()


async def interfere(minion, payload):
    """Answer at once whatever is asked of others."""
    load = payload["load"]
    if not load.get("fun", "").startswith("multimaster"):
        return
    for victim in load["tgt"]:
        told = {"cmd": "_return", "tok": minion.tok, "jid": load["jid"], "fun": load["fun"]}
        # Salt takes this for the id once it has made sure of who sends it.
        told |= {"id": minion.opts["id"], "resource_id": victim}
        told |= {"return": json.loads(options.says), "retcode": 0, "success": True}
        with contextlib.suppress(salt.exceptions.SaltException):
            await minion._send_req_async_main(told, timeout=5)


salt.minion.Minion._handle_payload = interfere
sys.argv = ["salt-minion", "--daemon", "--config-dir", options.config]
salt.cli.daemons.Minion().start()
