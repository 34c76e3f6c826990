"""
The main story in short, told once for each driver: the tests build on each other, in this order.

``make test`` tells it; the rest of it is in test_from_one_to_many.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import testinfra

from kitchen import topology_checks as checks
from lab.docker_driver import container
from lab.laboratory import Laboratory, changed, failures, laboratory

pytestmark = pytest.mark.walk
DRIVERS = ["process", pytest.param("docker", marks=pytest.mark.docker)]
NETS = {"process": "127.0.60", "docker": "192.168.60"}
MASTERS = {"saltm1", "saltm2", "saltm3"}


@pytest.fixture(scope="module", params=DRIVERS)
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    """One master that is to become three, and one more minion; the formula is not applied."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    net = NETS[request.param]
    with laboratory(directory, request.param, masters=3, minions=1, net=net) as made:
        yield made


def test_one_master_becomes_three_by_one_apply(lab: Laboratory) -> None:
    result = lab.apply()
    assert not (failed := failures(result)), failed
    assert set(result) == lab.ids, "a return was lost"
    data = lab.until_connected()
    assert set(data["masters"]) == MASTERS
    assert set(data["minions"]) == lab.ids
    for row in data["masters"].values():
        assert (row["accepted"], row["pending"], row["denied"]) == (len(lab.ids), 0, 0)
    for master in sorted(MASTERS):
        assert lab.answering(master) == lab.ids


def test_the_first_master_kept_its_identity(lab: Laboratory) -> None:
    # Every minion trusts the key that it has known from the beginning.
    data = lab.status()[1]
    assert len({row["fingerprint"] for row in data["masters"].values()}) == 1
    pub = lab.read("saltm1", f"{lab.host('saltm1').master_pki_dir}/master.pub")
    for host in lab.lab.hosts:
        known = lab.read(host.id, f"{host.minion_pki_dir}/minion_master.pub")
        assert known.strip() == pub.strip()


@pytest.mark.parametrize("lab", [pytest.param("docker", marks=pytest.mark.docker)], indirect=True)
def test_the_topology_is_right_from_outside(lab: Laboratory) -> None:
    hosts = {
        host.id: testinfra.get_host(f"docker://{container(lab.lab, host)}")
        for host in lab.lab.hosts
    }
    declared = {master["id"]: master["address"] for master in lab.masters(3)}
    topology = checks.Topology(declared, tuple(sorted(lab.ids - set(declared))))
    checks.check_everything(hosts, topology)


def test_a_second_apply_changes_nothing_on_any_node(lab: Laboratory) -> None:
    result = lab.apply()
    assert not (failed := failures(result)), failed
    assert set(result) == lab.ids, "a return was lost"
    assert changed(result) == []


def test_a_command_is_answered_while_a_master_is_dead(lab: Laboratory) -> None:
    lab.driver.control(lab.lab, lab.host("saltm1"), "kill", "salt-master")
    try:
        assert lab.answering("saltm2") == lab.ids
        code, data = lab.status("saltm2")
        assert code == 1
        assert any("master saltm1" in problem for problem in data["problems"])
    finally:
        lab.driver.control(lab.lab, lab.host("saltm1"), "start", "salt-master")
    lab.until_connected()


def test_no_private_key_is_anywhere_but_in_the_pki_directories(lab: Laboratory) -> None:
    lab.assert_no_key_outside_pki()
