"""
One apply is enough, at any speed and whatever is late; what goes back moves on by itself.

Each test has a laboratory of its own, as a first apply comes once.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab.laboratory import Laboratory, failures, laboratory

NETS = {"process": "127.0.62", "docker": "192.168.62"}
MASTERS, MINIONS = 4, 2
MODES = {"hot": {"mode": "hot"}, "failover": {"mode": "failover"}}
# Kills what carries a cut-over out, from the host's own process table.
KILL = """
import psutil, sys
for process in psutil.process_iter(["cmdline"]):
    line = process.info["cmdline"] or []
    if any(a.endswith("multimaster_restart.py") for a in line) and sys.argv[1] in line:
        process.kill()
"""


def long(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.long)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Laboratory]]:
    """Make a laboratory of which ``masters`` hosts are declared as masters."""
    with contextlib.ExitStack() as stack:

        def up(
            masters: int,
            minions: int = MINIONS,
            hosts: int = MASTERS,
            driver: str = "process",
            **declared: Any,
        ) -> Any:
            numbers = {"masters": hosts, "minions": minions, "net": NETS[driver]}
            lab = stack.enter_context(laboratory(tmp_path / "lab", driver, **numbers))
            lab.declare(masters=lab.masters(masters), **declared)
            return lab

        yield up


def apply_once(lab: Laboratory, *flags: str) -> None:
    """Apply the formula to everybody, each through a master that it answers to."""
    result = lab.command(lab.ids, "state.apply", "multimaster", *flags)
    assert not (failed := failures(result)), failed
    assert set(result) == lab.ids, "a return was lost"


def until_whole(lab: Laboratory, count: int) -> dict[str, Any]:
    """Wait until the first so many hosts are masters, and everything is as declared."""
    seen: dict[str, Any] = {}
    ids = {master["id"] for master in lab.masters(count)}
    lab.until(lab.restarted, "the end of every restart", lab.steps)

    def whole() -> bool:
        nonlocal seen
        code, seen = lab.status()
        return code == 0 and set(seen["masters"]) == ids

    lab.until(whole, f"{count} masters and all minions to be as declared", lambda: seen)
    return seen


def lists(lab: Laboratory) -> set[tuple[str, ...]]:
    """Return the lists of masters that there are on the minions."""
    told = lab.command(lab.ids, "multimaster.masters")
    assert all(one["cutover"].get("step") == "kept" for one in told.values()), told
    return {tuple(one["configured"]) for one in told.values()}


def reboot(lab: Laboratory, minion: str) -> None:
    """End a minion and whatever brings it to its new list, at once, and start it."""
    config = f"--config={lab.host(minion).config_dir}/minion"
    lab.run(minion, lab.python, "-c", KILL, config)
    lab.driver.control(lab.lab, lab.host(minion), "kill", "salt-minion")
    lab.driver.control(lab.lab, lab.host(minion), "start", "salt-minion")


@pytest.mark.parametrize(
    ("share", "mode"),
    [
        long("1/3", "failover"),
        long("1", "hot"),
        long("1", "failover"),
        long("1/3", "hot"),
        long("1/10", "hot"),
        long("1/10", "failover"),
    ],
)
def test_at_any_speed_one_apply_makes_three_four_and_three_again(
    make: Callable[..., Laboratory], share: str, mode: str
) -> None:
    # Six idle hosts take three quarters of a tenth of two cores.
    lab = make(3, 1 if share == "1/10" else MINIONS, **MODES[mode])
    with lab.slowed(share):
        for count in (3, 4, 3):
            lab.declare(masters=lab.masters(count), **MODES[mode])
            apply_once(lab)
            until_whole(lab, count)
            assert lists(lab) == {tuple(master["address"] for master in lab.masters(count))}


@pytest.mark.parametrize(
    ("late", "unit"),
    [
        ("saltm2", "salt-master"),
        long("web1", "salt-minion"),
        long("saltm1", "salt-master"),
        long("saltm3", "salt-master"),
        long("saltm1", "salt-minion"),
        long("saltm2", "salt-minion"),
        long("web2", "salt-minion"),
    ],
)
def test_a_daemon_that_is_late_to_start_holds_nobody_up_and_is_waited_for(
    make: Callable[..., Laboratory], late: str, unit: str
) -> None:
    lab = make(3, hosts=3)
    others = lab.ids - {late} if unit == "salt-minion" else lab.ids
    with lab.held(late, unit):
        apply_once(lab)
        lab.until(
            lambda: all(lab.step(name) == "kept" for name in others),
            f"all but {unit} on {late} to be there",
            lab.steps,
        )
        assert not (unit == "salt-minion" and lab.step(late) == "kept")
    until_whole(lab, 3)


@pytest.mark.docker
@pytest.mark.long
def test_far_away_and_with_losses_one_apply_is_enough(make: Callable[..., Laboratory]) -> None:
    lab = make(3, hosts=3, driver="docker")
    with lab.distant(delay="300ms", loss="2%"):
        # Or `salt` ends before the minions do.
        apply_once(lab, "--timeout=600")
        until_whole(lab, 3)


@pytest.mark.long
def test_ten_thousand_keys_are_on_every_new_master_before_it_starts(
    make: Callable[..., Laboratory],
) -> None:
    lab = make(3, hosts=3, minions=1)
    first, *new = lab.lab.masters
    pub = Path(first.master_pki_dir, "minions/web1").read_text()
    names = [f"ghost{number}" for number in range(10_000)]
    for name in names:
        Path(first.master_pki_dir, "minions", name).write_text(pub)
    apply_once(lab)
    for host in new:
        pid = daemon(lab, host.id)[0]
        found = [Path(host.master_pki_dir, "minions", name) for name in names]
        assert all(path.read_text() == pub for path in found)
        assert max(path.stat().st_mtime for path in found) < psutil.Process(pid).create_time()


def daemon(lab: Laboratory, host_id: str) -> list[Any]:
    """Return what identifies the running master of a host: its pid first."""
    told = lab.json(host_id, "salt-call", "--local", "multimaster.daemons")["local"]
    return list(told["master"])


def test_a_minion_that_is_ended_at_any_step_of_a_first_apply_gets_there(
    make: Callable[..., Laboratory],
) -> None:
    lab = make(3, hosts=3, cutover={"masters": 3})
    with lab.held("saltm3", "salt-master"):
        apply_once(lab)
        # Two of three let it in, and its daemon works on with what it has read.
        lab.until(lambda: lab.step("web1") == "proving", "web1 to prove its list", lab.steps)
        lab.until(lambda: "web1" in lab.answering("saltm1"), "web1 to work on")
        reboot(lab, "web1")
        lab.until(lambda: lab.step("web1") == "connecting", "web1 to go on", lab.steps)
        reboot(lab, "web1")
        lab.until(lambda: "web1" in lab.answering("saltm2"), "web1 to be there")
        assert lab.step("web1") == "connecting"
    until_whole(lab, 3)


class Relay:
    """A master that appears at an address: what it is sent goes to another one."""

    def __init__(self, address: str, master: str) -> None:
        self.servers = [socket.create_server((address, port)) for port in (4505, 4506)]
        for server in self.servers:
            port = server.getsockname()[1]
            threading.Thread(target=self._serve, args=(server, master, port), daemon=True).start()

    def _serve(self, server: socket.socket, master: str, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = server.accept()
                there = socket.create_connection((master, port))
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            end.close()

    def close(self) -> None:
        for server in self.servers:
            server.close()


def test_a_minion_that_went_back_moves_when_a_master_appears(
    make: Callable[..., Laboratory],
) -> None:
    lab = make(3, hosts=3, minions=1)
    apply_once(lab)
    until_whole(lab, 3)
    before = lab.command({"web1"}, "multimaster.daemons")
    nowhere = f"{lab.lab.net}.240"
    lab.declare(masters=[{"id": "saltm1", "address": nowhere}])
    (states,) = lab.command({"web1"}, "state.apply", "multimaster.minion").values()
    assert not failures({"web1": states})
    lab.until(lambda: lab.step("web1") == "back", "web1 to have its old list again", lab.steps)
    told = lab.command({"web1"}, "multimaster.masters")["web1"]
    assert told["configured"] == [master["address"] for master in lab.masters(3)]
    assert told["cutover"]["seen"][nowhere][0] == "refused"
    # The list was never tried by the daemon.
    assert lab.command({"web1"}, "multimaster.daemons") == before
    relay = Relay(nowhere, lab.host("saltm1").address)
    try:
        lab.until(lambda: lab.step("web1") == "kept", "web1 to move by itself", lab.steps)
        told = lab.command({"web1"}, "multimaster.masters")["web1"]
        assert (told["configured"], told["connected"]) == ([nowhere], [nowhere])
    finally:
        relay.close()
