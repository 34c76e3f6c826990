"""The main job, played with real daemons: one master becomes three, one is lost, nothing is."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lab import cli
from lab.laboratory import Laboratory, failures
from lab.model import LabError
from lab.wait import until

MASTERS, MINIONS = 3, 3
# Seconds without news after which a step says that it is still at work.
PATIENCE = 2.0


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


def until_connected(lab: Laboratory, *asked: str) -> str:
    """Wait until every minion is connected to every master and answers to those that are asked."""

    def subscribed() -> bool:
        return all(lab.driver.connected(lab.lab, to) == lab.ids for to in lab.lab.masters)

    # To ask Salt before that would only keep the machine from getting there.
    until(subscribed, 120, "every minion to be connected to every master", interval=0.5)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lab.until_answering, asked))
    return str(until(lambda: table(lab), 60, "every minion to answer to every master"))


def table(lab: Laboratory) -> str | None:
    """Return the status table if everything is connected, else None."""
    done = lab.run("saltm1", "salt-run", "multimaster.status", "timeout=2", timeout=120)
    return str(done.stdout) if done.returncode == 0 else None


def play(lab: Laboratory) -> None:
    """Every step after the laboratory is up; raises where one fails."""
    with step("salt '*' state.apply multimaster, given on saltm1, the only master"):
        result = lab.json(
            "saltm1", "salt", "--static", "--timeout=60", "*", "state.apply", "multimaster"
        )
    if failures(result) or set(result) != lab.ids:
        raise LabError(f"the apply failed: {failures(result) or sorted(result)}")
    for name, states in sorted(result.items()):
        changed = sum(1 for state in states.values() if state["changes"])
        print(f"    {name}: {len(states)} states, {changed} changed")
    with step("every minion answers to every master"):
        picture = until_connected(lab, *(master.id for master in lab.lab.masters))
    print(picture)
    first = lab.host("saltm1")
    with step("the first master is killed (SIGKILL)"):
        lab.driver.control(lab.lab, first, "kill", "salt-master")
    with step("a command through the second master is answered"):
        until(lambda: lab.answering("saltm2") == lab.ids, 60, "all answers through saltm2")
    print(f"    all {len(lab.ids)} minions answered to saltm2")
    with step("the first master is back, and everything is connected again"):
        lab.driver.control(lab.lab, first, "start", "salt-master")
        picture = until_connected(lab, first.id)
    print(picture)


def main() -> int:
    """Play the demo in a directory of its own; returns the exit status."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="multimaster-demo-") as scratch:
        directory = Path(scratch, "lab")
        try:
            with step(f"one master, {MINIONS} minions, {MASTERS - 1} hosts to become masters"):
                made = cli.up(directory, masters=MASTERS, minions=MINIONS, say=lambda line: None)
            play(Laboratory(made))
            status = 0
        except (LabError, AssertionError) as err:
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
