"""
Look at a multi-master topology as a whole, from any of its masters, and decide on minions' keys.
"""

import collections
import contextlib
import os
import re
import shlex
import stat
import tempfile
import time
import types

import salt.loader
from salt.exceptions import CommandExecutionError, SaltException

__virtualname__ = "multimaster"

# Keys in one answer: an event may hold (max_event_size, 1 MiB) twice as many.
PAGE = 8_000
# Keys that one master may have; whoever answers in its name could go on for ever.
MOST_KEYS = 1_000_000
# Characters of an error that are shown.
SHOWN_TEXT = 200
# What a key that was denied is said to be in.
DENIED = "minions_denied"
# Where metrics may be written, and how they begin.
METRICS = re.compile(r"/(.*/)?[\w-][\w.-]*\.prom")
HEADER = b"# HELP multimaster_"
# Minions in trouble that are named, of many; keys of which something is proposed, or that are
# otherwise than decided; and ids with denied keys.
SHOWN = 20
PROPOSED_SHOWN = ASTRAY_SHOWN = 3
REFUSED_SHOWN = 5
# What a fingerprint is told by, at least; see key_decide in the execution module.
LEAST_DIGITS = 16
# What has a master take the shared key pair whatever it has, as in docs/recovery.md.
REPLACING = """pillar='{"multimaster": {"replace_keypair": true}}'"""
# What multimaster_keypair says of an answer that another private key has signed.
FOREIGN = "the answer is not signed with the masters' key"
# Seconds until the masters are asked again whether their ledgers are equal.
REPAIR_PAUSE = 1
# What a utility module cannot get from Salt's loader by itself.
TOOLS = (
    "multimaster_drift.differing",
    "multimaster_drift.sample_grains",
    "multimaster_drift.samples",
    "multimaster_keypair.proved",
    "multimaster_keypair.unproved",
    "multimaster_ledger.unsqueeze",
    "multimaster_said.check",
    "multimaster_trees.subscribed",
)


def __virtual__():
    return __virtualname__


def status(timeout=5, sample=None):
    """
    Show every master, subject by subject where they differ, and the masters of every minion.

    timeout
        Seconds to wait for answers of those who are connected.
    sample
        The minion whose pillar and top file are compared; a declared one, or any, unless given.

    Per master: address, reachable (the minion on its host answers to it), Salt version,
    fingerprint of its key, digest of its ledger, whether it is configured to sign its key and the
    fingerprint of the pair that it signs with, the numbers of accepted, pending, denied and
    rejected keys and of conflicts, what its engine has set aside and why, what is proposed of keys
    and where and when that was done, which keys it has otherwise than decided (``astray``), which
    are denied under whose id (``refused``), where it cannot write keys (``unwritable``), how many
    minions are connected to it, the formula's version and the offset of its clock in seconds.
    Per subject: each master's digest, and whether they differ.  Per minion: whether it is connected
    to each master, which it is only after that master has let it in, the master list it is
    configured with, the masters that are silent to it, those that have denied its key, and how the
    last change of its configuration went.
    A master is reachable, or it is not, or (None) that is not known; a minion's ``connected`` is
    told likewise.  ``problems`` says in words what is wrong, and what to do; ``notes`` what is not
    wrong.  Exit status 0 only if no problem is there.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.status
        salt-run multimaster.status --out json
    """
    _save_job("status")
    data = _status(timeout, sample)
    return {"outputter": "multimaster", "data": data}


def drift(subject=None, timeout=5, sample=None):
    """
    Name everything in which the masters differ, with what each has, and what to do about it.

    subject
        Only that: config, access, files, files:base, pillar, gitfs, git_pillar, roots, keys,
        modules, formula, salt, content, running or clock.
    timeout, sample
        As for ``status``.

    A value that may be a secret is shown as a keyed hash.  ``side`` says what the masters are
    measured by: the declaration, most masters, or the first of them.  Exit status 0 only if nothing
    differs and every master has told.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.drift
        salt-run multimaster.drift subject=files:base --out json
    """
    if not _masters():
        raise CommandExecutionError("this master declares no topology; apply the formula first")
    _save_job("drift")
    look, deaf = _heard(timeout, sample=sample, detail=True)
    found = [one.plain() for one in _differences(look)]
    known = [*__utils__["multimaster_drift.table"](look.reports), "running", "clock"]
    if subject is not None:
        kinds = {name.partition(":")[0] for name in known}
        if subject not in known and subject not in kinds:
            raise CommandExecutionError(
                f"subject: got {subject!r}; supported: {', '.join(sorted({*known, *kinds}))}"
            )
        found = [one for one in found if subject in (one["subject"], _kind(one["subject"]))]
    problems = deaf or [
        f"the host of master {name} {_silence(look.unknown.get(name))}; "
        "see salt-run multimaster.status"
        for name, report in look.reports.items()
        if report is None
    ]
    problems += _unproved(look) + _remotes_down(look)
    return {
        "outputter": "multimaster",
        "data": {
            "drift": found,
            "masters": list(look.reports),
            "subjects": known,
            "sample": look.sample,
            # No difference: their engines have yet to tell what they have read.
            "unknown": __utils__["multimaster_drift.unknown"](look.reports),
            "problems": problems,
            "notes": _notes(look),
            "retcode": 1 if found or problems else 0,
        },
    }


def metrics(path=None, timeout=5, sample=None):
    """
    Tell the state of the masters as text for Prometheus.

    path
        Write it there, at once and readable for all, for node_exporter's textfile collector: the
        absolute path of a file whose name ends in ``.prom``, and that this has written before
        unless there is none.
    timeout, sample
        As for ``status``.

    Returns the text, or where it was written.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.metrics
        salt-run multimaster.metrics path=/var/lib/node_exporter/textfile/multimaster.prom
    """
    if path is not None:
        _refuse_others(path)
    _save_job("metrics")
    data = _status(timeout, sample, detail=True)
    text = __utils__["multimaster_drift.metrics"](data, time.time())
    if path is None:
        return {"outputter": "multimaster", "data": {"metrics": text, "retcode": 0}}
    try:
        handle, scratch = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".multimaster-")
        try:
            with os.fdopen(handle, "w") as stream:
                stream.write(text)
                os.fchmod(handle, 0o644)
            # Not through a link.
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as err:
        raise CommandExecutionError(f"path: got {path!r}: {err.strerror}") from err
    return f"written to {path}"


def keys(like="*", timeout=10):
    """
    Show what each master has decided on each key; a matrix of ids and masters.

    like
        A glob that ids have to match.

    A cell is accepted, rejected, pending, denied or missing; ``differs`` tells whether the masters
    say different things, or have different keys under one id; ``denied`` has what a master has
    denied beside the key that is in use.  Exit status 0 only if none differs.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.keys
        salt-run multimaster.keys 'web*' --out json
    """
    states, unknown = _key_states(like, timeout)
    rows = {}
    for minion_id in sorted({name for found in states.values() for name in found or {}}):
        cells, prints, denied = {}, set(), {}
        for master, found in states.items():
            entry = (found or {}).get(minion_id)
            cells[master] = "unknown" if found is None else entry["state"] if entry else "missing"
            if entry and entry["fingerprint"] and entry["state"] != "denied":
                prints.add(entry["fingerprint"])
            if entry and entry.get("denied"):
                denied[master] = entry["denied"]
        # What one of them has denied says nothing of the id.
        said = {"missing" if cell == "denied" else cell for cell in cells.values()}
        rows[minion_id] = {
            "masters": cells,
            "fingerprints": sorted(prints),
            "differs": len(prints) > 1 or len(said) > 1,
            "denied": denied,
        }
    return {
        "outputter": "multimaster",
        "data": {
            "masters": list(states),
            "keys": rows,
            "unknown": unknown,
            "retcode": 1 if unknown or any(row["differs"] for row in rows.values()) else 0,
        },
    }


def keys_repair(test=False, timeout=10):
    """
    Have every master read all of its keys and of its peers' decisions again.

    The masters do that by themselves; this is for one who does not want to wait, or who changed
    files by hand.

    timeout
        Seconds that the masters have until their ledgers are equal.

    Returns the ids on which they differed before (``differing``) and do afterwards (``left``),
    whether they are ``repaired``, that is equal in ledgers and keys, and how many keys are
    ``proposed`` to be deleted or rejected, in which masters differ until that is settled.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.keys_repair test=True
    """
    rows = keys(timeout=timeout)["data"]["keys"]
    differing = [minion_id for minion_id, row in rows.items() if row["differs"]]
    if test:
        return {"differing": differing, "repaired": False}
    _on_masters("multimaster.ledger_wake", [""], timeout)
    equal, proposed = _until_equal(timeout)
    after = keys(timeout=timeout)["data"]
    left = [minion_id for minion_id, row in after["keys"].items() if row["differs"]]
    return {
        "differing": differing,
        "left": left,
        "proposed": proposed,
        "repaired": equal and not left and not after["unknown"],
    }


def confirm(*ids, test=False, timeout=10):
    """
    Have done on all masters what is proposed: keys that were deleted or rejected on one of them.

    ids
        Ids or globs, as ``status`` shows them.
    test
        Only tell what would be done.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.confirm web1 'bulk*' test=True
        salt-run multimaster.confirm web1 'bulk*'
    """
    return _settle("confirm", ids, test, timeout)


def take_back(*ids, test=False, timeout=10):
    """
    Have accepted again on all masters what one of them has deleted or rejected, and is proposed.

    ids
        Ids or globs, as ``status`` shows them.
    test
        Only tell what would be done.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.take_back '*' test=True
        salt-run multimaster.take_back '*'
    """
    return _settle("take_back", ids, test, timeout)


def down(timeout=5):
    """
    List the minions that answer to no master at all; ``manage.down`` tells it of one master alone.

    timeout
        Seconds that minions have for an answer.

    Those are not known of which a master does not tell whether they answer to it.  Exit status 0
    only if all are up.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.down
        salt-run multimaster.down --out json
    """
    accepted, answering, unknown = set(), set(), {}
    # Each asks its minions first.
    for name, (told, why) in _answers("multimaster.report", [timeout, "*"], 2 * timeout).items():
        if told is None:
            unknown[name] = why or "does not answer"
            continue
        accepted |= set(told["accepted"])
        answering |= set(told["answering"])
    silent = sorted(accepted - answering)
    return {
        "outputter": "multimaster",
        "data": {
            "down": [] if unknown else silent,
            "not_known": silent if unknown else [],
            "unknown": unknown,
            "retcode": 1 if silent or unknown else 0,
        },
    }


def roots_publish(force=False, test=False, timeout=10):
    """
    Have the source of replicated roots look at its directories now, and not within five seconds.

    force
        Publish though one of the directories has become empty, as an absent mount would be.
    test
        Only tell how things are.

    Returns master -> what ``multimaster_roots.status`` said just before.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.roots_publish
    """
    declared = __opts__.get("multimaster", {}).get("roots", {}).get("replicate")
    if not declared:
        raise CommandExecutionError("this master declares no roots: replicate")
    found = _on_masters("multimaster_roots.status", [], timeout)
    if test:
        return found
    told = _on_masters("multimaster_roots.wake", ["", force], timeout, [declared["source"]])
    if told[declared["source"]] is not True:
        raise CommandExecutionError(f"the minion {declared['source']} does not answer")
    return found


def resolve(minion_id, fingerprint, test=False, timeout=10):
    """
    End a conflict: one key of a minion stays what it is, all others are deleted on every master,
    denied ones too.

    fingerprint
        Of the key that stays, as ``multimaster.keys`` shows it; 16 digits or more.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.resolve web1 0123456789abcdef test=True
    """
    states = _answers("multimaster.key_states", [minion_id], timeout)
    prints = {
        found[minion_id]["fingerprint"]
        for found, _ in states.values()
        if found and minion_id in found and found[minion_id]["state"] != "denied"
    }
    if sum(found.startswith(fingerprint) for found in prints if found) != 1:
        shown = ", ".join(sorted(filter(None, prints))) or "none"
        for name, (found, why) in states.items():
            if found is None:
                shown += f"; not known of {name} ({why or 'does not answer'})"
        raise CommandExecutionError(
            f"fingerprint of {minion_id}: got {fingerprint!r}; supported: {shown}"
        )
    return _on_masters("multimaster.key_decide", ["only", minion_id, fingerprint, test], timeout)


def accept(minion_id, fingerprint, test=False):
    """
    Accept a key, here and so on all masters, if it is the expected one.

    fingerprint
        As ``multimaster.keys`` shows it; 16 digits or more.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.accept web1 0123456789abcdef
    """
    return _decide("accept", minion_id, fingerprint, test)


def reject(minion_id, fingerprint, test=False):
    """
    Reject a key, here and so on all masters, if it is the expected one.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.reject web1 0123456789abcdef
    """
    return _decide("reject", minion_id, fingerprint, test)


def delete(minion_id, fingerprint, test=False, timeout=10):
    """
    Delete a key, here and so on all masters, if it is the expected one.

    A key that masters have denied under an id is deleted on all that have it (``cleared``), and no
    other with it; a master that does not tell is ``unknown``.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.delete web1 0123456789abcdef test=True
    """
    why = None
    try:
        told = _decide("delete", minion_id, fingerprint, test, timeout)
        if told.get("was") != DENIED:
            return told
    except CommandExecutionError as err:
        why = err
    cleared, unknown = [], {}
    arguments = ["clear", minion_id, fingerprint, test]
    for name, (told, silence) in _answers("multimaster.key_decide", arguments, timeout).items():
        if told is None:
            unknown[name] = silence or "does not answer"
        elif told["changed"]:
            cleared.append(name)
    if why:
        if not cleared:
            raise why
    elif __opts__["id"] not in cleared:
        # By the first question.
        cleared.insert(0, __opts__["id"])
    return {"changed": True, "was": DENIED, "cleared": cleared, "unknown": unknown}


def key_history(minion_id, timeout=10):
    """
    Show who decided what on a minion's keys, and when, as this master has recorded it.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.key_history web1
    """
    entries = _here("multimaster.key_history", [minion_id], timeout)
    for entry in entries:
        for moment in ("recorded", "decided"):
            entry[moment] = _moment(entry[moment])
    return entries


def _refuse_others(path):
    """Fail if metrics would be written to anything but a file of theirs, or a new one."""
    supported = "an absolute path of a file NAME.prom that is not there, or that this has written"
    refused = CommandExecutionError(f"path: got {path!r}; supported: {supported}")
    if not isinstance(path, str) or not METRICS.fullmatch(path) or "/../" in path:
        raise refused
    try:
        # Not to wait for whoever writes into a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    except OSError as err:
        raise refused from err
    try:
        regular = stat.S_ISREG(os.fstat(handle).st_mode)
        if not regular or os.read(handle, len(HEADER)) != HEADER:
            raise refused
    finally:
        os.close(handle)


def _key_states(like, timeout):
    """
    Return master -> id -> state and fingerprint, None for one of which that is not known; and
    master -> why it is not.
    """
    states, unknown = dict.fromkeys(_masters()), {}
    reading, after = list(states), ""
    while reading:
        packed = _answers("multimaster.key_page", [like, after, PAGE], timeout, reading)
        pages, more = {}, set()
        for name, (text, why) in packed.items():
            page, why = _page(text, after) if why is None else (None, why)
            if why is None and len(states[name] or ()) + len(page) > MOST_KEYS:
                why = f"has more than {MOST_KEYS} keys"
            if why is not None:
                states[name], unknown[name] = None, why
                continue
            # Who has said less than it was asked for has said all, unless it says otherwise.
            if page.pop("", None) or len(page) == PAGE:
                more.add(name)
            pages[name] = page
            states[name] = {**(states[name] or {}), **page}
        reading = [name for name in reading if name in more]
        after = min((max(pages[name]) for name in reading), default="")
        if reading and not __opts__.get("output"):
            # For people only: salt-run prints it where the result goes.
            plain = __utils__["multimaster_said.plain"]
            message = f"read the keys of {', '.join(reading)} up to {after}"
            __jid_event__.fire_event({"message": plain(message)}, "progress")
    return states, unknown


def _page(text, after):
    """
    Return what is in a page of keys, and None; or None, and why it is none.

    after
        The last id of the page before: what comes after it is another one, or it would never end.
    """
    if text is None:
        return None, "does not answer"
    try:
        page = __utils__["multimaster_ledger.unsqueeze"](text)
    except ValueError:
        return None, __utils__["multimaster_said.plain"](text[:SHOWN_TEXT])
    page, why = __utils__["multimaster_said.check"]("key page", page)
    if why is None and (list(page) == [""] or any(name and name <= after for name in page)):
        why = f"tells nothing of the ids after {after!r}"
    return (page, None) if why is None else (None, why)


def _settle(verb, ids, test, timeout):
    if not ids:
        raise CommandExecutionError("ids: got none; supported: ids or globs, such as '*'")
    told = _here("multimaster.key_settle", [verb, [str(one) for one in ids], test], timeout)
    for row in told["keys"].values():
        row["recorded"] = _moment(row["recorded"])
    data = {"settled": told["keys"], "count": told["count"], "test": test, "retcode": 0}
    return {"outputter": "multimaster", "data": data}


def _until_equal(timeout):
    """Wait until the ledgers of all masters are equal; tell whether, and how much is proposed."""
    deadline = time.monotonic() + timeout
    while True:
        told = _answers("multimaster.key_digest", [], timeout)
        digests = {found and found["digest"] for found, _ in told.values()}
        equal = len(digests) == 1 and None not in digests
        if equal or time.monotonic() >= deadline:
            break
        time.sleep(REPAIR_PAUSE)
    counts = [
        sum(group["count"] for group in (found or {}).get("proposed", []))
        for found, _ in told.values()
    ]
    return equal, max(counts, default=0)


def _moment(milliseconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))


def _decide(verdict, minion_id, fingerprint, test, timeout=10):
    return _here("multimaster.key_decide", [verdict, minion_id, fingerprint, test], timeout)


def _here(function, arguments, timeout):
    """Call a function on this master's own host; an error there is one here."""
    answer = _on_masters(function, arguments, timeout, [__opts__["id"]])[__opts__["id"]]
    if answer is None or isinstance(answer, str):
        raise CommandExecutionError(answer or f"the minion {__opts__['id']} does not answer")
    return answer


def _on_masters(function, arguments, timeout, ids=None):
    """
    Call a function on the hosts of masters; a text for one whose answer is none or is not proved,
    None for one that does not answer.
    """
    answers = _answers(function, arguments, timeout, ids)
    return {name: told if why is None else why for name, (told, why) in answers.items()}


def _answers(function, arguments, timeout, ids=None):
    """Return what the hosts of masters answer, and None; or None, and why that is not known."""
    ids = ids or _masters()
    asked = __utils__["multimaster_gather.signed"](function, arguments)
    question = __utils__["multimaster_gather.question"](ids, "multimaster.signed", asked)
    proved = __utils__["multimaster_gather.proved"]
    tools = {name: __utils__[name] for name in TOOLS}
    proves = __utils__["multimaster_gather.prover"](__opts__, tools)
    found = dict.fromkeys(ids, (None, None))
    try:
        for answer in __utils__["multimaster_gather.gather"](
            __opts__, [question], timeout, proves=proves
        ):
            found[answer.id] = proved(__opts__, tools, asked, answer.id, answer.value)
    except (SaltException, OSError) as err:
        return dict.fromkeys(ids, (None, _deaf(err)))
    return found


def _masters():
    """Return the minion ids on the hosts of all masters."""
    return [master["id"] for master in __opts__.get("multimaster", {}).get("masters", [])]


def _status(timeout, sample, detail=False):
    """Return the data of ``status``, and how long it took to gather."""
    started = time.monotonic()
    declared = __opts__.get("multimaster", {}).get("masters", [])
    mode = __opts__.get("multimaster", {}).get("mode", "hot")
    data = {"mode": mode, "masters": {}, "minions": {}, "subjects": {}, "differences": []}
    if not declared:
        problems = [
            "this master declares no topology; apply the formula first: "
            "salt-call state.apply multimaster"
        ]
        return {**data, "sample": None, "troubled": 0, "problems": problems, "retcode": 1}
    look, problems = _heard(timeout, sample=sample, minions=True, detail=detail)
    found = _differences(look)
    asked, alone = not problems, []
    masters = {m["id"]: _master_row(m, look) for m in declared}
    rows = _minion_rows(declared, look, mode, asked)
    addresses = [master["address"] for master in declared]
    if asked:
        alone = _alone(look, rows)
        # Of the others nothing is known, then.
        told = [name for name in masters if not alone or masters[name]["reachable"] is not None]
        about = {name: masters[name] for name in told}
        problems = alone + _problems(about, {} if alone else rows, addresses, mode)
    # The ledgers have a line of their own.
    others = [one for one in found if one.subject != "keys"]
    problems += __utils__["multimaster_drift.problems"](others)
    problems += _unproved(look) + _remotes_down(look)
    troubled = [name for name, row in rows.items() if _trouble(name, row, masters, addresses, mode)]
    return data | {
        "masters": masters,
        "minions": rows,
        "subjects": __utils__["multimaster_drift.table"](look.reports),
        "differences": [one.plain() for one in found],
        "sample": look.sample,
        # Of minions that cannot be heard from here nothing is known.
        "troubled": len(troubled) if asked and not alone else None,
        "seconds": round(time.monotonic() - started, 2),
        "problems": problems,
        "notes": _notes(look),
        # salt-run's exit status
        "retcode": 1 if problems else 0,
    }


def _save_job(function):
    """
    Tell Salt's job cache of this run, and that it is about this master alone.

    Salt would do that at the end, and look through the keys of all minions for the one with this
    master's id: more than a second for ten thousand of them.
    """
    jid, cache = globals().get("__jid__"), __opts__.get("master_job_cache")
    if not jid or cache != "local_cache" or not __opts__.get("job_cache"):
        return
    load = {
        "jid": jid,
        "fun": f"runner.multimaster.{function}",
        "id": __opts__["id"],
        "tgt": __opts__["id"],
        "tgt_type": "list",
        "user": globals().get("__user__", "UNKNOWN"),
    }
    # It is for the list of jobs only.
    with contextlib.suppress(KeyError, OSError, SaltException):
        save = salt.loader.returners(__opts__, {})[f"{cache}.save_load"]
        save(jid, load, minions=[__opts__["id"]])


def _look(timeout, sample=None, **flags):
    if sample is not None and not __utils__["multimaster_pubkey.is_id"](sample):
        raise CommandExecutionError(f"sample: got {sample!r}; supported: a minion id")
    settings = __opts__["multimaster"].get("drift") or {}
    # What the engine had compiled the last time, or the time before, is as good.
    max_age = 2.5 * settings.get("interval", 0)
    return __utils__["multimaster_gather.look"](
        __opts__,
        {name: __utils__[name] for name in TOOLS},
        timeout,
        max_age=max_age,
        sample=sample,
        **flags,
    )


def _heard(timeout, **flags):
    """Return what was heard, and no problem; or nothing, and why this master cannot ask."""
    try:
        return _look(timeout, **flags), []
    except CommandExecutionError:
        raise
    except (SaltException, OSError) as err:
        nothing = {"told": {}, "heard": {}, "sample": None, "aside": {}, "unknown": {}}
        nothing["grainless"] = {}
        look = types.SimpleNamespace(reports=dict.fromkeys(_masters()), **nothing)
        remedy = (
            "it may be slow or starting: salt-run multimaster.status "
            f"timeout={2 * timeout or 30:g}; if that says the same, on its host: "
            "salt-call --local service.restart salt-master"
        )
        return look, [f"{_deaf(err)}; {remedy}"]


def _deaf(err):
    """Say in words why this master cannot ask anybody; Salt's own are long."""
    plain = __utils__["multimaster_said.plain"]
    why = plain(str(err).partition(". ")[0][:SHOWN_TEXT])
    return f"this master takes no commands: {why or type(err).__name__}"


def _alone(look, minions):
    """Say that nobody is heard here but this master's own host, if that is so."""
    own = __opts__["id"]
    there = {name for name, report in look.reports.items() if report}
    there |= {*look.heard, *look.told, *look.unknown}
    if there - {own} or not (set(minions) | set(look.reports)) - {own}:
        return []
    who = f"nobody but {own} answers" if own in there else "nobody answers"
    return [
        f"{who} to this master, and nothing is known of the others; on another master: "
        "salt-run multimaster.status"
    ]


def _differences(look):
    settings = __opts__["multimaster"].get("drift") or {}
    arguments = [settings["clocks"]] if "clocks" in settings else []
    return __utils__["multimaster_drift.differences"](look.reports, *arguments)


def _unproved(look):
    """Say of which master it is not known what it would give the sample."""
    problems = [
        f"master {name} could not compile pillar and top file of {look.sample}: "
        f"{report['proof']['problem']}; when that is mended: "
        f"salt-run multimaster.status sample={look.sample}"
        for name, report in look.reports.items()
        if report and "problem" in report["proof"]
    ]
    if look.aside and not look.sample and __opts__["multimaster"].get("mode", "hot") == "hot":
        problems.append(
            "no minion can be the sample: what masters would give it is not compared; with one "
            "that can: salt-run multimaster.status sample=ID"
        )
    return problems


def _notes(look):
    """Say what was not compared though nothing is wrong with a master."""
    notes = [f"minion {name} is no sample: {why}" for name, why in look.aside.items()]
    notes += [
        f"master {name} has compiled nothing for {look.sample}: {report['proof']['skipped']}"
        for name, report in look.reports.items()
        if report and "skipped" in report["proof"]
    ]
    notes += [
        f"master {name} caches pillars (pillar_cache): what is compared is compiled anew, and a "
        f"minion may be given one that is up to {report['proof']['cached']:g} s old"
        for name, report in look.reports.items()
        if report and "cached" in report["proof"]
    ]
    for name, ids in look.grainless.items():
        if ids:
            shown = ", ".join(sorted(ids)[:SHOWN])
            more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
            notes.append(
                f"master {name} has no grains of {shown}{more}, which salt -G leaves out there; "
                "they are asked for"
            )
    return notes


def _remotes_down(look):
    """Say which git remotes do not answer which masters."""
    found = {}
    for name, report in look.reports.items():
        for remote, why in (report or {}).get("remotes", {}).items():
            # Git's words may have a time in them; those of one master will do.
            found.setdefault(remote, {})[name] = why
    return [
        f"{', '.join(said)}: git remote {remote}: {next(iter(said.values()))}; "
        "what was fetched last is served; when it answers: salt-run fileserver.update, or: "
        "salt-run git_pillar.update"
        for remote, said in found.items()
    ]


def _kind(subject):
    return subject.partition(":")[0]


def _minion_rows(declared, look, mode, asked):
    """
    Return what is known of every minion that this master has accepted.

    asked
        Whether anybody was asked.
    """
    rows = {}
    nobody = {"configured": None, "connected": []}
    hosts = {master["id"] for master in declared}
    for minion in sorted(__utils__["multimaster_gather.accepted"](__opts__)):
        lists = look.told.get(minion, nobody)
        rows[minion] = {
            "connected": {
                master["id"]: _connected(minion, master, look, hosts, mode, asked)
                for master in declared
            },
            "configured": lists["configured"],
            "unknown": None if minion in look.told else look.unknown.get(minion),
            # Not told by an older version of the minion's module.
            "silent": lists.get("silent", []),
            "cutover": lists.get("cutover", {}),
            "restarts": lists.get("restarts", {}),
            "beacons": lists.get("beacons"),
            "denied": {
                name: report["master"]["refused"][minion]["denied"]
                for name, report in look.reports.items()
                if report and minion in report["master"].get("refused", {})
            },
        }
    return rows


def _connected(minion, master, look, hosts, mode, asked):
    """Tell whether a minion is connected to a master; None if nobody has said so."""
    name, lists = master["id"], look.told.get(minion)
    if name in look.heard.get(minion, ()):
        return True
    if lists:
        return master["address"] in lists["connected"]
    report = look.reports[name]
    if report and not report["master"]["running"]:
        return False
    if minion in look.unknown:
        # It is there and does not say.
        return None
    # Who was asked through which master, and was silent.
    if mode == "hot" or minion in hosts:
        silent = asked and name == __opts__["id"]
    else:
        silent = report and report.get("minions") is not None
    return False if silent else None


def _master_row(master, look):
    name, report = master["id"], look.reports[master["id"]]
    told = report and report["master"]
    row = {"address": master["address"], "reachable": _reachable(master, look)}
    row["running"] = told["running"] if told else None
    for field in ("version", "fingerprint", "digest", "signs", "signing_fingerprint"):
        row[field] = told[field] if told else None
    for field in ("accepted", "pending", "denied", "rejected", "conflicts", "connections"):
        row[field] = told[field] if told else None
    # Not told by an older version of the master's module.
    row["aside"] = told.get("aside", {}) if told else {}
    row["proposed"] = told.get("proposed", []) if told else []
    row["astray"] = told.get("astray", {}) if told else {}
    row["refused"] = told.get("refused", {}) if told else {}
    row["unwritable"] = told.get("unwritable") if told else None
    row["formula"] = told["formula"] if told else None
    row["offset"] = report["offset"] if report else None
    row["remotes_down"] = len(report.get("remotes", ())) if report else None
    row["reported"] = bool(report)
    row["unknown"] = look.unknown.get(name)
    return row


def _reachable(master, look):
    """
    Tell whether a master answers; None if nobody can tell.

    Of one whose host does not report others know whether they are connected to it; a connection
    may outlast its master, and so it is no proof that this is well.
    """
    name, address = master["id"], master["address"]
    if report := look.reports[name]:
        return report["master"]["answers"]
    if name == __opts__["id"]:
        # What was heard has come through it.
        return True if look.heard or look.unknown or any(look.reports.values()) else None
    if name in look.unknown:
        return None
    said = {
        minion: address in lists["connected"] and address not in lists.get("silent", ())
        for minion, lists in look.told.items()
        if minion != name and address in lists["configured"]
    }
    # That this very host has no connection may be its own fault.
    others = said.keys() - {__opts__["id"]}
    return False if others and not any(said.values()) else None


def _problems(masters, minions, addresses, mode):
    problems = [
        line for name, row in masters.items() if (line := _master_trouble(name, row, minions))
    ]
    problems += _different(masters)
    for name, row in masters.items():
        if row["conflicts"]:
            problems.append(
                f"master {name} knows {row['conflicts']} ids with two keys; "
                "see salt-run multimaster.keys, then: salt-run multimaster.resolve ID FINGERPRINT"
            )
        problems += _stored(name, row)
    problems += _proposed(masters) + _refused(masters)
    lines = [
        (name, line)
        for name, row in minions.items()
        for line in _trouble(name, row, masters, addresses, mode)
    ]
    # All of them are in the rows.
    problems += [line for _, line in lines[:SHOWN]]
    if more := {name for name, _ in lines[SHOWN:]} - {name for name, _ in lines[:SHOWN]}:
        problems.append(
            f"{len(more)} more minions have such problems; see salt-run multimaster.status "
            "--out=json"
        )
    return problems


def _master_trouble(name, row, minions):
    """Return in words what is wrong with a master, and what to do; None if nothing is."""
    at = f"master {name} ({row['address']})"
    if row.get("unknown"):
        remedy = f"salt {name} state.apply multimaster"
        when = "with an older version of the formula"
        if row["unknown"].startswith(FOREIGN):
            when, remedy = "on a master that is right", f"{remedy} {REPLACING}"
        return f"{at} {_silence(row['unknown'])}; {when}: {remedy}"
    if row["reachable"] and not row["reported"]:
        return (
            f"the host of master {name} does not report; there: "
            "salt-call --local service.restart salt-minion"
        )
    if not row["reported"]:
        there = [
            who for who, each in minions.items() if each["connected"].get(name) and who != name
        ]
        if row["reachable"] is False:
            return (
                f"{at} does not answer: its host does not report, and nobody is connected to it; "
                "there: salt-call --local service.restart salt-master"
            )
        if there:
            shown = ", ".join(there[:ASTRAY_SHOWN])
            more = len(there) - ASTRAY_SHOWN
            who = f"{shown} and {more} more" if more > 0 else shown
            said = f"{who} {'have' if len(there) > 1 else 'has'} a connection to it"
        else:
            said = "nobody says whether it is connected to it"
        return (
            f"{at} is unknown: its host does not report, and {said}; there: "
            "salt-call --local service.status salt-master"
        )
    if not row["running"] and not row["reachable"]:
        return f"{at} does not run; salt {name} service.start salt-master"
    if not row["reachable"]:
        return (
            f"{at} does not answer the minion on its host; salt {name} service.restart salt-master"
        )
    if row["pending"]:
        return (
            f"master {name} has {row['pending']} pending keys; see salt-run multimaster.keys, "
            "then: salt-run multimaster.accept ID FINGERPRINT, or: "
            "salt-run multimaster.reject ID FINGERPRINT"
        )
    return None


def _different(masters):
    """Say in what the masters differ that have to be one."""
    problems = []
    up = {name: row for name, row in masters.items() if row["reachable"] and row["reported"]}
    if odd := _odd(up, "fingerprint"):
        problems.append(
            "the masters have different keys; on a master that is right: "
            f"salt {odd} state.apply multimaster {REPLACING}"
        )
    signing = {name: row for name, row in up.items() if row["signing_fingerprint"]}
    if odd := _odd(signing, "signing_fingerprint"):
        problems.append(
            "the masters have different signing pairs (master_sign.pem); "
            f"salt {odd} state.apply multimaster"
        )
    plain = [name for name, row in up.items() if not row["signs"]]
    if plain and any(row["signs"] for row in masters.values()):
        problems.append(
            f"{', '.join(plain)}: configured not to sign the masters' key, others are; "
            f"salt {plain[0]} state.apply multimaster"
        )
    if len({row["digest"] for row in up.values()}) > 1:
        problems.append("the masters' decisions on keys differ; see salt-run multimaster.keys")
    return problems


def _odd(masters, field):
    """Return a master that has something else than most, or than the first; None if none has."""
    values = [row[field] for row in masters.values()]
    most = collections.Counter(values).most_common(1)[0][0] if values else None
    return next((name for name, row in masters.items() if row[field] != most), None)


def _stored(name, row):
    """Say what a master could not do with keys, and has otherwise than decided."""
    problems = []
    aside, astray = dict(row.get("aside", {})), dict(row.get("astray", {}))
    if row.get("unwritable"):
        problems.append(
            f"master {name} cannot write keys, {row['unwritable']}; when it can: "
            "salt-run multimaster.keys_repair"
        )
    if astray:
        more = astray.pop("...", "")
        whys = {one: f"; {why}" for one, why in aside.items() if one in astray}
        shown = [f"{one} ({how}{whys.get(one, '')})" for one, how in astray.items()]
        # Of many that master has told only the first, and how many more there are.
        left = max(len(shown) - ASTRAY_SHOWN, 0)
        left += next((int(word) for word in more.split() if word.isdecimal()), 0)
        shown = [*shown[:ASTRAY_SHOWN], *([f"and {left} more"] if left else [])]
        problems.append(
            f"master {name} has keys otherwise than decided: {', '.join(shown)}; "
            "see salt-run multimaster.drift subject=keys, then: salt-run multimaster.keys_repair"
        )
    problems += [
        f"master {name} has set {item!r} aside: {reason}; it tries again by itself, or now: "
        "salt-run multimaster.keys_repair"
        for item, reason in aside.items()
        if item not in astray
    ]
    return problems


def _refused(masters):
    """Say which keys are denied under whose ids, and where."""
    found = {}
    for name, row in masters.items():
        for minion, key in row.get("refused", {}).items():
            # One that is in use now is about to be cleared.
            if key["denied"] and key["denied"] != key["fingerprint"]:
                about = (minion, key["denied"], key["state"], key["fingerprint"])
                found.setdefault(about, []).append(name)
    lines = []
    for (minion, denied, state, own), there in list(found.items())[:REFUSED_SHOWN]:
        who, denied = shlex.quote(minion), _digits(denied)
        delete = f"salt-run multimaster.delete {who} {denied}"
        line = f"minion {minion} is denied on {', '.join(there)} with key {denied}"
        if own:
            own = _digits(own)
            lines.append(
                f"{line}, and its key {own} is {state}; if it was installed anew: "
                f"salt-run multimaster.delete {who} {own}, and when it waits: "
                f"salt-run multimaster.accept {who} {denied}; if it is somebody else: {delete}"
            )
        else:
            lines.append(f"{line}, and has no other; to clear it: {delete}")
    if len(found) > REFUSED_SHOWN:
        lines.append(
            f"{len(found) - REFUSED_SHOWN} more ids have denied keys; see salt-run multimaster.keys"
        )
    return lines


def _digits(fingerprint):
    """Return the beginning of a fingerprint by which a command knows it: a text, no number."""
    end = LEAST_DIGITS
    while fingerprint[:end].isdecimal() and end < len(fingerprint):
        end += 1
    return fingerprint[:end]


def _proposed(masters):
    """Say what is proposed of keys, and where and when it was done; the masters know the same."""
    found = {}
    for row in masters.values():
        for group in row.get("proposed", []):
            about = group["verdict"], group["origin"]
            if about not in found or found[about]["count"] < group["count"]:
                found[about] = group
    lines = []
    for (verdict, origin), group in found.items():
        named = group["ids"][:PROPOSED_SHOWN]
        more = group["count"] - len(named)
        what = f"{', '.join(named)} and {more} more" if more else ", ".join(named)
        which = "'GLOB'" if more else " ".join(map(shlex.quote, named))
        lines.append(
            f"{verdict}, by what was done on {origin} at {_moment(group['since'])}: {what}; "
            f"salt-run multimaster.confirm {which}, or: salt-run multimaster.take_back {which}"
        )
    return lines


def _trouble(name, row, masters, addresses, mode):
    """Return in words what is wrong with a minion, and what to do."""
    found, who = [], shlex.quote(name)
    apply = f"salt {who} state.apply multimaster"
    connected = row["connected"]
    denied = row.get("denied", {})
    missing = [master for master, is_so in connected.items() if is_so is False]
    missing = [master for master in missing if master not in denied]
    # Where None is, nobody knows.
    unsure = [master for master, is_so in connected.items() if is_so is None]
    if mode == "failover" and name not in masters and any(connected.values()):
        # Connected to one master at a time, whichever that is.
        missing = []
    if row.get("unknown") and name not in masters:
        found.append(f"minion {name} {_silence(row['unknown'])}; without the formula: {apply}")
    if missing and name in masters and not masters[name].get("reported", True):
        # That its host does not report is told already.
        missing = []
    if missing and row["configured"] is None:
        line = f"minion {name} does not answer to {', '.join(missing)}"
        if unsure:
            line += f", and whether it is connected to {', '.join(unsure)} is not known"
        found.append(f"{line}; all masters ask theirs: salt-run multimaster.down")
    elif missing:
        found.append(
            f"minion {name} is not connected to {', '.join(missing)}; whether it may: "
            f"salt-run multimaster.keys {who}"
        )
    if row["silent"]:
        names = {each["address"]: master for master, each in masters.items()}
        silent = names.get(row["silent"][0], "MASTER")
        found.append(
            f"minion {name} gets no answer from {', '.join(row['silent'])}; "
            f"salt {silent} service.restart salt-master"
        )
    if row.get("beacons"):
        found.append(
            f"minion {name} runs no beacons until it has been with {row['beacons']}, the first of "
            f"its masters; until that is back: see docs/limits.md"
        )
    if row["cutover"].get("step", "kept") != "kept":
        remedy = f"how far it is: salt {who} multimaster.masters"
        if row["cutover"].get("back"):
            remedy = f"when list and network are right: {apply}"
        found.append(f"minion {name} {_under_way(row['cutover'])}; {remedy}")
    for service, restart in row.get("restarts", {}).items():
        if (age := time.time() - restart["since"]) > restart["timeout"]:
            found.append(
                f"{service} on {name} is to be restarted for {age:.0f} s; waiting for "
                f"{restart['waiting']}; at once: "
                f"salt {who} service.restart {shlex.quote(service)}"
            )
    if row["configured"] is not None and row["configured"] != addresses:
        found.append(f"minion {name} is configured for {', '.join(row['configured'])}; {apply}")
    return found


def _silence(unknown):
    """Say in words why nothing is known of somebody."""
    return f"is unknown: its answer is none: {unknown}" if unknown else "does not report"


def _under_way(cutover):
    """Say in words how far a minion is on its way to a new list of masters, and who says what."""
    said = [
        f"{address} {word} for {max(0, time.time() - since):.0f} s"
        for address, (word, since) in cutover.get("seen", {}).items()
    ]
    told = f": {', '.join(said)}" if said else ""
    if cutover.get("back"):
        wanted = ", ".join(cutover.get("wanted", ()))
        return f"went back from {wanted} ({cutover.get('why')}), and goes on proving them{told}"
    return f"is on its way to a new list of masters, {cutover['step']}{told}"
