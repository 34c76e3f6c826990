"""The suites: `python suites.py SUITE` prints the number of each of its steps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml


def suites() -> dict[str, Any]:
    """Return what ``suites.yml`` says."""
    return yaml.safe_load(Path(__file__).with_name("suites.yml").read_text())


def main(suite: str) -> None:
    """Print the steps of the suite, or say which suites there are."""
    there = suites()["suites"]
    if suite not in there:
        sys.exit(f"got suite {suite!r}; supported: {', '.join(there)}")
    print(*range(1, len(there[suite]) + 1))


if __name__ == "__main__":
    main(sys.argv[1])
