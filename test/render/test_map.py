"""
What ``map.jinja`` makes of each topology, compared with files that were looked at once.

After a wanted change: ``UPDATE_GOLDEN=1 .venv/bin/pytest test/render/test_map.py``, then read the
difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from render.compiler import Node, read_topology

HERE = Path(__file__).parent
TOPOLOGIES = sorted(path.stem for path in HERE.glob("topologies/*.yaml"))
FAMILIES = ["Debian", "RedHat"]
HEADER = "# Written by test_map.py; not by hand.\n# yamllint disable\n"


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_is_as_it_was(compiler, topology, family):
    found = compiler.map(Node(read_topology(topology), family=family))
    golden = HERE / f"golden/{topology}-{family}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(HEADER + yaml.safe_dump(found))
    assert found == yaml.safe_load(golden.read_text())


def test_every_golden_file_has_its_topology():
    expected = {f"{topology}-{family}.yaml" for topology in TOPOLOGIES for family in FAMILIES}
    assert {path.name for path in HERE.glob("golden/*")} == expected


def test_the_key_pair_is_not_in_the_map(compiler):
    found = compiler.map(Node(read_topology("three")))
    assert "keypair" not in found["multimaster"]
    assert "KEY-MATERIAL" not in repr(found)


def test_an_unknown_family_gets_the_settings_of_debian(compiler):
    unknown = compiler.map(Node(read_topology("three"), family="Plan9"))
    assert unknown == compiler.map(Node(read_topology("three"), family="Debian"))


def test_settings_of_the_pillar_win_over_those_of_the_family(compiler):
    pillar = read_topology("repository")
    pillar["multimaster"]["install"]["repository"] = {"name": "mine"}
    found = compiler.map(Node(pillar, family="RedHat"))
    assert found["repository"]["name"] == "mine"
    # The others stay.
    assert found["repository"]["gpgcheck"] == 1


def test_defaults_alone_are_a_map_without_masters(compiler):
    found = compiler.map(Node({"other": 1}))
    assert found["master_ids"] == []
    assert found["multimaster"]["mode"] == "hot"
