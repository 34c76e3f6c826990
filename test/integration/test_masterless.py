"""
Hosts whose minions have never met a master converge without one, in Test Kitchen's way.

``salt-call`` has a configuration of its own, and the key pair comes in plain pillar, which leaves
the host afterwards.  The suites are Kitchen's.  The tests build on each other, in this order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from kitchen import topology_checks as checks
from kitchen.keypair import pillars
from kitchen.suites import suites
from lab import cli
from lab.docker_driver import FILES, container
from lab.laboratory import Laboratory, changed, failures

pytestmark = pytest.mark.docker
KITCHEN = "/tmp/kitchen"
# As a package leaves a host, and Kitchen's init_environment.
FRESH = """
rm -f /etc/salt/minion /etc/salt/master
hostname > /etc/salt/minion_id
systemctl --quiet enable --now salt-minion
"""


SUITES = suites()["suites"]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name == "hot" else pytest.mark.long) for name in SUITES],
)
def steps(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The steps of a suite."""
    return SUITES[request.param]


@pytest.fixture(scope="module")
def lab(
    steps: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    """Four hosts, each with a minion that looks for a master that is not there."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    try:
        made = Laboratory(cli.up(directory, "docker", 3, 1, net="192.168.61", fresh=True))
        for name in made.ids:
            assert made.run(name, "sh", "-c", FRESH).returncode == 0
        yield made
    finally:
        if (directory / "lab.json").exists():
            cli.down(directory)


@pytest.fixture(scope="module")
def converge(lab: Laboratory) -> Callable[[str, dict[str, Any]], list[str]]:
    """Upload and apply on a host, as kitchen-salt does; return what was changed."""
    keys = pillars()

    def converge(name: str, step: dict[str, Any]) -> list[str]:
        keypair = keys["masters" if name in step["masters"] else "minions"]
        masters = [{"id": one, "address": lab.host(one).address} for one in step["masters"]]
        declared = {**step["declared"], "masters": masters}
        declared |= {"config_dir": "/etc/salt", "extension_dir": "/var/lib/multimaster"}
        pillar = {"topology": {"multimaster": declared}, "keypair": keypair}
        pillar["top"] = {"base": {"*": ["topology", "keypair"]}}
        options = {"id": name, "root_dir": KITCHEN, "file_client": "local"}
        options |= {"file_roots": {"base": [f"{FILES}/0"]}}
        options |= {"pillar_roots": {"base": [f"{KITCHEN}/srv/pillar"]}}
        files = {f"srv/pillar/{file}.sls": content for file, content in pillar.items()}
        for path, content in {"etc/salt/minion": options, **files}.items():
            script = 'mkdir -p "$(dirname "$1")" && cat > "$1"'
            argv = ["sh", "-c", script, "sh", f"{KITCHEN}/{path}"]
            assert lab.run(name, *argv, input=json.dumps(content)).returncode == 0
        states = step.get("states", {}).get(name, "multimaster")
        try:
            call = ["salt-call", f"--config-dir={KITCHEN}/etc/salt", "state.apply", states]
            result = {name: lab.json(name, *call)["local"]}
        finally:
            lab.run(name, "rm", "-rf", f"{KITCHEN}/srv/pillar")
        assert not (failed := failures(result)), failed
        return changed(result)

    return converge


@pytest.fixture(scope="module")
def hosts(lab: Laboratory) -> dict[str, Host]:
    """The hosts, by id, as testinfra sees them."""
    return {
        host.id: testinfra.get_host(f"docker://{container(lab.lab, host)}")
        for host in lab.lab.hosts
    }


def declared(lab: Laboratory, steps: list[dict[str, Any]], number: int) -> checks.Topology:
    """Return what a step declares."""
    step = steps[number]
    return checks.Topology.of(
        masters={one: lab.host(one).address for one in step["masters"]},
        minions=sorted(lab.ids.difference(step["masters"])),
        former=set(steps[0]["masters"]).difference(step["masters"]),
        declared=step["declared"],
    )


def test_a_minion_may_come_before_its_masters_and_these_at_once(lab, steps, converge):
    topology = declared(lab, steps, 0)
    for name in topology.minions:
        assert f"{name}:multimaster-minion-keypair" in converge(name, steps[0])
    with ThreadPoolExecutor() as pool:
        done = [pool.submit(converge, name, steps[0]) for name in topology.masters]
        changes = [one for each in done for one in each.result()]
    for name in topology.masters:
        assert f"{name}:multimaster-minion-keypair" in changes


def test_every_minion_has_one_identity_on_all_masters(lab, steps, hosts):
    topology = declared(lab, steps, 0)
    for name in topology.masters:
        checks.accept_everyone(hosts[name], topology)
    checks.check_everything(hosts, topology)
    for host in lab.lab.hosts:
        own = lab.read(host.id, f"{host.minion_pki_dir}/minion.pub").strip()
        for master in lab.lab.masters:
            known = lab.read(master.id, f"{master.master_pki_dir}/minions/{host.id}").strip()
            assert known == own, f"{master.id} knows another {host.id}"


def test_after_its_last_step_all_is_as_declared(lab, steps, converge, hosts):
    for step in steps[1:]:
        for name in sorted(lab.ids):
            converge(name, step)
    # What there is after the first one has been looked at.
    if len(steps) > 1:
        checks.check_everything(hosts, declared(lab, steps, -1))


def test_a_second_converge_changes_nothing(lab, steps, converge):
    for name in sorted(lab.ids):
        assert converge(name, steps[-1]) == []
