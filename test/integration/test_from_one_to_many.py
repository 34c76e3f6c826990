"""The main story, told once for each driver: the tests build on each other, in this order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import testinfra

from kitchen import topology_checks as checks
from lab.docker_driver import container
from lab.laboratory import PATIENCE, Laboratory, changed, failures, laboratory
from lab.wait import until

DRIVERS = ["process", pytest.param("docker", marks=pytest.mark.docker)]
NETS = {"process": "127.0.61", "docker": "192.168.61"}


@pytest.fixture(scope="module", params=DRIVERS)
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    """Four hosts that can be masters, of which three are declared, and two more minions."""
    driver = request.param
    net = NETS[driver]
    hosts = [("saltm1", 10), ("saltm2", 100), ("saltm3", 101)]
    declared = [{"id": name, "address": f"{net}.{number}"} for name, number in hosts]
    directory = tmp_path_factory.mktemp("lab")
    with laboratory(
        directory / "lab",
        driver,
        masters=4,
        minions=2,
        net=net,
        pillar={"multimaster": {"masters": declared}},
    ) as made:
        yield made


@pytest.fixture(autouse=True)
def no_key_leaks(lab: Laboratory) -> Iterator[None]:
    """After every test, the private key is nowhere but in the masters' pki directories."""
    yield
    lab.assert_no_key_outside_pki()


def test_a_first_run_in_test_mode_predicts_and_changes_nothing(lab: Laboratory) -> None:
    result = lab.apply("*", "saltm1", "test=True")
    assert not failures(result)
    assert "saltm2:multimaster-keypair" in changed(result)
    assert "web1:multimaster-minion-config" in changed(result)
    for host in lab.lab.hosts:
        for role in ("minion", "master"):
            path = f"{host.config_dir}/{role}.d/multimaster.conf"
            assert lab.run(host.id, "test", "-e", path).returncode == 1
    assert lab.run("saltm2", "test", "-e", lab.host("saltm2").master_pki_dir).returncode == 1


def test_an_invalid_declaration_is_refused_by_every_node_and_changes_nothing(
    lab: Laboratory,
) -> None:
    lab.declare(masters=lab.masters(3), mode="failsafe")
    try:
        result = lab.apply()
    finally:
        lab.declare(masters=lab.masters(3))
    for states in result.values():
        comments = [state["comment"] for state in states.values()]
        assert any("got 'failsafe'; supported: hot, failover" in text for text in comments)
    kinds = ("modules", "states", "utils", "engines")
    synced = {f"multimaster-{kind}" for kind in kinds}
    assert {entry.partition(":")[2] for entry in changed(result)} <= synced


def test_one_master_becomes_three_while_a_minion_is_away(lab: Laboratory) -> None:
    with lab.stopped("web2", "salt-minion"):
        present = ",".join(sorted(lab.ids - {"web2"}))
        result = lab.apply(present)
        assert not failures(result)
        assert set(result) == lab.ids - {"web2"}, "a return was lost"
        assert "saltm3:multimaster-keypair" in changed(result)


def test_the_minion_that_was_away_is_served_by_the_next_apply(lab: Laboratory) -> None:
    # Back since the end of the test before, with its one master.
    until(lambda: "web2" in lab.answering("saltm1"), PATIENCE, "web2 to be back", interval=1)
    result = lab.apply("web2")
    assert not failures(result)
    assert "web2:multimaster-minion-config" in changed(result)


def test_every_minion_answers_on_every_master_and_no_key_waits(lab: Laboratory) -> None:
    data = lab.until_connected()
    assert set(data["masters"]) == {"saltm1", "saltm2", "saltm3"}
    assert set(data["minions"]) == lab.ids
    for row in data["masters"].values():
        assert (row["accepted"], row["pending"], row["denied"]) == (len(lab.ids), 0, 0)
    for master in ("saltm1", "saltm2", "saltm3"):
        assert lab.answering(master) == lab.ids


def test_the_first_master_kept_its_identity(lab: Laboratory) -> None:
    # Every minion trusts the key that it has known from the beginning.
    data = lab.status()[1]
    assert len({row["fingerprint"] for row in data["masters"].values()}) == 1
    for host in lab.lab.hosts:
        known = lab.read(host.id, f"{host.minion_pki_dir}/minion_master.pub")
        assert known.strip() == lab.read("saltm1", f"{_pki(lab)}/master.pub").strip()


@pytest.mark.parametrize("lab", [pytest.param("docker", marks=pytest.mark.docker)], indirect=True)
def test_the_topology_is_right_from_outside(lab: Laboratory) -> None:
    hosts = {
        host.id: testinfra.get_host(f"docker://{container(lab.lab, host)}")
        for host in lab.lab.hosts
    }
    declared = {master["id"]: master["address"] for master in lab.masters(3)}
    topology = checks.Topology(declared, tuple(sorted(lab.ids - set(declared))))
    masters = {name: hosts[name] for name in declared}
    checks.check_same_key(masters)
    for name, master in masters.items():
        checks.check_unit(master, "salt-master")
        checks.check_listening(master, declared[name])
        checks.check_key_files(master, name)
        checks.check_everyone_answers(master, topology)
        checks.check_no_key_waits(master, topology)
    for host in hosts.values():
        checks.check_unit(host, "salt-minion")
        checks.check_masters_of_minion(host, topology)
        checks.check_minion_trusts(host, masters)
        checks.check_private_keys_only_in_pki(host)
    for name in topology.minions:
        checks.check_holds_no_master_key(hosts[name])


def test_a_second_apply_changes_nothing_on_any_node(lab: Laboratory) -> None:
    result = lab.apply()
    assert not failures(result)
    assert changed(result) == []


def test_a_highstate_changes_nothing_either(lab: Laboratory) -> None:
    result = lab.salt("saltm2", "*", "state.highstate")
    assert not failures(result)
    assert changed(result) == []


def test_a_minion_tells_its_masters(lab: Laboratory) -> None:
    addresses = [master["address"] for master in lab.masters(3)]
    answer = lab.salt("saltm3", "web1", "multimaster.masters")["web1"]
    assert (answer["configured"], answer["connected"]) == (addresses, addresses)
    assert (answer["silent"], answer["verifies"]) == ([], False)


def test_a_plain_minion_cannot_obtain_the_key_pair(lab: Laboratory) -> None:
    pillar = lab.json("web1", "salt-call", "pillar.items")["local"]
    assert "keypair" not in pillar["multimaster"]
    forged = lab.json(
        "web1", "salt-call", "pillar.items", 'pillar={"id": "saltm2"}', "pillarenv=base"
    )["local"]
    assert "keypair" not in forged["multimaster"]
    for function in ("multimaster.ledger_pull", "multimaster.report", "cmd.run"):
        argv = ["salt-call", "publish.publish", "saltm1", function, "web1,x"]
        assert not lab.json("web1", *argv)["local"]
    assert lab.json("web1", "salt-call", "mine.get", "*", "multimaster.report")["local"] in ({}, "")
    listed = lab.json("web1", "salt-call", "cp.list_master")["local"]
    assert not [path for path in listed if path.endswith((".pem", ".pub"))]
    refused = lab.run("web1", "salt-call", "multimaster.ledger_pull", "web1", "nonce")
    assert "no master's key pair on web1" in refused.stdout + refused.stderr


def test_a_bundle_that_is_stolen_from_pillar_does_not_open_elsewhere(lab: Laboratory) -> None:
    shown = lab.json("saltm1", "salt-run", "pillar.show_pillar", "saltm2")
    sealed = shown["multimaster"]["keypair"]["sealed"]
    given = json.dumps({"multimaster": {"keypair": {"sealed": sealed}}})
    for thief in ("web1", "saltm3"):
        done = lab.run(
            thief, "salt-call", "--local", "multimaster.install_keypair", "test=True",
            f"pillar={given}",
        )  # fmt: skip
        assert done.returncode != 0
    code = (
        "import json, sys, salt.config, salt.loader\n"
        "job = json.load(sys.stdin)\n"
        "opts = salt.config.minion_config(job['config'])\n"
        "opts['grains'] = {}\n"
        "pem = open(job['key']).read()\n"
        "open_bundle = salt.loader.utils(opts)['multimaster_keypair.open_bundle']\n"
        "print(open_bundle(job['sealed'], job['id'], pem).pub)\n"
    )
    assert "PUBLIC KEY" in _python(lab, "saltm2", code, sealed, "saltm2").stdout
    for host_id, claimed in (("saltm2", "saltm3"), ("web1", "saltm2"), ("web1", "web1")):
        refused = _python(lab, host_id, code, sealed, claimed)
        assert refused.returncode != 0
        assert "does not open" in refused.stderr


def test_three_masters_become_four_by_one_line_of_pillar(lab: Laboratory) -> None:
    lab.declare(masters=lab.masters(4))
    result = lab.apply()
    assert not failures(result)
    assert "saltm4:multimaster-keypair" in changed(result)
    # The masters that were there restart for the new list, after this job.
    lab.until_settled("saltm1")
    for host in lab.lab.masters:
        lab.until_answering(host.id)
    assert set(lab.until_connected()["masters"]) == {"saltm1", "saltm2", "saltm3", "saltm4"}


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


def test_a_master_that_leaves_is_cleaned_and_a_minion_gets_its_one_master_back(
    lab: Laboratory,
) -> None:
    lab.declare(masters=lab.masters(3))
    result = lab.salt("saltm1", "saltm4,web2", "state.apply", "multimaster.clean")
    assert not failures(result)
    host = lab.host("saltm4")
    assert not lab.json("saltm4", "salt-call", "--local", "service.status", "salt-master")["local"]
    left = lab.run("saltm4", "find", host.master_pki_dir, "-maxdepth", "1", "-name", "*.pem")
    assert left.stdout == ""
    backups = lab.run("saltm4", "find", host.master_pki_dir, "-name", "saltm4.pem").stdout
    assert backups.count("multimaster-backup-") == 1
    drop_in = f"{host.config_dir}/master.d/multimaster.conf"
    assert lab.run("saltm4", "test", "-e", drop_in).returncode == 1
    first = lab.host("saltm1").address

    def masters_of(minion: str) -> Any:
        told = lab.salt("saltm1", minion, "multimaster.masters").get(minion)
        return isinstance(told, dict) and (told["configured"], told["connected"])

    _until_equal(lambda: masters_of("web2"), ([first], [first]))
    _until_equal(lambda: masters_of("saltm4"), ([first], [first]))


def _pki(lab: Laboratory) -> str:
    return lab.host("saltm1").master_pki_dir


def _python(lab: Laboratory, host_id: str, code: str, sealed: str, claimed: str) -> Any:
    host = lab.host(host_id)
    job = {
        "config": f"{host.config_dir}/minion",
        "key": f"{host.minion_pki_dir}/minion.pem",
        "sealed": sealed,
        "id": claimed,
    }
    return lab.run(host_id, lab.python, "-c", code, input=json.dumps(job))


def _until_equal(observe: Any, expected: Any) -> None:
    until(lambda: observe() == expected, PATIENCE, f"{expected}", interval=1)
