"""A load on a laboratory: jobs at a steady rate through every master, and an account of each.

A job is accepted for a minion when the master's answer to the client names its id and that minion.
In failover mode a master's answer names minions that listen to another master, too; so of these
jobs only those count that were given while the minion was seen to listen to that master.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lab.laboratory import Laboratory
from lab.model import Host, LabError
from lab.wait import until

PROGRAM = Path(__file__).with_name("publish_jobs.py")
EVIDENCE = Path(__file__).with_name("extensions") / "modules" / "lab_evidence.py"
# Jobs a second, of all masters together.
RATE = 3.0
# Seconds between two looks at which master each minion listens to.
LOOK = 0.5
# Seconds from a minion's connection to a master until it takes that one's jobs: Salt loads all
# modules again meanwhile.
COMING = 1.0
# Seconds for a client to end: what it does at that moment may have to time out.
STOP = 30
RETURN = re.compile(r"'_stamp': '([^']+)'.*}, 'tag': 'salt/job/(\d+)/ret/([\w.-]+)'")


@dataclass(frozen=True)
class Given:
    """One job of one minion: its id, the master that took it, the minion, and when (epoch)."""

    jid: str
    master: str
    minion: str
    at: float


@dataclass
class Account:
    """What became of every job that a master accepted."""

    accepted: list[Given] = field(default_factory=list)
    # Not run, and accepted for a minion that was just leaving that master, or coming to it.
    moving: list[Given] = field(default_factory=list)
    # The return is in a job cache, or passed a master's bus.
    returned: list[Given] = field(default_factory=list)
    # The minion has run it, and nobody knows.
    silent: list[Given] = field(default_factory=list)
    lost: list[Given] = field(default_factory=list)
    # How often each master refused a job, or did not answer.
    refused: Counter[str] = field(default_factory=Counter)
    # Run more than once.
    repeated: list[Given] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line for people."""
        counts = [f"{len(getattr(self, name))} {name}" for name in ("accepted", "returned")]
        for name in ("silent", "lost", "moving", "repeated"):
            found = getattr(self, name)
            if found:
                by_master = Counter(given.master for given in found)
                counts.append(f"{len(found)} {name} ({dict(sorted(by_master.items()))})")
        if self.refused:
            counts.append(f"refused: {dict(sorted(self.refused.items()))}")
        return ", ".join(counts)


def serve_evidence(lab: Laboratory) -> None:
    """Give every minion the function that the load runs."""
    modules = lab.lab.directory / "srv/salt/_modules"
    modules.mkdir(exist_ok=True)
    shutil.copy(EVIDENCE, modules)
    answers = lab.salt("saltm1", "*", "saltutil.sync_modules")
    assert set(answers) == lab.ids, answers


class Load:
    """Jobs for some minions through every master; see :func:`load`."""

    def __init__(
        self,
        lab: Laboratory,
        minions: list[str],
        failover: bool,
        rate: float,
        duration: float,
        apart: bool,
    ) -> None:
        self.lab = lab
        self.failover = failover
        self.minions = minions
        self.targets = minions if apart else [",".join(minions)]
        self.duration = duration
        self.interval = len(lab.lab.masters) / rate
        self.listening: list[tuple[float, dict[str, set[str]]]] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start a client on every master's host, and look where minions listen."""
        self._spawn(self._look)
        for master in self.lab.lab.masters:
            # Whoever reads it may be sooner than the client.
            self._said(master).write_text("")
            self._spawn(self._give, master)

    def stop(self) -> None:
        """End all clients."""
        self._over.set()
        for thread in self._threads:
            thread.join(STOP)

    def attempts(self, master: str) -> list[dict[str, Any]]:
        """Return what a master has said to each job so far."""
        lines = self._said(self.lab.host(master)).read_text().splitlines()
        # The last one may be half written.
        return [json.loads(line) for line in lines if line.endswith("}")]

    def taken(self, master: str, since: float) -> float | None:
        """Return when (epoch) a master took the first job that it was given after ``since``."""
        for said in self.attempts(master):
            if said.get("jid") and said["asked"] >= since:
                return float(said["at"])
        return None

    def answered(self, since: float, *masters: str) -> float | None:
        """
        Return how long after ``since`` (epoch) every minion had answered.

        Only jobs count that were given after ``since`` to one of these masters; None: not yet.
        """
        soonest: dict[str, float] = {}
        for master in masters:
            seen = self._seen(master)
            for said in self.attempts(master):
                if not said.get("jid") or said["asked"] < since:
                    continue
                for minion in self.minions:
                    at = seen.get((said["jid"], minion))
                    if at is not None:
                        soonest[minion] = min(at, soonest.get(minion, at))
        return max(soonest.values()) - since if len(soonest) == len(self.minions) else None

    def until_answered(self, since: float, patience: float, *masters: str) -> float:
        """Wait for :meth:`answered`; the result is that of the soonest jobs, not of the wait."""
        what = f"an answer of {', '.join(self.minions)} through {' or '.join(masters)}"
        until(lambda: self.answered(since, *masters) is not None, patience, what)
        return float(self.answered(since, *masters) or 0)

    def account(self, patience: float) -> Account:
        """Find out what became of each accepted job; wait so many seconds for returns to come."""
        account = Account()
        for master in self.lab.lab.masters:
            for said in self.attempts(master.id):
                if not said.get("jid"):
                    account.refused[master.id] += 1
                for minion in said.get("minions", ()):
                    given = Given(said["jid"], master.id, minion, said["at"])
                    place = self._place(given)
                    if place != "elsewhere":
                        getattr(account, place).append(given)
        wanted = {(given.jid, given.minion) for given in account.accepted}
        jids = {jid for jid, _ in wanted}
        returned: set[tuple[str, str]] = set()

        def complete() -> bool:
            nonlocal returned
            returned = self._returned(jids)
            return wanted <= returned

        # What is missing then is in the account.
        with contextlib.suppress(LabError):
            until(complete, patience, "all returns", interval=1)
        executed = {minion: self._executed(minion) for minion in self.minions}
        account.accepted += [g for g in account.moving if executed[g.minion][g.jid]]
        account.moving = [g for g in account.moving if not executed[g.minion][g.jid]]
        for given in account.accepted:
            times = executed[given.minion][given.jid]
            if (given.jid, given.minion) in returned:
                account.returned.append(given)
            elif times:
                account.silent.append(given)
            else:
                account.lost.append(given)
            if times > 1:
                account.repeated.append(given)
        return account

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _said(self, host: Host) -> Path:
        return self.lab.lab.directory / f"load-{host.id}"

    def _give(self, host: Host) -> None:
        """Run a client until the load is over; it ends with its input."""
        argv = [self.lab.python, "-c", PROGRAM.read_text(), f"{host.config_dir}/master", "give"]
        argv += [f"{self.interval:g}", f"{self.duration:g}", *self.targets]
        reading, writing = os.pipe()
        with open(self._said(host), "w") as said:
            client = threading.Thread(
                target=self.lab.driver.exec,
                args=(self.lab.lab, host, argv),
                kwargs={"stdin": reading, "stdout": said, "stderr": subprocess.DEVNULL},
                daemon=True,
            )
            client.start()
            self._over.wait()
            os.close(writing)
            client.join(STOP)
            os.close(reading)

    def _look(self) -> None:
        """Note which masters the minions listen to, until the load is over."""
        while not self._over.is_set():
            at = time.time()
            listening = {
                minion: self.lab.driver.subscribed(self.lab.lab, self.lab.host(minion))
                for minion in self.minions
            }
            self.listening.append((at, listening))
            self._over.wait(LOOK)

    def _place(self, given: Given) -> str:
        """Tell where a job belongs: with those accepted, moving, or elsewhere."""
        if not self.failover:
            return "accepted"
        looks = [(at, seen) for at, seen in self.listening if at <= given.at]
        # The last one before, and all since a minion that was coming then is ready.
        before = [seen for at, seen in looks[:-1] if at > given.at - COMING]
        before += [seen for _, seen in looks[-1:]]
        after = [seen for at, seen in self.listening if at > given.at][:1]
        seen = [look[given.minion] for look in before + after]
        if all(given.master in masters for masters in seen):
            return "accepted"
        if all(masters and given.master not in masters for masters in seen):
            return "elsewhere"
        return "moving"

    def _returned(self, jids: set[str]) -> set[tuple[str, str]]:
        """Return jobs and minions of the returns in any master's job cache or on its bus."""
        found: set[tuple[str, str]] = set()
        for master in self.lab.lab.masters:
            found.update(self._seen(master.id))
            argv = [self.lab.python, "-c", PROGRAM.read_text(), f"{master.config_dir}/master"]
            done = self.lab.run(master.id, *argv, "returned", input="\n".join(jids))
            assert done.returncode == 0, done.stderr
            for jid, minions in json.loads(done.stdout).items():
                found.update((jid, minion) for minion in minions)
        return found

    def _seen(self, master: str) -> dict[tuple[str, str], float]:
        """Return the returns that have passed a master's bus: job and minion, and when (epoch)."""
        return {
            (jid, minion): datetime.fromisoformat(stamp).replace(tzinfo=timezone.utc).timestamp()
            for stamp, jid, minion in RETURN.findall(self.lab.events(master))
        }

    def _executed(self, minion: str) -> Counter[str]:
        """Return how often a minion has run each job."""
        path = f"{self.lab.host(minion).minion_cache_dir}/lab-evidence"
        return Counter(self.lab.read(minion, path).split())


@contextlib.contextmanager
def load(
    lab: Laboratory, failover: bool, rate: float = RATE, duration: float = 0, apart: bool = False
) -> Iterator[Load]:
    """
    Give jobs to all plain minions for the duration of the block.

    failover
        Whether a minion listens to one master only.
    rate
        Jobs a second, of all masters together.
    duration
        Seconds that each job takes.
    apart
        Whether each job is for one minion, each in its turn, and not for all.
    """
    minions = sorted(host.id for host in lab.lab.hosts if "master" not in host.roles)
    running = Load(lab, minions, failover, rate, duration, apart)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def current(lab: Laboratory) -> str:
    """Return the master that the first plain minion listens to: in failover mode, the one."""
    minion = next(host for host in lab.lab.hosts if "master" not in host.roles)
    found = until(lambda: lab.driver.subscribed(lab.lab, minion), 60, f"a master of {minion.id}")
    return str(min(found))
