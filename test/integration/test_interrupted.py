"""What a failure in the middle of an apply leaves is completed by the next one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lab.laboratory import PATIENCE, Laboratory, changed, failures, laboratory
from lab.wait import until

DRIVERS = [
    "process",
    pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.long]),
]
NETS = {"process": "127.0.59", "docker": "192.168.59"}


@pytest.fixture(params=DRIVERS)
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    """Two hosts to be masters, and one minion."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    net = NETS[request.param]
    with laboratory(directory, request.param, masters=2, minions=1, net=net) as made:
        yield made


def test_a_master_killed_during_the_apply_is_made_good_by_the_next(lab: Laboratory) -> None:
    second = lab.host("saltm2")
    started = threading.Thread(
        target=lab.run,
        args=("saltm1", "salt", "--async", "*", "state.apply", "multimaster"),
    )
    started.start()
    # The new master has the key pair and no configuration yet, or has just been started.
    pem = f"{second.master_pki_dir}/saltm2.pem"
    until(lambda: lab.run("saltm2", "test", "-e", pem).returncode == 0, PATIENCE, "the key pair")
    lab.driver.control(lab.lab, lab.host("saltm1"), "kill", "salt-master")
    lab.driver.control(lab.lab, second, "kill", "salt-minion")
    started.join(PATIENCE)
    lab.driver.control(lab.lab, lab.host("saltm1"), "start", "salt-master")
    lab.driver.control(lab.lab, second, "start", "salt-minion")
    # A minion that is about to stop still takes a job, and takes it with it. The first master's own
    # restart waits for the second, to which no apply has come yet.
    lab.until_idle("saltm1")
    assert not failures(lab.apply())
    lab.until_connected()
    until(lambda: changed(lab.apply()) == [], PATIENCE, "an apply that changes nothing")
    lab.assert_no_key_outside_pki()
