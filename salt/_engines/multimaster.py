"""
Bring a new master the minion keys that the others have accepted.

Runs in every master.  A master that has just received the shared key pair asks the minions on the
other masters' hosts, through its own authenticated channel, for the keys accepted there; each
answer must be signed with the shared key over a fresh nonce.  What a master has decided on an id
already is left as it is.
"""

import logging
import os
import random
import secrets
import time

import salt.cache
import salt.client
import salt.key
import salt.utils.event
import salt.utils.verify

log = logging.getLogger(__name__)

__virtualname__ = "multimaster"

# Seconds between two attempts: the first while daemons start, the last while peers are away.
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 60.0
# Seconds between two attempts at least, whatever wakes this engine.
SHORTEST_PAUSE = 1.0
# Seconds that a peer's minion has for its answer, and after which one that works on none is given
# up: peers that are not there yet must not hold up those that are.
TIMEOUT = 3
GIVE_UP = 2


def __virtual__():
    return __virtualname__


def start():
    """Entry point of the engine; returns when this master needs no keys from others."""
    joining = os.path.join(__opts__["cachedir"], "multimaster", "joining")
    peers = [m["id"] for m in __opts__["multimaster"]["masters"] if m["id"] != __opts__["id"]]
    pause = FIRST_PAUSE
    told = False
    if not peers or not os.path.exists(joining):
        return
    with salt.utils.event.get_event("master", opts=__opts__) as bus:
        bus.subscribe("salt/auth")
        while True:
            woken = _wait_for(peers, bus, pause * random.uniform(0.8, 1.2))
            pause = FIRST_PAUSE if woken else min(pause * 1.5, LONGEST_PAUSE)
            try:
                done = _pull(peers)
            except Exception:  # pylint: disable=broad-except
                # An engine that ends is started again at once and without a pause.
                log.exception("Cannot fetch the minions' keys")
                done = False
            if done:
                os.unlink(joining)
                log.info("This master has the minions' keys of the others")
                return
            if not told:
                log.warning("No other master has answered yet; asking %s again", ", ".join(peers))
                told = True


def _wait_for(peers, bus, pause):
    """
    Wait until a peer's minion signs in, for at most ``pause`` seconds; tell whether one did.

    A peer's minion that is there signs in as soon as this master runs, and again after a restart.
    The event only wakes: whoever forges it has this master ask its peers, once in SHORTEST_PAUSE.
    """
    started = time.monotonic()
    while (left := started + pause - time.monotonic()) > 0:
        event = bus.get_event(wait=left, tag="salt/auth")
        if event is None:
            # Time is over, or there is no bus: this master starts or ends.
            time.sleep(min(SHORTEST_PAUSE, max(0.0, started + pause - time.monotonic())))
        elif event.get("id") in peers and event.get("act") == "accept":
            # It has signed in and not subscribed yet.
            time.sleep(max(0.0, started + SHORTEST_PAUSE - time.monotonic()))
            return True
    return False


def _pull(peers):
    """Ask all peers once; apply what the complete ones answer; tell whether there was one."""
    nonce = secrets.token_hex(16)
    asker = __opts__["id"]
    with salt.client.get_local_client(mopts=__opts__) as client:
        answers = client.cmd(
            peers,
            "multimaster.offered_keys",
            [asker, nonce],
            timeout=TIMEOUT,
            gather_job_timeout=GIVE_UP,
            tgt_type="list",
        )
    valid = {}
    for peer, reply in answers.items():
        try:
            valid[peer] = _verified(reply, peer, asker, nonce)
        except ValueError as err:
            log.error("Refused the answer of %s: %s", peer, err)
    complete = {peer: answer for peer, answer in valid.items() if answer["complete"]}
    if not complete and set(valid) == set(peers):
        # All masters are new, so that there is nobody else to ask.
        complete = valid
    for peer, answer in complete.items():
        _accept(peer, answer["keys"])
    return bool(complete)


def _verified(reply, peer, asker, nonce):
    """Return the answer in a reply; ValueError unless a holder of the shared key gave it to us."""
    if not isinstance(reply, dict) or set(reply) != {"answer", "signature"}:
        raise ValueError(f"it is {str(reply)[:200]!r}")
    answer = reply["answer"]
    __utils__["multimaster_keypair.verify_answer"](answer, nonce, reply["signature"], _master_pub())
    if answer["origin"] != peer or answer["asker"] != asker:
        raise ValueError("it comes from another master, or is meant for one")
    return answer


def _accept(peer, offered):
    """Accept what is unknown here, or pending with the same key."""
    with_key = salt.key.get_key(__opts__)
    known = with_key.list_keys()
    decided = {*known["minions"], *known["minions_rejected"], *known["minions_denied"]}
    pending = set(known["minions_pre"])
    accepted = []
    for name, pub in offered.items():
        if name in decided:
            continue
        if not salt.utils.verify.valid_id(__opts__, name):
            log.error("%s offers a key for %r, which is no minion id", peer, name)
        elif __utils__["multimaster_keypair.fingerprint"](pub) is None:
            log.error("%s offers a key for %s that is no public key", peer, name)
        elif name in pending and _pending_key(name).strip() != pub.strip():
            log.error("%s offers a key for %s that differs from the pending one", peer, name)
        elif name in pending:
            with_key.accept(match_dict={"minions_pre": [name]})
            accepted.append(name)
        else:
            _store(name, pub)
            accepted.append(name)
    log.info("Accepted %d keys that %s has accepted", len(accepted), peer)


def _cache():
    return salt.cache.Cache(__opts__, driver=__opts__["keys.cache_driver"])


def _pending_key(name):
    if "keys.cache_driver" in __opts__:
        return (_cache().fetch("keys", name) or {}).get("pub", "")
    with open(os.path.join(__opts__["pki_dir"], "minions_pre", name)) as handle:
        return handle.read()


def _store(name, pub):
    if "keys.cache_driver" in __opts__:
        _cache().store("keys", name, {"state": "accepted", "pub": pub})
        return
    path = os.path.join(__opts__["pki_dir"], "minions", name)
    with open(path + ".multimaster", "w") as handle:
        handle.write(pub)
    os.replace(path + ".multimaster", path)


def _master_pub():
    if "keys.cache_driver" in __opts__:
        return _cache().fetch("master_keys", __opts__["id"].removesuffix("_master") + ".pub")
    with open(os.path.join(__opts__["pki_dir"], "master.pub")) as handle:
        return handle.read()
