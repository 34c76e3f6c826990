"""The suites: `python suites.py SUITE` prints the number of each of its steps."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import yaml


def suites() -> dict[str, Any]:
    """Return what ``suites.yml`` says, with the content of what it names for a declaration."""
    here = Path(__file__)
    made = yaml.safe_load(here.with_name("suites.yml").read_text())
    for step in itertools.chain.from_iterable(made["suites"].values()):
        if isinstance(named := step["declared"], str):
            text = (here.parents[2] / named).read_text()
            step["declared"] = yaml.safe_load(text)["multimaster"]
    return made


def main(suite: str) -> None:
    """Print the steps of the suite, or say which suites there are."""
    there = suites()["suites"]
    if suite not in there:
        sys.exit(f"got suite {suite!r}; supported: {', '.join(there)}")
    print(*range(1, len(there[suite]) + 1))


if __name__ == "__main__":
    main(sys.argv[1])
