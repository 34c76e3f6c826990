"""
What masters report of themselves, subject by subject, and where they differ.

A report has a digest for each subject, and on request the leaves behind it: path -> value.  Two
reports with one digest are equal; of others the leaves are compared, and each difference is named
with what every master has, which side is taken for right, and what to do.

Pure: imports nothing of Salt and touches no file.
"""

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DROP_IN = "multimaster.conf"

# Options that are a master's own: they name it, its address or its places.
PER_MASTER = {
    "id": "names the master",
    "interface": "its address",
    "conf_file": "where it reads its configuration",
    "root_dir": "where its file system begins",
    "cachedir": "never shared; paths below it are compared without it",
    "pidfile": "a place on its host",
    "sock_dir": "a place on its host",
    "log_file": "a place on its host",
    "key_logfile": "a place on its host",
    "pki_dir": "a place on its host; the keys in it are compared themselves",
    "user": "who runs it there",
    "max_open_files": "what its host allows",
    "ssh_priv_key": "a place on its host",
    "rosters": "places on its host",
    "multiprocessing": "decided by its platform",
    "ipc_mode": "decided by its platform",
}
# Who may do what: a subject of its own, since it is looked at first.
ACCESS = (
    "auth_mode",
    "auto_accept",
    "autoreject_file",
    "autosign_file",
    "autosign_grains_dir",
    "autosign_timeout",
    "client_acl_verify",
    "external_auth",
    "keep_acl_in_token",
    "open_mode",
    "peer",
    "peer_run",
    "permissive_acl",
    "permissive_pki_access",
    "publisher_acl",
    "publisher_acl_blacklist",
    "rest_cherrypy",
    "rest_tornado",
    "sudo_acl",
    "netapi_enable_clients",
    "token_expire",
    "token_expire_user_override",
)
# Options that name files whose content counts, too.
ACCESS_FILES = ("autoreject_file", "autosign_file")
ACCESS_DIRECTORIES = ("autosign_grains_dir",)
CONTENT = "content"
# A leaf of the keys: one that a master has otherwise than its ledger says; and what others have.
STORED, AS_DECIDED = "stored:", "as decided"

# Seconds between two checks, and seconds that clocks may differ, unless the declaration says more.
INTERVAL = 60
CLOCKS = 5
# What people are shown of many.
SHOWN = 20

# Options of a running master that say nothing of what its files decide: given on its command line,
# or by whom it is looked at; or naming more files, of which Salt keeps what the last one names.
NOT_OF_FILES = (
    "conf_file",
    "id",
    "include",
    "log_file",
    "log_level",
    "log_level_logfile",
    "pidfile",
    "user",
)
# What Salt adds to the engines of a master with reactors.
REACTOR: Mapping[str, Any] = {"reactor": {}}
# Seconds after which it is reported that nothing is known of what a running master has read: its
# engine tells within seconds of its start where a machine has nothing else to do.
UNKNOWN = 600

# So many minions are looked at for one that can be the sample, and the masters' own.
TRIED = 20
# Characters of the sample's grains, as JSON, and how deep they may be: those of an ordinary host
# are some 5,000, and four deep; each master reads them at each look.
MOST_GRAINS, DEEPEST = 256 * 1024, 32
# Grains that another process of a minion has otherwise, or the same one for another master, and
# what stands in their place when a pillar is compiled.
FLEETING: Mapping[str, Any] = {
    "cwd": "",
    "gid": 0,
    "groupname": "",
    "locale_info": {},
    "master": "",
    "opts": {},
    "path": "",
    "pid": 0,
    "pythonexecutable": "",
    "pythonpath": [],
    "shell": "",
    "systempath": [],
    "uid": 0,
    "username": "",
}
# Grains that change by themselves while a minion runs, with each container that starts or what a
# name server says: a pillar is compiled with them, and the digest is without.
MOVING = (
    "disks",
    "fqdn_ip4",
    "fqdn_ip6",
    "fqdns",
    "hwaddr_interfaces",
    "ip4_interfaces",
    "ip6_interfaces",
    "ip_interfaces",
    "ipv6",
    "mem_total",
    "pending_reboot",
    "ssds",
    "swap_total",
)
# Lists that Salt makes of sets, in another order in each process.
UNORDERED = ("fqdn_ip4", "fqdn_ip6")
# With which a master's host asks for keys; a question, and for that pillar alone.
ASKED = "multimaster_keys"

Leaves = Mapping[str, Any]


@dataclass(frozen=True)
class Remedy:
    """What to do about a difference: in words, and as a command where there is one."""

    text: str
    command: str | None = None
    # The master on whose host the command is given; None: on any.
    where: str | None = None


@dataclass(frozen=True)
class Difference:
    """One path of a subject in which masters differ, and what to do on each that is wrong."""

    subject: str
    path: str
    # Master -> value as it may be shown; None where it is absent.
    values: Mapping[str, Any]
    # What they are measured by, and why that.
    expected: Any
    side: str
    remedies: Mapping[str, Remedy] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tells this difference from others: subject, path, and who differs how."""
        wrong = {master: self.values.get(master) for master in self.remedies}
        return f"{self.subject} {self.path} {digest(wrong)}"

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "subject": self.subject,
            "path": self.path,
            "values": dict(self.values),
            "expected": self.expected,
            "side": self.side,
            "remedies": {
                master: {"text": r.text, "command": r.command, "where": r.where}
                for master, r in self.remedies.items()
            },
        }


def digest(value: Any) -> str:
    """Return a short digest of plain data; the order of keys does not count."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# What a report is made of


def comparable(leaves: Leaves, prefixes: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """
    Return the leaves of options that are to be equal on all masters, less what is a host's own.

    prefixes
        Beginnings of paths on this host, and what each is shown as, the longest first: the cache
        directory, and where its file system begins.
    """
    return {
        path: without_prefix(value, prefixes)
        for path, value in leaves.items()
        if option_of(path) not in PER_MASTER
    }


def without_prefix(value: Any, prefixes: Sequence[tuple[str, str]]) -> Any:
    """Return a value without the beginning that a path on this host has, if it is such a path."""
    if isinstance(value, str):
        for prefix, shown in prefixes:
            bare = prefix.rstrip("/")
            if bare and (value == bare or value.startswith(f"{bare}/")):
                return shown + value[len(bare) :]
    return value


def read_from_files(options: Mapping[str, Any], names: Iterable[str] = ()) -> dict[str, Any]:
    """
    Return those options of a master that its files decide, alike in the daemon and parsed anew.

    names
        The options that the parsed files have: what a daemon has beyond them it has made itself.
        All, unless given.
    """
    names = set(names) or set(options)
    found = {
        name: value
        for name, value in options.items()
        if name in names and name not in NOT_OF_FILES and not name.startswith("__")
    }
    if isinstance(found.get("engines"), list):
        found["engines"] = [engine for engine in found["engines"] if engine != REACTOR]
    return found


def note_of(process: Any, key: bytes | None, shown: Leaves) -> dict[str, Any]:
    """
    Return what a master's engine notes of its daemon.

    process
        What tells the daemon from every other process.
    key
        What hashes of possible secrets are keyed with.
    shown
        The leaves of the options that the daemon has read, as they may be seen.
    """
    return {"process": process, "key": key and digest(key.hex()), "options": dict(shown)}


def stale(note: Any, process: Any, key: bytes | None, shown: Leaves) -> dict[str, Any] | None:
    """
    Return path -> what the running master has, and its files have by now, where that differs.

    note
        What :func:`note_of` has returned to the engine of the running master, or of an earlier one.
    process, key, shown
        As for :func:`note_of`, of the daemon and the files as they are.

    None if that is not known: no note is of this daemon.
    """
    note = note if isinstance(note, Mapping) else {}
    was, mine = note.get("key"), key and digest(key.hex())
    if process is None or note.get("process") != process or None in (was, mine):
        return None
    if was != mine:
        # Then no hash can be compared.
        return {"key pair": ["another one", "this one"]}
    before = note.get("options", {})
    return {
        path: [before.get(path), shown.get(path)]
        for path in sorted({*before, *shown})
        if path not in before or path not in shown or not _same(before[path], shown[path])
    }


def is_access(path: str) -> bool:
    """Tell whether a leaf of the options belongs to access control."""
    return option_of(path) in ACCESS


def option_of(path: str) -> str:
    """Return the option that a leaf belongs to."""
    return path.partition(":")[0]


def samples(
    accepted: Iterable[str],
    masters: Sequence[str],
    known: Iterable[str],
    key: str,
    mode: str = "hot",
) -> list[str]:
    """
    Return the minions that may be the sample, whose pillar and states are compared, in order.

    An ordinary one shows most.  In failover mode its grains are on one master, and only those of
    the masters' own are on all.

    known
        The minions whose grains there are.
    key
        What all masters have and no minion: nobody makes itself the sample by its id.
    """
    there = set(known) & set(accepted)

    def place(name: str) -> bytes:
        return hmac.digest(key.encode(), name.encode(errors="backslashreplace"), "sha256")

    others = sorted(there - set(masters), key=place)[:TRIED]
    own = [name for name in masters if name in there]
    return [*others, *own] if mode == "hot" else [*own, *others]


def sample_grains(grains: Mapping[Any, Any]) -> tuple[dict[str, Any], str | None, str | None]:
    """
    Return a minion's grains as a pillar is compiled with them, and their digest, and None; or
    nothing, and why nothing can be compiled.

    grains
        As the minion has sent them: of any size, depth and type.
    """
    found = {name: FLEETING.get(name, v) for name, v in grains.items() if name != ASKED}
    if not found:
        return {}, None, "there are no grains of it"
    deep = f"its grains are nested more than {DEEPEST} deep"
    try:
        size = len(json.dumps(found, sort_keys=True, default=str))
    except RecursionError:
        return {}, None, deep
    except (TypeError, ValueError) as err:
        # Of names of several types, for one.
        return {}, None, f"its grains are of no use ({type(err).__name__})"
    if size > MOST_GRAINS:
        return {}, None, f"its grains are larger than {MOST_GRAINS // 1024} KiB"
    if _is_deeper(found, DEEPEST):
        return {}, None, deep
    for name in UNORDERED:
        if isinstance(found.get(name), list):
            found[name] = sorted(found[name], key=str)
    kept = {name: v for name, v in found.items() if name not in FLEETING and name not in MOVING}
    return found, digest(kept), None


def _is_deeper(value: Any, most: int) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value
    if not isinstance(inner, Iterable) or isinstance(inner, (str, bytes)):
        return False
    return most == 0 or any(_is_deeper(each, most - 1) for each in inner)


# What follows from reports


def table(reports: Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """
    Return subject -> ``digests`` (master -> digest, None if unknown) and ``differs``.

    reports
        Master -> its report; None for a master that gave none, which differs from nobody.
    """
    names: dict[str, None] = {}
    for report in reports.values():
        names |= dict.fromkeys((report or {}).get("subjects", ()))
    found = {}
    for subject in sorted(names, key=_place):
        digests = {m: (r or {}).get("subjects", {}).get(subject) for m, r in reports.items()}
        told = {digests[m] for m, r in reports.items() if r and _takes_part(subject, r)}
        found[subject] = {"digests": digests, "differs": len(told) > 1}
    return found


def _takes_part(subject: str, report: Mapping[str, Any]) -> bool:
    """Tell whether a master is compared with others; not in what it has left out on purpose."""
    return subject != "content" or "skipped" not in report.get("proof", {})


_ORDER = (
    "config",
    "access",
    "files",
    "pillar",
    "gitfs",
    "git_pillar",
    "roots",
    "keys",
    "modules",
    "formula",
    "salt",
    "content",
)


def _place(subject: str) -> tuple[int, str]:
    kind = subject.partition(":")[0]
    return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), subject)


def differing(reports: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Return the subjects in which masters that reported differ."""
    return [subject for subject, row in table(reports).items() if row["differs"]]


def differences(
    reports: Mapping[str, Mapping[str, Any] | None], clocks: float = CLOCKS
) -> list[Difference]:
    """
    Return every difference between masters, in the order of subjects and paths.

    reports
        Master -> its report, with ``details`` for the subjects that differ.
    clocks
        Seconds that a clock may be off.
    """
    found: list[Difference] = []
    there = {master: report for master, report in reports.items() if report is not None}
    for subject in differing(reports):
        compared = {m: r for m, r in there.items() if _takes_part(subject, r)}
        details = {m: r.get("details", {}).get(subject) for m, r in compared.items()}
        if any(leaves is None for leaves in details.values()):
            # Not told apart: what is known is that they differ.
            details = {m: {"": r.get("subjects", {}).get(subject)} for m, r in compared.items()}
        found += _compare(subject, there, {m: leaves or {} for m, leaves in details.items()})
    found += _stale(there)
    found += _late(there, clocks)
    return found


def _compare(
    subject: str, reports: Mapping[str, Mapping[str, Any]], details: Mapping[str, Leaves]
) -> list[Difference]:
    found = []
    for path in sorted({path for leaves in details.values() for path in leaves}):
        stored = subject == "keys" and path.startswith(STORED)
        absent = AS_DECIDED if stored else None
        values = {master: leaves.get(path, absent) for master, leaves in details.items()}
        expected, side = _expected(subject, path, values, reports)
        wrong = [master for master, value in values.items() if not _same(value, expected)]
        if not wrong:
            continue
        right = next((m for m in values if m not in wrong), None)
        remedies = {m: _remedy(subject, path, m, right, values, reports) for m in wrong}
        found.append(Difference(subject, path, values, expected, side, remedies))
    return found


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values are the same; unlike Python, 1 is not true."""
    return json.dumps(one, default=str) == json.dumps(other, default=str)


def _expected(
    subject: str,
    path: str,
    values: Mapping[str, Any],
    reports: Mapping[str, Mapping[str, Any]],
) -> tuple[Any, str]:
    """Return what the masters are measured by, and the side that it is."""
    option = option_of(path)
    declared = [
        report["declared"].get(path)
        for report in reports.values()
        if subject in ("config", "access")
        and f":{CONTENT}:" not in path
        and option in {option_of(p) for p in report.get("declared") or ()}
    ]
    if declared:
        return _most(declared)[0], "the declaration"
    if subject == "keys" and path.startswith(STORED):
        return AS_DECIDED, "the masters' decisions"
    value, sure = _most(list(values.values()))
    if sure:
        return value, "most masters"
    first = next(iter(values))
    return values[first], f"{first}, the first master"


def _most(values: Sequence[Any]) -> tuple[Any, bool]:
    """Return the value that most have, the first of several such; and whether it is the only."""
    texts = [json.dumps(value, default=str) for value in values]
    ranked = Counter(texts).most_common(2)
    sure = len(ranked) == 1 or ranked[0][1] > ranked[1][1]
    return values[texts.index(ranked[0][0])], sure


def _stale(reports: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    """Return the masters that run with another configuration than their files have."""
    found = []
    side = "its own files"
    paths = sorted({path for report in reports.values() for path in report.get("stale") or ()})
    for path in paths:
        values = {m: _in_use(r.get("stale"), path) for m, r in reports.items()}
        remedies = {
            master: Remedy("restart it, one master at a time", _restart(master))
            for master, report in reports.items()
            if path in (report.get("stale") or ())
        }
        found.append(Difference("running", path, values, "in use", side, remedies))
    late = unknown(reports, UNKNOWN)
    if late:
        values = {m: "not known" if m in late else "in use" for m in reports}
        remedies = {
            master: Remedy(
                "restart it, one master at a time; if that does not help, its log says why the "
                "engine multimaster_drift has left no note",
                _restart(master),
            )
            for master in late
        }
        found.append(Difference("running", "", values, "in use", side, remedies))
    return found


def _in_use(stale: Any, path: str) -> str:
    """Return in words what a master has for what its files say."""
    if stale is None:
        return "not known"
    if path not in stale:
        return "in use"
    if not isinstance(stale, Mapping):
        # Told by an older version of the formula, which knows files only.
        return "newer than the running master"
    running, file = ("nothing" if value is None else f"{value}" for value in stale[path])
    return f"{running} in use, {file} in its files"


def unknown(reports: Mapping[str, Mapping[str, Any] | None], seconds: float = 0) -> list[str]:
    """
    Return the masters of which it is not known what they have read when they started.

    seconds
        Only those that have been running for longer.
    """
    return [
        master
        for master, report in reports.items()
        # An older version of the formula does not tell how long.
        if report
        and "stale" in report
        and report["stale"] is None
        and report.get("up", 0) >= seconds
    ]


def _late(reports: Mapping[str, Mapping[str, Any]], clocks: float) -> list[Difference]:
    """Return the masters whose clocks are off."""
    offsets = {m: r.get("offset") for m, r in reports.items()}
    remedies = {
        master: Remedy(f"set the clock of {master}: it is {offset:+.0f} s off; use NTP")
        for master, offset in offsets.items()
        if offset is not None and abs(offset) > clocks
    }
    if not remedies:
        return []
    side = "the clock of the master that asks"
    return [Difference("clock", "seconds", offsets, 0, side, remedies)]


def _restart(master: str) -> str:
    return f"salt {master} multimaster.restart salt-master"


def _apply(master: str) -> Remedy:
    return Remedy("apply the formula", f"salt {master} state.apply multimaster")


def _remedy(
    subject: str,
    path: str,
    master: str,
    right: str | None,
    values: Mapping[str, Any],
    reports: Mapping[str, Mapping[str, Any]],
) -> Remedy:
    kind = subject.partition(":")[0]
    other = right or next(m for m in values if m != master)
    make: Callable[..., Remedy] | None = _REMEDIES.get(kind)
    if make is None:
        return Remedy(f"make it on {master} what it is on {other}")
    return make(path, master, other, values, reports, subject)


def _option_remedy(
    path: str,
    master: str,
    other: str,
    values: Mapping[str, Any],
    reports: Mapping[str, Mapping[str, Any]],
    subject: str,
) -> Remedy:
    option = option_of(path)
    if f":{CONTENT}:" in path:
        return Remedy(f"make the content of {option} on {master} what it is on {other}")
    files = (reports[master].get("sources") or {}).get(option, [])
    foreign = [name for name in files if not name.endswith(f"/{DROP_IN}")]
    declared = any(
        option in {option_of(p) for p in report.get("declared") or ()}
        for report in reports.values()
    )
    # Of the main file's options those in a drop-in take the place; of other drop-ins they do not.
    merged = [name for name in foreign if name.endswith(".conf")]
    if declared and not merged:
        return _apply(master)
    if declared:
        return Remedy(
            f"remove {option} from {' and '.join(merged)} on {master}, which Salt merges with the "
            "declaration, and restart the master",
            _restart(master),
        )
    if foreign:
        return Remedy(
            f"remove {option} from {' and '.join(merged or foreign)} on {master}, or declare it "
            "for all under multimaster:master:config; then restart the master",
            _restart(master),
        )
    there = (reports[other].get("sources") or {}).get(option, [])
    if not there and any(report.get("sources") for report in reports.values()):
        return Remedy(f"no file sets {option}: Salt makes it from other options that differ")
    where = f" in {' and '.join(there)}" if there else ""
    return Remedy(
        f"{option} is set on {other}{where} and not on {master}: declare it for all under "
        "multimaster:master:config and apply the formula, or set it here, too, and restart the "
        "master",
        _restart(master),
    )


def _file_remedy(
    path: str,
    master: str,
    other: str,
    values: Mapping[str, Any],
    reports: Mapping[str, Mapping[str, Any]],
    subject: str,
) -> Remedy:
    places = (reports[master].get("places") or {}).get(subject)
    where = f" (below {places})" if places else ""
    if values.get(other) is None:
        return Remedy(f"remove {path} on {master}{where}; the other masters do not have it")
    verb = "copy" if values.get(master) is None else "overwrite"
    return Remedy(f"{verb} {path} on {master}{where} with the one of {other}")


def _module_remedy(
    path: str,
    master: str,
    other: str,
    values: Mapping[str, Any],
    reports: Mapping[str, Mapping[str, Any]],
    subject: str,
) -> Remedy:
    if path.startswith("extension_modules/") and values.get(other) is None:
        # Not by a sync, which would bring what the others have never fetched.
        place = (reports[master].get("places") or {}).get("extension_modules", "extension_modules")
        file = path.partition("/")[2]
        text = f"remove {place}/{file} on {master}, which the others do not have, and restart it"
        return Remedy(text, _restart(master))
    if path.startswith("extension_modules/"):
        text = f"have {master} take its modules from its file server, and restart it"
        return Remedy(text, "salt-run saltutil.sync_all", master)
    if path.startswith("formula/"):
        return _apply(master)
    return _file_remedy(path, master, other, values, reports, subject)


def _content_remedy(path: str, master: str, other: str, _: Any, reports: Any, *__: Any) -> Remedy:
    for name, report in reports.items():
        if problem := report.get("proof", {}).get("problem"):
            return Remedy(f"{name} has compiled nothing: {problem}")
    return Remedy(
        f"{master} would give this minion something else than {other}: resolve the other "
        "differences first, then look at the sources of its external pillars"
    )


def _git_remedy(kind: str, command: str) -> Callable[..., Remedy]:
    def make(path: str, master: str, *_: Any) -> Remedy:
        text = (
            f"fetch on {master}; if that changes nothing, its log says why, and there "
            f"salt-run cache.clear_git_lock {kind} type=update removes a lock that was left behind"
        )
        return Remedy(text, command, master)

    return make


_REMEDIES: dict[str, Callable[..., Remedy]] = {
    "config": _option_remedy,
    "access": _option_remedy,
    "files": _file_remedy,
    "pillar": _file_remedy,
    "modules": _module_remedy,
    "gitfs": _git_remedy("gitfs", "salt-run fileserver.update"),
    "git_pillar": _git_remedy("git_pillar", "salt-run git_pillar.update"),
    "roots": lambda path, master, other, *_: Remedy(
        f"wait until {master} has followed, or look at its log"
    ),
    "keys": lambda *_: Remedy(
        "have all masters read them again", "salt-run multimaster.keys_repair"
    ),
    "formula": lambda path, master, *_: _apply(master),
    "salt": lambda path, master, other, values, *_: Remedy(
        f"install Salt {values[other]} on {master}"
    ),
    "content": _content_remedy,
}


# What is told


def problems(found: Sequence[Difference]) -> list[str]:
    """Return one line for each subject in which masters differ, and whom it is about."""
    subjects: dict[str, dict[str, None]] = {}
    counts: Counter[str] = Counter()
    for one in found:
        subjects.setdefault(one.subject, {}).update(dict.fromkeys(one.remedies))
        counts[one.subject] += 1
    return [
        f"{subject} differs on {', '.join(masters)}; see salt-run multimaster.drift"
        for subject, masters in subjects.items()
    ]


def change(before: Iterable[str], found: Sequence[Difference]) -> dict[str, Any] | None:
    """
    Return what an event tells of a change, or None if nothing has changed.

    before
        The names of the differences that were told the last time.
    """
    old, now = set(before), {one.name: one for one in found}
    if old == set(now):
        return None
    return {
        "differences": [one.plain() for one in found[:SHOWN]],
        "count": len(found),
        "new": [one.plain() for name, one in now.items() if name not in old][:SHOWN],
        "over": len(old - set(now)),
        "clean": not found,
    }


# Prometheus


def metrics(data: Mapping[str, Any], now: float) -> str:
    """
    Return what a status and its differences come to, as text for Prometheus.

    data
        ``masters`` (rows of the status), ``differences`` and ``minions`` (how many are in trouble).
    """
    lines: list[str] = []

    def family(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], Any]]) -> None:
        lines.append(f"# HELP multimaster_{name} {text}")
        lines.append(f"# TYPE multimaster_{name} gauge")
        for labels, value in samples:
            if value is not None:
                inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
                lines.append(f"multimaster_{name}{{{inner}}} {_number(value)}")

    masters: Mapping[str, Mapping[str, Any]] = data["masters"]

    def each(key: str) -> list[tuple[Mapping[str, str], Any]]:
        return [({"master": name}, row.get(key)) for name, row in masters.items()]

    family("up", "Whether a master answers (1) or not (0).", each("reachable"))
    states = ("accepted", "pending", "denied", "rejected")
    family(
        "keys",
        "Keys of minions on a master, by state.",
        [({"master": n, "state": s}, row.get(s)) for n, row in masters.items() for s in states],
    )
    family("key_conflicts", "Minion ids with more than one key.", each("conflicts"))
    family("connected_minions", "Minions that are connected to a master.", each("connections"))
    family("clock_offset_seconds", "A master's clock less that of the asking one.", each("offset"))
    family("git_remotes_down", "Git remotes that do not answer a master.", each("remotes_down"))
    subjects = dict.fromkeys([*data["subjects"], "running", "clock"])
    counts = Counter(
        (one["subject"], master) for one in data["differences"] for master in one["remedies"]
    )
    family(
        "differences",
        "Differences of a master from the others, by subject.",
        [
            ({"master": name, "subject": subject}, counts[subject, name])
            for subject in subjects
            for name, row in masters.items()
            if row.get("reported")
        ],
    )
    family("minions_in_trouble", "Accepted minions with a problem.", [({}, data["troubled"])])
    family(
        "master_info",
        "Versions of a master; the value is always 1.",
        [
            ({"master": n, "salt": row["version"], "formula": row.get("formula") or ""}, 1)
            for n, row in masters.items()
            if row.get("version")
        ],
    )
    complete = all(row.get("reported") for row in masters.values())
    family("check_complete", "Whether every master took part.", [({}, complete)])
    family("last_check_timestamp_seconds", "When this was looked at.", [({}, now)])
    return "\n".join(lines).replace("{}", "") + "\n"


def _escaped(text: Any) -> str:
    return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else repr(value)
