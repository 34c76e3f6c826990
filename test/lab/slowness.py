"""
How fast the hosts of a laboratory are, and the program that slows those of the process driver.

A host's processes run for its share of each period, and are stopped (SIGSTOP) for the rest of it;
all slow hosts run at the same time, so that together they have what a slower machine would give
them.  One program does that for a laboratory, for as long as a host is slow.  It is two processes,
each of which lets everything run again when the other one is gone, whatever has ended it.
Standard library only: this file is started by its path.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

# In the environment of everything that starts on a host of the process driver: the host's root.
VARIABLE = "LAB_HOST"
# Seconds from one start of the slow hosts to the next.
PERIOD = 0.1
# How often a process is looked at that belongs to no host: what it is shows after its exec.
LOOKS = 20
# Seconds for a stop to take effect; a process in the middle of a page fault takes its time.
STOPPING = 0.05


def parse(text: str) -> Fraction:
    """
    Return a share of the full speed: ``1/3``, ``0.1`` or ``1``.

    :raises ValueError: naming what was received and what is supported.
    """
    try:
        share = Fraction(text)
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share <= 1:
        raise ValueError(f"share: got {text!r}; supported: more than 0 and at most 1, such as 1/3")
    return share


def shares(directory: Path) -> dict[str, float]:
    """Return the shares of the slow hosts; a host that is not named has its full speed."""
    with contextlib.suppress(FileNotFoundError):
        return dict(json.loads((directory / "slow.json").read_text()))
    return {}


def record(directory: Path, ids: Iterable[str], share: Fraction) -> None:
    """Write down that hosts have a share from now on."""
    found = shares(directory) | dict.fromkeys(ids, float(share))
    # Whoever reads it at that moment reads the old or the new one.
    new = directory / "slow.json.new"
    new.write_text(json.dumps({name: value for name, value in found.items() if value < 1}))
    new.replace(directory / "slow.json")


@contextlib.contextmanager
def still(directory: Path) -> Iterator[None]:
    """Nobody else stops or continues processes, or changes shares, for the block's duration."""
    with open(directory / "slow.lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def carry_out(directory: Path) -> None:
    """Let run what is not slow any more, and see to it that the program runs if something is."""
    slow = shares(directory)
    _continue_all(directory, slow)
    if not slow or _runs(directory):
        return
    # Were it taken for one of a host's processes, it would stop itself.
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    argv = [sys.executable, "-I", "-S", __file__, str(directory)]
    with open(directory / "slow.log", "a") as log:
        subprocess.run(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            check=True,
        )


def frozen_file(root: str, unit: str) -> Path:
    """Return where the ids of processes are that are to stay stopped, as the unit is frozen."""
    return Path(root, f"{unit}.frozen")


def main(directory: Path) -> None:
    """Slow what the laboratory in ``directory`` has to be slowed, until nothing has."""
    if guard := os.fork():
        # Nobody's child, so that it goes on without the one who asked for it.
        (directory / "slow.pid").write_text(str(guard))
        return
    worker = os.fork()
    if worker:
        os.waitpid(worker, 0)
    else:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(1))
        # For the moment at which the hosts have had their share; not everybody may.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        if not worker:
            _work(directory)
    finally:
        with contextlib.suppress(FileNotFoundError), still(directory):
            _continue_all(directory)


class Processes:
    """
    The processes of the hosts, each found once.

    They are known by descent, and by their environment where the parent is gone or is no host's.
    Arguments are looked at only of what has lost its parent: a person's ``tail -f`` of a host's log
    is to be left alone, as the shell would take it for suspended.
    """

    def __init__(self, directory: Path) -> None:
        hosts = json.loads((directory / "lab.json").read_text())["hosts"]
        self.roots = {host["root"]: host["id"] for host in hosts}
        self.host: dict[int, str | None] = {}
        # Of what has a terminal and so may be watched by a shell with job control.
        self.watched: set[int] = set()
        self._looks: dict[int, int] = {}

    def look(self) -> list[int]:
        """Look again; return the processes of hosts that are new, parents first."""
        there = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        for gone in self.host.keys() - there:
            del self.host[gone]
            self._looks.pop(gone, None)
            self.watched.discard(gone)
        found = []
        for pid in sorted(there - self.host.keys() | self._looks.keys()):
            with contextlib.suppress(OSError):
                _, parent, terminal = _stat(pid)
                self.host[pid] = self.host.get(parent) or self._placed(pid, parent)
                if self.host[pid] is None:
                    self._looks[pid] = self._looks.get(pid, 0) + 1
                    if self._looks[pid] < LOOKS:
                        continue
                elif pid not in (os.getpid(), os.getppid()):
                    found.append(pid)
                    if terminal:
                        self.watched.add(pid)
                self._looks.pop(pid, None)
        return found

    def _placed(self, pid: int, parent: int) -> str | None:
        # Other people's processes do not show theirs.
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
            if found := re.search(rf"(?:^|\0){VARIABLE}=([^\0]*)", environment):
                return self.roots.get(found[1])
            if parent == 1:
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                return next((i for root, i in self.roots.items() if f"{root}/" in arguments), None)
        return None


def _work(directory: Path) -> None:
    """Let the slow hosts run and stop, over and over."""
    guard = os.getppid()
    processes = Processes(directory)
    # In the order in which they were stopped.
    stopped: list[int] = []
    while os.getppid() == guard and (directory / "lab.json").exists():
        with still(directory):
            wanted = shares(directory)
            if not wanted:
                (directory / "slow.pid").unlink(missing_ok=True)
                return
            _continue(stopped, _frozen(processes.roots))
            stopped = []
        began = time.monotonic()
        length = PERIOD
        for share in sorted(set(wanted.values())):
            time.sleep(max(0.0, began + share * PERIOD - time.monotonic()))
            with still(directory):
                now = shares(directory)
                hosts = {name for name in wanted if wanted[name] == now.get(name) == share}
                exempt = _frozen(processes.roots)
                found = list(processes.host) or processes.look()
                while found:
                    for pid in found:
                        if processes.host.get(pid) in hosts and pid not in exempt:
                            _stop(pid, pid in processes.watched)
                            stopped.append(pid)
                    # Who was started meanwhile is found when its parent has been stopped.
                    found = processes.look()
            # Who was stopped too late stays so for the longer.
            length = max(length, (time.monotonic() - began) / share)
        time.sleep(max(0.0, began + length - time.monotonic()))


def _stop(pid: int, watched: bool) -> None:
    """
    Stop a process.

    A shell with job control takes a child that it sees stopped for suspended.  So it is stopped
    before its child is, and goes on after it.
    """
    # It may end at any moment.
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)
        enough = time.monotonic() + STOPPING
        while watched and _stat(pid)[0] not in "TZX" and time.monotonic() < enough:
            time.sleep(0)


def _continue(stopped: Iterable[int], frozen: set[int]) -> None:
    for pid in reversed(list(stopped)):
        if pid not in frozen:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGCONT)


def _continue_all(directory: Path, but: Iterable[str] = ()) -> None:
    """Continue all processes of hosts but some, and but what is frozen."""
    processes = Processes(directory)
    found: list[int] = []
    while new := processes.look():
        found += [pid for pid in new if processes.host[pid] not in set(but)]
    _continue(found, _frozen(processes.roots))


def _frozen(roots: Mapping[str, str]) -> set[int]:
    found: set[int] = set()
    for root in roots:
        for unit in ("salt-master", "salt-minion"):
            with contextlib.suppress(FileNotFoundError):
                found.update(json.loads(frozen_file(root, unit).read_text()))
    return found


def _stat(pid: int) -> tuple[str, int, int]:
    """Return the state of a process, its parent, and its terminal, 0 for none."""
    # The name before it may contain anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[4])


def _runs(directory: Path) -> bool:
    """Tell whether the program runs for a laboratory."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((directory / "slow.pid").read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        return __file__ in arguments and str(directory) in arguments
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
