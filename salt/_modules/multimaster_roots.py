"""
Tell another master what is in the file and pillar roots of this host's one, sealed.

Runs in the minion on a master's host, since that is the masters' channel to each other.  See
docs/roots-replicate.md.
"""

import json
import os
import zlib

import salt.cache
import salt.config
import salt.utils.event
from salt.exceptions import CommandExecutionError

__virtualname__ = "multimaster_roots"

# Bytes of a change, compressed, that is told as such; a larger one is told as a whole manifest.
LARGEST_DELTA = 256 * 1024


def __virtual__():
    return __virtualname__


def pull(asker, nonce, question):
    """
    Answer another master that asks what this host's master has in its roots.

    asker
        Minion id of the host whose master asks.
    nonce
        A value that the asker has just made up.
    question
        What it wants to know, sealed with the masters' shared key.

    Returns the answer, sealed in the same way: nobody else can read it, or could have made it.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster_roots.pull saltm2 0123456789abcdef c2VhbGVk
    """
    opts = _master_opts()
    pem = _master_key(opts)
    try:
        raw = __utils__["multimaster_seal.open_sealed"](
            question, pem, nonce, "question", asker, __opts__["id"]
        )
        asked, _ = __utils__["multimaster_seal.unpack"](raw)
        store = __utils__["multimaster_roots.store"](_directory(opts))
        if asked.get("what") == "pieces":
            head, pieces = _pieces(store, asked)
        else:
            head, pieces = _look(store, asked)
        message = __utils__["multimaster_seal.pack"](head, pieces)
        return __utils__["multimaster_seal.seal"](
            message, pem, nonce, "answer", __opts__["id"], asker
        )
    except (KeyError, TypeError, ValueError) as err:
        raise CommandExecutionError(f"the question of {asker}: {err}") from err
    except OSError as err:
        raise CommandExecutionError(f"the roots of {__opts__['id']}: {err}") from err


def wake(origin="", force=False):
    """
    Have this host's master look at its roots; only tells, brings nothing.

    origin
        Minion id of the host whose master has something new; empty for whoever asks by hand.
    force
        Publish the source's directories though one of them has become empty.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster_roots.wake
    """
    opts = _master_opts()
    if force:
        try:
            store = __utils__["multimaster_roots.store"](_directory(opts))
            # Let an emptied directory be published, once.
            __utils__["multimaster_peers.demand"](store.demand)
        except OSError as err:
            raise CommandExecutionError(f"the roots of {__opts__['id']}: {err}") from err
    tag = "wake" if origin else "publish"
    with salt.utils.event.get_event("master", opts=opts, listen=False) as bus:
        return bus.fire_event({"origin": origin}, f"multimaster/roots/{tag}")


def runs(nonce):
    """
    Tell a master which state runs are under way on this minion: they are served from one snapshot.

    nonce
        A value that the asker has just made up.

    Returns ``answer`` (``id``, and ``runs``, the ids of their jobs) and ``signature``, made with
    this minion's key: anybody may answer in the name of another one.

    CLI Example:

    .. code-block:: bash

        salt web1 multimaster_roots.runs 0123456789abcdef
    """
    running = __salt__["saltutil.running"]()
    under_way = [
        str(each.get("jid"))
        for each in running
        if __utils__["multimaster_roots.runs_states"](each.get("fun"))
    ]
    answer = {"id": __opts__["id"], "runs": sorted(under_way)}
    with open(os.path.join(__opts__["pki_dir"], "minion.pem"), encoding="ascii") as handle:
        signature = __utils__["multimaster_keypair.sign_answer"](answer, str(nonce), handle.read())
    return {"answer": answer, "signature": signature}


def status():
    """
    Tell which snapshot of the roots this host's master serves, and what is wrong with it.

    Returns ``role`` (source, follower or None if nothing is replicated), ``source``, ``snapshot``
    (its name), ``digest``, ``digests`` (by kind of roots and environment), ``since`` and
    ``checked`` (seconds since the epoch), ``problem`` (None or in words) and ``problem_since``,
    ``skipped`` (what the source cannot serve, and why) and ``kept`` (directories with edits that
    were made in the served tree).

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster_roots.status
    """
    opts = _master_opts()
    replicated = (opts.get("multimaster") or {}).get("roots", {}).get("replicate")
    if not replicated:
        return {"role": None}
    role = "source" if replicated["source"] == opts["id"] else "follower"
    store = __utils__["multimaster_roots.store"](_directory(opts))
    known = {"snapshot": None, "digest": None, "digests": {}, "since": None, "checked": None}
    known |= {"problem": "its engine has not looked yet", "problem_since": None}
    known |= {"skipped": {}, "kept": []}
    return known | store.read_status() | {"role": role, "source": replicated["source"]}


def _look(store, asked):
    """Return what is new to a master that has a certain manifest, and the contents with it."""
    name = store.current()
    if name is None:
        return {"digest": None}, ()
    manifest = store.manifest(name)
    head = {"digest": manifest.digest}
    contents = __utils__["multimaster_roots.contents"]
    if asked.get("have") == manifest.digest:
        return head, ()
    old = store.find(asked["have"]) if asked.get("have") else None
    if old:
        known = store.manifest(old)
        change = __utils__["multimaster_roots.delta"](known, manifest)
        if len(zlib.compress(json.dumps(change).encode())) <= LARGEST_DELTA:
            wanted = [(s, 0) for s in sorted(set(manifest.contents) - set(known.contents))]
            return {**head, "delta": change}, contents(store, name, wanted)
    size = len(manifest.text.encode())
    return {**head, "size": size}, contents(store, name, [(manifest.digest, 0)])


def _pieces(store, asked):
    """Return contents of a snapshot, each from a place on."""
    name = store.find(asked["digest"])
    if name is None:
        return {"gone": True}, ()
    return {"gone": False}, __utils__["multimaster_roots.contents"](store, name, asked["wanted"])


def _master_opts():
    path = os.path.join(os.path.dirname(__opts__["conf_file"]), "master")
    return salt.config.master_config(path)


def _directory(opts):
    return os.path.join(opts["cachedir"], "multimaster", "roots")


def _master_key(opts):
    """Return the private key that all masters share."""
    driver = opts.get("keys.cache_driver")
    stem = opts["id"].removesuffix("_master") if driver else "master"
    if driver not in (None, "localfs_key"):
        return salt.cache.Cache(opts, driver=driver).fetch("master_keys", f"{stem}.pem")
    try:
        with open(os.path.join(opts["pki_dir"], f"{stem}.pem"), encoding="ascii") as handle:
            return handle.read()
    except FileNotFoundError as err:
        raise CommandExecutionError(f"there is no master's key pair on {__opts__['id']}") from err
