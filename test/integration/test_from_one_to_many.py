"""The main story in full; test_walk.py has it in short. The tests build on each other in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from integration.cleaned import assert_no_master, until_one_master
from lab.laboratory import PATIENCE, Laboratory, changed, failures, laboratory
from lab.wait import until

NET = "127.0.61"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Four hosts that can be masters, of which three are declared, and two more minions."""
    hosts = [("saltm1", 10), ("saltm2", 100), ("saltm3", 101)]
    declared = [{"id": name, "address": f"{NET}.{number}"} for name, number in hosts]
    directory = tmp_path_factory.mktemp("lab")
    with laboratory(
        directory / "lab",
        "process",
        masters=4,
        minions=2,
        net=NET,
        pillar={"multimaster": {"masters": declared}},
    ) as made:
        yield made
        # What a test has left is there still, and all events and arguments since the beginning.
        made.assert_no_key_outside_pki()


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
    assert set(lab.until_connected()["minions"]) == lab.ids


@pytest.mark.long
def test_a_highstate_changes_nothing(lab: Laboratory) -> None:
    result = lab.salt("saltm2", "*", "state.highstate")
    assert not failures(result)
    assert changed(result) == []


def test_a_pillar_on_the_command_line_gives_no_power(lab: Laboratory) -> None:
    root = lab.host("web1").root
    text = f"x\n\nevil:\n  file.touch:\n    - name: {root}/evil\n"
    said = {"mode": "failover", "config_dir": text, "minion": {"service": text, "config": {"x": 1}}}
    given = json.dumps({"multimaster": {**said, "keypair": {"pem": "x", "pub": "x"}}})
    result = lab.apply("*", "saltm2", f"pillar={given}")
    assert not failures(result)
    assert changed(result) == []
    for states in result.values():
        (warned,) = (s["warnings"] for s in states.values() if s["__id__"].endswith("-declaration"))
        assert warned[-1].endswith("ignored: config_dir, keypair, minion, mode")
    assert lab.run("web1", "test", "-e", f"{root}/evil").returncode == 1


def test_a_minion_tells_its_masters(lab: Laboratory) -> None:
    addresses = [master["address"] for master in lab.masters(3)]
    answer = lab.salt("saltm3", "web1", "multimaster.masters")["web1"]
    assert (answer["configured"], answer["connected"]) == (addresses, addresses)
    assert (answer["silent"], answer["verifies"]) == ([], False)


def test_an_event_of_salt_call_is_on_each_masters_bus_once(lab: Laboratory) -> None:
    addresses = [master["address"] for master in lab.masters(3)]
    assert salt_call(lab, "multimaster.up") == addresses
    for tag in ("site/done", "site/over"):
        sent = salt_call(lab, "multimaster.event_send", tag, "{seconds: 12}")
        assert sent == dict.fromkeys(addresses, True)
    for name in ("saltm1", "saltm2", "saltm3"):
        # The second one comes after all that there is of the first.
        until(lambda name=name: seen(lab, name, "site/over"), PATIENCE, f"the event on {name}")
        (line,) = seen(lab, name, "site/done")
        assert "'seconds': 12" in line


def salt_call(lab: Laboratory, *argv: str) -> Any:
    """Return what a function returns on web1, without its daemon."""
    return lab.json("web1", "salt-call", "--local", *argv)["local"]


def seen(lab: Laboratory, master: str, tag: str) -> list[str]:
    """Return the events with a tag that a master's bus has had."""
    return [line for line in lab.events(master).splitlines() if tag in line]


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
    # Before the fourth is cleaned.
    lab.assert_no_key_outside_pki()


def test_a_master_that_leaves_is_cleaned_and_a_minion_gets_its_one_master_back(
    lab: Laboratory,
) -> None:
    lab.declare(masters=lab.masters(3))
    result = lab.salt("saltm1", "saltm4,web2", "state.apply", "multimaster.clean")
    assert not failures(result)
    assert_no_master(lab, "saltm4")
    for minion in ("web2", "saltm4"):
        until_one_master(lab, minion)


def _python(lab: Laboratory, host_id: str, code: str, sealed: str, claimed: str) -> Any:
    host = lab.host(host_id)
    job = {
        "config": f"{host.config_dir}/minion",
        "key": f"{host.minion_pki_dir}/minion.pem",
        "sealed": sealed,
        "id": claimed,
    }
    return lab.run(host_id, lab.python, "-c", code, input=json.dumps(job))
