"""
What stands in a declaration is data: no text in it becomes a state, an argument or a template.

Each is rendered with a harmless word in all its places and with a hostile text there.  What comes
out has to be the same but for that text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from render.compiler import CHECKOUT, Node, States, read_topology
from render.hostile import HARMLESS, HOSTILE, substituted

# Between them they have every state.
TOPOLOGIES = {"config": "Debian", "git": "Debian", "repository": "RedHat"}
# They decide which states there are, by what they are equal to.
DECIDING = [
    ("install", "method"),
    ("install", "add_repository"),
    ("masters", 0, "id"),
    ("roots", "git", "provider"),
]
NAMES = [
    "multimaster",
    "multimaster.master",
    "multimaster.clean",
    "multimaster.orch.deploy",
    "multimaster.orch.restart",
]
DROP_IN = "etc/salt/master.d/multimaster.conf"
MADE_BY_US = "var/cache/salt/master/multimaster/keypair-installed"


def replaced(value: Any, text: str, kept: list[tuple[Any, ...]], at: tuple[Any, ...] = ()) -> Any:
    """Put a text in the place of every scalar, but for those in places that are kept."""
    if isinstance(value, Mapping):
        return {key: replaced(one, text, kept, (*at, key)) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, text, kept, (*at, place)) for place, one in enumerate(value)]
    return value if at in kept else text


def merged(first: Any, second: Any) -> Any:
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return second
    return {**first, **{key: merged(first.get(key), value) for key, value in second.items()}}


def declared(compiler, topology: str, family: str, text: str, kept: list[Any]) -> dict[str, Any]:
    """Return a declaration with a text in all its places, those that have a default among them."""
    defaults = compiler.map(Node({"other": 1}, family=family))["multimaster"]
    declaration = merged(defaults, read_topology(topology)["multimaster"])
    declaration = replaced(declaration, text, kept)
    # Names are text, too.
    declaration["master"]["config"] = {text: {text: [text]}}
    declaration["install"]["repository"][text] = text
    return declaration


def unnumbered(states: States) -> list[dict[str, Any]]:
    """Return chunks in their order, without the numbers, which a runtime counts on and on."""
    return [{k: v for k, v in chunk.items() if k != "order"} for chunk in states.chunks]


def compiled(compiler, topology: str, text: str, kept: list[Any]) -> dict[str, States]:
    family = TOPOLOGIES[topology]
    pillar = {"multimaster": declared(compiler, topology, family, text, kept)}
    # A master, to be cleaned: it has the most states.
    with compiler.files(DROP_IN, MADE_BY_US):
        return compiler.compile_all(Node(pillar, family=family), NAMES)


@pytest.mark.parametrize("kept", [DECIDING, []], ids=["but for what decides", "everywhere"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_text_in_the_declaration_becomes_more_than_text(compiler, topology, kept):
    harmless = compiled(compiler, topology, HARMLESS, kept)
    assert all(HARMLESS in repr(harmless[name].chunks) for name in NAMES)
    for kind, text in HOSTILE.items():
        for name, states in compiled(compiler, topology, text, kept).items():
            assert states.errors == harmless[name].errors == [], (kind, name)
            expected = substituted(unnumbered(harmless[name]), text)
            assert unnumbered(states) == expected, (kind, name)


EXPRESSION = re.compile(r"{{(.*?)}}", re.DOTALL)
# Out of a list of words in the file itself.
OWN_WORDS = {"kind", "loop.previtem"}


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "salt/multimaster").rglob("*.sls")), ids=lambda p: p.stem
)
def test_every_value_in_a_state_file_goes_through_json(path: Path):
    values = {expression.strip() for expression in EXPRESSION.findall(path.read_text())}
    assert [value for value in values - OWN_WORDS if not value.endswith("| json")] == []
