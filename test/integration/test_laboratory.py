"""What the laboratory does to its hosts, for each driver: slow, held, and far away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.laboratory import Laboratory, laboratory

DRIVERS = ["process", pytest.param("docker", marks=pytest.mark.docker)]
NETS = {"process": "127.0.69", "docker": "192.168.69"}
# In Docker with ``make test-long``.
USUAL = [*DRIVERS[:1], pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.long])]
BUSY = """
import time
over = time.monotonic() + 4
while time.monotonic() < over:
    pass
print(time.process_time() / 4)
"""


@pytest.fixture(scope="module", params=DRIVERS)
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    """A master and a minion."""
    driver = request.param
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with laboratory(directory, driver, masters=1, minions=1, net=NETS[driver]) as made:
        yield made


def reached(lab: Laboratory, host: str) -> float:
    """Return the share of a processor that a busy process on a host has had."""
    return float(lab.run(host, lab.python, "-c", BUSY).stdout)


def test_slow_hosts_have_their_share_and_still_answer(lab: Laboratory) -> None:
    with lab.slowed("1/5"):
        assert 0 < reached(lab, "web1") < 0.25
        lab.until_answering("saltm1")
    lab.until_answering("saltm1")


@pytest.mark.parametrize("lab", USUAL, indirect=True)
def test_a_frozen_daemon_stays_frozen_while_its_host_is_slow(lab: Laboratory) -> None:
    web1 = lab.host("web1")
    lab.driver.control(lab.lab, web1, "freeze", "salt-minion")
    try:
        with lab.slowed("1/2"):
            assert lab.answering("saltm1") == {"saltm1"}
        assert lab.answering("saltm1") == {"saltm1"}
    finally:
        lab.driver.control(lab.lab, web1, "thaw", "salt-minion")
    lab.until_answering("saltm1")


@pytest.mark.parametrize("lab", USUAL, indirect=True)
def test_a_held_daemon_is_starting_until_it_is_released(lab: Laboratory) -> None:
    with lab.held("web1", "salt-minion"):
        # One that runs is left alone.
        assert lab.answering("saltm1") == lab.ids
        with lab.stopped("web1", "salt-minion"):
            pass
        assert state(lab) in ("RUNNING", "activating")
        assert lab.answering("saltm1") == {"saltm1"}
        assert lab.driver.subscribed(lab.lab, lab.host("web1")) == set()
    lab.until_answering("saltm1")
    assert state(lab) in ("RUNNING", "active")


@pytest.mark.parametrize("lab", USUAL, indirect=True)
def test_a_held_daemon_can_be_stopped(lab: Laboratory) -> None:
    with lab.held("web1", "salt-minion"):
        with lab.stopped("web1", "salt-minion"):
            pass
        with lab.stopped("web1", "salt-minion"):
            assert state(lab) in ("STOPPED", "inactive", "failed")
    lab.until_answering("saltm1")


# The process driver's hosts share one interface.
@pytest.mark.parametrize("lab", [pytest.param("docker", marks=pytest.mark.docker)], indirect=True)
def test_what_is_far_away_answers_later(lab: Laboratory) -> None:
    connect = (
        "import socket, sys, time; began = time.monotonic();"
        "socket.create_connection((sys.argv[1], 4506)); print(time.monotonic() - began)"
    )

    def took() -> float:
        argv = [lab.python, "-c", connect, lab.host("saltm1").address]
        return float(lab.run("web1", *argv).stdout)

    with lab.distant("web1", delay="300ms"):
        assert took() >= 0.3
    lab.until(lambda: took() < 0.3, "web1 to be near again")
    with lab.distant(delay="300ms", loss="2%"):
        assert took() >= 0.6
        lab.until_answering("saltm1")


def state(lab: Laboratory) -> str:
    """Return what the init of web1 says of its minion."""
    return str(lab.driver._state(lab.lab, lab.host("web1"), "salt-minion"))
