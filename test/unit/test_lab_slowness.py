"""Hosts of the process driver are as fast as they are to be, and nothing is left stopped."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import psutil
import pytest

from lab import slowness
from lab.wait import until

# A busy process that says now and then how much processor time it has had, and by when.
BUSY = """
import time
while True:
    over = time.monotonic() + 0.05
    while time.monotonic() < over:
        pass
    print(time.monotonic(), time.process_time(), flush=True)
"""
PATIENCE = 60


class Site:
    """A laboratory's directory with hosts whose processes are the test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[subprocess.Popen[str]] = []
        hosts = [{"id": name, "root": str(directory / name)} for name in ("one", "two")]
        for host in hosts:
            Path(host["root"]).mkdir()
        (directory / "lab.json").write_text(json.dumps({"hosts": hosts}))

    def spawn(self, host: str, *argv: str, **kwargs: object) -> psutil.Process:
        """Start a command on a host."""
        environment = {**os.environ, slowness.VARIABLE: str(self.directory / host)}
        process = subprocess.Popen(argv, env=environment, text=True, **kwargs)  # type: ignore[call-overload]
        self.started.append(process)
        return psutil.Process(process.pid)

    def slow(self, share: str, *hosts: str) -> None:
        """Give hosts a share of the full speed."""
        with slowness.still(self.directory):
            slowness.record(self.directory, hosts, Fraction(share))
            slowness.carry_out(self.directory)

    def program(self) -> list[psutil.Process]:
        """Return the two processes that slow the hosts: the guard, and the one that works."""
        with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
            guard = psutil.Process(int((self.directory / "slow.pid").read_text()))
            return [guard, *guard.children()]
        return []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """End what the test has started, whatever has become of it."""
    made = Site(tmp_path)
    yield made
    made.slow("1", "one", "two")
    for process in made.started:
        process.kill()
        process.communicate()


def stopped(process: psutil.Process) -> bool:
    """Tell whether a process is stopped at this moment."""
    return bool(process.status() == psutil.STATUS_STOPPED)


def becomes_stopped(process: psutil.Process) -> None:
    """Wait until a process is stopped."""
    until(lambda: stopped(process), PATIENCE, "a stopped process", interval=0.001)


def goes_on(process: psutil.Process) -> None:
    """Assert that a process is not stopped any more, and is not stopped again."""
    until(lambda: not stopped(process), PATIENCE, "a process that goes on", interval=0.01)
    enough = time.monotonic() + 5 * slowness.PERIOD
    until(lambda: stopped(process) or time.monotonic() > enough, PATIENCE, "periods", 0.001)
    assert not stopped(process)


@pytest.mark.parametrize("share", ["1/2", "1/5"])
def test_a_process_gets_its_share_of_the_time_at_most(site: Site, share: str) -> None:
    busy = site.spawn("one", sys.executable, "-c", BUSY, stdout=subprocess.PIPE)
    site.slow(share, "one")
    becomes_stopped(busy)
    stream = site.started[0].stdout
    assert stream is not None
    said = [tuple(map(float, stream.readline().split()))]
    while said[-1][0] - said[0][0] < 3:
        said.append(tuple(map(float, stream.readline().split())))
    reached = (said[-1][1] - said[0][1]) / (said[-1][0] - said[0][0])
    # Others may have taken the rest of the machine; more than its share it never has.
    assert 0 < reached < float(Fraction(share)) * 1.25


def test_children_and_what_has_left_its_parent_are_slowed_too(site: Site) -> None:
    # Programs that wait for ever, each of which no other test has.
    path = site.directory / "nothing"
    path.touch()
    script = f"setsid --fork tail -f {path}; tail --follow {path}"
    shell = site.spawn("one", "sh", "-c", script)
    until(lambda: shell.children(), PATIENCE, "a child")

    def orphan() -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            if process.info["cmdline"] == ["tail", "-f", str(path)]:
                return process
        return None

    alone = until(orphan, PATIENCE, "the one that has left")
    try:
        site.slow("1/10", "one")
        for process in (shell, *shell.children(), alone):
            becomes_stopped(process)
    finally:
        alone.kill()


def test_other_hosts_have_their_full_speed(site: Site) -> None:
    slow, fast = (site.spawn(host, "sleep", "60") for host in ("one", "two"))
    site.slow("1/10", "one")
    becomes_stopped(slow)
    goes_on(fast)


def test_at_full_speed_nothing_is_left_stopped_and_the_program_ends(site: Site) -> None:
    process = site.spawn("one", "sleep", "60")
    site.slow("1/10", "one")
    becomes_stopped(process)
    program = site.program()
    site.slow("1", "one")
    assert not stopped(process)
    psutil.wait_procs(program, PATIENCE)
    assert not any(one.is_running() for one in program)


@pytest.mark.parametrize("victim", [0, 1], ids=["guard", "worker"])
def test_a_killed_program_leaves_nothing_stopped(site: Site, victim: int) -> None:
    process = site.spawn("one", "sleep", "60")
    site.slow("1/10", "one")
    program = until(lambda: len(site.program()) == 2 and site.program(), PATIENCE, "the program")
    assert program
    becomes_stopped(process)
    program[victim].kill()
    goes_on(process)
    site.slow("1/10", "one")
    becomes_stopped(process)


def test_what_is_frozen_stays_frozen(site: Site) -> None:
    frozen, other = site.spawn("one", "sleep", "60"), site.spawn("one", "sleep", "60")
    site.slow("1/2", "one")
    becomes_stopped(other)
    with slowness.still(site.directory):
        slowness.frozen_file(str(site.directory / "one"), "salt-minion").write_text(
            json.dumps([frozen.pid])
        )
        frozen.suspend()
    for share in ("1/3", "1"):
        site.slow(share, "one")
        enough = time.monotonic() + 5 * slowness.PERIOD
        over: Callable[[], bool] = lambda: not stopped(frozen) or time.monotonic() > enough  # noqa: E731, B023
        until(over, PATIENCE, "some periods", 0.001)
        assert stopped(frozen)
    assert not stopped(other)


def test_a_shell_does_not_take_a_slow_command_for_suspended(site: Site) -> None:
    primary, secondary = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), secondary)
    # The terminal that is opened first in a session of its own becomes that one's.
    inner = 'exec bash --norc -i < "$0" > "$0" 2>&1'
    argv = ["setsid", "sh", "-c", inner, os.ttyname(secondary)]
    shell = site.spawn("one", *argv, **streams)
    site.slow("1/5", "one")
    becomes_stopped(shell)
    count = 30
    os.write(primary, f"for n in $(seq {count}); do sleep 0.2; done; echo over-$?\n".encode())
    said = b""

    def over() -> bool:
        nonlocal said
        said += os.read(primary, 4096)
        return bool(re.search(rb"over-\d", said)) or b"Stopped" in said

    until(over, PATIENCE, "the end of the commands", interval=0)
    os.close(primary)
    os.close(secondary)
    assert b"Stopped" not in said
    assert b"over-0" in said


@pytest.mark.parametrize("text", ["0", "-1", "2", "1/0", "fast", "nan"])
def test_a_share_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {text!r}; supported")):
        slowness.parse(text)


def test_the_program_ends_with_its_laboratory(site: Site) -> None:
    site.spawn("one", "sleep", "60")
    site.slow("1/10", "one")
    program = until(site.program, PATIENCE, "the program")
    site.directory.joinpath("lab.json").rename(site.directory / "gone.json")
    psutil.wait_procs(program, PATIENCE)
    assert not any(one.is_running() for one in program)
    site.directory.joinpath("gone.json").rename(site.directory / "lab.json")
    for number in (signal.SIGCONT, signal.SIGTERM):
        site.started[0].send_signal(number)
