#!py
"""
Gives a master-to-be, and nobody else, the masters' shared key pair, sealed to that host's own
accepted minion key.  What travels, and what every cache and log may hold, is ciphertext.  And gives
everybody the number of minions, unless the declaration says it.

That a key is accepted is enough only where somebody accepts keys.  It has to be the one with the
declared ``fingerprint``, if there is one, and there has to be one where this master may have
accepted the key of its own accord.

Renders on the master, next to the declaration in ``init.sls``; assign it to every minion, since
there is a key pair in it for the declared masters only.  With ``signing: true`` they get the
signing pair in the same way, and every minion its public half.  A master-to-be that asks for them,
with a grain, also gets the keys of the minions, page by page.  The counterparts of ``seal`` and
``seal_page`` are ``open_bundle`` and ``open_page`` in ``salt/_utils/multimaster_keypair.py``.
"""

import base64
import bisect
import contextlib
import hashlib
import json
import logging
import os
import secrets
import zlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# By name, since the renderer puts the execution modules in place of the package `salt`.
from salt.cache import Cache
from salt.config import master_config
from salt.daemons.masterapi import AutoKey
from salt.loader import render
from salt.template import compile_template
from salt.utils.crypt import pem_finger

VERSION = 1
# Keys in one page, at most: about a megabyte.
PAGE = 2000
# The directories of keys, and what is in each; of several files for one id the last one counts.
STATES = {"minions": "accepted", "minions_pre": "pending", "minions_rejected": "rejected"}
# Of an RSA key that something is sealed to.
LEAST_BITS = 2048
# No public key is as long as that.
LONGEST_KEY = 16 * 1024
log = logging.getLogger(__name__)


def run():
    """
    Return ``multimaster:minions``, and ``multimaster:keypair``: ``sealed`` for a declared master,
    ``keys`` if it asks for some, and with signing ``sign_pub`` for everyone.  Instead of the first
    two there is ``refused``, the reason, if it has to be feared that another host has its id, and
    ``pub``, by which a host that has the pair knows it.  ``cached`` says that this master gives
    minions pillars that it has compiled before.
    """
    # The role is "minion" in a masterless run: there is no master here to give anything.
    if __opts__.get("__role") == "minion":
        return {}
    minion_id = __opts__["id"]
    declaration = _declaration()
    # While a pillar is made, the options carry the minion's id in place of the master's.
    master_opts = master_config(__opts__["conf_file"])
    given = {} if "minions" in declaration else {"minions": _magnitude(master_opts)}
    signing_pair = _signing_pair(master_opts) if declaration.get("signing") is True else {}
    pair = {"sign_pub": signing_pair["sign_pub"]} if signing_pair else {}
    lines = _lines(declaration, minion_id)
    if lines:
        pair.update(_sealed(master_opts, minion_id, lines, signing_pair))
    if __opts__.get("pillar_cache"):
        # The formula then asks for the declaration as it is now.
        pair["cached"] = True
    if pair:
        given["keypair"] = pair
    return {"multimaster": given} if given else {}


def _sealed(master_opts, minion_id, lines, signing_pair):
    """
    Return ``sealed``, both key pairs, and ``keys``, those asked for, for one master.

    lines
        What the declaration says of it.
    """
    recipient = _accepted_key(master_opts, minion_id)
    pair = {suffix: _master_key(master_opts, suffix) for suffix in ("pem", "pub")}
    if recipient is None or None in pair.values():
        log.error("No key pair for %s: its minion key is not accepted on this master", minion_id)
        return {}
    why_not = _why_not(master_opts, minion_id, lines, recipient)
    if why_not:
        log.error("No key pair for %s: %s", minion_id, why_not)
        return {"refused": why_not, "pub": pair["pub"]}
    given = {"sealed": seal({**pair, **signing_pair}, minion_id, recipient)}
    asked = __opts__.get("grains", {}).get("multimaster_keys")
    if asked is not None:
        page = keys_after(master_opts, asked)
        if page is None:
            log.error("%s asks for keys in a way that nobody knows", minion_id)
        else:
            given["keys"] = seal_page(page, minion_id, recipient)
    return given


def _why_not(master_opts, minion_id, lines, recipient):
    """Return why nothing is sealed to the key that is accepted for a declared master, or None."""
    key = "the key of {} on {}".format(minion_id, master_opts["id"].removesuffix("_master"))
    try:
        public = serialization.load_pem_public_key(recipient.encode())
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size < LEAST_BITS:
        return f"{key} is no RSA key of {LEAST_BITS} bits or more"
    found = _fingerprints(public)
    declared = [line["fingerprint"] for line in lines if "fingerprint" in line]
    for fingerprint in declared:
        if str(fingerprint).lower() not in found:
            return f"{key} has fingerprint {found[0]}, declared is {fingerprint}"
    # What the master runs with may be older than its files.
    for opts in (master_opts, {**master_opts, **__opts__}):
        way = None if declared else _accepts(opts, minion_id)
        if way:
            return (
                f"{key} may have been accepted automatically ({way}): declare 'fingerprint: "
                f"{found[0]}' for it under masters, if that is what 'salt-call --local key.finger' "
                f"prints on {minion_id}"
            )
    return None


def _fingerprints(public):
    """
    Return the fingerprints that Salt prints of a public key, the one that minions print first.

    Of the key and not of the text that it was read from, in which it need not be all there is.
    """
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    body = b"".join(pem.splitlines(keepends=True)[1:-1])
    # `salt-key -f` takes all of the text since Salt 3008.
    return [pem_finger(key=text) for text in (body, pem, pem.rstrip())]


def _accepts(opts, minion_id):
    """Return by which option a master accepts whoever first signs in under an id; None if none."""
    judge = AutoKey(opts)
    for option in ("open_mode", "auto_accept"):
        if opts.get(option):
            return option
    try:
        if judge.check_signing_file(minion_id, opts.get("autosign_file")):
            return "autosign_file"
        # Salt's own look would use it up.
        if os.path.exists(os.path.join(opts["pki_dir"], "minions_autosign", minion_id)):
            return "minions_autosign"
        directory = opts.get("autosign_grains_dir") or ""
        for grain in next(os.walk(directory), ("", [], []))[2]:
            with open(os.path.join(directory, grain), errors="replace") as handle:
                # A host can claim whatever a line says.
                if any(judge.check_autosign_grains({grain: line.strip()}) for line in handle):
                    return "autosign_grains_dir"
    except (OSError, UnicodeError) as err:
        return f"what is accepted cannot be read: {err}"
    return None


def seal(content, minion_id, recipient):
    """
    Encrypt a mapping so that only the holder of the recipient's private key can read it.

    A fresh AES-256-GCM key, wrapped with RSA-OAEP-SHA256; the minion id is associated data.
    """
    return _seal(json.dumps(content).encode(), "keypair", minion_id, recipient)


def seal_page(page, minion_id, recipient):
    """Encrypt a page of keys as :func:`seal` does, but so that it cannot pass for a key pair."""
    return _seal(zlib.compress(json.dumps(page).encode()), "keys", minion_id, recipient)


def _seal(plain, purpose, minion_id, recipient):
    key, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
    public = serialization.load_pem_public_key(recipient.encode())
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    associated = f"multimaster {purpose} {VERSION}\0{minion_id}".encode()
    parts = {
        "key": public.encrypt(key, oaep),
        "nonce": nonce,
        "data": AESGCM(key).encrypt(nonce, plain, associated),
    }
    envelope = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    return json.dumps({"version": VERSION, **envelope})


def keys_after(opts, asked):
    """
    Return a page of the keys that are accepted or rejected on this master, in the order of ids.

    asked
        A mapping: the keys ``after`` this id, ``count`` of them, and a ``nonce`` to be named with
        them, since a pillar may come out of a cache.

    Besides the ``keys``, each id, state and PEM (None if there is no readable one), the page tells
    whether it is the ``last``, and the ``origin``; and of all keys that there are at this moment,
    their number, ``total``, and a ``digest``.  Returns None if that is not what was asked for.
    """
    asked = asked if isinstance(asked, dict) else {}
    after, count, nonce = (asked.get(name) for name in ("after", "count", "nonce"))
    if not isinstance(after, str) or not isinstance(nonce, str) or type(count) is not int:
        return None
    states = _states(opts)
    names = sorted(states)
    start = bisect.bisect_right(names, after)
    end = start + max(1, min(count, PAGE))
    listing = "".join(f"{name}\0{states[name]}\n" for name in names)
    return {
        "origin": opts["id"],
        "nonce": nonce[:100],
        "keys": [[name, states[name], _pub(opts, name, states[name])] for name in names[start:end]],
        "last": end >= len(names),
        "total": len(names),
        "digest": hashlib.sha256(listing.encode()).hexdigest(),
    }


def _states(opts):
    """Return id -> accepted or rejected; without reading all the keys, where they are files."""
    found = {}
    if opts.get("keys.cache_driver", "localfs_key") == "localfs_key":
        for directory, state in STATES.items():
            with (
                contextlib.suppress(FileNotFoundError),
                os.scandir(os.path.join(opts["pki_dir"], directory)) as entries,
            ):
                for entry in entries:
                    # A file's name is a minion id unless it has a backslash.
                    odd = entry.name.startswith(".") or "\\" in entry.name
                    if not odd and entry.is_file(follow_symlinks=False):
                        found[entry.name] = state
    else:
        cache = _key_cache(opts)
        try:
            entries = cache.list_all("keys")
        except AttributeError:
            # Not every driver can.
            entries = {name: cache.fetch("keys", name) or {} for name in cache.list("keys")}
        found = {name: entry.get("state") for name, entry in entries.items()}
    return {
        name: state
        for name, state in found.items()
        if state in ("accepted", "rejected") and name.isprintable()
    }


def _pub(opts, minion_id, state):
    """Return the public key of an id that is accepted or rejected; None if it is none."""
    if opts.get("keys.cache_driver", "localfs_key") == "localfs_key":
        directory = {"accepted": "minions", "rejected": "minions_rejected"}[state]
        try:
            with open(os.path.join(opts["pki_dir"], directory, minion_id), "rb") as handle:
                pub = handle.read(LONGEST_KEY).decode("ascii")
        except (OSError, UnicodeError):
            return None
    else:
        pub = (_key_cache(opts).fetch("keys", minion_id) or {}).get("pub", "")
    return pub if "-----BEGIN" in pub else None


def _magnitude(opts):
    """
    Return the number of accepted minions, rounded up to a power of ten, 100 at least.

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


def _lines(declaration, minion_id):
    """Return what is declared of a master: one mapping, none if the id is no master's."""
    try:
        return [master for master in declaration["masters"] if master["id"] == minion_id]
    except (KeyError, TypeError):
        # Refused, with the reason, by the states; a failed pillar would only hide that.
        return []


def _key_cache(opts):
    return Cache(opts, driver=opts["keys.cache_driver"])


def _accepted_key(opts, minion_id):
    """Return the public key that this master has accepted for an id, or None."""
    if not minion_id or minion_id.startswith(".") or set(minion_id) & set("/\\\0"):
        # Before Salt 3008 it would be a path, and perhaps that of a pending key.
        return None
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


def _signing_pair(opts):
    """Return this master's signing pair; nothing unless both halves are there."""
    pair = {}
    for suffix in ("pem", "pub"):
        if "keys.cache_driver" in opts:
            text = _key_cache(opts).fetch("master_keys", "master_sign." + suffix)
        else:
            text = _read(os.path.join(opts["pki_dir"], "master_sign." + suffix))
        pair["sign_" + suffix] = text
    return pair if all(pair.values()) else {}


def _read(path):
    try:
        # What is no text is no key, and a reason to refuse it: for that it has to be read.
        with open(path, encoding="ascii", errors="replace") as handle:
            return handle.read()
    except FileNotFoundError:
        return None
