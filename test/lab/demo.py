"""The main job, played with real daemons: one master becomes three, one is lost, nothing is."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import cli
from lab.laboratory import Laboratory, failures
from lab.model import LabError

MASTERS, MINIONS = 3, 3
# Seconds after which a step says what it waits for, and after which it says the same again.
NEWS, AGAIN = 2.0, 20.0
# Seconds without a change after which the status is asked for the reason, at full speed.
CURIOUS = 10.0


@contextmanager
def step(title: str, waits: Callable[[], str] = str) -> Iterator[None]:
    """Print what is done, now and then what it waits for, and how long it took."""
    print(f"==> {title}", flush=True)
    started = time.monotonic()
    over = threading.Event()

    def tick() -> None:
        last, said = None, started
        while not over.wait(NEWS):
            now, text = time.monotonic(), waits()
            line = f"    ... {now - started:.0f} s {text}"
            if sys.stdout.isatty():
                print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="")
                sys.stdout.flush()
            elif text != last or now - said >= AGAIN:
                last, said = text, now
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


class Whole:
    """
    Whether every minion answers to every master, and who it is that does not.

    Connections are looked at first: to ask Salt would only keep the machine from getting there.
    """

    def __init__(self, lab: Laboratory) -> None:
        self.lab = lab
        # What is missing, and what the status of the first master last said.
        self.missing: list[str] = []
        self.findings: list[str] = []
        self.picture = ""
        self._changed = time.monotonic()

    def __call__(self) -> bool:
        missing = []
        for master in self.lab.lab.masters:
            if away := self.lab.ids - self.lab.driver.connected(self.lab.lab, master):
                who = "everybody" if away == self.lab.ids else ", ".join(sorted(away))
                missing.append(f"{who} at {master.id}")
        if missing != self.missing:
            self.missing, self._changed = missing, time.monotonic()
        if not missing:
            done = self.lab.run("saltm1", "salt-run", "multimaster.status", self._timeout)
            self.picture = str(done.stdout)
            if done.returncode == 0:
                return True
        if not missing or time.monotonic() - self._changed > self.lab.lab.slowed(CURIOUS):
            self.findings = findings(self.lab)
            self._changed = time.monotonic()
        return False

    def __str__(self) -> str:
        """Return what is missing, by name."""
        parts = ["for " + "; ".join(self.missing)] if self.missing else ["for the status"]
        return " | ".join(parts + self.findings)

    @property
    def _timeout(self) -> str:
        return f"timeout={self.lab.lab.slowed(2):.0f}"


def findings(lab: Laboratory) -> list[str]:
    """Return what ``multimaster.status`` on the first master finds, and how masters answer."""
    _, data = lab.status()
    return [*data["problems"], *map(": ".join, classes(lab, data.get("minions", {})).items())]


def classes(lab: Laboratory, minions: Mapping[str, Any]) -> dict[str, str]:
    """Return how the masters answer each minion that is on its way, from the status's rows."""
    names = {master.address: master.id for master in lab.lab.masters}
    found = {}
    for minion, row in minions.items():
        cutover = row.get("cutover") or {}
        if cutover.get("step", "kept") != "kept":
            seen = cutover.get("seen", {})
            answers = [f"{names.get(to, to)} {answer}" for to, answer in sorted(seen.items())]
            found[minion] = ", ".join([str(cutover["step"]), *answers])
    return found


def until_whole(lab: Laboratory, title: str) -> str:
    """Wait until every minion answers to every master; return the status table."""
    whole = Whole(lab)
    with step(title, lambda: str(whole)):
        what = "every minion to answer to every master"
        lab.until(whole, what, lambda: [whole.missing, whole.findings], interval=0.5)
    return whole.picture


def play(lab: Laboratory) -> None:
    """Every step after the laboratory is up; raises where one fails."""

    def at_work() -> str:
        busy = [h.id for h in lab.lab.hosts if any(Path(h.minion_cache_dir).glob("proc/*"))]
        return f"for {', '.join(busy)}" if busy else ""

    with step("salt '*' state.apply multimaster, given on saltm1, the only master", at_work):
        patience = f"--timeout={lab.lab.slowed(60):.0f}"
        result = lab.json("saltm1", "salt", "--static", patience, "*", "state.apply", "multimaster")
    if failures(result) or set(result) != lab.ids:
        raise LabError(f"the apply failed: {failures(result) or sorted(result)}")
    for name, states in sorted(result.items()):
        changed = sum(1 for state in states.values() if state["changes"])
        print(f"    {name}: {len(states)} states, {changed} changed")
    print(until_whole(lab, "every minion answers to every master"))
    first = lab.host("saltm1")
    with step("the first master is killed (SIGKILL)"):
        lab.driver.control(lab.lab, first, "kill", "salt-master")
    answering: set[str] = set()

    def missing() -> str:
        return f"for {', '.join(sorted(lab.ids - answering))} at saltm2"

    def answered() -> bool:
        answering.update(lab.answering("saltm2"))
        return answering == lab.ids

    with step("a command through the second master is answered", missing):
        lab.until(answered, "all answers through saltm2", missing)
    print(f"    all {len(lab.ids)} minions answered to saltm2")
    with step("the first master is started again"):
        lab.driver.control(lab.lab, first, "start", "salt-master")
    print(until_whole(lab, "everything is connected again"))


def main(arguments: list[str] | None = None) -> int:
    """Play the demo in a directory of its own; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo", description=__doc__)
    parser.add_argument("--slow", metavar="SHARE", help="of the full speed (or LAB_SLOW)")
    slow = parser.parse_args(arguments).slow
    started = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="multimaster-demo-"))
    lab, failed = None, True
    try:
        share = cli.share(slow) if slow else None
        said = ["for the hosts"]
        title = f"one master, {MINIONS} minions, {MASTERS - 1} hosts to become masters"
        with step(title, lambda: said[-1]):
            made = cli.up(
                scratch / "lab", masters=MASTERS, minions=MINIONS, slow=share, say=said.append
            )
        lab = Laboratory(made)
        play(lab)
        failed = False
    except (LabError, AssertionError) as err:
        print(f"demo: {err}", file=sys.stderr)
    finally:
        if failed and lab:
            _tell(lab)
        _end(scratch, keep=failed)
    if failed:
        return 1
    print(f"Done in {time.monotonic() - started:.0f} s; nothing is left running.")
    return 0


def _tell(lab: Laboratory) -> None:
    """Print the last findings of the status, from the first master that has any."""
    for master in lab.lab.masters:
        # One that does not answer would keep us waiting for nothing.
        if lab.driver.connected(lab.lab, master):
            print(f"What multimaster.status on {master.id} says:", file=sys.stderr)
            done = lab.run(master.id, "salt-run", "multimaster.status")
            print(done.stdout + done.stderr, file=sys.stderr)
            _, data = lab.status(master.id)
            for minion, how in classes(lab, data.get("minions", {})).items():
                print(f"{minion}: {how}", file=sys.stderr)
            return


def _end(scratch: Path, keep: bool) -> None:
    directory = scratch / "lab"
    if not (directory / "lab.json").exists():
        shutil.rmtree(scratch)
    elif keep:
        with step("every daemon is stopped"):
            cli.halt(directory)
        print(f"Nothing is left running. The logs: {directory}/hosts/*/var/log/salt/")
        print(f"To remove everything: lab down --dir {directory} && rm -r {scratch}")
    else:
        with step("everything is stopped and removed"):
            cli.down(directory)
        shutil.rmtree(scratch)


if __name__ == "__main__":
    sys.exit(main())
