"""What the formula's states are, for every kind of node, before any of them is applied."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

FORMULA = Path(__file__).parents[2] / "salt/multimaster"
TOPOLOGIES = sorted(path.stem for path in Path(__file__).parent.glob("topologies/*.yaml"))
SLS = sorted(path.stem for path in FORMULA.glob("*.sls"))
MASTER, MINION = "saltm1", "web1"

every_topology = pytest.mark.parametrize("topology", TOPOLOGIES)
every_family = pytest.mark.parametrize("family", ["Debian", "RedHat"])
every_role = pytest.mark.parametrize("node", [MASTER, MINION], ids=["master", "minion"])


def name_of(sls: str) -> str:
    return "multimaster" if sls == "init" else f"multimaster.{sls}"


@every_topology
@every_family
@every_role
@pytest.mark.parametrize("sls", SLS)
class TestEverySls:
    @pytest.fixture
    def states(self, compiled, topology, family, node, sls):
        return compiled(topology, family, node, name_of(sls))

    def test_compiles(self, states):
        assert states.errors == []
        assert states.chunks

    def test_has_unique_kebab_case_ids_with_the_formulas_prefix(self, states):
        for state_id in states.ids():
            assert re.fullmatch(r"multimaster(-[a-z]+)+", state_id)
        identities = [(chunk["__id__"], chunk["name"]) for chunk in states.chunks]
        assert len(identities) == len(set(identities))

    def test_requires_the_checked_declaration_for_every_state(self, states, sls):
        # To be cleaned a node needs no declaration any more, but the modules.
        first = "multimaster-modules" if sls in ("clean", "modules") else "multimaster-declaration"
        exempt = {"multimaster-modules", first}
        for state_id in set(states.ids()) - exempt:
            assert first in states.required(state_id), state_id

    def test_shows_nothing_of_the_key_pair(self, states):
        assert "KEY-MATERIAL" not in json.dumps(states.chunks)
        for chunk in states.chunks:
            assert "keypair" not in chunk.get("declaration", {})


@every_topology
@every_family
@every_role
def test_every_state_exists_and_has_its_arguments(compiler, compiled, topology, family, node):
    from render.conftest import Node, read_topology

    with compiler.runtime(Node(read_topology(topology), node, family)) as runtime:
        for sls in ("multimaster", "multimaster.clean"):
            for chunk in compiled(topology, family, node, sls).chunks:
                assert runtime.state.verify_data(chunk) == []
