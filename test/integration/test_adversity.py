"""Key decisions while the network is cut, a master killed, its disk full, its clock wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.cleaned import assert_no_master, until_one_master
from lab.decisions import MASTERS, decide, state, until_all_say, wait_for_key, wait_for_keys
from lab.keys import make_pair
from lab.laboratory import PATIENCE, Laboratory, applied, failures
from lab.wait import until

pytestmark = pytest.mark.docker
NET = "192.168.65"
HOUR = 3600
# The master's clock an hour ahead; what measures durations stays right.
AHEAD = f"""[Service]
Environment=LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1
Environment=FAKETIME=+{HOUR} FAKETIME_DONT_FAKE_MONOTONIC=1
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three masters, with the formula applied."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with applied(directory, "docker", masters=3, minions=0, net=NET) as made:
        yield made


def accepted(lab: Laboratory, master: str) -> set[str]:
    """Return the ids whose keys a master has accepted."""
    return set(lab.run(master, "ls", f"{lab.host(master).master_pki_dir}/minions").stdout.split())


def until_equal(lab: Laboratory, expected: set[str], *masters: str) -> None:
    """Wait until these masters have accepted these keys, and no other."""
    for master in masters:
        until(
            lambda master=master: accepted(lab, master) == expected,
            PATIENCE,
            f"{len(expected)} accepted keys on {master}",
            interval=1,
        )


def until_one_ledger(lab: Laboratory) -> None:
    """Wait until the ledgers of all masters say the same."""

    def same() -> bool:
        digests = [row.get("digest") for row in lab.status()[1]["masters"].values()]
        return None not in digests and len(set(digests)) == 1

    until(same, PATIENCE, "equal ledgers", interval=1)


def test_of_opposite_decisions_on_both_sides_of_a_cut_the_later_holds(lab: Laboratory) -> None:
    wait_for_key(lab, "cut-off", make_pair()[1], MASTERS)
    for other in ("saltm1", "saltm3"):
        lab.driver.cut(lab.lab, lab.host("saltm2"), lab.host(other))
    decide(lab, "saltm1", "accept", "cut-off")
    until_all_say(lab, "cut-off", "accepted", "saltm1", "saltm3")
    assert state(lab, "saltm2", "cut-off") == "pending"
    decide(lab, "saltm2", "reject", "cut-off")
    lab.driver.heal(lab.lab)
    until_all_say(lab, "cut-off", "rejected")


def test_a_master_killed_amid_many_decisions_loses_none_and_makes_up_none(lab: Laboratory) -> None:
    names = {f"burst-{number}" for number in range(300)}
    expected = accepted(lab, "saltm1") | names
    wait_for_keys(lab, names)
    command = threading.Thread(target=lab.run, args=("saltm1", "salt-key", "--yes", "-A"))
    command.start()
    until(lambda: len(accepted(lab, "saltm3") & names) > 0, PATIENCE, "the first key", interval=0.1)
    lab.driver.control(lab.lab, lab.host("saltm3"), "kill", "salt-master")
    command.join(PATIENCE)
    until_equal(lab, expected, "saltm1", "saltm2")
    lab.driver.control(lab.lab, lab.host("saltm3"), "start", "salt-master")
    until_equal(lab, expected, "saltm3")
    until_one_ledger(lab)


@pytest.mark.long
def test_a_clock_that_is_an_hour_ahead_does_not_make_a_decision_the_later_one(
    lab: Laboratory,
) -> None:
    wait_for_key(lab, "ahead", make_pair()[1], MASTERS)
    drop_in = "/etc/systemd/system/salt-master.service.d/ahead.conf"
    with lab.stopped("saltm2", "salt-master"):
        lab.run("saltm2", "mkdir", "-p", str(Path(drop_in).parent))
        lab.run("saltm2", "tee", drop_in, input=AHEAD)
        lab.run("saltm2", "systemctl", "daemon-reload")
    until_one_ledger(lab)
    decide(lab, "saltm2", "accept", "ahead")
    until_all_say(lab, "ahead", "accepted")
    decide(lab, "saltm1", "reject", "ahead")
    until_all_say(lab, "ahead", "rejected")
    with lab.stopped("saltm2", "salt-master"):
        lab.run("saltm2", "rm", drop_in)
        lab.run("saltm2", "systemctl", "daemon-reload")
    until_one_ledger(lab)
    decide(lab, "saltm2", "accept", "ahead")
    until_all_say(lab, "ahead", "accepted")
    history = lab.salt("saltm1", "saltm3", "multimaster.key_history", "ahead")["saltm3"]
    assert [entry["verdict"] for entry in history] == ["accepted", "rejected", "accepted"]
    first = history[0]["decided"] / 1000
    assert first > time.time() + HOUR / 2
    assert all(entry["decided"] / 1000 >= first for entry in history)


def test_a_full_disk_delays_a_decision_and_loses_none(lab: Laboratory) -> None:
    host = lab.host("saltm3")
    directory = Path(host.master_cache_dir, "multimaster")
    log = f"{host.log_dir}/master"
    with lab.stopped("saltm3", "salt-master"):
        # A disk of its own, with all that is there already.
        script = 'cp -a "$1" "$1.kept" && mount -t tmpfs -o size=2m,mode=0750 tmpfs "$1" &&'
        script += ' chown --reference="$1.kept" "$1" && cp -a "$1.kept"/. "$1"'
        done = lab.run("saltm3", "sh", "-c", script, "sh", str(directory))
        assert done.returncode == 0, done.stderr
    until_one_ledger(lab)
    fill = lab.run("saltm3", "sh", "-c", f"cat /dev/zero > {directory}/filler")
    assert "No space left" in fill.stderr
    names = {f"full-{number}" for number in range(500)}
    expected = accepted(lab, "saltm1") | names
    wait_for_keys(lab, names)
    assert lab.run("saltm1", "salt-key", "--yes", "-A").returncode == 0
    until_equal(lab, expected, "saltm1", "saltm2")
    until(lambda: "Cannot replicate keys" in lab.read("saltm3", log), PATIENCE, "an error, logged")
    assert names - accepted(lab, "saltm3")
    assert lab.run("saltm3", "rm", f"{directory}/filler").returncode == 0
    until_equal(lab, expected, "saltm3")
    until_one_ledger(lab)


@pytest.mark.long
def test_a_master_that_leaves_is_cleaned(lab: Laboratory) -> None:
    lab.declare(masters=[master for master in lab.masters(3) if master["id"] != "saltm2"])
    result = lab.salt("saltm1", "saltm2", "state.apply", "multimaster.clean")
    assert not (failed := failures(result)), failed
    assert_no_master(lab, "saltm2")
    until_one_master(lab, "saltm2")
