"""
Who is where, and what a master knows of them, with real daemons.

A master said of minions that answered it that they were nowhere, and left them out of ``salt -G``;
a connection to a database was taken for one to a master; beacons did not run, and nobody said so.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.decisions import MASTERS, decide, state, until_all_say
from lab.laboratory import Laboratory, applied

pytestmark = pytest.mark.long

NET = "127.0.99"
WEBS = ("web1", "web2", "web3")
FAILOVER = {"mode": "failover", "failover": {"master_alive_interval": 1}}
MASTER, MINION = "salt-master", "salt-minion"
# A beacon of a site's own that keeps a connection, as a log handler or a returner does.
HOLD = """
import socket
HELD = []
def validate(config):
    return True, ""
def beacon(config):
    if not HELD:
        (to,) = [part["to"] for part in config if "to" in part]
        HELD.append(socket.create_connection(tuple(to)))
    return []
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three masters, whose own minions are hot, and three minions that have one at a time."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    declared = {"multimaster": FAILOVER}
    with applied(directory, "process", masters=3, minions=3, net=NET, pillar=declared) as made:
        yield made


@pytest.fixture(autouse=True)
def _together(lab: Laboratory) -> None:
    """Begin with all minions on the first master, and nothing wrong."""
    lab.until_settled()
    lab.bring_together()
    lab.until_connected()


def rows(lab: Laboratory, master: str) -> dict[str, list[str]]:
    """Return the masters that each of the minions is connected to, as a master's status says."""
    _, data = lab.status(master)
    minions = data.get("minions", {})
    return {
        name: [m for m, there in minions[name]["connected"].items() if there]
        for name in WEBS
        if name in minions
    }


def by_grain(lab: Laboratory, master: str, minion: str) -> bool:
    """Tell whether a minion answers a command for those that have a grain, its id."""
    argv = ("salt", "-G", f"id:{minion}", "--static", "--out=json", "test.ping")
    with contextlib.suppress(ValueError):
        return bool(json.loads(lab.run(master, *argv).stdout) == {minion: True})
    return False


def home(lab: Laboratory, minion: str) -> str | None:
    """Return the first master that a minion answers to."""
    return next((m for m in MASTERS if lab.answering(m, minion)), None)


def until_by_grain(lab: Laboratory, minions: tuple[str, ...] = WEBS) -> None:
    """Wait until the master of each minion finds it by a grain."""

    def missing() -> list[str]:
        return [
            name
            for name in minions
            if (master := home(lab, name)) is None or not by_grain(lab, master, name)
        ]

    lab.until(lambda: not missing(), f"{', '.join(minions)} to be found by a grain", missing)


def configure(lab: Laboratory, host: str, **options: Any) -> Path:
    """Give a minion options of a site's own, and restart it; return where they are."""
    path = Path(lab.host(host).config_dir, "minion.d", "site.conf")
    path.write_text(yaml.safe_dump(options))
    return path


def restart(lab: Laboratory, host: str) -> None:
    with lab.stopped(host, MINION):
        pass


def test_who_has_moved_is_seen_and_found_though_the_host_of_its_master_is_dead(
    lab: Laboratory,
) -> None:
    """It was on no master, as the new one had no grains of it, and waited for the dead host."""
    with lab.stopped("saltm1", MASTER), lab.stopped("saltm1", MINION):
        lab.until(
            lambda: all(home(lab, name) for name in WEBS),
            "the minions to answer elsewhere",
            lambda: {name: home(lab, name) for name in WEBS},
        )
        for master in ("saltm2", "saltm3"):
            lab.until(
                lambda master=master: all(rows(lab, master).get(name) for name in WEBS),
                f"{master} to see who is connected",
                lambda master=master: rows(lab, master),
            )
            _, data = lab.status(master)
            assert not [line for line in data["problems"] if line.startswith("minion web")]
        until_by_grain(lab)
    lab.until_connected()


def test_a_key_that_was_deleted_and_accepted_again_brings_the_grains_back(lab: Laboratory) -> None:
    decide(lab, "saltm1", "delete", "web1")

    def waiting() -> list[str]:
        return [master for master in MASTERS if state(lab, master, "web1") == "pending"]

    # It asks again by itself, and may be accepted where it does.
    lab.until(waiting, "web1 to ask again", lambda: {m: state(lab, m, "web1") for m in MASTERS})
    decide(lab, waiting()[0], "accept", "web1")
    until_all_say(lab, "web1", "accepted")
    until_by_grain(lab, ("web1",))
    lab.until_connected()


def test_another_connection_to_a_masters_host_is_no_connection_to_the_master(
    lab: Laboratory,
) -> None:
    """The engine did not see that the master was lost, and told of moves that there were not."""
    address = lab.host("saltm1").address
    module = Path(lab.host("web1").minion_cache_dir, "extmods", "beacons", "hold.py")
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text(HOLD)

    def moves() -> int:
        """Count those that the masters which stay were told of."""
        tag = "multimaster/minion/web1/moved"
        return sum(lab.events(master).count(tag) for master in ("saltm2", "saltm3"))

    # Its backlog takes more connections than there will be.
    with socket.create_server((address, 0)) as server:
        to = [address, server.getsockname()[1]]
        drop_in = configure(lab, "web1", beacons={"hold": [{"to": to}, {"interval": 1}]})
        try:
            restart(lab, "web1")
            lab.until_answering("saltm1")
            server.settimeout(lab.lab.patience)
            held, _ = server.accept()
            before = moves()
            with held:
                with lab.stopped("saltm1", MASTER):
                    lab.until(lambda: home(lab, "web1"), "web1 to answer elsewhere")
                    there = [home(lab, "web1")]
                    lab.until(
                        lambda: rows(lab, "saltm2")["web1"] == there,
                        f"web1 to be on {there} and nowhere else",
                        lambda: rows(lab, "saltm2"),
                    )
                    until_by_grain(lab)
                lab.until_answering()
                assert rows(lab, "saltm2")["web1"] == there
                assert moves() <= before + 1
        finally:
            drop_in.unlink()
            module.unlink()
            restart(lab, "web1")
    lab.until_connected()


@pytest.mark.parametrize("early", [False, True], ids=["as ever", "before a connection"])
def test_beacons_that_wait_for_the_first_master_are_named(lab: Laboratory, early: bool) -> None:
    """saltm3's own minion is hot: Salt runs its beacons with its connection to the first master."""
    beacon = {"status": [{"loadavg": ["all"]}, {"interval": 1}]}
    drop_in = configure(lab, "saltm3", beacons=beacon, beacons_before_connect=early)
    tag = "salt/beacon/saltm3/status/"
    line = f"minion saltm3 runs no beacons until it has been with {lab.host('saltm1').address}"

    def count() -> int:
        return lab.events("saltm2").count(tag)

    def named() -> list[str]:
        return [found for found in lab.status("saltm2")[1]["problems"] if line in found]

    try:
        with lab.stopped("saltm1", MASTER):
            restart(lab, "saltm3")
            before = count()
            lab.until(
                lambda: "saltm3" in lab.answering("saltm2", "saltm3"), "saltm3 to be with saltm2"
            )
            if early:
                lab.until(lambda: count() > before, "beacons without the first master", count)
                assert not named()
            else:
                lab.until(named, "the status to name what waits", lambda: lab.status("saltm2")[1])
                assert count() == before
        lab.until(lambda: count() > before, "beacons with the first master", count)
        lab.until(lambda: not named(), "nothing to wait for", named)
    finally:
        drop_in.unlink()
        restart(lab, "saltm3")
    lab.until_connected()
