"""
Look at a multi-master topology as a whole, from any of its masters, and decide on minions' keys.
"""

import time

import salt.client
from salt.exceptions import CommandExecutionError

__virtualname__ = "multimaster"

# Keys in one answer: an event may hold (max_event_size, 1 MiB) twice as many.
PAGE = 8_000


def __virtual__():
    return __virtualname__


def status(timeout=5):
    """
    Show every master, and for every minion the masters that it is connected to.

    timeout
        Seconds to wait for answers.

    Per master: address, reachable (the minion on its host answers to it), Salt version,
    fingerprint of its key, digest of its ledger, whether it is configured to sign its key and the
    fingerprint of the pair that it signs with, and the numbers of accepted, pending, denied and
    rejected keys and of conflicts.  Per minion: whether it is connected to each master, which it
    is only after that master has let it in, the master list it is configured with, the masters
    that are silent to it, and how the last change of its configuration went.
    ``problems`` says in words what is wrong.  Exit status 0 only if that is nothing.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.status
        salt-run multimaster.status --out json
    """
    declared = __opts__.get("multimaster", {}).get("masters", [])
    ids = [master["id"] for master in declared]
    addresses = [master["address"] for master in declared]
    mode = __opts__.get("multimaster", {}).get("mode", "hot")
    # Whoever still works on its answer after that time is waited for; whoever is not there is not.
    patience = {"timeout": timeout, "gather_job_timeout": timeout}
    with salt.client.get_local_client(mopts=__opts__) as client:
        # In hot mode every minion can be asked from here; else only each by its own master.
        arguments = [timeout] if mode == "hot" else [timeout, "*"]
        reports = client.cmd(ids, "multimaster.report", arguments, tgt_type="list", **patience)
        told = client.cmd("*", "multimaster.masters", **patience) if reports else {}
    reports = {name: value for name, value in reports.items() if isinstance(value, dict)}
    masters = {master["id"]: _master_row(master, reports.get(master["id"])) for master in declared}
    minions = sorted({name for report in reports.values() for name in report["accepted"]})
    rows = {}
    for minion in minions:
        lists = told.get(minion)
        lists = lists if isinstance(lists, dict) else {"configured": None, "connected": []}
        rows[minion] = {
            "connected": {
                master["id"]: master["address"] in lists["connected"]
                or minion in reports.get(master["id"], {}).get("answering", [])
                for master in declared
            },
            "configured": lists["configured"],
            # Not told by an older version of the minion's module.
            "silent": lists.get("silent", []),
            "cutover": lists.get("cutover", {}),
        }
    problems = _problems(masters, rows, addresses, mode)
    if not declared:
        problems = ["this master declares no topology; apply the formula first"]
    return {
        "outputter": "multimaster",
        "data": {
            "mode": mode,
            "masters": masters,
            "minions": rows,
            "problems": problems,
            # salt-run's exit status
            "retcode": 1 if problems else 0,
        },
    }


def keys(like="*", timeout=10):
    """
    Show what each master has decided on each key; a matrix of ids and masters.

    like
        A glob that ids have to match.

    A cell is accepted, rejected, pending, denied or missing; ``differs`` tells whether the masters
    say different things, or have different keys under one id.  Exit status 0 only if none does.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.keys
        salt-run multimaster.keys 'web*' --out json
    """
    states = _key_states(like, timeout)
    rows = {}
    for minion_id in sorted({name for found in states.values() for name in found or {}}):
        cells, prints = {}, set()
        for master, found in states.items():
            entry = (found or {}).get(minion_id)
            cells[master] = "unknown" if found is None else entry["state"] if entry else "missing"
            if entry and entry["fingerprint"]:
                prints.add(entry["fingerprint"])
        rows[minion_id] = {
            "masters": cells,
            "fingerprints": sorted(prints),
            "differs": len(prints) > 1 or len(set(cells.values())) > 1,
        }
    return {
        "outputter": "multimaster",
        "data": {
            "masters": list(states),
            "keys": rows,
            "retcode": 1 if any(row["differs"] for row in rows.values()) else 0,
        },
    }


def keys_repair(test=False, timeout=10):
    """
    Have every master read all of its keys and of its peers' decisions again.

    The masters do that by themselves; this is for one who does not want to wait, or who changed
    files by hand.  Returns the ids on which they differ before.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.keys_repair test=True
    """
    rows = keys(timeout=timeout)["data"]["keys"]
    differing = [minion_id for minion_id, row in rows.items() if row["differs"]]
    if not test:
        _on_masters("multimaster.ledger_wake", [""], timeout)
    return {"differing": differing, "repaired": not test}


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
    End a conflict: one key of a minion stays what it is, all others are deleted on every master.

    fingerprint
        Of the key that stays, as ``multimaster.keys`` shows it; 16 digits or more.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.resolve web1 0123456789abcdef test=True
    """
    states = _on_masters("multimaster.key_states", [minion_id], timeout)
    prints = {
        found[minion_id]["fingerprint"] for found in states.values() if minion_id in (found or {})
    }
    if sum(found.startswith(fingerprint) for found in prints if found) != 1:
        shown = ", ".join(sorted(filter(None, prints))) or "none"
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


def delete(minion_id, fingerprint, test=False):
    """
    Delete a key, here and so on all masters, if it is the expected one.

    CLI Example:

    .. code-block:: bash

        salt-run multimaster.delete web1 0123456789abcdef test=True
    """
    return _decide("delete", minion_id, fingerprint, test)


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
            seconds = entry[moment] / 1000
            entry[moment] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    return entries


def _key_states(like, timeout):
    """Return master -> id -> state and fingerprint; None for a master that does not answer."""
    states = dict.fromkeys(_masters())
    reading, after = list(states), ""
    while reading:
        packed = _on_masters("multimaster.key_page", [like, after, PAGE], timeout, reading)
        pages = {name: _page(text) for name, text in packed.items()}
        for name, page in pages.items():
            states[name] = None if page is None else {**(states[name] or {}), **page}
        # Who has said less than it was asked for has said all.
        reading = [name for name in reading if states[name] and len(pages[name]) == PAGE]
        after = min((max(pages[name]) for name in reading), default="")
        if reading and not __opts__.get("output"):
            # For people only: salt-run prints it where the result goes.
            message = f"read the keys of {', '.join(reading)} up to {after}"
            __jid_event__.fire_event({"message": message}, "progress")
    return states


def _page(text):
    """Return what is in a page; None for an error of the host, or for no answer."""
    try:
        return __utils__["multimaster_ledger.unsqueeze"](text)
    except ValueError:
        return None


def _decide(verdict, minion_id, fingerprint, test, timeout=10):
    return _here("multimaster.key_decide", [verdict, minion_id, fingerprint, test], timeout)


def _here(function, arguments, timeout):
    """Call a function on this master's own host; an error there is one here."""
    answer = _on_masters(function, arguments, timeout, [__opts__["id"]])[__opts__["id"]]
    if answer is None or isinstance(answer, str):
        raise CommandExecutionError(answer or f"the minion {__opts__['id']} does not answer")
    return answer


def _on_masters(function, arguments, timeout, ids=None):
    """Call a function on the hosts of masters; None for one that does not answer."""
    ids = ids or _masters()
    with salt.client.get_local_client(mopts=__opts__) as client:
        answers = client.cmd(
            ids, function, arguments, tgt_type="list", timeout=timeout, gather_job_timeout=timeout
        )
    return {name: answers.get(name) for name in ids}


def _masters():
    """Return the minion ids on the hosts of all masters."""
    return [master["id"] for master in __opts__.get("multimaster", {}).get("masters", [])]


def _master_row(master, report):
    answers = report and report["running"] and master["id"] in report["answering"]
    row = {"address": master["address"], "reachable": bool(answers)}
    for field in ("version", "fingerprint", "digest", "signs", "signing_fingerprint"):
        row[field] = report[field] if report else None
    for field in ("accepted", "pending", "denied", "rejected", "conflicts"):
        row[field] = len(report[field]) if report else None
    return row


def _problems(masters, minions, addresses, mode):
    problems = []
    for name, row in masters.items():
        if not row["reachable"]:
            problems.append(f"master {name} ({row['address']}) does not answer")
        elif row["pending"]:
            problems.append(f"master {name} has {row['pending']} pending keys")
    fingerprints = {row["fingerprint"] for row in masters.values() if row["reachable"]}
    if len(fingerprints) > 1:
        problems.append("the masters have different keys")
    pairs = {row["signing_fingerprint"] for row in masters.values() if row["reachable"]} - {None}
    if len(pairs) > 1:
        problems.append("the masters have different signing pairs (master_sign.pem)")
    plain = [name for name, row in masters.items() if row["reachable"] and not row["signs"]]
    if plain and any(row["signs"] for row in masters.values()):
        problems.append(f"{', '.join(plain)}: configured not to sign the masters' key, others are")
    digests = {row["digest"] for row in masters.values() if row["reachable"]}
    if len(digests) > 1:
        problems.append("the masters' decisions on keys differ; see salt-run multimaster.keys")
    for name, row in masters.items():
        if row["conflicts"]:
            problems.append(f"master {name} knows {row['conflicts']} ids with two keys")
    for name, row in minions.items():
        missing = [master for master, connected in row["connected"].items() if not connected]
        if mode == "failover" and name not in masters:
            # Connected to one master at a time, whichever that is.
            missing = missing if len(missing) == len(row["connected"]) else []
        if missing:
            problems.append(f"minion {name} is not connected to {', '.join(missing)}")
        if row["silent"]:
            problems.append(f"minion {name} gets no answer from {', '.join(row['silent'])}")
        if row["cutover"].get("step") == "restored":
            wanted = ", ".join(row["cutover"]["wanted"])
            problems.append(f"minion {name} went back from {wanted}: too few masters answered")
        elif row["cutover"].get("step", "kept") != "kept":
            problems.append(f"minion {name} is on its way to a new configuration")
        if row["configured"] is not None and row["configured"] != addresses:
            problems.append(f"minion {name} is configured for {', '.join(row['configured'])}")
    return problems
