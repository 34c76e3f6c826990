"""
What the formula costs, as ratios measured side by side in one run: a table, and JSON in .bench/.

Absolute times are those of this machine at this moment; only the ratios are claims.
"""

from __future__ import annotations

import argparse
import functools
import json
import socket
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import yaml
from measure import Row, report, save, timed

from lab.laboratory import Laboratory, changed, failures, laboratory
from lab.model import Host

MASTERS, FEW, MINIONS = 3, 3, 10
# Of the machine's speed; and how many times as long as its daemons a first apply may take, at 1.
SHARES = (Fraction(1), Fraction(1, 3))
WHOLE = 1.5
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


def first_applies(count: int, share: Fraction) -> dict[str, list[float]]:
    """One master becomes three, again and again, each time in a new laboratory, at some speed."""
    times: dict[str, list[float]] = {"returned": [], "whole": [], "daemons": []}
    for number in range(count):
        with tempfile.TemporaryDirectory(prefix="multimaster-bench-") as scratch:
            directory = Path(scratch, "lab")
            hosts = {"masters": MASTERS, "minions": FEW, "slow": share}
            with laboratory(directory, "process", net=NET, **hosts) as lab:
                for name, seconds in first_apply(lab).items():
                    times[name].append(seconds)
        print(f"  {number + 1} of {count} at {share}: {_last(times)}", flush=True)
    return times


def _last(times: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.1f} s" for name, values in times.items())


def first_apply(lab: Laboratory) -> dict[str, float]:
    """One master becomes three by ONE apply; then each daemon of that is started once more."""

    def apply() -> None:
        result = lab.apply()
        if failures(result) or set(result) != lab.ids:
            raise SystemExit(f"the apply failed: {failures(result)}")

    started = time.monotonic()
    returned = timed(apply)
    subscribed(lab)
    lab.until_connected()
    whole = time.monotonic() - started
    daemons = [(host, "salt-master") for host in lab.lab.masters]
    daemons += [(host, "salt-minion") for host in lab.lab.hosts]
    for host, unit in reversed(daemons):
        lab.driver.control(lab.lab, host, "stop", unit)

    def start(host: Host, unit: str) -> None:
        lab.driver.control(lab.lab, host, "start", unit)
        if unit == "salt-minion":
            lab.until(
                lambda: len(lab.driver.subscribed(lab.lab, host)) == MASTERS,
                f"{host.id} to be back",
            )
        else:
            lab.until(lambda: _listens(host.address), f"the master of {host.id} to listen")

    # One after the other: two cores have this much to do in any case.
    return {
        "returned": returned,
        "whole": whole,
        "daemons": sum(timed(functools.partial(start, *one)) for one in daemons),
    }


def subscribed(lab: Laboratory) -> None:
    """Wait until every minion is connected to every master; to ask Salt would be in the way."""
    lab.until(
        lambda: all(lab.driver.connected(lab.lab, to) == lab.ids for to in lab.lab.masters),
        "every minion to be connected to every master",
    )


def _listens(address: str) -> bool:
    try:
        socket.create_connection((address, 4506), 1).close()
    except OSError:
        return False
    return True


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
    parser.add_argument("--applies", type=int, default=20, help="first applies (default 20)")
    parser.add_argument("--rounds", type=int, default=7, help="applies in turns (default 7)")
    arguments = parser.parse_args()

    firsts = {share: first_applies(arguments.applies, share) for share in SHARES}
    with tempfile.TemporaryDirectory(prefix="multimaster-bench-") as scratch:
        directory = Path(scratch, "lab")
        with laboratory(directory, "process", masters=MASTERS, minions=MINIONS, net=NET) as lab:
            first_apply(lab)
            subscribed(lab)
            second = second_apply(lab, arguments.rounds)
            print(f"  second apply: {second}", flush=True)
            render = rendering(lab)

    rows = [
        Row(
            f"first apply at {share} of the speed, {what} of {len(runs['whole'])}",
            pick(runs["whole"]),
            "its daemons, one after the other, median",
            statistics.median(runs["daemons"]),
            WHOLE if share == 1 and what == "median" else None,
        )
        for share, runs in firsts.items()
        for what, pick in (("median", statistics.median), ("worst", max))
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
    named = {str(share): runs for share, runs in firsts.items()}
    save("formula", {"first": named, "second": second, "rendering": render})
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
