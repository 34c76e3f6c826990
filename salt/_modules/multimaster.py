"""
Manage the masters of a multi-master topology from the minion on each host.

Thin: reads files and options, asks the core in ``salt/_utils`` what follows, and acts.  No function
here returns a private key.
"""

import collections.abc
import contextlib
import difflib
import fnmatch
import glob
import grp
import json
import logging
import os
import pathlib
import pwd
import queue
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import psutil
import salt.cache
import salt.channel.client
import salt.client
import salt.config
import salt.crypt
import salt.exceptions
import salt.key
import salt.minion
import salt.payload
import salt.pillar
import salt.utils.event
import salt.utils.gitfs
import salt.utils.systemd
import salt.utils.verify
import salt.utils.yaml
import salt.version
from salt.exceptions import CommandExecutionError, SaltException

log = logging.getLogger(__name__)

__virtualname__ = "multimaster"
__func_alias__ = {"list_masters": "masters"}

# Custom code that has to be the file server's, or the states would run with an older version's.
SYNCED = {
    "engines": ("multimaster_minion.py",),
    "modules": (
        "multimaster.py",
        "multimaster_drift.py",
        "multimaster_orch.py",
        "multimaster_roots.py",
    ),
    "states": ("multimaster.py",),
    "utils": (
        "multimaster_cutover.py",
        "multimaster_dial.py",
        "multimaster_drift.py",
        "multimaster_files.py",
        "multimaster_gather.py",
        "multimaster_keypair.py",
        "multimaster_ledger.py",
        "multimaster_listener.py",
        "multimaster_options.py",
        "multimaster_peers.py",
        "multimaster_pubkey.py",
        "multimaster_restart.py",
        "multimaster_roots.py",
        "multimaster_said.py",
        "multimaster_sample.py",
        "multimaster_seal.py",
        "multimaster_signing.py",
        "multimaster_topology.py",
        "multimaster_trees.py",
    ),
}
DROP_IN = "multimaster.conf"
# Read before it, so that what it says has the last word.
SHARED_DROP_IN = "multimaster-shared.conf"
# Below the directory of the configuration.
CREDENTIALS = "multimaster.credentials"
# Keys in a page of those that a new master is given, at most; half as many after each question that
# got no answer, down to one.
PAGE = 2000
# Seconds that the master has for a page, and at most if it needs longer.
PAGE_WITHIN = 20
PAGE_WITHIN_MOST = 160
# Questions without an answer, one after the other, after which the master counts as gone.
QUESTIONS = 14
# Seconds until the next question after one that got no answer; each time twice as long, at most.
PAGE_PAUSE, PAGE_PAUSE_MOST = 1, 30
# Walks through all keys, if some change meanwhile, for one in which none does.
WALKS = 5
# Decisions in one answer, at most: with keys of 4096 bits still less than an event may have.
CHUNK = 1000
# Items of a list that are shown, of many.
SHOWN = 20
KEY_MODE = 0o400
# What a master's host answers signed, for whom a decision hangs on it.
SIGNED = (
    "multimaster.key_decide",
    "multimaster.key_digest",
    "multimaster.key_history",
    "multimaster.key_page",
    "multimaster.key_settle",
    "multimaster.key_states",
    "multimaster.ledger_wake",
    "multimaster.outstanding",
    "multimaster.report",
    "multimaster_drift.report",
    "multimaster_orch.ask",
    "multimaster_orch.connections",
    "multimaster_orch.facts",
    "multimaster_orch.unfinished",
    "multimaster_roots.status",
    "multimaster_roots.wake",
)
# The signing pair, and its signature over the masters' public key.
SIGNING_FILES = ("master_sign.pem", "master_sign.pub", "master_pubkey_signature")
# Seconds that a git remote has for its answer.
REMOTE_WITHIN = 120
# Seconds that a master has for its answer to a minion that looks whether it signs.
SEEN_WITHIN = 5
# Seconds for which a stopped minion's process may go on; systemd ends it after 90 by itself.
STOPPED_WITHIN = 300
# The directories of Salt's keys, and what a key in each is; of several files for one id the last
# one counts, as it does for Salt.
STATES = {"minions": "accepted", "minions_pre": "pending", "minions_rejected": "rejected"}
# A second list beside them: what came under an id that has another key.
DENIED = "minions_denied"
# What can be decided on a key, and where it is then; nowhere when it is deleted.
VERBS = {
    "accept": "minions",
    "reject": "minions_rejected",
    "delete": None,
    "only": None,
    "clear": None,
}
# What can be done about what is proposed.
SETTLED = ("confirm", "take_back")
LEAST_DIGITS = 16
# The drop-in that is there, whatever it says.
_PRESENT = object()
# How a value's type is called where a person reads it.
TYPES = {
    "NoneType": "nothing",
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "str": "text",
    "tuple": "a list",
}
ROLES = {
    "master": (salt.config.master_config, "SALT_MASTER_CONFIG"),
    "minion": (salt.config.minion_config, "SALT_MINION_CONFIG"),
}


def __virtual__():
    return __virtualname__


def synced():
    """
    Tell whether this minion's copy of the formula's modules is the file server's.

    CLI Example:

    .. code-block:: bash

        salt '*' multimaster.synced
    """
    for kind, names in SYNCED.items():
        for name in names:
            served = __salt__["cp.hash_file"](f"salt://_{kind}/{name}")
            local = os.path.join(__opts__["extension_modules"], kind, name)
            if not served or not os.path.isfile(local):
                return False
            kind_of_hash = served["hash_type"]
            if __salt__["file.get_hash"](local, kind_of_hash) != served["hsum"]:
                return False
    return True


def list_masters():
    """
    Tell which masters this minion is configured for and which of them it is connected to.

    Returns ``configured``, ``connected`` and ``silent``, lists of addresses, and ``verifies``,
    whether it asks for a signature over the masters' key.  Connected means an established
    connection of the minion's own process to that master's publisher, which it makes only after
    that master has let it in; a master that has come back with another key keeps it, but is silent:
    it did not answer the minion's last questions.  ``cutover`` tells how the last change of its
    configuration goes: ``step`` (kept, or how far it has come) and since when, ``wanted``, the new
    masters, ``seen``, what each said to this minion (accepted, pending, rejected, foreign key,
    refused, silent) and since when, and ``back`` and ``why`` if the old list is in force again
    meanwhile.  ``restarts`` has the services whose restart is still to come, since when, and what
    it waits for.  ``beacons`` is the first master if this minion has beacons and has not been with
    that one since its start: Salt begins to run them with that connection.

    CLI Example:

    .. code-block:: bash

        salt '*' multimaster.masters
    """
    opts = _effective("minion", _config_dir())
    configured = _configured(opts)
    daemon = _daemon(opts["pidfile"])
    connected = []
    if daemon is not None:
        # What the files say by now the daemon may have yet to read.
        connected = __utils__["multimaster_dial.connected"](daemon.pid, configured, __opts__)
    silent = pathlib.Path(opts["cachedir"], "multimaster", "silent")
    journal = __utils__["multimaster_cutover.read"](_journal(opts))
    told = ("step", "since", "timeout", "wanted", "heard", "seconds", "seen", "back", "why")
    restarts = {}
    # Those that were ever asked for on this host.
    for path in pathlib.Path(opts["cachedir"], "multimaster", "restarts").glob("[!.]*"):
        restarts[path.name] = _outstanding(path.name, _config_dir())
    return {
        "configured": configured,
        "connected": connected,
        "silent": [address for address in configured if (silent / address).exists()],
        "cutover": {name: journal[name] for name in told if name in journal},
        "restarts": {service: found for service, found in restarts.items() if found},
        "verifies": opts["verify_master_pubkey_sign"],
        "beacons": _waited_for(opts, configured),
    }


def up(timeout=5):
    """
    Tell which of this minion's masters answer it now, in the configured order.

    timeout
        Seconds for signing in and for the answer, each; all are asked at the same time.

    For a ``salt-call`` that does not begin with one that is down: ``salt-call --master=ADDRESS``.

    CLI Example:

    .. code-block:: bash

        salt-call --local multimaster.up
    """
    opts = _effective("minion", _config_dir())
    return __utils__["multimaster_dial.answering"](opts, _configured(opts), timeout)


def event_send(tag, data=None, timeout=None):
    """
    Send an event to each of this minion's masters, once, in both modes and from ``salt-call``, too.

    tag, data
        Of the event, whose ``data`` is on the masters' buses as that of ``event.send`` is.
    timeout
        Seconds for signing in and for the answer, each; as long as the minion has for a sign-in
        unless given.  All masters are told at the same time.

    Returns address -> whether that master has said that it has the event; one that has not may have
    it all the same.  Raises an error if none has.

    CLI Example:

    .. code-block:: bash

        salt-call --local multimaster.event_send site/backup/done '{seconds: 12}'
    """
    data = {} if data is None else data
    if not isinstance(data, collections.abc.Mapping):
        raise CommandExecutionError(f"data: got {data!r}; supported: a mapping")
    opts = _effective("minion", _config_dir())
    masters = _configured(opts)
    timeout = timeout or opts["auth_timeout"]
    taken = __utils__["multimaster_dial.tell_each"](opts, masters, timeout, str(tag), data)
    if not taken:
        raise CommandExecutionError(f"no master has taken the event: {', '.join(masters)}")
    return {master: master in taken for master in masters}


def _configured(opts):
    """Return the addresses of a minion's masters."""
    return opts["master"] if isinstance(opts["master"], list) else [opts["master"]]


def settings():
    """
    Show what the declaration in this minion's pillar comes to on this host, and why.

    Returns option -> ``value`` and ``reason``, for each option that the formula derives for the
    minion.

    CLI Example:

    .. code-block:: bash

        salt-call multimaster.settings
        salt-call multimaster.settings --out json
    """
    declaration = dict(__pillar__.get("multimaster") or {})
    declaration.pop("keypair", None)
    declaration.pop("credentials", None)
    with _translated():
        topology = __utils__["multimaster_topology.parse"](declaration)
        derived = __utils__["multimaster_topology.minion_settings"](topology, __opts__["id"])
    return {s.option: {"value": s.value, "reason": s.reason} for s in derived}


def report(timeout=5, target=None):
    """
    Report on the master of this host: what it is and who answers to it.

    timeout
        Seconds to wait for answers.
    target
        A glob: the minions that the master is to ask; the one on its own host unless given.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster.report
    """
    opts = _effective("master", _config_dir())
    keys = salt.key.get_key({**opts, "__role": "master"}).list_keys()
    running = _daemon(opts["pidfile"]) is not None
    answers, within = {}, __utils__["multimaster_gather.whole"](timeout)
    if running:
        # One that is too busy to take a command is not working either.
        with (
            contextlib.suppress(salt.exceptions.SaltClientError),
            salt.client.get_local_client(mopts=opts) as client,
        ):
            answers = __utils__["multimaster_gather.hardened"](client).cmd(
                target or __opts__["id"],
                "test.ping",
                timeout=within,
                gather_job_timeout=within,
            )
    unfinished = __utils__["multimaster_gather.unfinished"](opts, keys["minions"])
    pub = _read_pair(opts)[1]
    signing_pub = _read_key_file(opts, "master_sign.pub")
    digest, conflicts = None, []
    with contextlib.suppress(CommandExecutionError), _ledger(opts) as book:
        digest, conflicts = book.digest, book.conflicts()
    return {
        "running": running,
        "digest": digest,
        "conflicts": conflicts,
        "version": salt.version.__version__,
        "fingerprint": __utils__["multimaster_keypair.fingerprint"](pub) if pub else None,
        "signs": opts["master_sign_pubkey"],
        "signing_fingerprint": (
            __utils__["multimaster_keypair.fingerprint"](signing_pub) if signing_pub else None
        ),
        "accepted": sorted(set(keys["minions"]) - unfinished),
        "pending": sorted(keys["minions_pre"]),
        "denied": sorted(keys["minions_denied"]),
        "rejected": sorted(keys["minions_rejected"]),
        "answering": sorted(name for name, value in answers.items() if value is True),
    }


def ledger_pull(asker, nonce, epoch="", place=0, digest=""):
    """
    Answer another master that asks what this host's master knows of decisions on keys.

    asker
        Minion id of the host whose master asks.
    nonce
        A value that the asker has just made up; signed with the answer.
    epoch, place
        How far it has read this ledger before, as the previous answer said.
    digest
        The digest of its own ledger: if that is this one's, there is nothing to read.

    Returns ``answer`` (origin, asker, epoch, place, end, digest, settled, decisions, and ``before``
    and ``mark``, which name what was recorded up to the place asked for and up to the one told) and
    ``signature``, made with the masters' shared key, so that an answer is as good as that key and
    not as a minion id.  The epoch is None, and nothing follows it, while there is no ledger yet.
    What is not in a ledger that is ``settled``, no key store of that master has, either.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.ledger_pull saltm2 0123456789abcdef
    """
    opts = _effective("master", _config_dir())
    pem, _ = _read_pair(opts)
    if pem is None:
        raise CommandExecutionError(f"there is no master's key pair on {__opts__['id']}")
    answer = {"origin": __opts__["id"], "asker": asker, "epoch": None}
    # A master that has not been restarted yet has no ledger.
    if os.path.exists(_ledger_path(opts)):
        with _ledger(opts) as book:
            # Before the decisions are read, or it could be true of later ones.
            settled = book.complete and not _seeds_path(opts).exists()
            known = place if epoch == book.epoch else 0
            before = book.mark(known)
            if digest == book.digest:
                known = book.end
            packed, place = _packed(book, known, _room(opts))
            answer |= {
                "epoch": book.epoch,
                "place": place,
                "end": book.end,
                "digest": book.digest,
                "settled": settled,
                "before": before,
                "mark": book.mark(place),
                "decisions": packed,
            }
    with _translated():
        signature = __utils__["multimaster_keypair.sign_answer"](answer, nonce, pem)
    return {"answer": answer, "signature": signature}


def signed(function, nonce, arguments=(), named=None):
    """
    Call one of the functions that masters ask of each other's hosts, and sign what it returns.

    nonce
        A value that the asker has just made up; signed with the answer.
    arguments, named
        Of the function.

    Returns ``answer`` (``told``, or ``error``, ``function`` and ``id``) and ``signature``, made
    with the masters' shared key; None on a host that has no pair yet.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.signed multimaster.report 0123456789abcdef
    """
    if function not in SIGNED:
        raise CommandExecutionError(f"function: got {function!r}; supported: {', '.join(SIGNED)}")
    try:
        answer = {"told": __salt__[function](*arguments, **(named or {}))}
    except CommandExecutionError as err:
        answer = {"error": str(err)}
    opts = _effective("master", _config_dir())
    pem, pub = _read_pair(opts)
    asked = (function, __opts__["id"], nonce)
    prove = __utils__["multimaster_keypair.prove"]
    with _translated():
        reply = prove(answer, *asked, pem)
        if pem and pub and __utils__["multimaster_keypair.unproved"](reply, *asked, pub):
            # Nobody believes it, and so it may as well say why.
            path = next(path for path in _pair_paths(opts) if path.suffix == ".pem")
            why = f"the private key {path} does not fit the public key beside it"
            reply = prove({"error": why}, *asked, pem)
    return reply


def ledger_wake(origin, word=None):
    """
    Tell this host's master that another one has something new for it; only tells.

    origin
        Minion id of the host whose master it is; empty to have this one look at everything again.
    word
        What that master says of the keys of the masters' hosts, signed with the masters' key: one
        that has lost them could not ask.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster.ledger_wake saltm1
    """
    opts = _effective("master", _config_dir())
    if not origin:
        # Not by the event, which any minion can send.
        __utils__["multimaster_peers.demand"](_demand_path(opts))
    said = {"origin": origin} | ({"word": word} if word else {})
    with salt.utils.event.get_event("master", opts=opts, listen=False) as bus:
        return bus.fire_event(said, "multimaster/wake")


def _demand_path(opts):
    return os.path.join(opts["cachedir"], "multimaster", "look-again")


def key_digest():
    """
    Tell the digest of the ledger of this host's master, and how many keys it has.

    Returns ``digest``, None while there is no ledger, ``conflicts``, the ids that have several
    keys, ``counts``, the number of keys in each state and of ids with denied ones, ``provisional``,
    the number of those that it was given before its first start and has not compared with the
    giver's ledger yet, ``aside``, what its engine could not do so far (item -> reason),
    ``proposed``, what is proposed, by verdict and the master where it was done, ``astray``, the
    keys that the key store has otherwise than the ledger says (id -> how), ``refused``, the ids of
    which there are denied keys, with that (``denied``) and their own ``state`` and ``fingerprint``,
    and ``unwritable``, where no key can be written and why, if that is so.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.key_digest
    """
    opts = _effective("master", _config_dir())
    digest, conflicts, aside, proposals, suspects = None, [], {}, [], []
    states, seeds = _key_states(opts), _seeds(opts)
    with contextlib.suppress(CommandExecutionError), _ledger(opts) as book:
        digest, conflicts, aside = book.digest, book.conflicts(), book.aside()
        proposals = book.proposals()
        # Before its first look at all of them the engine has not recorded them.
        names = book.suspects({n: STATES[s] for n, s in states.items()}) if book.complete else ()
        suspects = [(n, book.of(n), book.seen(n)) for n in names if n not in seeds]
    counts = dict.fromkeys(STATES.values(), 0)
    for state in states.values():
        counts[STATES[state]] += 1
    denied = _denied_ids(opts)
    counts["denied"] = len(denied)
    # Those that are somebody's own first: a minion is shut out, or somebody is in its name.
    first = sorted(denied, key=lambda name: (name not in states, name))[:SHOWN]
    told = {
        "digest": digest,
        "conflicts": conflicts,
        "counts": counts,
        "provisional": len(seeds),
        "aside": _some(aside),
        "proposed": __utils__["multimaster_ledger.summary"](proposals, SHOWN),
        "astray": _some(_astray(opts, states, suspects)),
        "refused": {name: _refused(opts, states, name) for name in first},
    }
    if why := _unwritable(opts):
        told["unwritable"] = why
    return told


def _some(items):
    """Return the first of many items with their words, and how many more there are."""
    shown = dict(list(items.items())[:SHOWN])
    if len(items) > SHOWN:
        shown["..."] = f"{len(items) - SHOWN} more"
    return shown


def _astray(opts, states, suspects):
    """
    Return id -> how its key is otherwise than decided.

    suspects
        Ids with their decisions, and what is remembered of their keys.
    """
    found, known = {}, __utils__["multimaster_ledger.key"]
    masters = _declared_ids(opts)
    for name, decisions, seen in suspects:
        if seen is None and name not in masters:
            # As the engine has it.
            seen = __utils__["multimaster_ledger.removed_by"](decisions, __opts__["id"])
        try:
            directory = states.get(name)
            key = _key(opts, directory, name) if directory else None
            there = key and known(STATES[directory], key.fingerprint)
            why = __utils__["multimaster_ledger.astray"](name, decisions, there, seen)
        except OSError as err:
            why = f"cannot be read: {err.strerror}"
        if why:
            found[name] = why
    return found


def _refused(opts, states, name):
    """Return the denied key under an id, and its own."""
    denied, own, state = None, None, states.get(name)
    with contextlib.suppress(OSError, SaltException):
        denied = next(iter(_denied(opts, name)), None)
        own = _key(opts, state, name) if state else None
    return {"denied": denied, "state": STATES.get(state), "fingerprint": own and own.fingerprint}


def _unwritable(opts):
    """Return where this host's master cannot write keys, and why, or None."""
    if not _on_disk(opts):
        return None
    for state in STATES:
        path = os.path.join(opts["pki_dir"], state)
        try:
            room = os.statvfs(path)
        except OSError:
            # Salt makes it when it needs it.
            continue
        if room.f_flag & os.ST_RDONLY:
            return f"{path}: read-only file system"
        with _as_user(pwd.getpwnam(opts["user"])):
            if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
                return f"{path}: not writable for {opts['user']}"
            left = room.f_bavail if os.geteuid() else room.f_bfree
        # Some file systems have no number of files.
        if not left or (room.f_files and not room.f_favail):
            return f"{path}: no space left"
    return None


def key_settle(verb, likes, test=False):
    """
    Confirm what is proposed on this host's master, or take it back; its engine does it at once.

    verb
        ``confirm`` or ``take_back``.
    likes
        A list of ids or globs, one of which an id has to match.
    test
        Only tell what would be done.

    Returns ``count``, and ``keys``, of the first ids: what is proposed, where that was done, when
    this master has recorded it (ms), and what the key becomes.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.key_settle confirm "['web*']" test=True
    """
    if verb not in SETTLED:
        raise CommandExecutionError(f"verb: got {verb!r}; supported: {', '.join(SETTLED)}")
    if not isinstance(likes, list) or not likes:
        raise CommandExecutionError(f"ids: got {likes!r}; supported: a list of ids or globs")
    opts = _effective("master", _config_dir())
    with _ledger(opts) as book:
        proposals = book.proposals()
    likes = [str(like) for like in likes]
    found = [each for each in proposals if any(fnmatch.fnmatch(each[0].id, k) for k in likes)]
    if not found:
        known = ", ".join(one.id for one, _ in proposals[:SHOWN])
        supported = (
            f"what matches one of {len(proposals)}: {known}" if known else "none is proposed"
        )
        raise CommandExecutionError(f"ids: got {', '.join(likes)}; supported: {supported}")
    if not test:
        wanted = json.dumps([verb, [[one.id, one.fingerprint] for one, _ in found]])
        path = os.path.join(_state_dir(opts), f"settle-{secrets.token_hex(8)}")
        # Renamed once it is complete; not by an event, which any minion can send.
        _write_atomically(path, wanted, 0o640, pwd.getpwnam(opts["user"]))
        with salt.utils.event.get_event("master", opts=opts, listen=False) as bus:
            bus.fire_event({"origin": ""}, "multimaster/wake")
    becomes = __utils__["multimaster_ledger.settled"]
    return {
        "count": len(found),
        "keys": {
            one.id: {
                "proposed": one.verdict,
                "origin": one.origin,
                "recorded": recorded,
                "becomes": becomes(verb, one),
            }
            for one, recorded in found[:SHOWN]
        },
    }


def key_states(like="*"):
    """
    Tell what this host's master has decided on keys.

    like
        A glob that ids have to match.

    Returns id -> ``state`` (accepted, rejected or pending) and ``fingerprint``; denied, and that of
    one of them, where there are denied keys only; and ``denied``, the fingerprints of those that
    were denied under an id that has another key.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.key_states 'web*'
    """
    opts = _effective("master", _config_dir())
    states = _listed(opts)
    return _described(opts, {n: s for n, s in states.items() if fnmatch.fnmatch(n, like)})


def key_page(like, after, count):
    """
    Tell a part of what ``key_states`` tells, in a form that is short and quick.

    like
        A glob that ids have to match.
    after, count
        Of the ids in their order: those that come after this one, and how many.

    Returns a text; for the runner, since Salt limits what one answer may hold.  Under no id there
    is an entry if it has less than it was asked for, and is not the last one.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.key_page '*' '' 1000
    """
    opts = _effective("master", _config_dir())
    states = _listed(opts)
    names = sorted(name for name in states if name > after and fnmatch.fnmatch(name, like))
    names = names[:count]
    page = _described(opts, {name: states[name] for name in names})
    while True:
        text = __utils__["multimaster_ledger.squeeze"](page)
        if len(text) <= _room(opts) or len(names) <= 1:
            return text
        # Whoever knocks here chooses an id, and how long it is.
        names = names[: len(names) // 2]
        page = {name: page[name] for name in names} | {"": {"state": "more", "fingerprint": None}}


def key_history(minion_id):
    """
    Tell what this host's master has recorded about a minion's keys, oldest first.

    Returns a list of ``recorded`` and ``decided`` (milliseconds since the epoch), ``verdict``,
    ``fingerprint``, ``origin`` (the master where it was decided) and ``via`` (how this master
    heard: here, found, or a peer's id).

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.key_history web1
    """
    with _ledger(_effective("master", _config_dir())) as book:
        return book.history(minion_id)


def key_decide(verdict, minion_id, fingerprint, test=False):
    """
    Accept, reject or delete a key on this host's master, if it is the expected one.

    verdict
        ``accept``, ``reject`` or ``delete``; ``only``: delete it unless it is the expected one;
        ``clear``: delete the expected one if it is denied, and no other.
    fingerprint
        SHA-256 of the expected public key, in hexadecimal, as ``multimaster.keys`` shows it, or at
        least the first 16 digits.
    test
        Only tell what would be done.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.key_decide accept web1 0123456789abcdef test=True
    """
    if verdict not in VERBS:
        raise CommandExecutionError(f"verdict: got {verdict!r}; supported: {', '.join(VERBS)}")
    minion_id = str(minion_id)
    if not _is_id(minion_id):
        raise CommandExecutionError(f"minion_id: got {minion_id!r}; supported: a minion id")
    # Salt makes a number of one that has decimal digits only.
    if not isinstance(fingerprint, str) or len(fingerprint) < LEAST_DIGITS:
        raise CommandExecutionError(
            f"fingerprint: got {fingerprint!r}; supported: {LEAST_DIGITS} hexadecimal digits or "
            "more, a letter among them"
        )
    opts = _effective("master", _config_dir())
    directory = _key_states(opts).get(minion_id)
    key = _key(opts, directory, minion_id) if directory else None
    found = key and key.fingerprint
    expected = bool(found and found.startswith(fingerprint))
    if verdict == "clear":
        if not any(one.startswith(fingerprint) for one in _denied(opts, minion_id)):
            return {"changed": False, "found": found}
        if not test:
            _clear_denied(opts, minion_id)
        return {"changed": True, "found": found, "was": DENIED}
    if verdict == "only":
        others = [one for one in _denied(opts, minion_id) if not one.startswith(fingerprint)]
        if expected and others:
            if not test:
                _clear_denied(opts, minion_id)
            return {"changed": True, "found": found, "was": DENIED}
        if not found or expected:
            return {"changed": False, "found": found}
    elif not expected:
        denied = _denied(opts, minion_id)
        if verdict == "delete" and any(one.startswith(fingerprint) for one in denied):
            # Not the key that is in use.
            if not test:
                _clear_denied(opts, minion_id)
            return {"changed": True, "found": found, "was": DENIED}
        also = f", and denied {', '.join(denied)}" if denied else ""
        raise CommandExecutionError(
            f"fingerprint of {minion_id}: got {fingerprint!r}; "
            f"this master has {found or 'no key'}{also}"
        )
    ret = {"changed": directory != VERBS[verdict], "found": found, "was": directory}
    if not test and ret["changed"]:
        keys = salt.key.get_key({**opts, "__role": "master"})
        there = {directory: [minion_id]}
        if verdict == "accept":
            keys.accept(match_dict=there, include_rejected=True)
        elif verdict == "reject":
            keys.reject(match_dict=there, include_accepted=True)
        else:
            keys.delete_key(match_dict=there)
        if verdict in ("accept", "reject") and _key_states(opts).get(minion_id) == directory:
            # Salt says so where nobody reads it.
            raise CommandExecutionError(
                f"{minion_id}: Salt cannot {verdict} this key, which stays as it is; "
                "it may be none, which can only be deleted"
            )
    return ret


def install_keypair(config_dir=None, replace=False, test=False, options=None):
    """
    Bring this host's master key pair in line with the one that the pillar gives.

    config_dir
        Directory of the Salt configuration; that of this minion unless given.
    replace
        Replace a different pair even though the master has accepted minions.
    test
        Only tell what would be done.
    options
        The content that ``multimaster.conf`` is about to have, if it is not to stay as it is.

    Returns ``action`` (none, write, repair, replace or refuse), ``reason`` and ``fingerprint``;
    ``backup``, the directory with what was replaced; and ``warning``, why the pillar would not give
    this host the pair that it has.  Installs nothing if refused.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster.install_keypair test=True
    """
    opts = _effective("master", config_dir or _config_dir(), options)
    _refuse_to_lose_keys(opts, config_dir or _config_dir())
    bundle = _bundle(opts)
    pem, pub = _read_pair(opts)
    others = sorted(set(_accepted_ids(opts)) - _declared_ids(opts) - {__opts__["id"]})
    with _translated():
        decision = __utils__["multimaster_keypair.decide"](pem, pub, bundle, others, replace)
    action, reason = decision.action, decision.reason
    if action == "none":
        misfit = _misfit(opts)
        if misfit:
            action, reason = "repair", misfit
    ret = {
        "action": action,
        "reason": reason,
        "fingerprint": __utils__["multimaster_keypair.fingerprint"](bundle.pub),
    }
    if why_not := _given().get("refused"):
        ret["warning"] = f"{__opts__['id']} is not given the key pair, and keeps it: {why_not}"
    if test or action in ("none", "refuse"):
        return ret
    if _would_be_lost(opts, bundle):
        ret["backup"] = _back_up(opts, _pair_paths(opts))
    fresh = action == "replace" or (action == "write" and not pem)
    _write_pair(opts, bundle)
    if fresh:
        # Tells `left` that the pair came from here.
        _touch(opts, _ours(opts))
    return ret


def seed_keys(config_dir=None, test=False, options=None):
    """
    Give a master that has not run yet every key that is accepted or rejected on the present one.

    config_dir, test, options
        As for ``install_keypair``, which comes first.

    The keys come from the master that this minion asks for its pillar, page by page, each sealed to
    this minion.  Nothing is written unless what has come is what that master has in the end, or the
    last of several walks through all of them, where some change all the time.

    Returns ``reason``; ``accepted`` and ``rejected``, the ids that were written, or would be with
    ``test``; ``kept``, id -> why it was left alone; and ``refused``, ids without a usable key.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster.seed_keys test=True
    """
    opts = _effective("master", config_dir or _config_dir(), options)
    ret = {"reason": "", "accepted": [], "rejected": [], "kept": {}, "refused": []}
    _bundle(opts)
    if why_not := _given().get("refused"):
        no_keys = f"No keys are asked for: {__opts__['id']} is not given any: {why_not}"
        return {**ret, "reason": no_keys}
    if "sealed" not in _given():
        return {**ret, "reason": "There is no master to ask: the key pair was not given by one"}
    if _daemon(opts["pidfile"]) and os.path.exists(_ledger_path(opts)):
        return {**ret, "reason": "This master runs: its engine keeps its keys equal to the others'"}
    standing = _standing(opts)
    origin, offered = _gathered(standing)
    if offered is None:
        return {**ret, "reason": "All keys are here"}
    chosen, seeds = [], {}
    for name, state, pub in offered:
        fingerprint = _sound_key(opts, name, state, pub)
        if fingerprint is None:
            ret["refused"].append(name)
            continue
        found = None
        if name in standing:
            key = _key(opts, standing[name], name)
            old = key.fingerprint if key else ""
            found = __utils__["multimaster_ledger.key"](STATES[standing[name]], old)
        offer = __utils__["multimaster_ledger.key"](state, fingerprint)
        why_not = __utils__["multimaster_ledger.seeding"](found, offer)
        if why_not is None:
            chosen.append((name, state, pub))
            seeds[name] = fingerprint
            ret[state].append(name)
        elif why_not:
            ret["kept"][name] = why_not
    ret["reason"] = f"{len(offered)} keys came from {origin}"
    if test or not chosen:
        return ret
    _note_seeds(opts, _source(opts, origin), seeds)
    started = time.monotonic()
    _write_keys(opts, chosen, standing)
    log.info("Wrote %d keys in %.1f s", len(chosen), time.monotonic() - started)
    return ret


def install_signing(creator=None, config_dir=None, replace=False, test=False, options=None):
    """
    Have this host's master hold the signing pair and its signature over the masters' public key.

    creator
        None if this master may make the pair when there is none; else the id of the one that may.
    config_dir, replace, test, options
        As for ``install_keypair``, which comes first.

    Returns ``action`` (none, write, create, wait, repair, replace or refuse), ``reason`` and
    ``fingerprint``, and ``backup``, the directory with what was replaced.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.install_signing test=True
    """
    opts = _effective("master", config_dir or _config_dir(), options)
    bundle = _bundle(opts)
    old_pem, old_pub, old_signature = (_read_key_file(opts, name) for name in SIGNING_FILES)
    with _translated():
        decision = __utils__["multimaster_keypair.decide_signing"](
            old_pem, old_pub, bundle, creator, replace
        )
    action, reason = decision.action, decision.reason
    if action in ("refuse", "wait") or (action == "create" and test):
        return {"action": action, "reason": reason, "fingerprint": None}
    with _translated():
        if action == "create":
            pem, pub = __utils__["multimaster_keypair.make_pair"](opts["keysize"])
        elif action in ("write", "replace"):
            pem, pub = bundle.sign_pem, bundle.sign_pub
        else:
            pem = old_pem
            pub = old_pub if action == "none" else __utils__["multimaster_keypair.public_of"](pem)
        algorithm = opts["publish_signing_algorithm"]
        signature = old_signature
        if not __utils__["multimaster_keypair.is_signed"](
            bundle.pub, old_signature or "", pub, algorithm
        ):
            signature = __utils__["multimaster_keypair.sign_pub"](bundle.pub, pem, algorithm)
    wanted = dict(zip(SIGNING_FILES, (pem, pub, signature), strict=True))
    if action == "none":
        if signature != old_signature:
            action, reason = "repair", "there was no signature over the present public key"
        elif misfit := _signing_misfit(opts):
            action, reason = "repair", misfit
    ret = {
        "action": action,
        "reason": reason,
        "fingerprint": __utils__["multimaster_keypair.fingerprint"](pub),
    }
    if test or action == "none":
        return ret
    if action in ("replace", "repair") and (old_pem, old_pub) != (pem, pub) and _on_disk(opts):
        ret["backup"] = _back_up(opts, _signing_paths(opts))
    _make_private_directories(opts)
    for name, text in wanted.items():
        _write_key_file(opts, name, text)
    return ret


def extension_modules(config_dir=None):
    """
    Return the directory that this host's minion loads its synced modules from.

    CLI Example:

    .. code-block:: bash

        salt-call --local multimaster.extension_modules /etc/salt
    """
    return _effective("minion", config_dir or _config_dir())["extension_modules"]


def signing_offered():
    """
    Tell whether the pillar gives this host's master the signing pair, sealed.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster.signing_offered
    """
    return _bundle().sign_pem is not None


def signs(config_dir=None):
    """
    Tell whether this host's master is configured to sign its public key.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster.signs
    """
    return _effective("master", config_dir or _config_dir())["master_sign_pubkey"]


def verifies(config_dir=None, signing=False):
    """
    Tell whether this host's minion is configured to verify the signature of its masters.

    signing
        Whether they are declared to sign. One that has met none of them and is given their signing
        key then begins with that: it would get in nowhere, and has no engine yet to follow with.

    CLI Example:

    .. code-block:: bash

        salt web1 multimaster.verifies
    """
    opts = _effective("minion", config_dir or _config_dir())
    met = os.path.exists(os.path.join(opts["pki_dir"], "minion_master.pub"))
    begins = bool(signing and not met and _given().get("sign_pub"))
    return opts["verify_master_pubkey_sign"] or begins


def install_signing_pub(config_dir=None, test=False):
    """
    Give this minion the public signing key that the pillar brings.

    Returns ``action`` (none, write or replace) and ``fingerprint``, None if the pillar brings none.

    CLI Example:

    .. code-block:: bash

        salt web1 multimaster.install_signing_pub test=True
    """
    pub = _given().get("sign_pub")
    if pub is None:
        return {"action": "none", "fingerprint": None}
    fingerprint = __utils__["multimaster_keypair.fingerprint"](pub)
    if fingerprint is None:
        raise CommandExecutionError("the pillar brings a public signing key that is none")
    opts = _effective("minion", config_dir or _config_dir())
    path = pathlib.Path(opts["pki_dir"], "master_sign.pub")
    old = _read(path)
    ret = {"action": "none", "fingerprint": fingerprint}
    if old is None or path.is_symlink() or old.strip() != pub.strip():
        ret["action"] = "write" if old is None else "replace"
        if not test:
            _write_atomically(path, pub, 0o644, pwd.getpwnam(opts["user"]))
    return ret


def see_masters(within=SEEN_WITHIN):
    """
    Ask each master of this minion to sign the minion in, and tell whether it signs its key.

    within
        Seconds that each has for its answer.

    Nothing is believed that is not in a fresh answer, signed with the key that this minion knows
    its masters by.  Returns address -> ``signs``, ``plain``, ``signs with another signing key``, or
    why nothing is known.

    CLI Example:

    .. code-block:: bash

        salt web1 multimaster.see_masters
    """
    opts = {"grains": __opts__.get("grains", {}), **_effective("minion", _config_dir())}
    masters = opts["master"] if isinstance(opts["master"], list) else [opts["master"]]
    seen = {}
    for address in masters:
        try:
            seen[address] = _see(opts, address, within)
        # The answer may be anybody's, and of any shape; Salt even exits on some.
        except (Exception, SystemExit) as err:
            seen[address] = f"unknown: {err}"
    return seen


def follow_masters(service="salt-minion", timeout=600, test=False, within=SEEN_WITHIN):
    """
    Have this minion verify signatures if its masters sign, and not if they do not.

    service, timeout
        Of the minion, as for ``restart``, which follows a change.
    test
        Only tell what would be done.
    within
        Seconds that each master has for its answer.

    The minion's engine calls this, whenever a connection to a master has ended or begun.  Returns
    ``seen`` (as ``see_masters``), ``verifies`` (as the running minion was started) and ``wanted``,
    which is None if the masters differ or nothing is known of them.

    CLI Example:

    .. code-block:: bash

        salt-call multimaster.follow_masters test=True
    """
    seen = see_masters(within)
    wanted = __utils__["multimaster_signing.verdict"](seen.values())
    ret = {"seen": seen, "verifies": __opts__["verify_master_pubkey_sign"], "wanted": wanted}
    if test or wanted is None:
        return ret
    path = pathlib.Path(_config_dir(), "minion.d", DROP_IN)
    text = path.read_text()
    with _translated():
        new = __utils__["multimaster_signing.switched"](text, wanted)
    if new != text:
        log.warning("The masters %s; so this minion", "sign" if wanted else "do not sign")
        status = path.stat()
        owner = (status.st_uid, status.st_gid)
        __utils__["multimaster_files.write"](str(path), new, status.st_mode & 0o777, owner)
    if new != text or ret["verifies"] != wanted:
        _launch(service, timeout, _config_dir())
    return ret


def check_config(role, options, config_dir=None, take=None):
    """
    Parse a role's configuration with Salt's own loader as it would be with the given drop-in.

    role
        ``master`` or ``minion``.
    options
        Content of the drop-in ``multimaster.conf``; None for a configuration without it.
    take
        For the states, which need it all: a function of this process that is given the options with
        the secrets that are among them, and then nothing is returned.  From a command line, or from
        another host, none can come.

    Returns the main file and all drop-ins, combined as Salt combines them: a keyed hash for what
    may be a secret, and mappings with their paths joined by colons.  Raises CommandExecutionError
    if the result does not parse, if an option is of a type that Salt complains about, or if another
    file overrides the drop-in.

    CLI Example:

    .. code-block:: bash

        salt web1 multimaster.check_config minion '{master: [192.0.2.1, 192.0.2.2]}'
    """
    if take is not None and not callable(take):
        raise CommandExecutionError(f"take: got {take!r}; supported: nothing, from elsewhere")
    config_dir = config_dir or _config_dir()
    loaded = _checked(role, options, config_dir)
    if take:
        take(loaded)
        return {}
    key = _hash_key(role, config_dir)
    leaves = __utils__["multimaster_options.leaves"](loaded)
    return {
        path: __utils__["multimaster_options.shown"](path, v, key) for path, v in leaves.items()
    }


def unstated(role, options, override=(), config_dir=None):
    """
    List what a drop-in would replace although the declaration does not say so, a line for each.

    role
        ``master`` or ``minion``.
    options
        The part of the drop-in ``multimaster.conf`` that is looked at.
    override
        Names of options that may replace what other files say.

    A line names the option, the files that set it, the values, and the remedy.  No secret is in it.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.unstated master '{worker_threads: 8}'
    """
    config_dir = config_dir or _config_dir()
    there = _checked(role, None, config_dir)
    suspects = [
        option
        for option, value in options.items()
        if option in there and there[option] != value and option not in override
    ]
    if not suspects:
        return []
    with _scratch(role, options, config_dir) as main:
        combined = _combined(role, main)
    key = _hash_key(role, config_dir)
    lines = []
    for option in suspects:
        difference = __utils__["multimaster_options.phrases"](
            {option: there[option]},
            {option: options[option]},
            key,
            "{path} is {there} there and {here} here",
        )
        remedy = "remove it there"
        # A file that Salt reads later, or merges with ours, would win all the same.
        if combined.get(option) == options[option]:
            remedy += f", or list it under multimaster:{role}:override"
        files = _setting(role, option, config_dir)
        lines.append(f"{option}: {files} also sets it: {difference}; {remedy}")
    return lines


def config_changes(role, options, config_dir=None):
    """
    Tell how a role's effective configuration would change with the given drop-in.

    role
        ``master`` or ``minion``.
    options
        Content of the drop-in ``multimaster.conf``.

    Both configurations are computed with Salt's own loader, with its defaults, before anything is
    written.  Returns path -> ``old`` and ``new``, without the equal ones; keyed hashes in place of
    what may be a secret.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.config_changes master '{worker_threads: 8}'
    """
    config_dir = config_dir or _config_dir()
    try:
        old = _loaded(role, _PRESENT, config_dir)
    except CommandExecutionError:
        # Then it is our own file that does not parse, and is about to be a good one.
        old = _loaded(role, None, config_dir)
    new = _loaded(role, options, config_dir)
    return __utils__["multimaster_options.differences"](old, new, _hash_key(role, config_dir))


def misspelt(role, options):
    """
    List options that Salt does not know, each with the one that it is probably meant to be.

    An unknown option is no mistake by itself: external pillars and returners have any names.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.misspelt master '[worker_thread]'
    """
    known = {*salt.config.VALID_OPTS, *_defaults(role)}
    likely = {}
    for option in sorted(set(map(str, options)) - known):
        for name in difflib.get_close_matches(option, known, n=1, cutoff=0.9):
            likely[option] = name
    return likely


def autosign_dir(config_dir=None):
    """
    Tell where the autosign files of this host's master are, as its configuration has to name it.

    Salt puts such a path below ``root_dir``, unless that is what it begins with.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.autosign_dir
    """
    config_dir = config_dir or _config_dir()
    path = os.path.join(config_dir, "multimaster")
    root = _checked("master", None, config_dir).get("root_dir", "/")
    inside = os.path.relpath(os.path.realpath(path), os.path.realpath(root))
    if inside.split(os.sep)[0] == os.pardir:
        raise CommandExecutionError(
            f"autosign files: got config_dir {config_dir} and root_dir {root}; supported: a "
            "configuration below the master's root_dir"
        )
    return os.path.join("/", inside)


def stale(service, files, config_dir=None):
    """
    Tell whether a daemon runs with older files than there are.

    service
        ``salt-master`` or ``salt-minion``.
    files
        Paths, or globs, of what the daemon read when it started; of a master, its key pair is
        looked at, too.

    Returns the paths that are newer than the daemon; nothing if it does not run.

    CLI Example:

    .. code-block:: bash

        salt web1 multimaster.stale salt-minion '[/etc/salt/minion.d/multimaster.conf]'
    """
    opts = _effective(_role(service), config_dir or _config_dir())
    daemon = _daemon(opts["pidfile"])
    if daemon is None:
        return []
    if _role(service) == "master":
        files = [*files, *map(str, _pair_paths(opts))]
    # The start of a process is known to a fraction of a second only.
    started = daemon.create_time() + 1
    there = [
        path
        for name in files
        for path in ([name] if os.path.exists(name) else sorted(glob.glob(name)))
    ]
    return [path for path in there if os.path.getmtime(path) > started]


def prepare_cut_over(drop_in, options, masters, timeout, config_dir=None):
    """
    Save the minion's drop-in before another one is written, for the cut-over to go back to.

    drop_in
        Path of the drop-in.
    options
        The content that it will have; there is nothing to be done if it has that already.
    masters
        How many masters have to let the minion in before it is restarted.
    timeout
        Seconds after which ``status`` says that this is still to come.

    Returns whether the restart is to be a cut-over: not for a minion that does not run.

    CLI Example:

    .. code-block:: bash

        salt web1 multimaster.prepare_cut_over /etc/salt/minion.d/multimaster.conf \\
            '{master: [192.0.2.1]}' 1 600
    """
    opts = _effective("minion", config_dir or _config_dir())
    path = _journal(opts)
    journal = __utils__["multimaster_cutover.read"](path)
    if salt.utils.yaml.safe_load(_read(pathlib.Path(drop_in)) or "") == options:
        if journal.get("back"):
            # What the minion went back to is what is wanted now.
            __utils__["multimaster_cutover.forget"](path)
        return False
    daemon = _daemon(opts["pidfile"])
    if daemon is None:
        __utils__["multimaster_cutover.forget"](path)
        return False
    goal = salt.utils.yaml.safe_load(_read(pathlib.Path(f"{path}.goal")) or "")
    # Where there was none, the engine all the same: a reboot must not lose what is aimed at.
    engine = {"service": _engine_option(options, "service"), "restart_timeout": timeout}
    fallback = {
        "engines": [
            one if "multimaster_minion" not in one else {"multimaster_minion": engine}
            for one in options.get("engines", [{"multimaster_minion": engine}])
        ]
    }
    __utils__["multimaster_cutover.prepare"](
        path,
        drop_in,
        masters,
        opts["master"] if isinstance(opts["master"], list) else [opts["master"]],
        salt.utils.yaml.safe_dump(fallback),
        timeout,
        goal == options,
        __utils__["multimaster_restart.process"](os.getpid()),
        __utils__["multimaster_restart.process"](daemon.pid),
    )
    return True


def make_minion_keypair(service="salt-minion", config_dir=None, test=False):
    """
    Make this minion's key pair if it has none, as its daemon does before it meets a master.

    service
        The minion's.  Its daemon would make another pair at the same time: it is stopped meanwhile.
    test
        Only tell.

    Returns whether there was none.

    CLI Example:

    .. code-block:: bash

        salt-call --local multimaster.make_minion_keypair test=True
    """
    opts = _effective("minion", config_dir or _config_dir())
    pki = pathlib.Path(opts["pki_dir"])
    there = [name for name in ("minion.pem", "minion.pub") if os.path.lexists(pki / name)]
    if len(there) == 2:
        return False
    if there:
        raise CommandExecutionError(
            f"{pki} has {there[0]} without its other half: put that back, or remove this one, too"
        )
    daemon = _daemon(opts["pidfile"])
    if daemon in [psutil.Process(), *psutil.Process().parents()]:
        raise CommandExecutionError(f"the minion that runs this has lost its key pair in {pki}")
    if test:
        return True
    if daemon is None:
        _make_minion_keypair(opts)
        return True
    if not __salt__["service.stop"](service):
        raise CommandExecutionError(f"cannot stop {service}, which may be making a key pair")
    try:
        # Salt does not let init wait for the end of this service.
        daemon.wait(STOPPED_WITHIN)
        _make_minion_keypair(opts)
        # It starts with the masters that are declared, and was with none that it could go back to.
        __utils__["multimaster_cutover.forget"](_journal(opts))
    except psutil.TimeoutExpired:
        raise CommandExecutionError(f"{service} is stopped, and its process goes on") from None
    finally:
        __salt__["service.start"](service)
    return True


def _make_minion_keypair(opts):
    try:
        salt.utils.verify.verify_env(
            [opts["pki_dir"]],
            opts["user"],
            permissive=opts["permissive_pki_access"],
            root_dir=opts["root_dir"],
            pki_dir=opts["pki_dir"],
        )
        # Salt tells minions apart by their masters, too; there is none yet.
        salt.crypt.SAuth({**opts, "master_uri": ""}).get_keys()
    # As Salt ends a program whose directory cannot be made.
    except (OSError, SaltException, SystemExit) as err:
        raise CommandExecutionError(f"no key pair in {opts['pki_dir']}: {err}") from err


def _engine_option(options, name):
    """Return what a minion's drop-in gives the formula's engine."""
    for one in options.get("engines", ()):
        if "multimaster_minion" in one:
            return one["multimaster_minion"].get(name, "salt-minion")
    return "salt-minion"


def resume(service="salt-minion", timeout=600):
    """
    Have a cut-over or a restart go on that was begun, and that nobody works on any more.

    service, timeout
        Of the minion, as for ``restart``.

    Returns the services that a program was started for.

    CLI Example:

    .. code-block:: bash

        salt web1 multimaster.resume
    """
    config_dir = _config_dir()
    opts = _effective("minion", config_dir)
    journal = _journal(opts)
    process = __utils__["multimaster_restart.process"]
    locks = []
    broken = __utils__["multimaster_cutover.pending"](journal)
    # Whoever has prepared it asks for the restart itself.
    if broken and not __utils__["multimaster_cutover.at_work"](journal, process):
        locks.append((service, __utils__["multimaster_cutover.lock_path"](journal)))
    for directory in pathlib.Path(opts["cachedir"], "multimaster", "restarts").glob("[!.]*"):
        pid = _daemon_pid(directory.name, config_dir)
        __utils__["multimaster_restart.settle"](str(directory), pid)
        if directory.name == service and _cutting_over(opts):
            continue
        if __utils__["multimaster_restart.outstanding"](str(directory), pid):
            locks.append((directory.name, str(directory / ".lock")))
    begun = []
    for name, lock in locks:
        with __utils__["multimaster_cutover.alone"](lock, False) as free:
            if not free:
                continue
        log.warning("A restart of %s was broken off; it goes on", name)
        _launch(name, timeout, config_dir, request=False)
        begun.append(name)
    return begun


def restart(service, timeout=600, config_dir=None, job=True):
    """
    Restart a Salt daemon of this host after the job that calls this is over and has been returned.

    service
        Name of the service of the minion or of the master.
    timeout
        Seconds after which ``status`` says that it is still to come.
    job
        False if no job calls this, but the minion's engine, whose end is not waited for.

    A master waits until another one lets this host's minion in, and until those that are declared
    before it have been restarted.  Returns at once; ``multimaster-restart.log`` beside the minion's
    log tells the outcome, ``outstanding`` whether it is still to come.

    CLI Example:

    .. code-block:: bash

        salt web1 multimaster.restart salt-minion
    """
    return _launch(service, timeout, config_dir or _config_dir(), job)


def outstanding(service, config_dir=None):
    """
    Tell whether a restart of a daemon was asked for that has not happened yet.

    service
        ``salt-master`` or ``salt-minion``.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.outstanding salt-master
    """
    return bool(_outstanding(service, config_dir or _config_dir()))


def withdraw(service, config_dir=None, test=False):
    """
    Have a restart that was asked for not happen; tell whether there was one to come.

    A minion's cut-over ends with it: what is in its drop-in stays.

    service
        ``salt-master`` or ``salt-minion``.
    test
        Only tell.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.withdraw salt-master
    """
    config_dir = config_dir or _config_dir()
    opts = _effective("minion", config_dir)
    going = _role(service) == "minion" and __utils__["multimaster_cutover.pending"](_journal(opts))
    found = bool(_outstanding(service, config_dir)) or going
    if found and not test:
        __utils__["multimaster_restart.withdraw"](_requests(opts, service))
        if going:
            __utils__["multimaster_cutover.forget"](_journal(opts))
    return found


def daemons(config_dir=None):
    """
    Tell which processes the daemons of this host are: role -> process id and start, or None.

    The start is in seconds since the epoch; the two together belong to one process only.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.daemons
    """
    found = {}
    for role in ROLES:
        daemon = _daemon(_effective(role, config_dir or _config_dir())["pidfile"])
        found[role] = [daemon.pid, daemon.create_time()] if daemon else None
    return found


def leave(service="salt-master", config_dir=None, test=False):
    """
    Remove the master's key pair from this host if the formula had installed it, after a backup.

    Returns ``removed`` and ``backup``; a master that there was before the formula keeps its pair.
    The master must have been stopped.

    CLI Example:

    .. code-block:: bash

        salt saltm3 multimaster.leave test=True
    """
    opts = _effective("master", config_dir or _config_dir())
    if not os.path.exists(_ours(opts)):
        return {"removed": []}
    known = [*_pair_paths(opts), *_signing_paths(opts)]
    paths = [str(path) for path in known if os.path.lexists(path)]
    ret = {"removed": paths}
    if test or not paths:
        return ret
    if _daemon(opts["pidfile"]) is not None:
        raise CommandExecutionError(f"{service} still runs")
    ret["backup"] = _back_up(opts, known)
    with _opened(opts["pki_dir"], opts) as place:
        for path in paths:
            os.unlink(os.path.basename(path), dir_fd=place)
    shutil.rmtree(os.path.dirname(_ours(opts)))
    return ret


def joined_by_us(config_dir=None):
    """
    Tell whether this host's master was made by the formula and did not exist before.

    CLI Example:

    .. code-block:: bash

        salt saltm3 multimaster.joined_by_us
    """
    return os.path.exists(_ours(_effective("master", config_dir or _config_dir())))


def other_masters_up(timeout=60, config_dir=None):
    """
    Return the first of this host's other masters that lets its minion in, as a list of one or none.

    timeout
        Seconds that each has for each of its two answers.
    config_dir
        Where the daemons of this host are configured; the running minion's own unless given.

    A frozen master, or another program at its port, takes connections too; the answer that counts
    is one that only a master can give which has accepted this minion's key.

    CLI Example:

    .. code-block:: bash

        salt saltm3 multimaster.other_masters_up
    """
    config_dir = config_dir or _config_dir()
    opts = _effective("minion", config_dir)
    declared = _effective("master", config_dir).get("multimaster", {}).get("masters", [])
    others = [master for master in declared if master["id"] != __opts__["id"]]
    classify, answers = __utils__["multimaster_dial.classify"], queue.Queue()

    def ask(master):
        answers.put((master["id"], classify(opts, master["address"], timeout)))

    for master in others:
        # Nobody waits for the rest when one has let this minion in.
        threading.Thread(target=ask, args=(master,), daemon=True).start()
    for _ in others:
        name, said = answers.get()
        if said == "accepted":
            return [name]
    return []


def unresolved(addresses):
    """
    List the names among some addresses that this host cannot resolve.

    CLI Example:

    .. code-block:: bash

        salt '*' multimaster.unresolved '[192.0.2.1, salt.example.com]'
    """
    resolve = __utils__["multimaster_dial.resolve"]
    return [address for address in addresses if not resolve(address)]


def git_problems(declaration, config_dir=None):
    """
    Ask the git remotes of a declaration, as this host's master would, and tell what is wrong.

    declaration
        The mapping ``multimaster``, merged over the defaults.

    Returns a list of sentences; none if every remote answers and has the branches that are named.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster.git_problems \\
            '{masters: [...], roots: {git: {remotes: [https://git.example.com/salt.git]}}}'
    """
    if not shutil.which("git"):
        return ["there is no program git on this host; see roots:git:package"]
    with _translated():
        topology = __utils__["multimaster_topology.parse"](declaration)
    config_dir = config_dir or _config_dir()
    opts, key = _effective("master", config_dir), _hash_key("master", config_dir)
    problems = []
    if topology.roots["git"].get("provider") == "gitcli" and not _has_key_cache(opts):
        # Both came with that release.
        problems.append(
            f"roots:git:provider: got 'gitcli'; supported by Salt {salt.version.__version__}: "
            "pygit2, gitpython"
        )
    # Salt 3008 does not start with a URL that it does not take; older ones look at none.
    takes = getattr(salt.utils.gitfs.GitBase, "validate_remote", lambda _: True)
    remotes = __utils__["multimaster_topology.git_remotes"](topology)
    said = __utils__["multimaster_remotes.ask"](remotes, opts["user"], REMOTE_WITHIN)
    for remote, problem in zip(remotes, said, strict=True):
        if not takes(remote.url):
            problem = f"Salt {salt.version.__version__} takes http, https, ssh, ftp, sftp and file"
        if problem:
            # A URL may have a password in it, and git repeats it.
            line = f"{remote.url}: {problem}"
            problems.append(__utils__["multimaster_options.without_userinfo"](line, key))
    return problems


def git_declared(declaration, config_dir=None):
    """
    Tell whether this host's master is already configured for the remotes of a declaration.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster.git_declared '{masters: [...], roots: {git: {...}}}'
    """
    with _translated():
        topology = __utils__["multimaster_topology.parse"](declaration)
    path = pathlib.Path(config_dir or _config_dir(), "master.d", DROP_IN)
    present = salt.utils.yaml.safe_load(_read(path) or "") or {}
    wanted = __utils__["multimaster_topology.roots_options"](topology)
    return all(present.get(option) == value for option, value in wanted.items())


def unshareable(declaration, options, config_dir=None):
    """
    Tell what on this host's master must not be on the shared storage of a declaration, and is.

    declaration
        The mapping ``multimaster``, merged over the defaults.
    options
        The content that the master's drop-in is about to have.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster.unshareable '{masters: [...], roots: {shared: {...}}}' '{}'
    """
    with _translated():
        topology = __utils__["multimaster_topology.parse"](declaration)
    opts = _effective("master", config_dir or _config_dir(), options)
    mounts = [os.path.realpath(m["path"]) for m in topology.roots.get("shared", {})["mounts"]]
    # As they are on the disk, whatever links lead there.
    real = {name: os.path.realpath(opts[name]) for name in ("pki_dir", "cachedir")}
    return __utils__["multimaster_topology.unshareable"](mounts, {**opts, **real})


def shared_config(directory, declaration, config_dir=None):
    """
    Tell why this host's master cannot read its options from a directory on shared storage.

    directory
        As declared under ``multimaster:master:config_dir``.
    declaration
        The mapping ``multimaster``, merged over the defaults.

    Whatever reads the options on this host, the master's daemon or a command of Salt, has to find
    the same.  So ``<directory>/master`` includes the formula's drop-in and nothing else is in it,
    the options are in ``<directory>/master.d``, and no file of the host's own adds to them.

    Returns a line for each finding, without secrets.  Raises CommandExecutionError if Salt cannot
    parse the options.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster.shared_config /srv/shared/config '{masters: [...], ...}'
    """
    config_dir = config_dir or _config_dir()
    if not salt.utils.systemd.booted(__context__):
        return ["master:config_dir: this host has no systemd, whose unit would name the directory"]
    main, drop_ins = os.path.join(directory, "master"), os.path.join(directory, "master.d/*.conf")
    ours = os.path.join(config_dir, "master.d", DROP_IN)
    try:
        content = salt.utils.yaml.safe_load(_read(pathlib.Path(main)) or "")
    except salt.utils.yaml.YAMLError:
        content = None
    if content != {"include": ours}:
        got = ", ".join(map(str, content)) if isinstance(content, dict) else "no options"
        return [
            f"{main}: got {got}; supported: the line 'include: {ours}' alone, and all else in "
            f"{drop_ins}"
        ]
    findings = [
        f"{path}: others than its owner can write to it, and would be every master"
        for path in _exposed([directory, main, os.path.dirname(drop_ins), *glob.glob(drop_ins)])
    ]
    with _scratch("master", None, config_dir) as host, _scratch("master", None, directory) as there:
        # Less our drop-in, which both have and which has the last word in both.
        pathlib.Path(there).write_text("")
        pathlib.Path(f"{host}.d", SHARED_DROP_IN).write_text(
            salt.utils.yaml.safe_dump({"include": drop_ins})
        )
        commands, daemon = (
            _without_private(_plain(_parsed("master", path))) for path in (host, there)
        )
    difference = __utils__["multimaster_options.phrases"](
        commands,
        daemon,
        _hash_key("master", config_dir),
        "{path} is {there} with this host's own files and {here} without",
    )
    if difference:
        findings.append(f"{config_dir}: {difference}; move it to {drop_ins}, or remove it")
    mounts = declaration["roots"]["shared"]["mounts"]
    paths = [os.path.realpath(mount["path"]) for mount in mounts]
    real = {name: os.path.realpath(commands[name]) for name in ("pki_dir", "cachedir")}
    return findings + __utils__["multimaster_topology.unshareable"](paths, {**commands, **real})


def install_credentials(config_dir=None, test=False):
    """
    Write the pillar's ``multimaster:credentials`` to files that only this host's master can read.

    Each is a name and a content, for the file ``multimaster.credentials/<name>`` beside the
    configuration.  Returns the names of those that were written, or would be.

    CLI Example:

    .. code-block:: bash

        salt saltm2 multimaster.install_credentials test=True
    """
    given = _own_pillar().get("credentials") or {}
    if not isinstance(given, dict):
        raise CommandExecutionError("credentials: supported: a mapping of names to contents")
    config_dir = config_dir or _config_dir()
    owner = pwd.getpwnam(_effective("master", config_dir)["user"])
    directory = pathlib.Path(config_dir, CREDENTIALS)
    written = []
    for name, text in given.items():
        # A path would lead elsewhere.
        if not re.fullmatch(r"[\w-][\w.-]*", str(name)) or not isinstance(text, str):
            raise CommandExecutionError(
                f"credentials: got {name!r}; supported: names of letters, digits, ., - and _, each "
                "with a text"
            )
        path = directory / str(name)
        content = text if text.endswith("\n") else f"{text}\n"
        status = path.stat() if path.is_file() and not path.is_symlink() else None
        private = status and (status.st_uid, status.st_mode & 0o777) == (owner.pw_uid, 0o600)
        if private and path.read_text() == content:
            continue
        written.append(str(name))
        if not test:
            _make_directory(directory, 0o755, owner)
            _write_atomically(path, content, 0o600, owner)
    return written


def daemon_group(role, config_dir=None):
    """
    Return the name of the group that a role's daemon runs with.

    role
        ``master`` or ``minion``.

    CLI Example:

    .. code-block:: bash

        salt saltm1 multimaster.daemon_group master
    """
    opts = _effective(role, config_dir or _config_dir())
    return grp.getgrgid(pwd.getpwnam(opts["user"]).pw_gid).gr_name


@contextlib.contextmanager
def _translated():
    """Turn the core's errors, which are all ValueErrors, into Salt's."""
    try:
        yield
    except ValueError as err:
        raise CommandExecutionError(str(err)) from err


def _config_dir():
    return os.path.dirname(__opts__["conf_file"])


def _role(service):
    return "master" if "master" in service else "minion"


def _journal(opts):
    return __utils__["multimaster_cutover.journal_path"](opts["cachedir"])


def _restart_log(config_dir):
    logs = os.path.dirname(_effective("minion", config_dir)["log_file"])
    return os.path.join(logs, "multimaster-restart.log")


def _outstanding(service, config_dir):
    """Return since when a restart is to come and what it waits for; empty if none is."""
    directory = _requests(_effective("minion", config_dir), service)
    pid = _daemon_pid(service, config_dir)
    return __utils__["multimaster_restart.outstanding"](directory, pid)


def _requests(opts, service):
    """Return the directory of the requests for a service's restart; fail for what names none."""
    with _translated():
        return __utils__["multimaster_restart.requests_path"](opts["cachedir"], service)


def _daemon_pid(service, config_dir):
    daemon = _daemon(_effective(_role(service), config_dir)["pidfile"])
    return daemon.pid if daemon else 0


def _cutting_over(opts):
    """Tell whether a minion is on its way to new masters, so that the journal asks for restarts."""
    journal = _journal(opts)
    return __utils__["multimaster_cutover.pending"](journal) and not __utils__[
        "multimaster_cutover.resting"
    ](journal)


def _launch(service, timeout, config_dir, job=False, request=True):
    """Start the program that restarts a daemon; it outlives this process, and the minion's."""
    minion = _effective("minion", config_dir)
    directory = _requests(minion, service)
    opts = _effective(_role(service), config_dir)
    log_file = _restart_log(config_dir)
    argv = [
        sys.executable,
        __utils__["multimaster_restart.program"](),
        f"--config={os.path.join(config_dir, 'minion')}",
        f"--service={service}",
        f"--pidfile={opts['pidfile']}",
        f"--log={log_file}",
    ]
    if _role(service) == "master":
        argv.append(f"--master-config={os.path.join(config_dir, 'master')}")
    else:
        argv.append(f"--journal={_journal(minion)}")
    # A cut-over's journal is its request.
    if request and not (_role(service) == "minion" and _cutting_over(minion)):
        __utils__["multimaster_restart.request"](
            directory,
            _jid() if job else "",
            os.getpid() if job else 0,
            timeout,
            _daemon_pid(service, config_dir),
        )
    if salt.utils.systemd.booted(__context__) and not __opts__.get("providers", {}).get("service"):
        # A unit of its own: stopping the minion's unit would end everything in it.  Who is ended
        # before the end begins again.
        again = ["--property=Restart=on-abnormal", "--property=RestartSec=5"]
        argv = ["systemd-run", "--no-block", "--collect", "--quiet", *again, *argv]
    else:
        # Whose parent is init, and so nobody that the daemon could take down with it.
        argv = ["setsid", "--fork", *argv]
    # Not a pipe: the helper would hold it open, and this job would wait for the helper's end.
    with open(__utils__["multimaster_files.open_log"](log_file), "ab") as output:
        result = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
    if result.returncode:
        raise CommandExecutionError(f"cannot restart {service}; see {log_file}")
    return True


def _jid():
    """Return the id of the job that this process works on, or an empty string."""
    for path in pathlib.Path(__opts__["cachedir"], "proc").glob("*"):
        with contextlib.suppress(OSError, salt.exceptions.SaltDeserializationError):
            job = salt.payload.loads(path.read_bytes())
            if job.get("pid") == os.getpid():
                return job["jid"]
    return ""


@contextlib.contextmanager
def _scratch(role, options, config_dir):
    """Have a copy of a role's configuration, with this drop-in; yield the path of its main file."""
    # Private, since drop-ins may hold secrets, and removed at once.
    with tempfile.TemporaryDirectory(prefix="multimaster-") as scratch:
        main = os.path.join(scratch, role)
        drop_ins = os.path.join(scratch, f"{role}.d")
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(config_dir):
                # The main file may include what lies beside it.
                if name not in (role, f"{role}.d"):
                    os.symlink(os.path.join(config_dir, name), os.path.join(scratch, name))
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(os.path.join(config_dir, role), main)
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(
                os.path.join(config_dir, f"{role}.d"), drop_ins, ignore_dangling_symlinks=True
            )
        os.makedirs(drop_ins, exist_ok=True)
        ours = pathlib.Path(drop_ins, DROP_IN)
        if options is not _PRESENT:
            ours.unlink(missing_ok=True)
            if options is not None:
                ours.write_text(salt.utils.yaml.safe_dump(options))
        yield main


def _parsed(role, main):
    """Return a role's options as its daemon would compute them; fail where that would not start."""
    parse, _ = ROLES[role]
    try:
        if role == "minion":
            return parse(main, cache_minion_id=False, ignore_config_errors=False)
        return parse(main, exit_on_config_errors=True)
    # Salt has no checks of its own where it takes an option apart.
    except (SaltException, SystemExit, AttributeError, LookupError, TypeError, ValueError) as err:
        # Salt quotes what it does not understand.  None: without the traceback, which does so, too.
        said = __utils__["multimaster_options.without_secrets"](str(err), os.urandom(32))
        raise CommandExecutionError(
            f"Salt cannot parse the {role} configuration with our drop-in: {said}"
        ) from None


def _combined(role, main):
    """Return what the files of a role say together, without Salt's defaults."""
    loaded = salt.config.load_config(main, ROLES[role][1], main)
    default = loaded.get("default_include", f"{role}.d/*.conf")
    include = loaded.get("include", [])
    loaded.update(salt.config.include_config(default, main, False))
    loaded.update(salt.config.include_config(include, main, False))
    loaded.pop("conf_file", None)
    return loaded


def _loaded(role, options, config_dir):
    """Return a role's effective options with this drop-in, less what follows from the copy."""
    with _scratch(role, options, config_dir) as main:
        opts = _plain(_parsed(role, main))
        opts = __utils__["multimaster_options.with_references"](opts, _combined(role, main))
    return _without_private(opts)


def _without_private(opts):
    """Return options less those that say where they were read, and what the loader adds."""
    private = ("conf_file", "config_dir", "grains", "pillar", "include", "default_include")
    return {
        name: value
        for name, value in opts.items()
        if name not in private and not name.startswith("__")
    }


def _exposed(paths):
    """Return those of some paths that others than their owner can write to."""
    return [path for path in paths if os.path.exists(path) and os.stat(path).st_mode & 0o022]


def _plain(value):
    """Return options in Python's own types: Salt 3008 wraps them."""
    if isinstance(value, collections.abc.Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, collections.abc.Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(inner) for inner in value]
    return value


def _setting(role, option, config_dir):
    """Return the paths of the files, other than ours, that set an option, as one text."""
    ours = os.path.join(config_dir, f"{role}.d", DROP_IN)

    def included(include, origin):
        for pattern in [include] if isinstance(include, str) else include:
            where = os.path.join(os.path.dirname(origin), os.path.expanduser(pattern))
            for path in sorted(glob.glob(where)):
                if path != ours:
                    content = content_of(path)
                    yield path, content
                    yield from included(content.get("include", []), path)

    def content_of(path):
        try:
            content = salt.utils.yaml.safe_load(_read(pathlib.Path(path)) or "")
        except salt.utils.yaml.YAMLError:
            content = None
        return content if isinstance(content, dict) else {}

    main = os.path.join(config_dir, role)
    content = content_of(main)
    files = [(main, content)]
    files += included(content.get("default_include", f"{role}.d/*.conf"), main)
    files += included(content.get("include", []), main)
    return ", ".join(dict.fromkeys(path for path, content in files if option in content))


def _refuse_types(role, options, config_dir):
    """Fail if Salt would complain about the type of an option, which it then uses all the same."""
    wrong = {
        option: _expected(role, option)
        for option, value in options.items()
        if not _has_type(role, option, value)
    }
    lines = []
    for option, kinds in wrong.items():
        value = options[option]
        got = type(value).__name__
        seen = __utils__["multimaster_options.shown"](option, value, _hash_key(role, config_dir))
        lines.append(
            f"{role}:config:{option}: got {seen!r}, {TYPES.get(got, got)}; supported: "
            + ", ".join(TYPES.get(kind.__name__, kind.__name__) for kind in kinds)
        )
    if lines:
        raise CommandExecutionError("\n".join(lines))


def _expected(role, option):
    """Return the types that an option may have, none if Salt has no opinion."""
    if option in salt.config.VALID_OPTS:
        kinds = salt.config.VALID_OPTS[option]
        return kinds if isinstance(kinds, tuple) else (kinds,)
    default = _defaults(role).get(option)
    # Salt says nothing of some of its numbers, and fails where it counts with them.
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        return (int, float)
    return ()


def _has_type(role, option, value):
    if option not in salt.config.VALID_OPTS:
        kinds = _expected(role, option)
        later = isinstance(value, str) and value.startswith("sdb://")
        return not kinds or later or (isinstance(value, kinds) and not isinstance(value, bool))
    log_of_salt = logging.getLogger("salt.config")
    # Salt's complaint has the value, which may be a secret.
    log_of_salt.addFilter(_nothing)
    try:
        return salt.config._validate_opts({option: value})
    finally:
        log_of_salt.removeFilter(_nothing)


def _defaults(role):
    """Return Salt's own defaults for a role."""
    if role == "master":
        return salt.config.DEFAULT_MASTER_OPTS
    return salt.config.DEFAULT_MINION_OPTS


def _nothing(record):
    return False


def _hash_key(role, config_dir):
    """Return what hashes of secrets are keyed with: on masters, all have the same."""
    # The pair that there will be comes first, so that a test run shows the hashes of the real one.
    with contextlib.suppress(CommandExecutionError, OSError):
        return __utils__["multimaster_options.hash_key"](_bundle().pem)
    if role == "master":
        with contextlib.suppress(CommandExecutionError, OSError, SystemExit):
            if pem := _read_pair(_effective("master", config_dir))[0]:
                return __utils__["multimaster_options.hash_key"](pem)
    if pem := _read(pathlib.Path(__opts__["pki_dir"], "minion.pem")):
        return __utils__["multimaster_options.hash_key"](pem)
    return os.urandom(32)


def _checked(role, options, config_dir):
    """Return what the files of a role say together with this drop-in; fail where Salt would."""
    options = options or None
    _refuse_types(role, options or {}, config_dir)
    with _scratch(role, options, config_dir) as main:
        _parsed(role, main)
        loaded = _combined(role, main)
    for option, value in (options or {}).items():
        if loaded.get(option) != value:
            there = {option: loaded.get(option)}
            difference = __utils__["multimaster_options.phrases"](
                there, {option: value}, _hash_key(role, config_dir), "{path} would be {there}"
            )
            files = _setting(role, option, config_dir)
            raise CommandExecutionError(
                f"{files or config_dir}: another file also sets {option!r}, so that {difference}, "
                "not what the formula sets; remove it there"
            )
    return loaded


def _effective(role, config_dir, drop_in=None):
    """Return a role's options as its daemon would see them; a master's, with another drop-in."""
    path = os.path.join(config_dir, role)
    if role == "minion":
        return salt.config.minion_config(path, cache_minion_id=False)
    opts = salt.config.master_config(path)
    old_stem, old_driver = _stem(opts), opts.get("keys.cache_driver")
    if drop_in is not None:
        opts = salt.config.apply_master_config(_checked(role, drop_in, config_dir))
    # Before the drop-in is there, a master's id follows from the host's name, and with it the
    # name of its key pair. The formula gives it the minion's id, under which the pair has to be
    # there, or the master would make itself a new one.
    old = {"multimaster_old_stem": old_stem, "multimaster_old_driver": old_driver}
    return {**opts, **old, "id": __opts__["id"]}


def _daemon(pidfile):
    """Return the process of a pid file, or None."""
    try:
        process = psutil.Process(int(pathlib.Path(pidfile).read_text()))
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    return None if process.status() == psutil.STATUS_ZOMBIE else process


def _own_pillar():
    """Return ``multimaster`` of the pillar, but for what a command line says beside switches."""
    found = __salt__["slsutil.renderer"](
        "salt://multimaster/own_pillar.py",
        default_renderer="py",
        saltenv=__opts__.get("saltenv") or "base",
        # As it is here; the renderer has another loader's.
        given=dict(__pillar__),
    )
    if not found:
        raise CommandExecutionError("salt://multimaster/own_pillar.py is not served to this minion")
    return found["multimaster"] or {}


def _given():
    """Return what the pillar says of key pairs."""
    given = _own_pillar().get("keypair") or {}
    if not isinstance(given, collections.abc.Mapping):
        return given
    # That is said of the pillar, and is no pair.
    return {name: value for name, value in given.items() if name != "cached"}


def _bundle(opts=None):
    """
    Return what the pillar gives this host: the sealed pair, or a masterless run's plain one.

    opts
        The master's, to find the pair that this host has if the pillar refuses to give it one.
    """
    given = _given()
    with _translated():
        if "refused" in given:
            return _kept_bundle(opts or _effective("master", _config_dir()), given)
        if "sealed" not in given:
            if not given:
                raise CommandExecutionError(
                    f"the pillar gives {__opts__['id']} no key pair: assign it the pillar "
                    "multimaster.keypair, rendered by a master that has accepted this minion"
                )
            return __utils__["multimaster_keypair.plain_bundle"](given)
        minion_pem = pathlib.Path(__opts__["pki_dir"], "minion.pem").read_text()
        return __utils__["multimaster_keypair.open_bundle"](
            given["sealed"], __opts__["id"], minion_pem
        )


def _kept_bundle(opts, given):
    """Return the pairs that this host has, if they are those that the pillar does not give it."""
    pem, _ = _read_pair(opts)
    if not __utils__["multimaster_keypair.is_pair"](pem, given.get("pub")):
        raise CommandExecutionError(
            f"{__opts__['id']} is not given the key pair: {given['refused']}"
        )
    kept = {"pem": pem, "pub": given["pub"]}
    sign_pem = _read_key_file(opts, SIGNING_FILES[0])
    if __utils__["multimaster_keypair.is_pair"](sign_pem, given.get("sign_pub")):
        kept |= {"sign_pem": sign_pem, "sign_pub": given["sign_pub"]}
    return __utils__["multimaster_keypair.plain_bundle"](kept)


def _declared_ids(opts):
    """Return the ids of the masters that this master's options declare."""
    return {master["id"] for master in opts.get("multimaster", {}).get("masters", [])}


def _standing(opts):
    """Return id -> name of the state of every key on this master."""
    return _key_states(opts)


def _gathered(standing):
    """
    Return the id of the master that gives this host its pillar, and the keys that it has; None for
    these if this master has them all.
    """
    ours = {n: STATES[s] for n, s in standing.items() if s != "minions_pre"}
    ours = __utils__["multimaster_keypair.digest_of"](ours)
    started = time.monotonic()
    try:
        for walk in range(1, WALKS + 1):
            found = {}
            for page in _pages():
                if page.digest == ours:
                    return page.origin, None
                found.update({name: (name, state, pub) for name, state, pub in page.keys})
                log.info("Got %d of %d keys from %s", len(found), page.total, page.origin)
            states = {name: state for name, state, _ in found.values()}
            if page.digest == __utils__["multimaster_keypair.digest_of"](states):
                log.info("Got all %d keys in %.1f s", len(found), time.monotonic() - started)
                return page.origin, list(found.values())
            if walk == WALKS:
                # Where somebody always comes or goes; what is lacking, or too much, the engine is
                # told with the ledger of that master.
                log.warning("Keys go on changing on %s; its ledger will tell which", page.origin)
                return page.origin, list(found.values())
            log.warning("Keys have changed on %s meanwhile; asking for all of them", page.origin)
    finally:
        # Or the master would keep the last page, and the question, with what it caches.
        try:
            _ask_pillar(None, PAGE_WITHIN)
        except Exception:
            log.warning("The master may have a page of keys among what it caches", exc_info=True)


def _pages():
    """Yield every page of the keys, each after the last id of the one before."""
    after, count, within, silent = "", PAGE, PAGE_WITHIN, 0
    while True:
        nonce = secrets.token_hex(16)
        started = time.monotonic()
        try:
            page = _page({"after": after, "count": count, "nonce": nonce}, within)
        except Exception as err:
            # Salt's channels raise anything, as Salt itself expects of them.
            silent += 1
            log.warning("No page of %d keys after %r: %s", count, after, err)
            if silent == QUESTIONS:
                raise CommandExecutionError(
                    f"the master gives no keys after {after!r}, asked {silent} times, for "
                    f"{count} at last: {err}"
                ) from err
            if time.monotonic() - started >= within:
                within = min(within * 2, PAGE_WITHIN_MOST)
            else:
                # An answer that comes at once would be the same: the master restarts, say.
                time.sleep(min(PAGE_PAUSE * 2 ** (silent - 1), PAGE_PAUSE_MOST))
            count = max(1, count // 2)
            continue
        silent, count = 0, min(count * 2, PAGE)
        yield page
        if page.last:
            return
        after = page.keys[-1][0]


def _page(asked, within):
    """Return one page of keys, or raise whatever tells that it did not come."""
    pillar = _ask_pillar(asked, within)
    keypair = (pillar.get("multimaster") or {}).get("keypair") or {}
    given = keypair.get("keys")
    if given is None:
        errors = "; ".join(map(str, pillar.get("_errors", []))) or keypair.get("refused")
        errors = errors or "it may be of an older release"
        raise CommandExecutionError(f"no keys in the pillar multimaster.keypair ({errors})")
    minion_pem = pathlib.Path(__opts__["pki_dir"], "minion.pem").read_text()
    page = __utils__["multimaster_keypair.open_page"](given, __opts__["id"], minion_pem)
    if page.nonce != asked["nonce"]:
        raise CommandExecutionError("an answer to an earlier question, out of the pillar's cache")
    if any(name <= asked["after"] for name, _, _ in page.keys) or not (page.keys or page.last):
        raise CommandExecutionError("a page that does not go on where the one before ended")
    return page


def _ask_pillar(asked, within):
    """Return this minion's pillar, as the master compiles it now; with keys, if ``asked``."""
    grains = dict(__opts__["grains"])
    if asked:
        grains["multimaster_keys"] = asked
    opts = dict(__opts__)
    extra = salt.pillar.RemotePillarMixin().get_ext_pillar_extra_minion_data(opts)
    load = {
        "id": opts["id"],
        "grains": grains,
        "saltenv": opts.get("saltenv"),
        "pillarenv": opts.get("pillarenv"),
        "pillar_override": {},
        "extra_minion_data": extra,
        "ver": "2",
        "cmd": "_pillar",
        # With ``pillar_cache`` a master answers with what it has, whatever is asked.
        "clean_cache": True,
    }
    # One for each question: a late answer to the one before must not pass for the answer.
    with salt.channel.client.ReqChannel.factory(opts) as channel:
        pillar = channel.crypted_transfer_decode_dictentry(
            load, dictkey="pillar", tries=1, timeout=within
        )
    if not isinstance(pillar, dict):
        raise CommandExecutionError(f"no pillar, but {type(pillar).__name__}")
    return pillar


def _sound_key(opts, name, state, pub):
    """Return the fingerprint of a key that may be written; None for anything odd."""
    if state not in ("accepted", "rejected") or not pub or not name.isprintable():
        return None
    if not (__utils__["multimaster_pubkey.is_id"](name) and salt.utils.verify.valid_id(opts, name)):
        return None
    key = __utils__["multimaster_pubkey.of"](pub.encode(errors="replace"))
    return key.fingerprint if key and key.text else None


def _source(opts, origin):
    """
    Return the declared id of the master that gave the keys; empty if nobody can tell.

    A master that the formula has not been applied to calls itself by its host's name.
    """
    declared = opts.get("multimaster", {}).get("masters", [])
    name = origin.removesuffix("_master")
    addresses = {__opts__.get("master"), __opts__.get("master_ip")}
    found = [m["id"] for m in declared if m["address"] in addresses and m["id"] != __opts__["id"]]
    if name in {master["id"] for master in declared} and name != __opts__["id"]:
        return name
    return found[0] if len(found) == 1 else ""


def _note_seeds(opts, source, seeds):
    """Tell the engine, before they are written, which keys are none of this master's decisions."""
    _make_state_dir(opts)
    # Those of an apply that was cut off, too: none of them is decided yet.
    text = json.dumps({"source": source, "keys": {**_seeds(opts), **seeds}})
    _write_atomically(_seeds_path(opts), text, 0o640, pwd.getpwnam(opts["user"]))


def _seeds(opts):
    """Return id -> fingerprint of the keys that this master was given and has not checked yet."""
    try:
        return dict(json.loads(_seeds_path(opts).read_text())["keys"])
    except (OSError, RecursionError, ValueError, TypeError, KeyError):
        return {}


def _seeds_path(opts):
    return pathlib.Path(_state_dir(opts), "seeds.json")


def _write_keys(opts, keys, standing):
    """Write keys (id, state, PEM) that this master does not have, except as pending."""
    _make_private_directories(opts)
    owner = pwd.getpwnam(opts["user"])
    if not _on_disk(opts):
        cache = _cache(opts)
        # Loaded before: that user may not read this minion's modules.
        store = cache.modules[f"{cache.driver}.store"]
        with _as_user(owner):
            for name, state, pub in keys:
                store("keys", name, {"state": state, "pub": pub}, **cache.kwargs)
        return
    with contextlib.ExitStack() as stack:
        places = {}
        for directory, state in STATES.items():
            # The directories are the master's user's, who may have put anything in them.
            path = os.path.join(opts["pki_dir"], directory)
            places[state] = stack.enter_context(_opened(path, opts))
        # Neither Salt nor the engine takes that for a minion's.
        scratch = ".multimaster\\new"
        for name, state, pub in keys:
            place = places[state]
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch, dir_fd=place)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            handle = os.open(scratch, flags, 0o600, dir_fd=place)
            try:
                os.write(handle, pub.encode())
                os.fchown(handle, owner.pw_uid, owner.pw_gid)
            finally:
                os.close(handle)
            os.rename(scratch, name, src_dir_fd=place, dst_dir_fd=place)
            if standing.get(name) == "minions_pre":
                os.unlink(name, dir_fd=places["pending"])
    # A power cut after the master's start would leave empty files, as if the keys had been deleted.
    os.sync()


def _cache(opts):
    return salt.cache.Cache(opts, driver=opts["keys.cache_driver"])


def _has_key_cache(opts):
    """Tell whether this Salt (3008 and later) keeps its keys behind a cache driver."""
    return "keys.cache_driver" in opts


def _on_disk(opts):
    return not _has_key_cache(opts) or opts["keys.cache_driver"] == "localfs_key"


def _stem(opts):
    """Return the name of the live pair: the master's id since Salt 3008, else ``master``."""
    return opts["id"].removesuffix("_master") if _has_key_cache(opts) else "master"


def _refuse_to_lose_keys(opts, config_dir):
    """Fail where keys would stay behind in the old key store: a ledger alone brings them along."""
    old, new = opts["multimaster_old_driver"], opts.get("keys.cache_driver")
    if old == new or os.path.exists(_ledger_path(opts)):
        return
    if _accepted_ids(_effective("master", config_dir)):
        raise CommandExecutionError(
            f"keys.cache_driver: got {new!r}; supported: {old!r}, which this master has its keys "
            "in, until the formula has been applied: once its engines run, they move the keys"
        )


def _pair_paths(opts):
    pki = pathlib.Path(opts["pki_dir"])
    stems = dict.fromkeys((_stem(opts), "master"))
    return [pki / f"{stem}.{suffix}" for stem in stems for suffix in ("pem", "pub")]


def _read_pair(opts):
    """Return private and public key that the master would use; None for each that is absent."""
    pair = (None, None)
    for stem in dict.fromkeys((_stem(opts), opts["multimaster_old_stem"], "master")):
        if _on_disk(opts):
            pki = pathlib.Path(opts["pki_dir"])
            pair = tuple(_read(pki / f"{stem}.{suffix}") for suffix in ("pem", "pub"))
        else:
            pair = tuple(
                _cache(opts).fetch("master_keys", f"{stem}.{suffix}") or None
                for suffix in ("pem", "pub")
            )
        if any(pair):
            break
    return pair


def _signing_paths(opts):
    return [pathlib.Path(opts["pki_dir"], name) for name in SIGNING_FILES]


def _read_key_file(opts, name):
    """Return what this master has under the name of a key file, or None."""
    if _on_disk(opts):
        return _read(pathlib.Path(opts["pki_dir"], name))
    return _cache(opts).fetch("master_keys", name) or None


def _write_key_file(opts, name, text):
    """Write a file of the signing pair where this Salt reads it, as the master's user."""
    if not _on_disk(opts):
        _cache(opts).store("master_keys", name, text)
        return
    path = pathlib.Path(opts["pki_dir"], name)
    _write_atomically(path, text, KEY_MODE, pwd.getpwnam(opts["user"]))


def _signing_misfit(opts):
    """Return what is wrong with the files of a signing pair whose content is right, or None."""
    if not _on_disk(opts):
        return None
    owner = pwd.getpwnam(opts["user"]).pw_uid
    for name in SIGNING_FILES:
        path = pathlib.Path(opts["pki_dir"], name)
        if path.is_symlink() or not path.is_file():
            return f"{name} was not a regular file"
        if path.stat().st_uid != owner:
            return f"{name} did not belong to {opts['user']}"
        # Only what is secret: an administrator may have let others read the rest.
        if name.endswith(".pem") and path.stat().st_mode & 0o777 != KEY_MODE:
            return f"{name} had mode {path.stat().st_mode & 0o777:04o}"
    return None


def _waited_for(opts, masters):
    """Return the first of the minion's masters if its beacons wait for that one."""
    # ``beacons_leader`` in MinionManager._spawn_minions, Salt 3006 to 3008.  Those of the pillar
    # are not known before the connection.
    early = __opts__.get("beacons_before_connect")
    has = __pillar__.get("beacons") or (__opts__.get("beacons") and not early)
    if not has or not masters or opts["master_type"] != "str":
        return None
    unmet = pathlib.Path(opts["cachedir"], "multimaster", "unmet", masters[0]).exists()
    return masters[0] if unmet else None


def _see(opts, address, within):
    """Return what a fresh answer of a master proves, for ``see_masters``."""
    opts, nonce, answer = __utils__["multimaster_dial.knock"](opts, address, within)
    load = salt.payload.loads(answer["load"])
    pki, algorithm = pathlib.Path(opts["pki_dir"]), opts["signing_algorithm"]
    signature, signing = load.get("pub_sig"), _read(pki / "master_sign.pub")
    # Without it Salt compares with the known key alone; the next apply brings it.
    attested = bool(signature) and (
        not signing
        or __utils__["multimaster_keypair.is_signed"](
            load["pub_key"], signature, signing, algorithm
        )
    )
    with tempfile.NamedTemporaryFile("w") as key:
        known = pki / "minion_master.pub"
        if not known.is_file():
            if not (signing and attested):
                return "unknown: this minion has not met its masters yet"
            # The masters' signing key says whose it is.
            key.write(load["pub_key"])
            key.flush()
            known = key.name
        if not salt.crypt.verify_signature(
            str(known), answer["load"], answer["sig"], algorithm=algorithm
        ):
            return "unknown: an answer that is not signed with the masters' key"
    if load.get("nonce") != nonce or "pub_key" not in load:
        return "unknown: no answer to this minion's request to sign in"
    if not signature:
        return "plain"
    return "signs" if attested else "signs with another signing key"


def _read(path):
    try:
        # What is no text is no key either, which is for the core to say.
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None


def _misfit(opts):
    """Return what is wrong with the files of a pair whose content is right, or None."""
    if not _on_disk(opts):
        return None
    owner = pwd.getpwnam(opts["user"]).pw_uid
    pki = pathlib.Path(opts["pki_dir"])
    for suffix in ("pem", "pub"):
        path = pki / f"{_stem(opts)}.{suffix}"
        if not path.exists():
            return f"there was no {path.name}"
        if path.is_symlink() or not path.is_file():
            return f"{path.name} was not a regular file"
        if path.stat().st_uid != owner:
            return f"{path.name} did not belong to {opts['user']}"
        if path.stat().st_mode & 0o777 != KEY_MODE:
            return f"{path.name} had mode {path.stat().st_mode & 0o777:04o}"
        alias = pki / f"master.{suffix}"
        if alias != path and alias.resolve() != path.resolve():
            # Salt 3008 ignores it without a word; whoever put it there expects otherwise.
            return f"{alias.name} was not a link to {path.name}"
    return None


def _write_pair(opts, bundle):
    """Write the pair where this Salt reads it, as the user that the master runs as."""
    _make_private_directories(opts)
    stem = _stem(opts)
    owner = pwd.getpwnam(opts["user"])
    for suffix, text in (("pem", bundle.pem), ("pub", bundle.pub)):
        if not _on_disk(opts):
            _cache(opts).store("master_keys", f"{stem}.{suffix}", text)
            continue
        path = pathlib.Path(opts["pki_dir"], f"{stem}.{suffix}")
        _write_atomically(path, text, KEY_MODE, owner)
        alias = path.with_name(f"master.{suffix}")
        if alias != path and not (alias.is_symlink() and alias.resolve() == path.resolve()):
            with _opened(path.parent, opts) as place:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(alias.name, dir_fd=place)
                os.symlink(path, alias.name, dir_fd=place)


def _write_atomically(path, text, mode, owner):
    """Write a file for a user, whatever that one may have put in its way."""
    __utils__["multimaster_files.write"](str(path), text, mode, (owner.pw_uid, owner.pw_gid))


def _make_directory(path, mode, owner):
    """Make a directory for a user if it is not there."""
    user = (owner.pw_uid, owner.pw_gid)
    __utils__["multimaster_files.make_directory"](str(path), mode, user)


def _opened(path, opts):
    """Open a directory of the master's; what is done there, its user could do as well."""
    return __utils__["multimaster_files.opened"](str(path), pwd.getpwnam(opts["user"]).pw_uid)


def _make_private_directories(opts):
    owner = pwd.getpwnam(opts["user"])
    pki = pathlib.Path(opts["pki_dir"])
    for path in (pki, *(pki / name for name in ("minions", "minions_pre", "minions_rejected"))):
        _make_directory(path, 0o700, owner)


def _would_be_lost(opts, bundle):
    """Tell whether a file that is about to be replaced has content of its own."""
    ours = {bundle.pem.strip(), bundle.pub.strip()}
    return _on_disk(opts) and any(
        path.is_file() and path.read_text(errors="replace").strip() not in ours
        for path in _pair_paths(opts)
    )


def _back_up(opts, paths):
    """Copy key files that are there into a private directory beside them; return that directory."""
    name = f"multimaster-backup-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(4)}"
    with (
        _opened(opts["pki_dir"], opts) as pki,
        __utils__["multimaster_files.made_at"](pki, name, 0o700) as target,
    ):
        for path in paths:
            if path.is_file():
                content = path.read_bytes()
                __utils__["multimaster_files.write_at"](target, path.name, content, KEY_MODE)
    return os.path.join(opts["pki_dir"], name)


def _state_dir(opts):
    return os.path.join(opts["cachedir"], "multimaster")


def _ledger_path(opts):
    return os.path.join(_state_dir(opts), "ledger.db")


@contextlib.contextmanager
def _ledger(opts):
    """Open the ledger of this host's master for reading, as the user that the master runs as."""
    path = _ledger_path(opts)
    # Loaded before: that user may not read this minion's modules.
    open_ledger = __utils__["multimaster_ledger.open_ledger"]
    # SQLite may make files beside it, which the master would not be allowed to write.
    with (
        _as_user(pwd.getpwnam(opts["user"])),
        _translated(),
        open_ledger(path, True) as book,
    ):
        yield book


@contextlib.contextmanager
def _as_user(owner):
    """Do something as another user."""
    user, group = os.geteuid(), os.getegid()
    if user != owner.pw_uid:
        os.setegid(owner.pw_gid)
        os.seteuid(owner.pw_uid)
    try:
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)


def _ours(opts):
    return os.path.join(_state_dir(opts), "keypair-installed")


def _make_state_dir(opts):
    owner = pwd.getpwnam(opts["user"])
    for directory in (opts["cachedir"], _state_dir(opts)):
        _make_directory(directory, 0o750, owner)


def _touch(opts, path):
    _make_state_dir(opts)
    _write_atomically(path, "", 0o640, pwd.getpwnam(opts["user"]))


def _room(opts):
    """Return how long the text in an answer may be: of a larger event Salt cuts long values out."""
    return min(opts["max_event_size"], __opts__["max_event_size"]) // 2


def _packed(book, place, limit):
    """Return decisions after a place, as many as fit in a text, and the place after them."""
    count = CHUNK
    while True:
        decisions, end = book.since(place, count)
        told = [__utils__["multimaster_ledger.sendable"](decision) for decision in decisions]
        packed = __utils__["multimaster_ledger.pack"]([decision for decision in told if decision])
        if len(packed) <= limit or count == 1:
            return packed, end
        count = max(1, min(count, len(decisions)) // 2)


def _key_states(opts):
    """Return id -> name of the state (minions, minions_pre ...) of every key on this master."""
    if not _on_disk(opts):
        listed = salt.key.get_key({**opts, "__role": "master"}).list_keys()
        return {n: state for state, names in listed.items() if state in STATES for n in names}
    # Salt's own listing takes seconds for ten thousand keys.
    found = {name: state for state in STATES for name in _names(opts, state)}
    for name in __utils__["multimaster_gather.unfinished"](opts, found):
        del found[name]
    return found


def _names(opts, directory):
    """Return the ids of which there is a file in a directory of keys."""
    with contextlib.suppress(FileNotFoundError):
        names = os.listdir(os.path.join(opts["pki_dir"], directory))
        # What the engine is about to put there has a backslash, as no minion id has.
        return [n for n in names if "\\" not in n and n[0] != "." and (n.isascii() or _is_id(n))]
    return []


def _is_id(name):
    return __utils__["multimaster_pubkey.is_id"](name)


def _listed(opts):
    """Return what :func:`_key_states` does, and ids that have denied keys only, as denied."""
    return dict.fromkeys(_denied_ids(opts), DENIED) | _key_states(opts)


def _denied_ids(opts):
    """Return the ids of which this master has denied keys, whatever else it has."""
    return _names(opts, DENIED) if _on_disk(opts) else _cache(opts).list("denied_keys")


def _denied(opts, name):
    """Return the fingerprints of the keys that this master has denied under an id."""
    if _on_disk(opts):
        found = [_read_key(opts, DENIED, name)]
    else:
        found = [_parsed_key(text) for text in _cache(opts).fetch("denied_keys", name) or []]
    return [key.fingerprint for key in found if key]


def _clear_denied(opts, name):
    """Clear the keys that this master has denied under an id; Salt would do more than that."""
    if _on_disk(opts):
        path = os.path.join(opts["pki_dir"], DENIED)
        with contextlib.suppress(FileNotFoundError), _opened(path, opts) as place:
            os.unlink(name, dir_fd=place)
    else:
        _cache(opts).flush("denied_keys", name)


def _key(opts, state, name):
    """Return the public key that this host's master has for an id, or None."""
    if not _on_disk(opts):
        return _parsed_key((_cache(opts).fetch("keys", name) or {}).get("pub"))
    return _read_key(opts, state, name)


def _read_key(opts, directory, name):
    path = os.path.join(opts["pki_dir"], directory, name)
    # A link is a key before Salt 3008 only.
    return __utils__["multimaster_pubkey.read"](path, not _has_key_cache(opts))


def _parsed_key(text):
    text = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    return __utils__["multimaster_pubkey.of"](text) if text else None


def _described(opts, states):
    """Return id -> state, in words, and fingerprint."""
    found, denied = {}, set(_denied_ids(opts))
    for name, state in states.items():
        fingerprint, more = None, {}
        # One that cannot be read must not keep the others back.
        with contextlib.suppress(OSError, SaltException):
            if state == DENIED:
                fingerprint = next(iter(_denied(opts, name)), None)
            else:
                key = _key(opts, state, name)
                fingerprint = key and key.fingerprint
                if name in denied and (others := _denied(opts, name)):
                    more = {"denied": others}
        found[name] = {"state": STATES.get(state, "denied"), "fingerprint": fingerprint} | more
    return found


def _accepted_ids(opts):
    return [name for name, state in _key_states(opts).items() if state == "minions"]
