"""Fixtures of the checks over Kitchen's instances; ``kitchen verify`` names the instance."""

from __future__ import annotations

import json
import os

import pytest
import testinfra
from testinfra.host import Host

pytest.register_assert_rewrite("kitchen.topology_checks")

from kitchen import topology_checks as checks  # noqa: E402
from kitchen.topology_checks import Topology  # noqa: E402


@pytest.fixture(scope="session")
def declared() -> dict:
    """What kitchen.yml declares; without it, testinfra would check the machine we are on."""
    if "KITCHEN_TOPOLOGY" not in os.environ:
        pytest.fail("no KITCHEN_TOPOLOGY: these tests run in `kitchen verify` (make kitchen)")
    return json.loads(os.environ["KITCHEN_TOPOLOGY"])


@pytest.fixture(scope="session")
def topology(declared: dict) -> Topology:
    """The declared masters and minions."""
    names = ("masters", "minions", "former", "declared")
    return Topology.of(*(declared[name] for name in names))


@pytest.fixture(scope="session")
def masters(declared: dict) -> dict[str, Host]:
    """All masters, by id, whichever instance is being verified; every host has to be there."""
    containers = declared["containers"]
    hosts = [*declared["masters"], *declared["minions"]]
    if missing := checks.not_running(f"{containers}-{host}" for host in hosts):
        pytest.exit(
            f"not running: {', '.join(missing)}. The checks need all hosts at once, which"
            " `kitchen test` never has: run `make kitchen`, or `kitchen create`,"
            " `kitchen converge` and `kitchen verify`, each for all instances",
            returncode=1,
        )
    return {
        master: testinfra.get_host(f"docker://{containers}-{master}")
        for master in declared["masters"]
    }


@pytest.fixture(scope="session", autouse=True)
def decided(topology: Topology, masters: dict[str, Host]) -> None:
    """Be the operator whom the masters wait for: every declared minion's key is accepted."""
    for master in masters.values():
        checks.accept_everyone(master, topology)


@pytest.fixture
def host_id(declared: dict) -> str:
    """The minion id of the instance being verified."""
    return declared["id"]
