"""Texts that want to be more than text, and a harmless word to compare them with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HARMLESS = "harmless"
# Arguments at every depth, a state, and a template, for whoever leaves the place of a value.
MORE = (
    "\n    - unless: id\n      - onlyif: id\n        - creates: id\n          - fun: cmd.run\n"
    "\n\nmultimaster-evil:\n  cmd.run:\n    - name: {{ salt['cmd.run']('id') }}\n"
)
HOSTILE = {
    "after a word": f"x{MORE}",
    "after quotes": f"x'{MORE}'",
    "after double quotes": f'x"]}}{MORE}"',
    "a tag and punctuation": "!!python/object/apply:os.system [{{ 1 / 0 }}, *b, &c {% raw %} #d: ",
}


def substituted(value: Any, text: str) -> Any:
    """Put a text in the place of the harmless word, wherever that is."""
    if isinstance(value, Mapping):
        return {substituted(k, text): substituted(one, text) for k, one in value.items()}
    if isinstance(value, list | tuple):
        return [substituted(one, text) for one in value]
    return value.replace(HARMLESS, text) if isinstance(value, str) else value
