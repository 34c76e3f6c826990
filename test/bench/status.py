"""
How long status and drift take with three masters and many keys: a table, and JSON in .bench/.

Almost no key has a minion here: what is measured is what keys cost, and masters.  Beside each
figure stands what salt-run takes to start and to do nothing.  What a further master costs is
measured in processor time, of the whole machine: its hosts share that one's processors.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from measure import Row, report, save, timed
from replication import Keys

from lab.laboratory import PATIENCE, Laboratory, failures, laboratory
from lab.wait import until

NET = "127.0.106"
KEYS = (0, 1_000, 10_000)
# Seconds for the command, from its start to its end.
BOUND = 2.0
COMMANDS = {
    "nothing": ["test.arg", "1"],
    "status": ["multimaster.status"],
    "drift": ["multimaster.drift"],
}


def once(lab: Laboratory, name: str) -> float:
    """Seconds of one command."""
    return timed(lambda: lab.run("saltm1", "salt-run", *COMMANDS[name]))


def busy() -> float:
    """Seconds that this machine's processors have worked."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def look(lab: Laboratory, rounds: int) -> dict[str, Any]:
    """Medians of some rounds, in turns; and the runner's own time, as it tells it."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    worked: dict[str, list[float]] = {name: [] for name in COMMANDS}
    own = []
    for _ in range(rounds):
        for name, times in found.items():
            before = busy()
            times.append(once(lab, name))
            worked[name].append(busy() - before)
        own.append(lab.status()[1]["seconds"])
    medians: dict[str, Any] = {name: statistics.median(times) for name, times in found.items()}
    medians["own"] = statistics.median(own)
    medians["work"] = {name: statistics.median(times) for name, times in worked.items()}
    medians["all"] = found
    print(f"  {medians}", flush=True)
    return medians


def differing(lab: Laboratory, rounds: int) -> float:
    """Seconds of a drift that has something to name."""
    path = Path(lab.host("saltm3").config_dir, "master.d/x.conf")
    path.write_text("timeout: 7\n")
    try:
        return statistics.median(once(lab, "drift") for _ in range(rounds))
    finally:
        path.unlink()


def equal(lab: Laboratory, count: int) -> None:
    """Give every master that many accepted keys, and wait until their ledgers say so."""
    keys = Keys(lab)
    have = keys.count("saltm1")
    keys.put("minions", (f"many-{number}" for number in range(have, count)), "saltm1")
    keys.until_equal(max(count, have))

    def agreed() -> bool:
        rows = lab.status()[1]["masters"].values()
        return len({(row["digest"], row["accepted"]) for row in rows}) == 1

    until(agreed, PATIENCE, "equal ledgers", interval=1)


def made(scratch: Path, masters: int) -> Any:
    """A laboratory with that many masters and one minion."""
    return laboratory(scratch / f"lab{masters}", "process", masters=masters, minions=1, net=NET)


def applied(lab: Laboratory) -> None:
    """Apply the formula and wait until all is well."""
    result = lab.apply()
    if failures(result):
        raise SystemExit(f"the apply failed: {failures(result)}")
    lab.until_connected()


def main() -> int:
    """Measure, print the table, write JSON; returns 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="commands of a kind (default 7)")
    parser.add_argument("--keys", type=int, nargs="+", default=KEYS, help="numbers of keys")
    arguments = parser.parse_args()
    data: dict[str, Any] = {"masters": {}, "keys": {}}
    with tempfile.TemporaryDirectory(prefix="multimaster-bench-") as directory:
        scratch = Path(directory)
        for masters in (1, 2):
            with made(scratch, masters) as lab:
                applied(lab)
                print(f"  {masters} masters", flush=True)
                data["masters"][masters] = look(lab, arguments.rounds)
        with made(scratch, 3) as lab:
            applied(lab)
            for count in arguments.keys:
                equal(lab, count)
                print(f"  3 masters, {count} keys", flush=True)
                data["keys"][count] = look(lab, arguments.rounds)
            data["differing"] = differing(lab, arguments.rounds)
    data["masters"][3] = data["keys"][min(data["keys"])]
    missed = report(rows(data))
    save("status", data)
    return 1 if missed else 0


def rows(data: dict[str, Any]) -> list[Row]:
    """Return the comparisons."""
    found = []
    most, least = max(data["keys"]), min(data["keys"])
    for name in ("status", "drift"):
        one, few = data["keys"][most], data["keys"][least]
        work = f"{name}, 3 masters, {most} keys"
        found.append(Row(work, one[name], "two seconds", BOUND, 1.0))
        found.append(Row(work, one[name], "salt-run that does nothing", one["nothing"]))
        found.append(Row(work, one[name], "4 keys", few[name], 1.5))
        # The first master asks itself in a shorter way: what counts is what each further one adds.
        single, double, triple = (data["masters"][number]["work"][name] for number in (1, 2, 3))
        more, twice = triple - single, 2 * (double - single)
        found.append(
            Row(f"{name}, processor time of 2nd and 3rd master", more, "twice the 2nd", twice, 1.5)
        )
    work = f"status, 3 masters, {most} keys, the runner alone"
    found.append(Row(work, data["keys"][most]["own"], "the command", data["keys"][most]["status"]))
    work = f"drift that names an option, {most} keys"
    found.append(Row(work, data["differing"], "two seconds", BOUND, 1.0))
    return found


if __name__ == "__main__":
    sys.exit(main())
