"""The documented reactors, rendered by Salt's own: nothing in an event becomes an action."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from render.compiler import CHECKOUT, Compiler
from render.hostile import HARMLESS, HOSTILE, substituted

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
BLOCKS = [block for page in PAGES for _, block in BLOCK.findall(page.read_text())]
# Each says where it belongs.
REACTORS = {
    found[1]: block
    for block in BLOCKS
    if (found := re.match(r"# /srv/reactor/(\w+)\.sls\n", block))
}
EVERY_HOSTILE = HOSTILE | {
    "a reaction": 'x"\n\nevil:\n  local.cmd.run:\n    - tgt: "*"\n    - arg: [id]\n    # ',
}
# What our events have, and Salt's; whether there is an action may hang on ``clean``.
FIELDS = ("count", "new", "differences", "over", "id", "origin", "message", "master", "act")


@pytest.fixture(scope="module")
def reactions(tmp_path_factory: pytest.TempPathFactory, compiler: Compiler) -> Callable[..., Any]:
    """Return what Salt's reactor would do for an event, of which anybody may be the sender."""
    import salt.config
    import salt.utils.reactor

    compiler.forget()
    root = tmp_path_factory.mktemp("reactor")
    (root / "master").write_text(f"root_dir: {root}\nid: saltm1\nuser: root\n")
    reactor = salt.utils.reactor.Reactor(salt.config.master_config(str(root / "master")))

    def reactions(name: str, value: Any, clean: Any) -> Any:
        path = Path(root, f"{name}.sls")
        path.write_text(REACTORS[name])
        data = dict.fromkeys(FIELDS, value) | {"clean": clean}
        return reactor.reactions(f"multimaster/{value}", {**data, "data": data}, [str(path)])

    return reactions


def test_there_are_some():
    assert REACTORS


@pytest.mark.parametrize("name", REACTORS)
@pytest.mark.parametrize("kind", EVERY_HOSTILE)
@pytest.mark.parametrize("clean", [True, False])
def test_nothing_in_an_event_becomes_an_action(reactions, name, kind, clean):
    harmless = reactions(name, HARMLESS, clean)
    assert harmless
    text = EVERY_HOSTILE[kind]
    assert reactions(name, text, clean) == substituted(harmless, text)


@pytest.mark.parametrize("name", REACTORS)
@pytest.mark.parametrize("value", [None, [], {}, 10**400, "", ["x"]], ids=lambda v: repr(v)[:9])
def test_nor_does_what_is_no_text(reactions, name, value):
    expected = [(chunk["state"], chunk["fun"]) for chunk in reactions(name, HARMLESS, HARMLESS)]
    found = [(chunk["state"], chunk["fun"]) for chunk in reactions(name, value, value)]
    assert found == expected


def test_no_other_example_renders_an_event():
    for block in set(BLOCKS) - set(REACTORS.values()):
        assert not re.search(r"{[{%][^}]*\b(data|tag)\b", block), block
