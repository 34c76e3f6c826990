"""The table of times in docs/how-it-works.md, and the constants in seconds that the code has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
SALT = CHECKOUT / "salt"
# Under a comment that speaks of seconds, too: numbers of things, of bytes, or rates.
OTHERS = {
    "_engines/multimaster.py": {"AT_ONCE"},
    "_engines/multimaster_minion.py": {"AT_ONCE", "MOST"},
    "_engines/multimaster_roots.py": {"SHARE"},
    "_modules/multimaster_orch.py": {"MIB"},
    "_runners/multimaster_orch.py": {"ALIKE"},
    "_utils/multimaster_topology.py": {
        "COMEBACKS_PER_SECOND",
        "QUESTIONS_PER_SECOND",
        "TIMES_SLOWER",
    },
    "_utils/multimaster_trees.py": {"_FRESH"},
}


def numbers(node):
    """Return the names that an assignment gives to plain numbers."""
    if not isinstance(node, ast.Assign):
        return []
    (target,) = node.targets
    targets = target.elts if isinstance(target, ast.Tuple) else [target]
    values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
    plain = all(
        isinstance(part, (ast.Constant, ast.operator, ast.BinOp))
        and not isinstance(getattr(part, "value", 0), (str, bool, bytes, type(None)))
        for value in values
        for part in ast.walk(value)
    )
    names = [one.id for one in targets if isinstance(one, ast.Name)]
    return names if plain and len(values) == len(names) else []


def comment(lines, number):
    """Return the comment above a line, with the assignments between left out."""
    above = []
    for line in reversed(lines[: number - 1]):
        if not line.strip() or (above and not line.startswith("#")):
            break
        if line.startswith("#"):
            above.insert(0, line)
    return " ".join(above)


def in_the_code():
    found = {}
    for path in sorted(SALT.rglob("*.py")):
        text = path.read_text()
        name = str(path.relative_to(SALT))
        for node in ast.parse(text).body:
            if re.search(r"\bseconds?\b", comment(text.splitlines(), node.lineno), re.IGNORECASE):
                names = set(numbers(node)) - OTHERS.get(name, set())
                found.setdefault(name, set()).update(names)
    return {name: names for name, names in found.items() if names}


def in_the_table():
    text = (CHECKOUT / "docs/how-it-works.md").read_text()
    section = text.partition("\n## Times\n")[2].partition("\n## ")[0]
    found, name = {}, ""
    for row in section.splitlines():
        if row.startswith("| `") or row.startswith("| | `"):
            where, constants = (cell.strip() for cell in row.split("|")[1:3])
            name = where.strip("`") or name
            found.setdefault(name, set()).update(re.findall(r"`(\w+)`", constants))
    return found


def test_every_constant_in_seconds_is_in_the_table_and_no_other():
    assert in_the_table() == in_the_code()


def test_the_code_has_some():
    assert "POLL" in in_the_code()["_utils/multimaster_cutover.py"]
    assert all(names <= set(_all(name)) for name, names in OTHERS.items())


def _all(name):
    for node in ast.parse((SALT / name).read_text()).body:
        yield from numbers(node)


def test_nobody_sleeps_or_waits_for_a_number_that_has_no_name():
    bare = []
    for path in sorted(SALT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = getattr(node.func, "attr", getattr(node.func, "id", ""))
                given = [k.value for k in node.keywords if k.arg in ("timeout", "wait")]
                given += node.args[:1] if function in ("sleep", "wait") else []
                bare += [
                    f"{path.name}:{node.lineno}"
                    for value in given
                    if isinstance(value, ast.Constant)
                    and not isinstance(value.value, bool)
                    and value.value
                ]
    assert bare == []
