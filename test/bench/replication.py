"""
How soon a key decision holds on all masters, and what many keys cost: a table, and JSON in .bench/.

Three masters on this machine.  Beside each figure stands what a user would do without the engine,
or what nobody can do without, measured in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from cluster import native_cluster
from measure import Row, percentile, report, save, timed

from lab.decisions import MASTERS
from lab.keys import make_pair
from lab.laboratory import Laboratory, failures, laboratory
from lab.wait import until

NET = "127.0.72"
DIRECTORIES = ("minions", "minions_pre", "minions_rejected")
# What a decision with salt-key leaves: the directory that the key is in then, if any.
VERBS = {"accept": "minions", "reject": "minions_rejected", "delete": ""}
BURST = 1_000
SIZES = (1_000, 10_000, 100_000)
# Of the sizes, the one that has bounds.
BOUNDED = 10_000
REST = 60
# Seconds that 100,000 keys may take on a slow machine.
PATIENCE = 1800


class Keys:
    """The key stores of all masters, as files; a few public keys serve for many minions."""

    def __init__(self, lab: Laboratory) -> None:
        self.pki = {master: Path(lab.host(master).master_pki_dir) for master in MASTERS}
        self.pubs = [make_pair()[1] for _ in range(10)]

    def put(self, directory: str, names: Iterable[str], *masters: str) -> None:
        """Write keys, as a minion that asks leaves them, or an administrator."""
        for name, pub in zip(names, itertools.cycle(self.pubs)):
            for master in masters:
                path = self.pki[master] / directory / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(pub)

    def holds(self, master: str, name: str, directory: str) -> bool:
        """Tell whether a key is in a directory of a master, and in no other."""
        return all(
            (self.pki[master] / each / name).exists() == (each == directory) for each in DIRECTORIES
        )

    def count(self, master: str) -> int:
        """Return how many keys are accepted on a master."""
        return sum("\\" not in name for name in os.listdir(self.pki[master] / "minions"))

    def until_equal(self, count: int) -> None:
        """Wait until every master has accepted that many keys."""
        until(
            lambda: all(self.count(master) == count for master in MASTERS),
            PATIENCE,
            f"{count} accepted keys on every master",
            interval=0.05,
        )


def decide(lab: Laboratory, master: str, *argv: str) -> None:
    """Decide with salt-key on one master."""
    done = lab.run(master, "salt-key", "--yes", *argv, timeout=PATIENCE)
    if done.returncode:
        raise SystemExit(f"salt-key {' '.join(argv)}: {done.stderr}")


def single(lab: Laboratory, keys: Keys, rounds: int) -> dict[str, list[float]]:
    """Seconds from a decision's effect on its own master to its effect on all, by verb."""
    measured: dict[str, list[float]] = {verb: [] for verb in VERBS}
    for number in range(rounds):
        name = f"single-{number}"
        keys.put("minions_pre", [name], *MASTERS)
        for turn, verb in enumerate(VERBS):
            master = MASTERS[(number + turn) % len(MASTERS)]
            measured[verb].append(one_decision(lab, keys, name, verb, master))
    return measured


def one_decision(lab: Laboratory, keys: Keys, name: str, verb: str, master: str) -> float:
    """Decide on one key; return the seconds between the effect there and the last effect."""
    flags = [f"--{verb}={name}"] + (["--include-all"] if verb == "reject" else [])
    command = threading.Thread(target=decide, args=(lab, master, *flags))
    command.start()

    def until_on(*masters: str) -> None:
        until(
            lambda: all(keys.holds(each, name, VERBS[verb]) for each in masters),
            60,
            f"{verb} {name} on {', '.join(masters)}",
            interval=0.002,
        )

    until_on(master)
    elapsed = timed(lambda: until_on(*MASTERS))
    command.join()
    return elapsed


def burst(lab: Laboratory, keys: Keys, scratch: Path) -> dict[str, float]:
    """Many acceptances with one command; and what rsync takes to bring them to two masters."""
    before = keys.count("saltm1")
    keys.put("minions_pre", (f"burst-{number}" for number in range(BURST)), *MASTERS)
    started = time.monotonic()
    command = timed(lambda: decide(lab, "saltm1", "--accept-all"))
    keys.until_equal(before + BURST)
    equal = time.monotonic() - started
    return {"command": command, "equal": equal, "rsync": rsync(keys, scratch)}


def rsync(keys: Keys, scratch: Path) -> float:
    """Seconds of one pass that makes two copies of a master's keys what the original is."""
    sources = [str(keys.pki["saltm1"] / name) for name in DIRECTORIES]

    def once() -> None:
        for master in MASTERS[1:]:
            copy = scratch / "rsync" / master
            copy.mkdir(parents=True, exist_ok=True)
            subprocess.run(["rsync", "-a", "--delete", *sources, copy], check=True)

    return timed(once)


def join(lab: Laboratory, keys: Keys, size: int, scratch: Path) -> dict[str, float]:
    """A master that knows nothing joins two that have accepted many keys."""
    have = keys.count("saltm1")
    names = (f"many-{number}" for number in range(have, size))
    dropped = timed(lambda: keys.put("minions", names, "saltm1"))
    spread = timed(lambda: keys.until_equal(size))
    print(f"  {size} keys: written in {dropped:.1f} s, equal after {spread:.1f} s", flush=True)
    third = lab.host("saltm3")
    ledger = Path(third.master_cache_dir, "multimaster")
    with lab.stopped("saltm3", "salt-master"):
        forget(keys, scratch)
        copied = timed(lambda: tar(keys))
        forget(keys, scratch)
        shutil.rmtree(ledger)
    until(lambda: (ledger / "ledger.db").exists(), 60, "the new master's engine", interval=0.01)
    joined = timed(lambda: keys.until_equal(size))
    listing = timed(lambda: lab.run("saltm3", "salt-key", "--list=accepted", timeout=PATIENCE))
    rsync(keys, scratch)
    found = {
        "spread": spread,
        "join": joined,
        "tar": copied,
        "list": listing,
        "rsync": rsync(keys, scratch),
        "memory": max(engine(lab, master).memory_info().rss for master in MASTERS) / (1 << 20),
    }
    print(f"  {found}", flush=True)
    return found


def forget(keys: Keys, scratch: Path) -> None:
    """Leave the third master no keys but those that the apply would accept."""
    accepted = keys.pki["saltm3"] / "minions"
    # Not removed: ext4 takes ten times as long for a new file while many have just been deleted.
    aside = Path(tempfile.mkdtemp(dir=scratch), "minions")
    accepted.rename(aside)
    accepted.mkdir(mode=0o700)
    for name in MASTERS:
        shutil.copy(aside / name, accepted)


def tar(keys: Keys) -> None:
    """Copy the accepted keys to the third master with tar over a pipe."""
    source, target = keys.pki["saltm1"], keys.pki["saltm3"]
    with subprocess.Popen(["tar", "-C", source, "-c", "minions"], stdout=subprocess.PIPE) as packer:
        subprocess.run(["tar", "-C", target, "-x"], stdin=packer.stdout, check=True)


def engine(lab: Laboratory, master: str) -> psutil.Process:
    """Return the process of a master's engine."""
    root = lab.host(master).root
    (found,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "Engine(" in (line := " ".join(process.info["cmdline"] or [])) and root in line
    ]
    return found


def rest(lab: Laboratory) -> dict[str, float]:
    """The engine's processor time, and the questions on the bus, while nothing happens."""
    process = engine(lab, "saltm1")

    def spent() -> float:
        times = process.cpu_times()
        return times.user + times.system

    def questions() -> int:
        lines = lab.events("saltm1").splitlines()
        return sum("/new'" in line and "'multimaster.ledger_" in line for line in lines)

    # Measured as a difference over a time, and not waited for: there is no condition.
    before, asked, over = spent(), questions(), time.monotonic() + REST
    until(lambda: time.monotonic() > over, 2 * REST, "a minute at rest", interval=1)
    return {"processor": spent() - before, "questions": questions() - asked}


def main() -> int:
    """Measure, print the table, write JSON; returns 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="decisions of a kind (default 20)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of keys")
    arguments = parser.parse_args()
    if not shutil.which("rsync"):
        parser.error("rsync is not there, which is measured for comparison; Debian: rsync")
    with tempfile.TemporaryDirectory(prefix="multimaster-bench-") as directory:
        scratch = Path(directory)
        # As many single decisions in a minute as there is time for.
        pillar = {"multimaster": {"keys": {"at_once": 1_000_000}}}
        with laboratory(
            scratch / "lab", "process", masters=3, minions=0, net=NET, pillar=pillar
        ) as lab:
            result = lab.apply()
            if failures(result):
                raise SystemExit(f"the apply failed: {failures(result)}")
            lab.until_connected()
            data = measure(lab, Keys(lab), scratch, arguments)
        (scratch / "cluster").mkdir()
        data["cluster"] = native_cluster(scratch / "cluster")
    missed = report(rows(data))
    save("replication", data)
    return 1 if missed else 0


def measure(lab: Laboratory, keys: Keys, scratch: Path, arguments: Any) -> dict[str, Any]:
    """Take all figures, in the order in which the number of keys grows."""
    data: dict[str, Any] = {"single": single(lab, keys, arguments.rounds)}
    print(f"  one decision: {data['single']}", flush=True)
    data["join"] = {}
    for size in arguments.sizes:
        data["join"][size] = join(lab, keys, size, scratch)
        if size == BURST:
            data["burst"] = burst(lab, keys, scratch)
            print(f"  {BURST} decisions: {data['burst']}", flush=True)
        if size == BOUNDED:
            data["rest"] = rest(lab)
            print(f"  at rest: {data['rest']}", flush=True)
    return data


def rows(data: dict[str, Any]) -> list[Row]:
    """Return the comparisons."""
    found = []
    for verb, times in data["single"].items():
        work = f"{verb} on one master until it holds on all"
        found.append(Row(f"{work}, median", statistics.median(times), "a second", 1.0))
        found.append(Row(f"{work}, 95 %", percentile(times, 0.95), "a second", 1.0, 1.0))
    other = data["cluster"]
    work = "Salt's cluster: keys that salt-key -A brings to the other masters"
    found.append(Row(work, other["decided"], "all of them", other["expected"]))
    work = "Salt's cluster: auto_accept on one master until it holds on all"
    accepted = statistics.median(data["single"]["accept"])
    found.append(Row(work, other["automatic"], "accept, median", accepted))
    if one := data.get("burst"):
        work = f"salt-key -A on {BURST} keys until it holds on all"
        found.append(Row(work, one["equal"], "salt-key -A", one["command"], 2.0))
        found.append(Row(work, one["equal"], "salt-key -A, rsync", one["command"] + one["rsync"]))
    for size, one in data["join"].items():
        bound = 3.0 if size == BOUNDED else None
        work, other = f"join with {size} keys", one["tar"] + one["list"]
        found.append(Row(work, one["join"], "tar, salt-key -L", other, bound))
        found.append(Row(work, one["join"], f"rsync, no change, {size} keys", one["rsync"]))
        limit = 1.0 if size == max(data["join"]) else None
        found.append(Row(f"engine with {size} keys, MiB", one["memory"], "300 MiB", 300, limit))
    if "rest" in data:
        work = f"engine at rest for {REST} s, {BOUNDED} keys"
        found.append(Row(f"{work}, s", data["rest"]["processor"], "1 %", REST / 100, 1.0))
        peers = len(MASTERS) - 1
        found.append(Row(f"{work}, jobs", data["rest"]["questions"], "one per peer", peers, 1.0))
        one = data["join"][BOUNDED]
        found.append(Row(f"{work}, s", data["rest"]["processor"], "one rsync", one["rsync"]))
    return found


if __name__ == "__main__":
    sys.exit(main())
