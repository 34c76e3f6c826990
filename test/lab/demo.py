"""The main job, played with real daemons: one master becomes three, one is lost, nothing is."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import cli
from lab.model import Lab, LabError
from lab.wait import until

MASTERS, MINIONS = 3, 3
# Seconds without news after which a step says that it is still at work.
PATIENCE = 2.0
RETURNS = ("--out=json", "--static", "--timeout=60")


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print what is done, a line every two seconds while it lasts, and how long it took."""
    print(f"==> {title}", flush=True)
    started = time.monotonic()
    over = threading.Event()

    def tick() -> None:
        while not over.wait(PATIENCE):
            line = f"    ... {time.monotonic() - started:.0f} s"
            if sys.stdout.isatty():
                print(f"\r{line}", end="", flush=True)
            else:
                print(line, flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        over.set()
        ticker.join()
        clear = "\r\033[K" if sys.stdout.isatty() else ""
        print(f"{clear}    {time.monotonic() - started:.1f} s", flush=True)


def run(lab: Lab, host_id: str, *argv: str) -> str:
    """Run a command on a host and return its output; :class:`LabError` if it fails."""
    driver = cli.driver_of(lab.directory, lab.driver, lab.salt)
    done = driver.exec(lab, lab.host(host_id), argv, capture_output=True, timeout=300)
    if done.returncode:
        raise LabError(f"{' '.join(argv)} on {host_id}: {done.stdout}{done.stderr}")
    return str(done.stdout)


def answers(lab: Lab, host_id: str) -> set[str]:
    """Return the minions that answer a command given on a host's master."""
    driver = cli.driver_of(lab.directory, lab.driver, lab.salt)
    argv = ["salt", "*", "test.ping", "--out=json", "--static", "--timeout=5"]
    done = driver.exec(lab, lab.host(host_id), argv, capture_output=True, timeout=120)
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return set()
    return {name for name, value in result.items() if value is True}


def table(lab: Lab, host_id: str) -> str | None:
    """Return the status table once everything is connected, else None."""
    driver = cli.driver_of(lab.directory, lab.driver, lab.salt)
    argv = ["salt-run", "multimaster.status"]
    done = driver.exec(lab, lab.host(host_id), argv, capture_output=True, timeout=120)
    return done.stdout if done.returncode == 0 else None


def play(lab: Lab) -> None:
    """Every step after the laboratory is up; raises :class:`LabError` where one fails."""
    everyone = {host.id for host in lab.hosts}
    with step("salt '*' state.apply multimaster, given on saltm1, the only master"):
        result = json.loads(run(lab, "saltm1", "salt", "*", "state.apply", "multimaster", *RETURNS))
    for name, states in sorted(result.items()):
        changed = sum(1 for state in states.values() if state["changes"])
        print(f"    {name}: {len(states)} states, {changed} changed")
    with step("every minion answers to every master"):
        picture = until(lambda: table(lab, "saltm1"), 120, "every minion to answer to every master")
    print(picture)
    driver = cli.driver_of(lab.directory, lab.driver, lab.salt)
    with step("the first master is killed (SIGKILL)"):
        driver.control(lab, lab.host("saltm1"), "kill", "salt-master")
    with step("a command through the second master is answered"):
        until(lambda: answers(lab, "saltm2") == everyone, 60, "all answers through saltm2")
    print(f"    {len(everyone)} of {len(everyone)} minions answered to saltm2")
    with step("the first master is back, and everything is connected again"):
        driver.control(lab, lab.host("saltm1"), "start", "salt-master")
        picture = until(lambda: table(lab, "saltm1"), 120, "everything to be connected again")
    print(picture)


def main() -> int:
    """Play the demo in a directory of its own; returns the exit status."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="multimaster-demo-") as scratch:
        directory = Path(scratch, "lab")
        try:
            with step(f"one master, {MINIONS} minions, {MASTERS - 1} hosts to become masters"):
                lab = cli.up(directory, masters=MASTERS, minions=MINIONS, say=lambda line: None)
            play(lab)
            status = 0
        except LabError as err:
            print(f"demo: {err}", file=sys.stderr)
            status = 1
        finally:
            if (directory / "lab.json").exists():
                with step("everything is stopped and removed"):
                    cli.down(directory)
    print(f"Done in {time.monotonic() - started:.0f} s; nothing is left running.")
    return status


if __name__ == "__main__":
    sys.exit(main())
