"""
What an orchestration has to find out and to decide; asking and acting is for its runner.

Pure: takes and returns plain data and frozen dataclasses, imports nothing of Salt, touches no
file.
"""

# Annotations stay evaluated, as in multimaster_topology.
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# For a declaration that is refused anyway, whose other findings are to be shown all the same;
# what is valid has them from defaults.yaml.
DEFAULTS: Mapping[str, Any] = {"batch": "25%", "clocks": 5, "disk": 500, "timeout": 120}
PORTS = {"publish_port": 4505, "ret_port": 4506}
OLDEST = 3006
# What says where and how a master listens.
LISTENS = ("interface", "ipv6", "transport", *PORTS)
# Where more is to be found of a restart.
SEE = "; see multimaster-restart.log on it"
# How a state says that it has a daemon restarted after the job.
RESTART = "restart"
BATCH = re.compile(r"([1-9]\d*)(%?)")
# The part of the time for each minion that twice as many at once may take and still be worth it.
PAYS = 0.8


@dataclass(frozen=True)
class Plan:
    """What a declaration says to an orchestration; no option of the daemons but their ports."""

    mode: str
    # Minion id -> address, in the declared order.
    masters: Mapping[str, str]
    # Why the declaration is refused.
    findings: tuple[str, ...]
    # Of the master's options, those that say where it listens.
    listens: Mapping[str, Any]
    # A number of minions, or a percentage.
    batch: Any
    # Seconds, MiB, seconds, seconds.
    clocks: float
    disk: float
    timeout: float
    restart_timeout: float
    service: str
    minion_service: str
    config_dir: str | None

    @property
    def transport(self) -> str:
        """What minions dial with."""
        return str(self.listens.get("transport", "zeromq"))

    @property
    def ports(self) -> tuple[int, ...]:
        """The two ports that every minion dials."""
        return tuple(self.listens.get(name, port) for name, port in PORTS.items())


@dataclass(frozen=True)
class Seen:
    """What was seen before anything is changed; minion ids are the keys of each mapping."""

    version: str
    accepted: frozenset[str]
    # Version, daemons, and free space: what ``multimaster_orch.facts`` tells, or an error.
    facts: Mapping[str, Any]
    # How far the clock is ahead of this master's, at least and at most, in seconds.
    clocks: Mapping[str, tuple[float, float]]
    # What became of a connection: address -> port -> ``open``, or what happened instead.
    reached: Mapping[str, Any]
    # The ports of a master-to-be that something else has, or the error of the attempt.
    taken: Mapping[str, Any]


def plan(declaration: Any, findings: Iterable[str] = ()) -> Plan:
    """
    Read what an orchestration needs from a declaration, from a refused one as far as it goes.

    declaration
        The mapping ``multimaster``, merged over the defaults.
    findings
        Why it is refused.
    """
    declaration = declaration if isinstance(declaration, Mapping) else {}
    given = _mapping(declaration.get("deploy"))
    config = _mapping(_mapping(declaration.get("master")).get("config"))
    numbers = {
        name: given[name] if _is_number(given.get(name)) else DEFAULTS[name]
        for name in ("clocks", "disk", "timeout")
    }
    batch = given.get("batch")
    patience = declaration.get("restart_timeout")
    entries = declaration.get("masters")
    return Plan(
        mode="failover" if declaration.get("mode") == "failover" else "hot",
        masters={
            entry["id"]: entry["address"]
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, Mapping)
            and isinstance(entry.get("id"), str)
            and isinstance(entry.get("address"), str)
        },
        findings=tuple(findings),
        listens={name: config[name] for name in LISTENS if name in config} | _six(entries),
        batch=batch if _is_batch(batch) else DEFAULTS["batch"],
        restart_timeout=patience if _is_number(patience) else 600,
        service=_text(_mapping(declaration.get("master")).get("service")) or "salt-master",
        minion_service=_text(_mapping(declaration.get("minion")).get("service")) or "salt-minion",
        config_dir=_text(declaration.get("config_dir")),
        **numbers,
    )


def batch_size(past: Sequence[tuple[int, float]], most: int) -> int:
    """
    Return the size of the next batch of minions.

    past
        The batches so far: how many minions, and the seconds for each of them.
    most
        The size of the largest.

    The first is one minion, the canary; the others double up.  When that no longer spares time,
    the minions wait for something that they share, a master or a host: more of them at once would
    only run into time limits, and half as many are as fast.  As it may have been one minion that
    was slow, more are tried again when twice as many are done.
    """
    if not past:
        return 1
    done, limit, until = 0, most, 0
    for index, (size, seconds) in enumerate(past):
        done += size
        before = reversed(past[:index])
        smaller = next((each for number, each in before if 2 * number <= size), None)
        if smaller is not None and seconds > PAYS * smaller:
            limit, until = size // 2, 2 * done
    return min(2 * past[-1][0], limit if done < until else most)


def largest(batch: Any, total: int) -> int:
    """Return the size of the largest batch of so many minions."""
    found = BATCH.fullmatch(str(batch))
    if not found:
        raise ValueError(f"batch: got {batch!r}; supported: a number, or a percentage")
    number = int(found[1])
    return max(1, total * number // 100 if found[2] else number)


def order(masters: Iterable[str], here: str | None) -> list[str]:
    """Return the masters in the order in which they are changed: the one we are on is the last."""
    return sorted(masters, key=lambda name: name == here)


def preflight(plan: Plan, **observed: Any) -> list[str]:
    """
    Return everything that speaks against a deployment; each finding says what and where.

    observed
        The fields of :class:`Seen`.
    """
    # Salt's loader hands out functions only, no classes.
    seen = Seen(**observed)
    return [
        *(f"declaration: {line}" for line in plan.findings),
        *_absent_masters(plan, seen),
        *(
            f"{name}: {value}"
            for name, value in sorted(seen.facts.items())
            if not isinstance(value, Mapping)
        ),
        *_versions(plan, seen),
        *_clocks(plan, seen),
        *_ports(plan, seen),
        *_space(plan, seen),
    ]


def facts(answer: Any, to_be: bool = False) -> Any:
    """
    Return what ``multimaster_orch.facts`` of a minion has told, or in words why it is no use.

    A minion may say anything, and must not stop the look at the others with it.

    to_be
        Whether a declared master's count that it does not prove.
    """
    if not isinstance(answer, Mapping):
        return f"tells no facts: {answer}"
    if "unproved" in answer and not to_be:
        return f"tells no facts: {answer['unproved']}"
    daemons = answer.get("daemons")
    sound = (
        isinstance(answer.get("version"), str)
        and isinstance(answer.get("clock"), (int, float))
        and isinstance(daemons, Mapping)
        and set(daemons) == {"master", "minion"}
        and all(_is_number(free) for free in _mapping(answer.get("free")).values())
    )
    return dict(answer) if sound else f"tells facts that make no sense: {answer}"


def failures(result: Any) -> list[str]:
    """Return what failed in the result of ``state.apply``, in words; nothing if all went well."""
    if result is None:
        return ["did not return"]
    if not result:
        return ["tells of no state"]
    if not isinstance(result, Mapping):
        return [line for line in (result if isinstance(result, list) else [result]) if line]
    return [
        f"{state.get('__id__', name)}: {state.get('comment', '')}"
        for name, state in result.items()
        if not isinstance(state, Mapping) or state.get("result") is False
    ]


def changes(result: Mapping[str, Any]) -> bool:
    """Tell whether a state changed something, or would have."""
    return any(state.get("changes") for state in result.values())


def restarts(result: Mapping[str, Any]) -> set[str]:
    """Return the roles (master, minion) whose daemon is restarted after the job."""
    return {
        "master" if "-master-" in state.get("__id__", "") else "minion"
        for state in result.values()
        if isinstance(state.get("changes"), Mapping) and RESTART in state["changes"]
    }


def under_way(
    roles: Iterable[str], before: Mapping[str, Any], now: Any, services: Mapping[str, str]
) -> set[str]:
    """
    Return the roles of a host whose daemon is still to be restarted, or not yet where it is to be.

    before, now
        The host's facts; ``now`` is None if it told none, and then all of them are.
    services
        Role -> name of its service.
    """
    if not isinstance(now, Mapping):
        return set(roles)
    restarts = _mapping(now.get("restarts"))
    step = _mapping(now.get("cutover")).get("step", "kept")
    return {
        role
        for role in roles
        if now["daemons"][role] in (None, before["daemons"][role])
        or services[role] in restarts
        or (role == "minion" and step != "kept")
    }


def progress(now: Any) -> Any:
    """
    Return what in a host's facts changes only when it gets on; None if it told none.

    Its clock does not count.
    """
    if not isinstance(now, Mapping):
        return None
    return {name: now.get(name) for name in ("daemons", "cutover", "restarts")}


def stuck(roles: Sequence[str], last: Any) -> str:
    """
    Say in words why the daemons of a host were given up.

    last
        Its last facts, if it has told any.
    """
    what = f"its {' and '.join(roles)}"
    if isinstance(last, str):
        return f"{last}; so it is not known whether {what} has been restarted{SEE}"
    if not isinstance(last, Mapping):
        return f"does not answer since {what} was to be restarted{SEE}"
    waiting = [
        f"{service} waits: {row.get('waiting')}"
        for service, row in _mapping(last.get("restarts")).items()
        if isinstance(row, Mapping) and row.get("waiting")
    ]
    cutover = _mapping(last.get("cutover"))
    if "minion" in roles and cutover.get("step", "kept") != "kept":
        seen = ", ".join(f"{at} {kind}" for at, kind in _mapping(cutover.get("seen")).items())
        sees = f", and sees {seen}" if seen else ""
        waiting.append(f"its change of masters is {cutover['step']}{sees}")
    said = f" ({'; '.join(waiting)})" if waiting else ""
    return f"{what} has not been restarted{said}{SEE}"


def unfinished(answer: Any) -> Any:
    """
    Return the jobs and who told of theirs, from ``multimaster_orch.unfinished``, or words.

    An older version of the module tells jobs only, and nothing of those who did not answer.
    """
    if answer is None:
        return "its minion does not answer"
    if not isinstance(answer, Mapping):
        return str(answer)
    if not isinstance(answer.get("jobs"), Mapping) or not isinstance(answer.get("told"), list):
        return "an older version of the formula; apply that first"
    return dict(answer["jobs"]), set(answer["told"])


def lacking(
    mode: str, ids: Iterable[str], answers: Mapping[str, Iterable[str]]
) -> dict[str, list[str]]:
    """
    Return the minions that cannot be commanded as they should be, and the masters they lack.

    mode
        ``hot``: on every master; ``failover``: on one.
    answers
        Master -> the minions that answer a command given on it.
    """
    found = {}
    for name in sorted(ids):
        without = [master for master, answering in answers.items() if name not in answering]
        if mode == "failover" and len(without) < len(answers):
            continue
        if without:
            found[name] = without
    return found


def unhealthy(
    ready: Sequence[str],
    reports: Mapping[str, Any],
    answers: Mapping[str, Iterable[str]],
    expected: Iterable[str] = (),
) -> list[str]:
    """
    Return what is wrong with the masters that have been seen to; nothing if they are well.

    ready
        Their ids; the first of them is what the others are compared with.
    reports
        What ``multimaster.report`` on each of their hosts says.
    answers
        Master -> minions that answer a command given on it.
    expected
        Minions that have to answer on the last of them beside the masters' own.
    """
    problems = []
    known = {name: reports[name] for name in ready if isinstance(reports.get(name), Mapping)}
    for name in ready:
        row = known.get(name)
        if row is None:
            why = reports.get(name)
            said = f"gives no answer: {why}" if isinstance(why, str) else "does not answer"
            problems.append(f"{name}: the minion on its host {said}")
        elif not row["running"]:
            problems.append(f"{name}: its master does not run")
        elif name not in row["answering"]:
            problems.append(f"{name}: its master does not answer")
        else:
            wanted = set(ready) | (set(expected) if name == ready[-1] else set())
            silent = sorted(wanted - set(answers.get(name, ())))
            if silent:
                problems.append(f"{name}: no answer to its master from {', '.join(silent)}")
    for field, what in (
        ("fingerprint", "key pair"),
        ("digest", "decisions on keys"),
        ("accepted", "accepted keys"),
    ):
        values = {name: row[field] for name, row in known.items()}
        problems += [f"{name}: no {what} yet" for name, value in values.items() if value is None]
        first = next(iter(values), None)
        problems += [
            f"{name}: not the same {what} as on {first}"
            for name, value in values.items()
            if first is not None and None not in (value, values[first]) and value != values[first]
        ]
    return problems


def _absent_masters(plan: Plan, seen: Seen) -> Iterator[str]:
    for name in plan.masters:
        if name not in seen.accepted:
            yield f"{name}: its minion's key is not accepted on this master; see salt-key -L"
        elif name not in seen.facts:
            yield f"{name}: its minion does not answer; a host under 'masters' has to"


def _versions(plan: Plan, seen: Seen) -> Iterator[str]:
    rows = {name: row for name, row in seen.facts.items() if isinstance(row, Mapping)}
    masters = {"this master": seen.version} | {
        name: rows[name]["version"] for name in plan.masters if name in rows
    }
    oldest = min(masters, key=lambda name: _series(masters[name]))
    everybody = masters | {name: row["version"] for name, row in sorted(rows.items())}
    for name, version in everybody.items():
        if _series(version) < OLDEST:
            yield f"{name}: has Salt {version}; supported: {OLDEST} or newer"
        elif _series(version) > _series(masters[oldest]):
            yield (
                f"{name}: has Salt {version}, newer than {masters[oldest]} of {oldest}; "
                "supported: a master that is not older than its minions"
            )


def _clocks(plan: Plan, seen: Seen) -> Iterator[str]:
    for name, (least, most) in sorted(seen.clocks.items()):
        # In between is what the answer took: a slow one is no wrong clock.
        if least > plan.clocks or most < -plan.clocks:
            off = least if least > 0 else -most
            direction = "ahead of" if least > 0 else "behind"
            yield (
                f"{name}: its clock is {off:.0f} s or more {direction} this master's; "
                f"supported: {plan.clocks:g} s (deploy: clocks)"
            )


def _ports(plan: Plan, seen: Seen) -> Iterator[str]:
    names = {address: name for name, address in plan.masters.items()}
    elsewhere: dict[str, list[int]] = {}
    running = {name for name, row in seen.facts.items() if _mapping(row).get("serves")}
    for name in plan.masters:
        row = _mapping(seen.facts.get(name))
        serves, transport = row.get("serves"), row.get("transport", plan.transport)
        if serves and transport != plan.transport:
            yield (
                f"{name}: its master runs with transport {transport}, declared is "
                f"{plan.transport}; to change that of running masters, see docs/deploy.md"
            )
        missing = [port for port in plan.ports if serves and port not in serves]
        if serves and missing:
            elsewhere[name] = missing
            yield (
                f"{name}: its master runs and listens on {_some(serves)}, not on {_some(missing)}; "
                "to change the ports of running masters, see docs/deploy.md"
            )
    for name, value in seen.taken.items():
        if not isinstance(value, list):
            yield f"{name}: {value}"
            continue
        for port in value:
            yield f"{name}: port {port} is taken, and not by salt-master"
    for minion, told in sorted(seen.reached.items()):
        for address in plan.masters.values():
            for port in plan.ports:
                if port in elsewhere.get(names.get(address, ""), ()):
                    continue
                # It is a minion's word, and may be anything.
                outcome = str(_mapping(_mapping(told).get(address)).get(str(port), "not told"))
                # Where nothing could be made to listen, to be refused is all that can be expected.
                tried = isinstance(seen.taken.get(names.get(address, "")), list)
                if outcome == "open" or (outcome == "refused" and not tried):
                    continue
                if outcome == "refused":
                    outcome += "; a firewall rejects it"
                    if names.get(address) in running:
                        outcome += ", or its master listens at other addresses only"
                yield (
                    f"{minion}: cannot reach port {port} of {names.get(address)} ({address}): "
                    + outcome
                )


def _space(plan: Plan, seen: Seen) -> Iterator[str]:
    for name in plan.masters:
        row = seen.facts.get(name)
        for path, free in (row.get("free") or {}).items() if isinstance(row, Mapping) else ():
            if free < plan.disk:
                yield (
                    f"{name}: {free} MiB are free in {path}; needed: {plan.disk:g} (deploy: disk)"
                )


def _series(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def _six(entries: Any) -> dict[str, bool]:
    """Return what masters with IPv6 addresses have beside what is declared."""
    addresses = (_mapping(e).get("address") for e in (entries if isinstance(entries, list) else []))
    # No name has a colon.
    return {"ipv6": True} if any(":" in str(address) for address in addresses) else {}


def _some(ports: Iterable[int]) -> str:
    return ", ".join(map(str, ports))


def _is_batch(value: Any) -> bool:
    return not isinstance(value, (bool, float)) and bool(BATCH.fullmatch(str(value)))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
