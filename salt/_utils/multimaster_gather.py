"""
Asks several masters and minions at once, and stops when everybody who is there has answered.

Not a part of the core, since it talks to the network, and imports Salt where it does; here because
runner, engine and execution module need it.
"""

import contextlib
import functools
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

# Subjects short enough to be told leaf by leaf though they may be equal: to ask twice takes longer.
SHORT = ["config", "access"]
# Of more ids than that a command has their names in it no more, but a glob.
NAMED = 1000
# Seconds between two looks at who is connected.
GLANCE = 0.2
# What Salt 3008 calls a key file until it is complete; after a crash for good.
TEMPORARY = re.compile(r"tmp[a-z0-9_]{8}")
# Times its patience that a question waits for those who say that they are at work on it.
ENOUGH = 12


class Question(NamedTuple):
    """A command for some minions."""

    ids: Sequence[str]
    function: str
    arguments: Sequence[Any] = ()


class Answer(NamedTuple):
    """What came back, from whom, on which question, and when."""

    question: Question
    id: str
    value: Any
    asked: float
    arrived: float


def gather(
    opts: Mapping[str, Any],
    questions: Sequence[Question],
    timeout: float,
    connections: Callable[[], int] | None = None,
    more: Callable[[set[str]], Question | None] = lambda asked: None,
    proves: Callable[[Answer], bool] = lambda answer: True,
) -> Iterator[Answer]:
    """
    Give all questions on this master, at once, and return what yields the answers as they come.

    timeout
        Seconds without an answer after which a minion is asked whether it is at work on one.  Who
        says so is waited for, ``ENOUGH`` times as long in all; who is silent is not.
    connections
        Tells how many minions are connected to this master, 0 if that is not known: when so many
        have answered, the rest is not there, and not waited for.
    more
        Returns a question for those who are connected and were not asked, if there are any.
    proves
        Tells whether an answer is one of who it says: until there is such a one it is waited for.
    """
    import salt.client

    daemon = functools.partial(_daemon, opts)
    asked = daemon()
    client = hardened(salt.client.get_local_client(mopts=dict(opts)))
    try:
        # Or answers could come before anybody listens.
        client.event.connect_pub()
        jobs = dict(_give(client, each, timeout) for each in questions)
    except BaseException:
        client.destroy()
        raise
    return _listen(client, jobs, timeout, connections, more, proves, daemon, asked)


def _daemon(opts: Mapping[str, Any]) -> list[Any] | None:
    """Return what tells this master's daemon from the one before it; None while it is down."""
    with contextlib.suppress(KeyError, OSError, ValueError), open(opts["pidfile"]) as handle:
        return process(int(handle.read()))
    return None


def next_event(bus: Any, wait: float) -> dict[str, Any] | None:
    """Return the next event of a master's bus, or None after so many seconds without one."""
    nothing: dict[str, Any] = {"tag": "", "data": {}}
    event: dict[str, Any] | None = _heard(bus.get_event, nothing, wait=wait, full=True)
    return event


def whole(seconds: float) -> int:
    """
    Return seconds as Salt's client takes them.

    Of a number with a fraction it makes its option `timeout`, 5 by default (salt/client/__init__.py
    ``_get_timeout``): a master that takes longer than that to take a job is given it three times.
    """
    return max(1, math.ceil(float(seconds)))


def hardened(client: Any) -> Any:
    """Return a client of Salt's that passes over events that are none, instead of ending."""
    client.event.get_event = functools.partial(_heard, client.event.get_event, None)
    return client


def _heard(get_event: Callable[..., Any], instead: Any, *arguments: Any, **flags: Any) -> Any:
    from salt.exceptions import SaltDeserializationError

    try:
        return get_event(*arguments, **flags)
    except (UnicodeDecodeError, TypeError, SaltDeserializationError) as err:
        # Its tag may be any bytes that a minion likes.
        log.debug("An event that is none: %s", err)
        return instead


def question(ids: Sequence[str], function: str, arguments: Sequence[Any] = ()) -> Question:
    """Return a question; a function, since Salt's loader shows no classes."""
    return Question(ids, function, arguments)


Jobs = dict[str, tuple[Question, float]]


def _listen(
    client: Any,
    jobs: Jobs,
    timeout: float,
    connections: Callable[[], int] | None,
    more: Callable[[set[str]], Question | None],
    proves: Callable[[Answer], bool],
    daemon: Callable[[], list[Any] | None],
    running: list[Any] | None,
) -> Iterator[Answer]:
    with contextlib.closing(_Client(client)):
        questions = [each for each, _ in jobs.values()]
        # A question keeps the name of its first job, by whatever job it is asked once more.
        first = {jid: jid for jid in jobs}
        # Who was asked what and has not answered -> the last job of that question.  Anybody may
        # put an answer on the bus, in any name.
        left = {(jid, name): jid for jid, (each, _) in jobs.items() for name in each.ids}
        heard: set[str] = set()
        looks: dict[str, str] = {}
        began = answered = time.monotonic()
        deadline, once = began + timeout, True
        # Who was asked for and says that it is at work; None before anybody was asked.
        at_work: set[tuple[str, str]] | None = None
        # Who is there and knows of no job: lost it, as one that was just starting.
        lost: set[tuple[str, str]] = set()
        anew: set[tuple[str, str]] = set()
        while (now := time.monotonic()) < began + ENOUGH * timeout:
            if left and (fresh := daemon()) not in (running, None):
                # A daemon that was started since knows of no question.
                with contextlib.suppress(Exception):
                    _ask_anew(client, jobs, first, left, left, timeout)
                    running, deadline, at_work = fresh, time.monotonic() + timeout, None
                    continue
            there = connections() if connections else None
            if there and len(heard) >= there:
                break
            if lost := {at for at in lost if at in left}:
                _ask_anew(client, jobs, first, left, lost, timeout)
                anew, lost = anew | lost, set()
                deadline, at_work = time.monotonic() + timeout, None
            elif now >= deadline:
                if at_work is not None and not at_work & set(left):
                    break
                looks, at_work = _look_for(client, left, timeout), set()
                # As long as the slowest took whose answer is there; it was more to do than this.
                deadline = now + min(timeout, max(answered - began, 1) if heard else timeout)
            if there and once and (not left or at_work is not None):
                # Is somebody connected who was not asked?  Who is dead keeps nobody from it.
                once = False
                if last := more({n for each in questions for n in each.ids}):
                    jid, job = _give(client, last, timeout)
                    jobs[jid], first[jid] = job, jid
                    left |= {(jid, name): jid for name in last.ids}
                    deadline, at_work = now + timeout, None
            if not left:
                break
            glance = min(deadline, time.monotonic() + GLANCE)
            while (wait := glance - time.monotonic()) > 0:
                event = client.event.get_event(wait=wait, tag="salt/job/", full=True)
                jid, name, value = _answer(event)
                if jid in looks and at_work is not None and isinstance(value, dict):
                    at = (first[looks[jid]], name)
                    if value:
                        at_work.add(at)
                        deadline = max(deadline, time.monotonic() + timeout)
                    elif left.get(at) == looks[jid] and at not in anew:
                        # Once: who loses it again is not going to answer.
                        lost.add(at)
                if (first.get(jid), name) not in left:
                    continue
                each, asked = jobs[jid]
                answer = Answer(each, name, value, asked, time.time())
                if proves(answer):
                    del left[first[jid], name]
                    heard.add(name)
                    answered = time.monotonic()
                yield answer
                if not left:
                    break


Left = dict[tuple[str, str], str]


def _ask_anew(
    client: Any,
    jobs: Jobs,
    first: dict[str, str],
    left: Left,
    whom: Iterable[tuple[str, str]],
    timeout: float,
) -> None:
    """Ask some of those who have not answered once more; an answer to the job before counts."""
    whom = set(whom)
    for asked in {one for one, _ in whom}:
        ids = sorted(name for one, name in whom if one == asked)
        jid, job = _give(client, jobs[asked][0]._replace(ids=ids), timeout)
        jobs[jid], first[jid] = job, asked
        left |= {(asked, name): jid for name in ids}


def _look_for(client: Any, left: Left, timeout: float) -> dict[str, str]:
    """Ask who is at work on which job; return the job of that question -> the job it is about."""
    looks = {}
    for wanted in set(left.values()):
        ids = sorted(name for (_, name), jid in left.items() if jid == wanted)
        looks[_give(client, Question(ids, "saltutil.find_job", [wanted]), timeout)[0]] = wanted
    return looks


class _Client:
    """Closes a client of Salt, some of which have no other word for it."""

    def __init__(self, client: Any) -> None:
        self.close = client.destroy


def _give(client: Any, asked_for: Question, timeout: float) -> tuple[str, tuple[Question, float]]:
    many = len(asked_for.ids) > NAMED
    asked = time.time()
    job = client.run_job(
        "*" if many else list(asked_for.ids),
        asked_for.function,
        list(asked_for.arguments),
        tgt_type="glob" if many else "list",
        timeout=whole(timeout),
        listen=True,
        # The answers are read here and now; the job cache would keep them for hours.
        nocache=True,
    )
    return str(job.get("jid", "")), (asked_for, asked)


def _answer(event: Any) -> tuple[str, str, Any]:
    """Return job, minion and value of a return's event; empty texts for any other event."""
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        _, _, jid, kind, name = event["tag"].split("/", 4)
        if kind == "ret" and "return" in event["data"]:
            return jid, name, event["data"]["return"]
    return "", "", None


def accepted(opts: Mapping[str, Any]) -> set[str]:
    """Return the ids that this master has accepted."""
    if opts.get("keys.cache_driver") in (None, "localfs_key"):
        # Salt's own listing takes most of a second for ten thousand keys.
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(os.path.join(opts["pki_dir"], "minions"))
            ids = {name for name in names if "\\" not in name and not name.startswith(".")}
            return ids - unfinished(opts, ids)
        return set()
    import salt.key

    return set(salt.key.get_key({**opts, "__role": "master"}).list_keys()["minions"])


def unfinished(opts: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """
    Return the names of files among the keys that Salt has not finished, and that are no minions'.

    A minion may be called so; it has been here then.
    """
    odd = {name for name in names if TEMPORARY.fullmatch(name)}
    return {name for name in odd if not grains(opts, name)}


def met(opts: Mapping[str, Any]) -> set[str] | None:
    """Return the ids whose grains this master has had; None if it does not keep them."""
    if not opts.get("minion_data_cache"):
        return None
    import salt.cache

    found: set[str] = set()
    cache = salt.cache.factory(opts)
    # Where Salt 3008 has them, and its predecessors.
    for bank in ("grains", "minions"):
        with contextlib.suppress(Exception):
            found |= set(cache.list(bank) or ())
    return found


def without_grains(opts: Mapping[str, Any], ids: Iterable[str]) -> set[str]:
    """
    Return those of some minions whose grains this master lacks, none if it does not keep them.

    Raises where that cannot be told.
    """
    if not opts.get("minion_data_cache"):
        return set()
    import salt.cache

    cache = salt.cache.factory(opts)

    def has(name: str) -> bool:
        # Salt 3008 does not look where its predecessors had them.
        place = ("grains", name) if opts.get("keys.cache_driver") else (f"minions/{name}", "data")
        return bool(cache.contains(*place))

    return {name for name in ids if not has(name)}


def grains(opts: Mapping[str, Any], minion_id: str) -> dict[str, Any]:
    """Return the grains of a minion that this master has had."""
    import salt.cache

    cache = salt.cache.factory(opts)
    for bank, key in (("grains", minion_id), (f"minions/{minion_id}", "data")):
        with contextlib.suppress(Exception):
            if found := cache.fetch(bank, key):
                return dict(found.get("grains", found) if key == "data" else found)
    return {}


def pair(opts: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return private and public key of this host's master; None for each that is not there."""
    driver = opts.get("keys.cache_driver")

    def content(name: str) -> str | None:
        if driver not in (None, "localfs_key"):
            import salt.cache

            return salt.cache.Cache(dict(opts), driver=driver).fetch("master_keys", name) or None
        with (
            contextlib.suppress(FileNotFoundError),
            open(os.path.join(opts["pki_dir"], name), errors="replace") as handle,
        ):
            return handle.read()
        return None

    # Salt 3008 names the live pair after the master.
    for stem in (opts["id"].removesuffix("_master"), "master") if driver else ("master",):
        pem, pub = (content(f"{stem}.{suffix}") for suffix in ("pem", "pub"))
        if pem or pub:
            return pem, pub
    return None, None


def signed(function: str, arguments: Sequence[Any] = (), **named: Any) -> list[Any]:
    """
    Return the arguments of ``multimaster.signed`` for a question to masters' hosts.

    Their nonce, the second of them, is fresh: everybody sees the question.
    """
    return [function, secrets.token_hex(16), list(arguments), named]


def proved(
    opts: Mapping[str, Any],
    utils: Mapping[str, Callable[..., Any]],
    asked: Sequence[Any],
    host: str,
    reply: Any,
) -> tuple[Any, str | None]:
    """
    Return what a master's host has answered, as it may be read, and None; or None, and why not.

    asked
        What :func:`signed` has returned.
    """
    function, nonce, *_ = asked
    pub = pair(opts)[1]
    told, why = utils["multimaster_keypair.proved"](reply, function, host, nonce, pub)
    return (None, why) if why is not None else utils["multimaster_said.check"](function, told)


def prover(
    opts: Mapping[str, Any], utils: Mapping[str, Callable[..., Any]]
) -> Callable[[Answer], bool]:
    """Return what tells whether an answer is one of who it says, where that can be told."""
    pub = pair(opts)[1]

    def proves(answer: Answer) -> bool:
        if answer.question.function != "multimaster.signed":
            return True
        function, nonce, *_ = answer.question.arguments
        unproved = utils["multimaster_keypair.unproved"]
        return unproved(answer.value, function, answer.id, nonce, pub) is None

    return proves


def process(pid: int) -> list[Any] | None:
    """
    Return what tells a process from all others, before and after it; None if it is not there.

    Not by the clock, which may be set: that moves the start of every process.
    """
    try:
        with open(f"/proc/{pid}/stat") as handle:
            start = handle.read().rpartition(")")[2].split()[19]
        with open("/proc/sys/kernel/random/boot_id") as handle:
            return [pid, int(start), handle.read().strip()]
    except OSError:
        return None


def tables() -> dict[str, str]:
    """Return this host's tables of TCP connections."""
    found = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/net/{name}") as handle:
            found[name] = handle.read()
    return found


class Look(NamedTuple):
    """What all masters report, and what the minions say of their masters."""

    # Master -> its report, None without one; ``offset`` is its clock less this host's, in seconds.
    reports: dict[str, dict[str, Any] | None]
    # Minion -> what ``multimaster.masters`` told, and the masters that it answered to.
    told: dict[str, dict[str, Any]]
    heard: dict[str, set[str]]
    sample: str | None
    # Minion -> why it cannot be the sample.
    aside: dict[str, str]
    # Minion -> why what it has answered is no answer; a master's report is None then.
    unknown: dict[str, str]
    # Master -> minions that answered to it, and whose grains it lacks.
    grainless: dict[str, set[str]]


# Seconds more than its own patience that a master's host has for its report.
SLACK = 2.0


def look(
    opts: Mapping[str, Any],
    utils: Mapping[str, Callable[..., Any]],
    timeout: float,
    minions: bool = False,
    detail: bool = False,
    sample: str | None = None,
    max_age: float = 0,
    watch: Mapping[str, Any] | None = None,
) -> Look:
    """
    Have every master report, and see to it that the reports can be compared.

    utils
        Functions of the other utility modules, by name: see ``TOOLS`` of those who call this.
    minions
        Whether all minions are asked for their masters.
    detail
        Whether subjects that differ are told leaf by leaf.
    sample
        The minion whose pillar and states are compared; a declared one, or any, unless given.
    max_age
        Seconds for which what was compiled for it holds; 0: it is compiled again.
    watch
        For ``multimaster_drift.report``.
    """
    topology = opts["multimaster"]
    hosts = [master["id"] for master in topology["masters"]]
    mode = topology.get("mode", "hot")
    hot = mode == "hot"
    known, seen = accepted(opts), met(opts)
    ids = [sample] if sample else (topology.get("drift") or {}).get("sample")
    if not ids:
        key = pair(opts)[0] or ""
        ids = utils["multimaster_drift.samples"](known, hosts, seen or (), key, mode)
    (sample, digest), aside = _chosen(opts, utils, ids)
    arguments = {
        "minions": minions and not hot,
        "timeout": timeout,
        "sample": sample and [sample, digest],
        "max_age": max_age,
        "compiles": not max_age,
        "watch": watch,
        "asker": opts["id"],
    }
    if detail:
        arguments["detail"] = SHORT
    questions = [_reports(hosts, arguments)]
    asks = minions and hot

    def count() -> int:
        return int(utils["multimaster_trees.subscribed"](opts, tables()))

    if asks:
        # Whoever was never here is asked only if more are connected than these.
        likely = known & seen if seen is not None and count() else known
        if rest := sorted(likely - set(hosts)):
            questions.append(Question(rest, "multimaster.masters"))

    def more(asked: set[str]) -> Question | None:
        left = sorted(known - asked)
        return Question(left, "multimaster.masters") if left else None

    reports: dict[str, dict[str, Any] | None] = dict.fromkeys(hosts)
    told: dict[str, dict[str, Any]] = {}
    heard: dict[str, set[str]] = {}
    unknown: dict[str, str] = {}
    check = utils["multimaster_said.check"]

    def read(answer: Answer) -> tuple[Any, str | None]:
        return proved(opts, utils, answer.question.arguments, answer.id, answer.value)

    proves = prover(opts, utils)
    connections = count if asks else None
    for answer in gather(opts, questions, timeout + SLACK, connections, more, proves):
        if answer.question.function == "multimaster.masters":
            value, why = check(answer.question.function, answer.value)
            # It is there, whatever it says.
            heard.setdefault(answer.id, set()).add(opts["id"])
            if why is None:
                told[answer.id] = value
        else:
            value, why = read(answer)
            if why is None:
                reports[answer.id] = value | {"offset": _offset(answer, value)}
                # Somebody may have been quicker in its name.
                unknown.pop(answer.id, None)
        if why is not None:
            unknown[answer.id] = why
    there = {name: report for name, report in reports.items() if report is not None}
    for name, report in there.items():
        told[name] = report["host"]
        if name == opts["id"]:
            # This very report came through it.
            report["master"]["answers"] = report["master"]["running"]
        if report["master"]["answers"]:
            heard.setdefault(name, set()).add(name)
        for minion, row in _unpacked(utils, "minions", report).items():
            if minion in hosts:
                # Told by whoever answers in its name; itself it proves what it says.
                continue
            row, why = check("multimaster.masters", row)
            if why is not None:
                unknown.setdefault(minion, why)
            else:
                told.setdefault(minion, row)
            heard.setdefault(minion, set()).add(name)
        for minion, why in _unpacked(utils, "unknown", report).items():
            if minion in hosts:
                continue
            unknown.setdefault(minion, why)
            heard.setdefault(minion, set()).add(name)
    grainless = {
        name: {one for one in _unpacked(utils, "grainless", report) if one in known}
        for name, report in there.items()
    }
    if minions:
        with contextlib.suppress(Exception):
            here = {name for name, masters in heard.items() if opts["id"] in masters}
            grainless.setdefault(opts["id"], set()).update(without_grains(opts, here))
    again: dict[str, Any] = {}
    if max_age and any("problem" in report["proof"] for report in there.values()):
        # Not compiled yet, or for other grains: all at once.
        again = {"compiles": True}
    unequal = utils["multimaster_drift.differing"](there)
    if detail and (again or not set(unequal) <= set(SHORT)):
        again["detail"] = [*dict.fromkeys([*unequal, "content"])]
    if again:
        again = {
            "sample": sample and [sample, digest],
            "max_age": max_age or 60,
            "compiles": False,
            "ask": False,
        } | again
        questions = [_reports(sorted(there), again)]
        for answer in gather(opts, questions, timeout + SLACK, proves=proves):
            value, why = read(answer)
            if why is not None:
                unknown[answer.id] = why
                reports[answer.id] = None
                continue
            unknown.pop(answer.id, None)
            reports[answer.id] = there[answer.id]
            fresh = {n: v for n, v in value.items() if n not in ("master", "minions", "unknown")}
            there[answer.id].update(fresh)
    for report in there.values():
        report["details"] = _unpacked(utils, "details", report)
        if hot and "skipped" in report["proof"]:
            # Here every master has had them.
            why = report["proof"].pop("skipped")
            report["proof"]["problem"] = f"{why}; saltutil.refresh_grains has it send them again"
    return Look(reports, told, heard, sample, aside, unknown, grainless)


def _chosen(
    opts: Mapping[str, Any], utils: Mapping[str, Callable[..., Any]], ids: Iterable[str]
) -> tuple[tuple[str | None, str | None], dict[str, str]]:
    """Return the first that can be the sample, and the digest of its grains; and who cannot."""
    aside: dict[str, str] = {}
    for name in ids:
        _, digest, why = utils["multimaster_drift.sample_grains"](grains(opts, name))
        if why is None:
            return (name, digest), aside
        aside[name] = why
    return (None, None), aside


def _reports(ids: Sequence[str], arguments: Mapping[str, Any]) -> Question:
    return Question(ids, "multimaster.signed", signed("multimaster_drift.report", **arguments))


def _offset(answer: Answer, report: Mapping[str, Any]) -> float:
    """Return how far a clock is off, at least; the answer was made after it was asked for."""
    now = report.get("now", answer.asked)
    return round(float(now - min(max(now, answer.asked), answer.arrived)), 2)


def _unpacked(utils: Mapping[str, Callable[..., Any]], part: str, report: Mapping[str, Any]) -> Any:
    """Return what is packed in a part of a report; nothing if it is no such thing."""
    if part in report:
        with contextlib.suppress(ValueError):
            packed = utils["multimaster_ledger.unsqueeze"](report[part])
            return utils["multimaster_said.check"](part, packed)[0] or {}
    return {}
