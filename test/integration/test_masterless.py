"""
Hosts whose minions have never met a master converge without one, in Test Kitchen's way.

``salt-call`` has a configuration of its own, and the key pair comes in plain pillar, which leaves
the host afterwards.  The tests build on each other, in this order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import testinfra
from testinfra.host import Host

from kitchen import topology_checks as checks
from lab import cli, keys
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


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
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
def pair() -> dict[str, str]:
    """The masters' key pair."""
    pem, pub = keys.make_pair()
    return {"pem": pem, "pub": pub}


@pytest.fixture(scope="module")
def topology(lab: Laboratory) -> checks.Topology:
    """What is declared."""
    masters = {master.id: master.address for master in lab.lab.masters}
    return checks.Topology(masters, tuple(sorted(lab.ids - set(masters))))


@pytest.fixture(scope="module")
def hosts(lab: Laboratory) -> dict[str, Host]:
    """The hosts, by id, as testinfra sees them."""
    return {
        host.id: testinfra.get_host(f"docker://{container(lab.lab, host)}")
        for host in lab.lab.hosts
    }


def converge(lab: Laboratory, name: str, topology: checks.Topology, pair: dict[str, str]) -> list:
    """Upload and apply, as kitchen-salt does; return what was changed."""
    masters = [{"id": master, "address": at} for master, at in topology.masters.items()]
    declared = {"mode": "hot", "masters": masters}
    declared |= {"config_dir": "/etc/salt", "extension_dir": "/var/lib/multimaster"}
    pillar = {"topology": {"multimaster": declared}, "top": {"base": {"*": ["topology"]}}}
    if name in topology.masters:
        pillar["keypair"] = {"multimaster": {"keypair": pair}}
        pillar["top"]["base"]["*"].append("keypair")
    options = {"id": name, "root_dir": KITCHEN, "file_client": "local"}
    options |= {"file_roots": {"base": [f"{FILES}/0"]}}
    options |= {"pillar_roots": {"base": [f"{KITCHEN}/srv/pillar"]}}
    files = {f"srv/pillar/{file}.sls": content for file, content in pillar.items()}
    for path, content in {"etc/salt/minion": options, **files}.items():
        script = 'mkdir -p "$(dirname "$1")" && cat > "$1"'
        argv = ["sh", "-c", script, "sh", f"{KITCHEN}/{path}"]
        assert lab.run(name, *argv, input=json.dumps(content)).returncode == 0
    try:
        call = ["salt-call", f"--config-dir={KITCHEN}/etc/salt", "state.apply", "multimaster"]
        result = {name: lab.json(name, *call)["local"]}
    finally:
        lab.run(name, "rm", "-rf", f"{KITCHEN}/srv/pillar")
    assert not (failed := failures(result)), failed
    return changed(result)


def test_a_minion_may_come_before_its_masters_and_these_at_once(lab, topology, pair):
    for name in topology.minions:
        assert f"{name}:multimaster-minion-keypair" in converge(lab, name, topology, pair)
    with ThreadPoolExecutor() as pool:
        done = [pool.submit(converge, lab, name, topology, pair) for name in topology.masters]
        changes = [one for each in done for one in each.result()]
    for name in topology.masters:
        assert f"{name}:multimaster-minion-keypair" in changes


def test_every_minion_has_one_identity_on_all_masters(lab, topology, hosts):
    for name in topology.masters:
        checks.accept_everyone(hosts[name], topology)
    checks.check_everything(hosts, topology)
    for host in lab.lab.hosts:
        own = lab.read(host.id, f"{host.minion_pki_dir}/minion.pub").strip()
        for master in lab.lab.masters:
            known = lab.read(master.id, f"{master.master_pki_dir}/minions/{host.id}").strip()
            assert known == own, f"{master.id} knows another {host.id}"


def test_a_second_converge_changes_nothing(lab, topology, pair):
    for name in sorted(lab.ids):
        assert converge(lab, name, topology, pair) == []
