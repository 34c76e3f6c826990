#!py
"""
Gives a master-to-be, and nobody else, the masters' shared key pair, sealed to that host's own
accepted minion key.  What travels, and what every cache and log may hold, is ciphertext.  And gives
everybody the number of minions, unless the declaration says it.

Renders on the master, next to the declaration in ``init.sls``; assign it to every minion, since
there is a key pair in it for the declared masters only.  The counterpart of ``seal`` is
``open_bundle`` in ``salt/_utils/multimaster_keypair.py``.
"""

import base64
import json
import logging
import os
import secrets

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# By name, since the renderer puts the execution modules in place of the package `salt`.
from salt.cache import Cache
from salt.config import master_config
from salt.loader import render
from salt.template import compile_template

VERSION = 1
log = logging.getLogger(__name__)


def run():
    """Return ``multimaster:minions``, and for a master ``multimaster:keypair:sealed``."""
    minion_id = __opts__["id"]
    declaration = _declaration()
    # The role is "minion" in a masterless run: there is no master here to give anything.
    if __opts__.get("__role") == "minion":
        return {}
    # While a pillar is made, the options carry the minion's id in place of the master's.
    master_opts = master_config(__opts__["conf_file"])
    given = {} if "minions" in declaration else {"minions": _magnitude(master_opts)}
    masters = _ids(declaration)
    if minion_id in masters:
        given |= _keypair(master_opts, minion_id, masters)
    return {"multimaster": given} if given else {}


def _keypair(master_opts, minion_id, masters):
    """Return the sealed key pair, or nothing for a host whose minion this master does not know."""
    recipient = _accepted_key(master_opts, minion_id)
    pair = {suffix: _master_key(master_opts, suffix) for suffix in ("pem", "pub")}
    if recipient is None or None in pair.values():
        log.error("No key pair for %s: its minion key is not accepted on this master", minion_id)
        return {}
    accepted = {master: _accepted_key(master_opts, master) for master in masters}
    content = {**pair, "minions": {name: key for name, key in accepted.items() if key}}
    return {"keypair": {"sealed": seal(content, minion_id, recipient)}}


def seal(content, minion_id, recipient):
    """
    Encrypt a mapping so that only the holder of the recipient's private key can read it.

    A fresh AES-256-GCM key, wrapped with RSA-OAEP-SHA256; the minion id is associated data.
    """
    key, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
    public = serialization.load_pem_public_key(recipient.encode())
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    associated = b"multimaster keypair %d\0" % VERSION + minion_id.encode()
    parts = {
        "key": public.encrypt(key, oaep),
        "nonce": nonce,
        "data": AESGCM(key).encrypt(nonce, json.dumps(content).encode(), associated),
    }
    envelope = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    return json.dumps({"version": VERSION, **envelope})


def _magnitude(opts):
    """
    Return the number of accepted minions, rounded up to a power of ten.

    Rounded, or each new minion would change the configuration of all the others.
    """
    if opts.get("keys.cache_driver", "localfs_key") == "localfs_key":
        try:
            known = len(os.listdir(os.path.join(opts["pki_dir"], "minions")))
        except FileNotFoundError:
            known = 0
    else:
        known = len(_key_cache(opts).list("keys"))
    return 10 ** max(2, len(str(max(0, known - 1))))


def _declaration():
    """Render the declaration beside this file, as Salt renders it for this minion."""
    path = os.path.join(os.path.dirname(__file__), "init.sls")
    declaration = compile_template(
        path,
        render(__opts__, __salt__),
        __opts__["renderer"],
        __opts__["renderer_blacklist"],
        __opts__["renderer_whitelist"],
        saltenv=saltenv,
        sls=sls.rpartition(".")[0],
        _pillar_rend=True,
    )
    declared = declaration.get("multimaster") if isinstance(declaration, dict) else None
    return declared if isinstance(declared, dict) else {}


def _ids(declaration):
    try:
        return [master["id"] for master in declaration["masters"]]
    except (KeyError, TypeError):
        # Refused, with the reason, by the states; a failed pillar would only hide that.
        return []


def _key_cache(opts):
    return Cache(opts, driver=opts["keys.cache_driver"])


def _accepted_key(opts, minion_id):
    """Return the public key that this master has accepted for an id, or None."""
    if "keys.cache_driver" in opts:
        entry = _key_cache(opts).fetch("keys", minion_id) or {}
        return entry.get("pub") if entry.get("state") == "accepted" else None
    return _read(os.path.join(opts["pki_dir"], "minions", minion_id))


def _master_key(opts, suffix):
    """Return one half of the live pair: named after the master's id since Salt 3008."""
    if "keys.cache_driver" in opts:
        name = "{}.{}".format(opts["id"].removesuffix("_master"), suffix)
        return _key_cache(opts).fetch("master_keys", name) or None
    return _read(os.path.join(opts["pki_dir"], "master." + suffix))


def _read(path):
    try:
        with open(path, encoding="ascii") as handle:
            return handle.read()
    except FileNotFoundError:
        return None
