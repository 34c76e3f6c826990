"""
What the formula costs, as ratios measured side by side in one run: a table, and JSON in .bench/.

Absolute times are those of this machine at this moment; only the ratios are claims.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import yaml
from measure import Row, report, save, timed

from lab.laboratory import PATIENCE, Laboratory, changed, failures, laboratory
from lab.wait import until

MASTERS, MINIONS = 3, 10
KEYS = (100, 1_000, 10_000)
NET = "127.0.71"

# Runs on the first master's host: seconds for one master's pillar, with the key store as it is.
RENDER = """
import json, statistics, sys, time
import salt.config, salt.pillar
opts = salt.config.master_config(sys.argv[1])
def once():
    started = time.perf_counter()
    pillar = salt.pillar.Pillar(dict(opts), {"id": sys.argv[2]}, sys.argv[2], "base")
    data = pillar.compile_pillar()
    assert data["multimaster"].get("keypair") or sys.argv[2].startswith("web"), data
    return time.perf_counter() - started
once()
print(json.dumps(statistics.median(once() for _ in range(7))))
"""


def first_apply(lab: Laboratory) -> dict[str, float]:
    """One master becomes three; then all daemons that the apply started are started once more."""

    def apply() -> None:
        result = lab.apply()
        if failures(result) or set(result) != lab.ids:
            raise SystemExit(f"the apply failed: {failures(result)}")

    def everything_answers() -> None:
        masters = [host.id for host in lab.lab.masters]
        until(
            lambda: all(lab.answering(master) == lab.ids for master in masters),
            PATIENCE,
            "all minions to answer on all masters",
        )

    started = time.monotonic()
    returned = timed(apply)
    everything_answers()
    whole = time.monotonic() - started
    for host in lab.lab.hosts:
        lab.driver.control(lab.lab, host, "stop", "salt-minion")
    for host in lab.lab.masters:
        lab.driver.control(lab.lab, host, "stop", "salt-master")

    def daemons() -> None:
        for host in lab.lab.masters:
            lab.driver.control(lab.lab, host, "start", "salt-master")
        for host in lab.lab.hosts:
            lab.driver.control(lab.lab, host, "start", "salt-minion")
        everything_answers()

    return {"returned": returned, "connected": whole, "daemons": timed(daemons)}


def second_apply(lab: Laboratory, rounds: int) -> dict[str, dict[str, float]]:
    """An apply that changes nothing, against as many plain file.managed states, in turns."""
    measured = {}
    for target in ("saltm2", "web1"):
        count = len(lab.apply(target)[target])
        states = {
            f"plain-{number}": {
                "file.managed": [
                    {"name": f"{lab.host(target).root}/tmp/plain/{number}"},
                    {"contents": f"{number}"},
                    {"makedirs": True},
                ]
            }
            for number in range(count)
        }
        tree = lab.lab.directory / "srv/salt"
        (tree / f"plain-{target}.sls").write_text(yaml.safe_dump(states))
        run: dict[str, list[float]] = {"multimaster": [], f"plain-{target}": []}
        for number in range(rounds + 1):
            for sls, times in run.items():
                started = time.monotonic()
                result = lab.salt("saltm1", target, "state.apply", sls)
                elapsed = time.monotonic() - started
                if number:
                    # The first round warms both up.
                    times.append(elapsed)
                    if changed(result):
                        raise SystemExit(f"{sls} changed {changed(result)}")
        formula, plain = (statistics.median(times) for times in run.values())
        measured[target] = {"states": count, "formula": formula, "plain": plain}
    return measured


def rendering(lab: Laboratory) -> dict[str, dict[int, float]]:
    """One minion's pillar, for a master and a plain minion, with more and more accepted keys."""
    first = lab.host("saltm1")
    accepted = Path(first.master_pki_dir, "minions")
    key = (accepted / "web1").read_text()
    measured: dict[str, dict[int, float]] = {"saltm2": {}, "web1": {}}
    for count in KEYS:
        for number in range(count):
            (accepted / f"ghost{number}").write_text(key)
        for target, times in measured.items():
            argv = ["python3", "-W", "ignore", "-c", RENDER, f"{first.config_dir}/master", target]
            done = lab.run("saltm1", *argv)
            if done.returncode:
                raise SystemExit(done.stderr)
            times[count] = json.loads(done.stdout)
    return measured


def main() -> int:
    """Measure, print the table, write JSON; returns 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="laboratories (default 3)")
    parser.add_argument("--rounds", type=int, default=7, help="applies in turns (default 7)")
    arguments = parser.parse_args()

    firsts = []
    for number in range(arguments.runs):
        with tempfile.TemporaryDirectory(prefix="multimaster-bench-") as scratch:
            directory = Path(scratch, "lab")
            print(f"run {number + 1} of {arguments.runs}", flush=True)
            with laboratory(directory, "process", masters=MASTERS, minions=MINIONS, net=NET) as lab:
                firsts.append(first_apply(lab))
                print(f"  first apply: {firsts[-1]}", flush=True)
                if number == arguments.runs - 1:
                    second = second_apply(lab, arguments.rounds)
                    print(f"  second apply: {second}", flush=True)
                    render = rendering(lab)
    first = {name: statistics.median(run[name] for run in firsts) for name in firsts[0]}

    rows = [
        Row(
            f"first apply, 1 to {MASTERS} masters, {MINIONS} minions, until all answer",
            first["connected"],
            "starts of the same daemons, until all answer",
            first["daemons"],
        )
    ]
    for target, one in second.items():
        rows.append(
            Row(
                f"apply that changes nothing, {target}",
                one["formula"],
                f"{one['states']} file.managed",
                one["plain"],
                1.5,
            )
        )
    for target, times in render.items():
        rows.append(
            Row(
                f"pillar of {target}, {KEYS[-1]} keys",
                times[KEYS[-1]],
                f"{KEYS[0]} keys",
                times[KEYS[0]],
                1.5,
            )
        )
    missed = report(rows)
    save("formula", {"first": firsts, "second": second, "rendering": render})
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
