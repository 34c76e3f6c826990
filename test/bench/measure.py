"""What the benchmarks share: a row is one comparison, made side by side in one run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lab.model import REPOSITORY


class Row(NamedTuple):
    """Some work against other work; ``bound`` is what the ratio may be, None if it is only told."""

    work: str
    value: float
    against: str
    other: float
    bound: float | None = None


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds that an action takes."""
    started = time.monotonic()
    action()
    return time.monotonic() - started


def percentile(values: list[float], share: float) -> float:
    """Return the value that a share of the values does not exceed."""
    return sorted(values)[math.ceil(len(values) * share) - 1]


def report(rows: Iterable[Row]) -> list[str]:
    """Print one line for each comparison; return those that miss their bound."""
    missed = []
    print(f"\n{'WORK':<66}{'':>8}  {'AGAINST':<46}{'':>8}{'RATIO':>8}{'BOUND':>7}")
    for row in rows:
        ratio = row.value / row.other
        limit = "-" if row.bound is None else f"{row.bound:.2f}"
        print(
            f"{row.work:<66}{row.value:>8.2f}  {row.against:<46}{row.other:>8.2f}"
            f"{ratio:>8.2f}{limit:>7}"
        )
        if row.bound is not None and ratio > row.bound:
            missed.append(row.work)
    for work in missed:
        print(f"MISSED: {work}")
    return missed


def save(name: str, data: Any) -> None:
    """Write the figures as JSON in .bench/."""
    results = REPOSITORY / ".bench"
    results.mkdir(exist_ok=True)
    path = results / f"{time.strftime('%Y%m%dT%H%M%S')}-{name}.json"
    path.write_text(json.dumps(data, indent=2) + "\n")
    print(f"written to {path.relative_to(REPOSITORY)}")
