"""
What minions dial is what masters serve, with real daemons.

Ports in one role only were accepted, every state was green, and afterwards no master could command
anybody.  A change of both was told of in 36 lines as a firewall that there was not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.decisions import MASTERS
from lab.laboratory import Laboratory, applied, failures, laboratory

NET = "127.0.117"
PORTS = {"publish_port": 14505, "ret_port": 14506}
DIALLED = {"publish_port": 14505, "master_port": 14506}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with applied(directory, "process", masters=3, minions=2, net=NET) as made:
        yield made


def amend(lab: Laboratory, host: str, role: str, **options: Any) -> str:
    """Change a main file; an option that is None goes. Returns its text before."""
    path = Path(lab.host(host).config_dir, role)
    before = path.read_text()
    changed = {**yaml.safe_load(before), **options}
    path.write_text(yaml.safe_dump({k: v for k, v in changed.items() if v is not None}))
    return before


def preflight(lab: Laboratory) -> list[str]:
    """Return what speaks against deploying what is declared now."""
    deploy = ("state.orchestrate", "multimaster.orch.deploy", "test=True")
    (states,) = json.loads(lab.run("saltm1", "salt-run", *deploy, "--out=json").stdout)[
        "data"
    ].values()
    (step,) = (one for one in states.values() if one["__id__"] == "multimaster-deploy-preflight")
    return str(step["comment"]).splitlines()


@pytest.mark.parametrize(
    ("role", "config"),
    [
        ("master", PORTS),
        pytest.param("minion", DIALLED, marks=pytest.mark.long),
        pytest.param("master", {"transport": "tcp"}, marks=pytest.mark.long),
    ],
)
def test_what_is_declared_for_one_role_changes_nothing(
    lab: Laboratory, role: str, config: dict[str, Any]
) -> None:
    lab.declare(**{role: {"config": config}})
    try:
        failed = failures(lab.apply())
        refused = [line for line in failed if ": multimaster-declaration: " in line]
        assert len(refused) == len(lab.ids)
        assert all("what the masters serve" in line for line in refused)
    finally:
        lab.declare()
    lab.until_answering("saltm1")
    lab.until_connected()


@pytest.mark.parametrize(
    ("host", "role", "option"),
    [("saltm2", "master", "ret_port"), ("web1", "minion", "master_port")],
)
def test_a_port_in_a_main_file_is_refused_and_named(
    lab: Laboratory, host: str, role: str, option: str
) -> None:
    path = Path(lab.host(host).config_dir, role)
    before = amend(lab, host, role, **{option: 14506})
    try:
        (line, *_) = failures(lab.apply(host))
        assert f"{option}: {path} also sets it: {option} is 14506 there and 4506 here" in line
    finally:
        path.write_text(before)
    assert failures(lab.apply(host)) == []
    lab.until_connected()


@pytest.mark.long
def test_what_a_main_file_turns_on_is_off_in_hot_mode_and_named(lab: Laboratory) -> None:
    there = {"master_alive_interval": 5, "return_retry_tries": 9, "rejected_retry": False}
    before = amend(lab, "web1", "minion", **there)
    try:
        result = lab.apply("web1")
        assert failures(result) == []
        states = {state["__id__"]: state for state in result["web1"].values()}
        (warning,) = states["multimaster-minion-config"]["warnings"]
        assert all(option in warning for option in there)
        lab.until_settled()
        jobs = lab.json("web1", "salt-call", "schedule.list", "show_all=True", "return_yaml=False")
        assert not [name for name in jobs["local"] if name.startswith("__master_alive")]
    finally:
        Path(lab.host("web1").config_dir, "minion").write_text(before)
    lab.until_connected()


def test_changed_ports_of_running_masters_are_refused_with_the_reason(lab: Laboratory) -> None:
    lab.declare(master={"config": PORTS}, minion={"config": DIALLED})
    try:
        found = preflight(lab)
        assert found[: len(MASTERS)] == [
            f"{master}: its master runs and listens on 4505, 4506, not on 14505, 14506; to change "
            "the ports of running masters, see docs/deploy.md"
            for master in MASTERS
        ]
        assert not [line for line in found if "firewall" in line]
    finally:
        lab.declare()
    lab.until_connected()


@pytest.mark.long
def test_ports_change_in_the_documented_order(tmp_path: Path) -> None:
    """Everybody works on with the old ports until a master serves the new ones."""
    with applied(tmp_path / "lab", "process", masters=3, minions=2, net="127.0.118") as lab:
        lab.declare(master={"config": PORTS}, minion={"config": DIALLED})
        assert failures(lab.apply()) == []
        lab.until(
            lambda: set(lab.steps().values()) == {"proving"},
            "all minions to prove the new ports",
            lab.steps,
        )
        for master in MASTERS:
            done = lab.run(master, "salt-call", "--local", "service.restart", "salt-master")
            assert done.returncode == 0, done.stderr
            lab.until(
                lambda master=master: (
                    lab.step(master) == "kept"
                    and lab.host(master).address
                    in lab.json(master, "salt-call", "--local", "multimaster.masters")["local"][
                        "connected"
                    ]
                ),
                f"the minion on {master} to be with the new port of its master",
                lab.steps,
            )
        lab.until_settled()
        lab.until_answering(*MASTERS)
        lab.until_connected()


@pytest.mark.long
def test_an_ipv6_master_beside_ipv4_ones(tmp_path: Path) -> None:
    """The loopback interface has one IPv6 address, so that one master of three has it."""
    with laboratory(tmp_path / "lab", "process", masters=3, minions=1, net="127.0.119") as lab:
        masters = lab.masters(3)
        masters[1]["address"] = "::1"
        lab.declare(masters=masters)
        failed = failures(lab.apply())
        assert any("interface: got '127.0.119.100'; supported: '::'" in line for line in failed)
        # Of the loopback network, or it would have the ports of the others.
        amend(lab, "saltm2", "master", interface="::1")
        assert failures(lab.apply()) == []
        lab.until_settled()
        lab.until_answering("saltm2")
        lab.until_connected()


@pytest.mark.long
def test_a_fourth_master_is_deployed_though_pillars_are_cached(tmp_path: Path) -> None:
    """It was said to be in place already: the declaration came out of the cache."""
    cached = {"pillar_cache": True}
    with laboratory(
        tmp_path / "lab", "process", masters=4, minions=1, net="127.0.120", initial_master=cached
    ) as lab:
        lab.declare(masters=lab.masters(3), master={"config": cached})
        assert failures(lab.apply()) == []
        lab.until_settled()
        # What is cached from here on has three.
        lab.salt("saltm1", "*", "state.apply", "multimaster", "test=True")
        lab.declare(masters=lab.masters(4))
        deploy = ("state.orchestrate", "multimaster.orch.deploy")
        done = lab.run("saltm1", "salt-run", *deploy, "--out=json")
        assert done.returncode == 0, done.stdout
        _, status = lab.status()
        assert len(status["masters"]) == 4
        assert any("caches pillars" in note for note in status["notes"])
        lab.until_connected()
