"""
How soon minions can be commanded again when something fails: a table, and JSON in .bench/.

Three masters, and two minions side by side: one as the formula configures it, one by hand as
Salt's documentation says.  The same fault meets both.  ``--only`` takes single parts, ``--runs``
says how often each fault is made; what was not run is said at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import salt.channel.client
import salt.client
import salt.config
import salt.exceptions
import salt.utils.jid
import yaml
from measure import Row, percentile, report, save

from lab.faults import UNDO
from lab.laboratory import PATIENCE, Laboratory, failures, laboratory
from lab.load import Account, Given, load, serve_evidence
from lab.model import LabError
from lab.wait import until

NETS = {"masters": "127.0.94", "cutover": "127.0.95", "deploy": "127.0.96"}
MASTERS = 3
# The minion that the formula configures, and the one beside it.
OURS, ALONE = "web1", "web2"
SIDES = (OURS, ALONE)
# Seconds between two questions to a master, and what is promised of a frozen one.
INTERVAL = 1
KILLED, FROZEN, BACK = 2.0, INTERVAL * 3 + 2.0, 2.0
# After that time a minion that Salt's documentation has configured is given up (seconds).
GIVEN_UP = {"kill": 60.0, "freeze": 15.0}
# How often that is looked at: it has never moved.
GIVEN_UP_RUNS = 3
# Seconds between two commands: while nothing fails, and while something has failed.
INTERVALS = {"steady": 0.5, "fault": 0.2}
# Seconds of commands before and after a fault whose times are compared.
STEADY = 4.0
# Seconds for the returns of the last jobs.
RETURNS = 30.0
# A restart under load: commands a second.
ROLLING_RATE = 5.0
CUTOVER_MINIONS, CUTOVER_LIMIT = 20, 60.0
PROGRESS = re.compile(r"(?:canary|batch \d+) \(?([\w, .-]+?)\)?: well, ([\d.]+) s for each")
TURN = re.compile(r"master \d+ of \d+, ([^:]+): (waits for|well)")


@dataclass
class Figures:
    """What one side has shown: seconds, in how many of so many trials, and lost commands."""

    seconds: list[float] = field(default_factory=list)
    # Trials after which there was no answer within so many seconds.
    missed: list[float] = field(default_factory=list)
    commands: int = 0
    lost: list[Any] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """How many trials there were."""
        return len(self.seconds) + len(self.missed)

    @property
    def all(self) -> list[float]:
        """The seconds of all trials; of those without an answer, how long it was waited for."""
        return self.seconds + self.missed

    def count(self, given: Sequence[Command], times: Sequence[float | None]) -> None:
        """Note commands, and those whose return never came."""
        self.commands += len(given)
        self.lost += [one for one, at in zip(given, times, strict=True) if at is None]

    def add(self, seconds: float | None, limit: float) -> None:
        """Note one trial."""
        if seconds is None:
            self.missed.append(limit)
        else:
            self.seconds.append(seconds)


Sides = dict[str, Figures]


@dataclass(frozen=True)
class Command:
    """One command that a master has taken: when it was asked, and when it had (epoch)."""

    jid: str
    master: str
    minions: tuple[str, ...]
    asked: float
    taken: float


class Client:
    """Gives commands on masters, one after the other, and finds their returns."""

    def __init__(self, lab: Laboratory) -> None:
        self.lab = lab
        self.opts = {
            host.id: salt.config.master_config(f"{host.config_dir}/master")
            for host in lab.lab.masters
        }

    def give(self, master: str, minions: Sequence[str] = SIDES) -> Command | None:
        """Give a command to minions, without waiting for them; None if it is refused."""
        asked = time.time()
        try:
            with salt.client.LocalClient(mopts=self.opts[master]) as client:
                told = client.pub(list(minions), "lab_evidence.note", tgt_type="list", timeout=2)
        except (salt.exceptions.SaltException, OSError):
            return None
        return Command(told["jid"], master, tuple(minions), asked, time.time()) if told else None

    def returned(self, command: Command, minion: str) -> float | None:
        """Return when (epoch) a minion's return was there, on whichever master."""
        for host in self.lab.lab.masters:
            path = salt.utils.jid.jid_dir(command.jid, f"{host.master_cache_dir}/jobs")
            with contextlib.suppress(FileNotFoundError):
                # Of the file, and not of an event: nobody has to listen.
                return Path(path, minion, "return.p").stat().st_mtime
        return None

    def steady(
        self,
        masters: Sequence[str],
        seconds: float,
        interval: float,
        minions: Sequence[str] = SIDES,
    ) -> list[Command]:
        """Give commands on some masters in turn, at a steady rate."""
        given = []
        due, over = time.monotonic(), time.monotonic() + seconds
        for master in itertools.cycle(masters):
            if due >= over:
                break
            until(partial(_past, due), 10 * interval, "the next command", interval=0.01)
            command = self.give(master, minions)
            if command:
                given.append(command)
            due = max(due + interval, time.monotonic())
        return given

    def until_returned(
        self,
        masters: Sequence[str],
        minions: Iterable[str],
        limit: float,
        interval: float = INTERVALS["fault"],
    ) -> tuple[list[Command], dict[str, float]]:
        """Give commands until each minion has answered one; return them, and when that was."""
        given: list[Command] = []
        found: dict[str, float] = {}
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < limit and set(minions) - set(found):
            # A minion is not to be buried under commands, be it late or back already.
            pause = interval if passed < FROZEN else 5 * INTERVALS["fault"]
            left = [minion for minion in minions if minion not in found]
            given += self.steady(masters, 2 * pause, pause, left)
            for minion in left:
                times = [at for command in given if (at := self.returned(command, minion))]
                if times:
                    found[minion] = min(times)
        return given, found

    def until_all_returned(self, given: Iterable[Command], minions: Iterable[str] = SIDES) -> None:
        """Wait for the returns of minions, for a limited time; what is missing is lost."""
        left = [(one, minion) for one in given for minion in minions if minion in one.minions]

        def complete() -> bool:
            left[:] = [(one, minion) for one, minion in left if not self.returned(one, minion)]
            return not left

        waited(complete, RETURNS, "all returns")

    def takes(self, master: str) -> bool:
        """Tell whether a master's request port gives an answer now."""
        opts = self.opts[master]
        uri = f"tcp://{self.lab.host(master).address}:{opts['ret_port']}"
        try:
            with salt.channel.client.ReqChannel.factory(
                opts, crypt="clear", master_uri=uri
            ) as channel:
                return bool(channel.send({"cmd": "ping"}, timeout=0.5, tries=1))
        except salt.exceptions.SaltException:
            return False


def _past(due: float) -> bool:
    return time.monotonic() >= due


def waited(condition: Callable[[], Any], limit: float, what: str) -> bool:
    """Wait for a condition; tell whether it came true."""
    try:
        return bool(until(condition, limit, what, interval=0.1))
    except LabError:
        return False


class Masters:
    """Three masters and both minions; the faults, and how all are as before."""

    def __init__(self, lab: Laboratory) -> None:
        self.lab = lab
        self.ids = [host.id for host in lab.lab.masters]
        self.addresses = [host.address for host in lab.lab.masters]

    def by_hand(self, **options: Any) -> None:
        """Configure the minion beside ours as Salt's documentation says."""
        host = self.lab.host(ALONE)
        drop_in = Path(host.config_dir, "minion.d/masters.conf")
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text(yaml.safe_dump({"master": self.addresses, **options}))
        with self.lab.stopped(ALONE, "salt-minion"):
            pass

    def configure(self, mode: str) -> None:
        """Bring both minions into a mode."""
        options: dict[str, Any] = {"mode": mode, "minions": len(self.lab.ids)}
        if mode == "failover":
            options["failover"] = {"master_alive_interval": INTERVAL}
        self.lab.declare(**options)
        result = self.lab.apply(",".join([*self.ids, OURS]))
        if failures(result):
            raise SystemExit(f"the apply failed: {failures(result)}")
        # A key that is not accepted yet would be waited for.
        keys = [
            Path(host.master_pki_dir, "minions", minion)
            for host in self.lab.lab.masters
            for minion in self.lab.ids
        ]
        until(lambda: all(key.exists() for key in keys), PATIENCE, "all keys on all masters")
        hot = mode == "hot"
        self.by_hand(
            **({} if hot else {"master_type": "failover", "master_alive_interval": INTERVAL})
        )
        # What the job has left to be restarted afterwards.
        kept = Cutover(self.lab, OURS)
        until(lambda: kept.step == "kept", PATIENCE, "the cut-over")
        self.until_settled(hot)

    def until_settled(self, hot: bool) -> None:
        """Wait until each minion listens to all masters, or to one."""
        number = MASTERS if hot else 1
        hosts = [*self.ids]

        def settled() -> bool:
            return all(len(self.of(side)) == number for side in SIDES) and all(
                len(self.of(host)) == MASTERS for host in hosts
            )

        until(settled, PATIENCE, "minions to be connected", interval=0.5)
        for master in self.ids:
            answers = partial(self._answers, master, ",".join(self.ids))
            until(answers, PATIENCE, f"{master} to answer", interval=0.5)

    def _answers(self, master: str, target: str) -> bool:
        answered = self.lab.salt(master, target, "test.ping")
        return all(answered.get(name) is True for name in target.split(","))

    def of(self, minion: str) -> set[str]:
        """Return the masters that a minion listens to."""
        return set(self.lab.driver.subscribed(self.lab.lab, self.lab.host(minion)))

    def control(self, verb: str, master: str) -> float:
        """Let something happen to a master's daemon; return when (epoch)."""
        began = time.time()
        self.lab.driver.control(self.lab.lab, self.lab.host(master), verb, "salt-master")
        return began


def hot(site: Masters, runs: int) -> dict[str, Any]:
    """A master is killed and started again: the next command elsewhere, the first one there."""
    client = Client(site.lab)
    found: dict[str, Any] = {
        name: {side: Figures() for side in SIDES} for name in ("before", "next", "back")
    }
    found["ready"] = []
    for number in range(runs):
        victim = site.ids[number % MASTERS]
        others = [master for master in site.ids if master != victim]
        # The first commands pay for what has to be loaded.
        client.steady(site.ids, STEADY / 2, INTERVALS["steady"])
        before = client.steady(others, STEADY, INTERVALS["steady"])
        site.control("kill", victim)
        after = client.steady(others, STEADY, INTERVALS["steady"])
        started = site.control("start", victim)
        until(partial(client.takes, victim), PATIENCE, f"{victim} to be ready", interval=0.05)
        ready = time.time()
        # Each of them makes work for both minions, on a machine that has just started a master.
        back, first = client.until_returned([victim], SIDES, GIVEN_UP["kill"], INTERVALS["steady"])
        back += client.steady(site.ids, STEADY, INTERVALS["steady"])
        client.until_all_returned([*before, *after, *back])
        found["ready"].append(ready - started)
        for side in SIDES:
            for name, given, number_ in (("before", before, len(before)), ("next", after, 2)):
                times = [client.returned(one, side) for one in given]
                found[name][side].count(given, times)
                # All of those before; and then the first one on each of the others.
                for one, at in list(zip(given, times, strict=True))[:number_]:
                    found[name][side].add(at and at - one.asked, RETURNS)
            mine = [one for one in back if side in one.minions]
            found["back"][side].count(mine, [client.returned(one, side) for one in mine])
            took = first[side] - ready if side in first else None
            found["back"][side].add(took, GIVEN_UP["kill"])
        print(
            f"  {victim} ready {found['ready'][-1]:.1f} s after its start;"
            f" first answer then: {tell(found['back'])};"
            f" next command elsewhere: {tell(found['next'])}",
            flush=True,
        )
        site.until_settled(True)
    return found


def count(
    figures: Figures,
    account: Account,
    minion: str,
    *masters: str,
    besides: Callable[[Given], bool] = lambda given: False,
) -> None:
    """Add the jobs that masters have taken for a minion, and those whose return nobody knows."""

    def mine(given: Given) -> bool:
        return given.minion == minion and given.master in masters and not besides(given)

    figures.commands += sum(map(mine, account.accepted))
    figures.lost += [given for given in account.lost + account.silent if mine(given)]


def tell(sides: Sides) -> str:
    """Return the last trial of each side in words."""
    said = []
    for side, figures in sides.items():
        last = "none" if not figures.trials else f"{figures.all[-1]:.2f}"
        lost = (
            f" ({len(figures.lost)} of {figures.commands} lost so far)" if figures.commands else ""
        )
        said.append(f"{side} {last} s{lost}")
    return ", ".join(said)


def failover(site: Masters, verb: str, runs: int, busy: bool = False) -> Sides:
    """
    The master of a minion is killed, or frozen, until that minion answers through another.

    busy
        With the return of a command on its way to that master.
    """
    client = Client(site.lab)
    found = {side: Figures() for side in SIDES}
    limit = GIVEN_UP[verb]
    wanted = {OURS: runs, ALONE: min(runs, GIVEN_UP_RUNS) if verb == "freeze" else runs}
    while any(found[side].trials < wanted[side] for side in SIDES):
        chosen = next(side for side in SIDES if found[side].trials < wanted[side])
        (victim,) = site.of(chosen)
        others = [master for master in site.ids if master != victim]
        met = [
            side
            for side in SIDES
            if site.of(side) == {victim} and found[side].trials < wanted[side]
        ]
        before, _ = client.until_returned([victim], met, PATIENCE)
        client.until_all_returned(before, met)
        if busy:
            client.give(victim)
        began = site.control(verb, victim)
        try:
            _, moved = client.until_returned(others, met, limit)
        finally:
            site.control(UNDO[verb], victim)
        for side in met:
            found[side].add(moved[side] - began if side in moved else None, limit)
        how = f"{verb}{', a return on its way' if busy else ''}"
        print(f"  {how}, {victim}: {tell({s: found[s] for s in met})}", flush=True)
        site.until_settled(False)
    return found


def rolling(site: Masters, commands: int) -> dict[str, Any]:
    """All masters are restarted by the orchestration, while minions get commands in turn."""
    turns: list[tuple[float, str, str]] = []
    restarts = []
    stranded = 0
    with load(site.lab, False, ROLLING_RATE, apart=True) as running:
        start = time.time()
        for master in site.ids:
            running.until_answered(start, PATIENCE, master)
        while not restarts or sum(len(running.attempts(m)) for m in site.ids) < commands:
            began = time.monotonic()
            lines, failed = orchestrate(site.lab, "multimaster.orch.restart")
            restarts.append(time.monotonic() - began)
            turns += [
                (at, match[1], match[2]) for at, line in lines if (match := TURN.search(line))
            ]
            print(f"  restart {len(restarts)}: {restarts[-1]:.1f} s", flush=True)
            if failed:
                # It stops before the next master when a minion has not come back, whosever it is.
                if any(not line.startswith(f"{ALONE}: ") for line in failed):
                    raise SystemExit(f"the restart stopped: {failed}")
                print(f"  {ALONE} did not come back, and is restarted: {failed}", flush=True)
                stranded += 1
                with site.lab.stopped(ALONE, "salt-minion"):
                    pass
                site.until_settled(True)
    account = running.account(RETURNS)
    away: dict[str, list[list[float]]] = defaultdict(list)
    for at, master, what in turns:
        if what == "well" and away[master]:
            away[master][-1][1] = at
        elif what != "well":
            away[master].append([at, float("inf")])

    def at_its_turn(given: Given) -> bool:
        return any(begin <= given.at <= end for begin, end in away[given.master])

    found: dict[str, Any] = {"restarts": restarts, "stranded": stranded}
    for name, besides in (("all", lambda given: False), ("elsewhere", at_its_turn)):
        found[name] = {side: Figures() for side in SIDES}
        for side in SIDES:
            count(found[name][side], account, side, *site.ids, besides=besides)
            said = f"{len(found[name][side].lost)} of {found[name][side].commands} lost"
            print(f"  {name}, {side}: {said}: {found[name][side].lost}", flush=True)
    print(f"  {account}; away: {dict(away)}", flush=True)
    return found


def orchestrate(lab: Laboratory, name: str) -> tuple[list[tuple[float, str]], list[str]]:
    """
    Run an orchestration on the first master.

    Returns its progress, with the time of each line, and what went wrong where it stopped.
    """
    lines: list[tuple[float, str]] = []
    began = time.time()
    reading, writing = os.pipe()

    def follow() -> None:
        with open(reading) as stream:
            for line in stream:
                lines.append((time.time(), line.rstrip()))
                print(f"    [{time.time() - began:5.1f} s] {line.rstrip()[:160]}", flush=True)

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        argv = ["salt-run", "state.orchestrate", name, "--out=json"]
        output = lab.lab.directory / "orchestration"
        with open(output, "w") as stdout:
            done = lab.driver.exec(
                lab.lab, lab.host("saltm1"), argv, stdout=stdout, stderr=writing, timeout=3600
            )
    finally:
        os.close(writing)
        follower.join()
    if not done.returncode:
        return lines, []
    (states,) = json.loads(output.read_text())["data"].values()
    # After the line that says where.
    said = [one["comment"].splitlines()[1:] for one in states.values() if not one["result"]]
    return lines, [line for comment in said for line in comment] or [str(states)]


def cutover(scratch: Path, number: int) -> dict[str, Any]:
    """Every minion gets a list in which no master answers; and one beside them, by hand."""
    with laboratory(
        scratch / "cutover", "process", masters=1, minions=number + 1, net=NETS["cutover"]
    ) as lab:
        *ours, alone = [host.id for host in lab.lab.hosts if "master" not in host.roles]
        lab.declare(minions=number + 2)
        result = lab.apply(",".join(["saltm1", *ours]))
        if failures(result) or set(result) != {"saltm1", *ours}:
            raise SystemExit(f"the apply failed: {failures(result)} {set(result)}")
        steps = {name: Cutover(lab, name) for name in ours}
        if not waited(
            lambda: all(one.step == "kept" for one in steps.values()),
            2 * PATIENCE,
            "all cut-overs to the first list",
        ):
            journals = {n: one.journal for n, one in steps.items() if one.step != "kept"}
            raise SystemExit(f"no cut-over to the first list: {journals}")
        lab.until_answering("saltm1")
        dead = [f"{NETS['cutover']}.{last}" for last in (240, 241)]
        lab.declare(
            masters=[{"id": f"dead{n}", "address": address} for n, address in enumerate(dead)],
            minions=number + 2,
        )
        started = time.time()
        host = lab.host(alone)
        drop_in = Path(host.config_dir, "minion.d/masters.conf")
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text(yaml.safe_dump({"master": dead}))
        with lab.stopped(alone, "salt-minion"):
            pass
        begun = {name: one.serial for name, one in steps.items()}
        argv = ["salt", "--static", "--out=json", "--timeout=60", "--list", ",".join(ours)]
        argv += ["state.apply", "multimaster.minion"]
        applying = threading.Thread(target=lab.run, args=("saltm1", *argv), kwargs={"timeout": 600})
        applying.start()
        left: dict[str, float] = {}
        over: dict[str, float] = {}

        def look() -> bool:
            for name, one in steps.items():
                journal = one.journal
                if journal["serial"] == begun[name]:
                    continue
                # The minion answers as before, all the time.
                left.setdefault(name, journal["since"])
                if journal.get("back") and journal["step"] == "proving":
                    over.setdefault(name, journal["returned"])
            return len(over) == number

        waited(look, 600, "every old list to be restored")
        applying.join()
        restored = time.time()
        answered: dict[str, float] = {}

        def answering() -> bool:
            at = time.time()
            for name in lab.answering("saltm1") & set(over):
                answered.setdefault(name, at)
            return len(answered) == number

        waited(answering, 60, "every minion to answer")
        told = lab.salt("saltm1", ",".join(ours), "multimaster.masters")
        seconds = {name: over[name] - left[name] for name in over}
        wrong = [n for n in ours if not told.get(n, {}).get("cutover", {}).get("back")]
        back = alone in lab.answering("saltm1")
        found = {
            "apply": restored - started,
            "restored": len(over),
            "answering": len(answered),
            "wrong": wrong,
            # From the new drop-in to the old one.
            "seconds": seconds,
            # And to the answer to a command.
            "silent": {name: answered.get(name, time.time()) - left[name] for name in left},
            "alone": {"back": back, "seconds": time.time() - started},
        }
        print(f"  cut-over: {found}", flush=True)
        return found


class Cutover:
    """The journal of a minion's last cut-over."""

    def __init__(self, lab: Laboratory, minion: str) -> None:
        cache = lab.host(minion).minion_cache_dir
        self.path = Path(cache, "multimaster/cutover.json")

    @property
    def journal(self) -> dict[str, Any]:
        """Return it as it is."""
        if not self.path.exists():
            return {"serial": None, "step": None}
        return dict(json.loads(self.path.read_text()))

    @property
    def step(self) -> Any:
        """Return the step that it is at."""
        return self.journal["step"]

    @property
    def serial(self) -> Any:
        """Return what tells it from others."""
        return self.journal["serial"]

    @property
    def at(self) -> float:
        """Return when the step was taken (epoch)."""
        return self.path.stat().st_mtime


def deploy(scratch: Path, number: int) -> dict[str, Any]:
    """One master with many minions becomes three by the orchestration."""
    with laboratory(
        scratch / "deploy", "process", masters=MASTERS, minions=number, net=NETS["deploy"]
    ) as lab:
        lab.declare(minions=number + MASTERS)
        started = time.monotonic()
        lines, failed = orchestrate(lab, "multimaster.orch.deploy")
        if failed:
            # The logs go with the laboratory; what failed first may be no host.
            for name in lab.ids & {failed[0].partition(":")[0]}:
                print(lab.logs(name), file=sys.stderr)
            raise SystemExit(f"the deployment stopped: {failed}")
        seconds = time.monotonic() - started
        batches = [
            {"minions": len(match[1].split(", ")), "each": float(match[2])}
            for _, line in lines
            if (match := PROGRESS.search(line))
        ]
    found = {"seconds": seconds, "batches": batches}
    print(f"  deploy: {found}", flush=True)
    return found


def spread(work: str, sides: Sides, bound: float, against: str) -> Iterator[Row]:
    """Compare the seconds of one side with a bound, and with those of the other side."""
    ours, alone = sides[OURS], sides[ALONE]
    if not ours.trials:
        return
    for name, of in SPREAD.items():
        limit = 1.0 if name == "worst" else None
        yield Row(f"{work}, {name} of {ours.trials}", of(ours.all), against, bound, limit)
    if alone.trials:
        never = f" ({len(alone.missed)} of {alone.trials} never)" if alone.missed else ""
        for name, of in SPREAD.items():
            yield Row(f"{work}, {name}", of(ours.all), f"Salt alone{never}", of(alone.all))


SPREAD: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "95 %": lambda values: percentile(values, 0.95),
    "worst": max,
}


def lost(work: str, sides: Sides) -> Iterator[Row]:
    """Compare the commands that are lost with those that were accepted."""
    for side, name, bound in ((OURS, "", 0.0), (ALONE, ", Salt alone", None)):
        figures = sides[side]
        if figures.commands:
            yield Row(
                f"{work}: commands lost{name}",
                len(figures.lost),
                "accepted",
                figures.commands,
                bound,
            )


def rows(data: dict[str, Any]) -> list[Row]:
    """Return the comparisons."""
    found: list[Row] = []
    if one := data.get("hot"):
        for side, name, bound in ((OURS, "", 1.25), (ALONE, ", Salt alone", None)):
            for what, of in SPREAD.items():
                # One value of so few may be anybody's.
                found.append(
                    Row(
                        f"hot, master killed: next command elsewhere{name}, {what}",
                        of(one["next"][side].all),
                        "before",
                        of(one["before"][side].all),
                        bound if what == "median" else None,
                    )
                )
        found += lost("hot, master killed, through the others", one["next"])
        work = "hot, master started: first answer there after it is ready"
        found += spread(work, one["back"], BACK, f"{BACK:g} s")
        found += lost("hot, master started, since it is ready", one["back"])
    for part, work, bound in (
        ("kill", "failover, master killed", KILLED),
        ("busy", "failover, master killed, a return on its way to it", KILLED),
        ("freeze", "failover, master frozen", FROZEN),
    ):
        if one := data.get(part):
            found += spread(work, one, bound, f"{bound:g} s")
    if one := data.get("rolling"):
        found += lost("rolling restart", one["all"])
        found += lost("rolling restart, commands on the others", one["elsewhere"])
        found.append(
            Row("rolling restart: times that Salt alone did not come back", one["stranded"],
                "restarts of all masters", len(one["restarts"]))
        )  # fmt: skip
    if one := data.get("cutover"):
        times = list(one["silent"].values())
        for what, of in SPREAD.items():
            found.append(
                Row(f"cut-over to nowhere until a command is answered, {what}", of(times),
                    f"{CUTOVER_LIMIT:g} s", CUTOVER_LIMIT, 1.0 if what == "worst" else None)
            )  # fmt: skip
        missing = len(one["seconds"]) - one["answering"] + len(one["wrong"])
        found.append(
            Row("cut-over to nowhere: minions not back", missing, "minions",
                len(one["seconds"]), 0.0)
        )  # fmt: skip
        word = "back" if one["alone"]["back"] else "never back"
        found.append(
            Row("cut-over to nowhere, worst", max(times), f"Salt alone: {word} within",
                one["alone"]["seconds"])
        )  # fmt: skip
    if one := data.get("deploy"):
        most = max(batch["minions"] for batch in one["batches"])
        full = [b["each"] for b in one["batches"] if b["minions"] == most]
        number = sum(batch["minions"] for batch in one["batches"])
        found.append(
            Row(f"deploy of {number} minions, seconds for each in the last full batch", full[-1],
                "in the first full batch", full[0], 1.5)
        )  # fmt: skip
        found.append(
            Row(f"deploy of {number} minions", one["seconds"], "seconds for each minion",
                one["seconds"] / number)
        )  # fmt: skip
    return found


# Parts in failover mode: what happens to the master, and whether a return is on its way to it.
FAULTS = {"kill": ("kill", False), "busy": ("kill", True), "freeze": ("freeze", False)}
PARTS = ("hot", "rolling", *FAULTS, "cutover", "deploy")


def main() -> int:
    """Measure, print the table, write JSON; returns 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts")
    parser.add_argument("--runs", type=int, default=5, help="faults of a kind (default 5)")
    parser.add_argument("--commands", type=int, default=300, help="in a rolling restart")
    parser.add_argument("--minions", type=int, default=10, help="in a deployment (default 10)")
    arguments = parser.parse_args()
    data: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="multimaster-bench-") as directory:
            measure(Path(directory), arguments, data)
    finally:
        # Also of what was measured before something went wrong.
        missed = report(rows(data))
        for part in PARTS:
            if part not in data:
                print(f"NOT RUN: {part}")
        save("failover", json.loads(json.dumps(data, default=vars)))
    return 1 if missed else 0


def measure(scratch: Path, arguments: argparse.Namespace, data: dict[str, Any]) -> None:
    """Take the figures of the chosen parts."""
    if {"hot", "rolling", *FAULTS} & set(arguments.only):
        with laboratory(
            scratch / "masters", "process", masters=MASTERS, minions=2, net=NETS["masters"]
        ) as lab:
            on_masters(Masters(lab), arguments, data)
    if "cutover" in arguments.only:
        data["cutover"] = cutover(scratch, CUTOVER_MINIONS)
    if "deploy" in arguments.only:
        data["deploy"] = deploy(scratch, arguments.minions)


def on_masters(site: Masters, arguments: argparse.Namespace, data: dict[str, Any]) -> None:
    """Take the figures that three masters and two minions can give."""
    serve_evidence(site.lab)
    if {"hot", "rolling"} & set(arguments.only):
        site.configure("hot")
    if "hot" in arguments.only:
        data["hot"] = hot(site, arguments.runs)
    if "rolling" in arguments.only:
        data["rolling"] = rolling(site, arguments.commands)
    if set(FAULTS) & set(arguments.only):
        site.configure("failover")
        for part, (verb, busy) in FAULTS.items():
            if part in arguments.only:
                data[part] = failover(site, verb, arguments.runs, busy)


if __name__ == "__main__":
    sys.exit(main())
