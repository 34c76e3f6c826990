"""Waiting for a named condition: ends on no progress, never after a guessed time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from lab.model import LabError

log = logging.getLogger(__name__)

T = TypeVar("T")
# A wait ends after so many times its patience even if something keeps changing.
ENOUGH = 10


def until(
    condition: Callable[[], T],
    patience: float,
    what: str,
    interval: float = 0.2,
    seen: Callable[[], object] | None = None,
) -> T:
    """Call ``condition`` until its result is true, and return that result.

    :param patience: seconds without progress; the condition is tried at least once.
    :param what: the condition in words; it completes "waited for ...".
    :param interval: seconds between two tries; as many as the last one took, where that is more,
        or the tries would keep the machine from what they wait for.
    :param seen: what is observed, after each try; by default the condition's last result. That it
        is another one than before is progress.
    :raises LabError: after ``patience`` seconds without progress, and after ten times that in any
        case, naming ``what`` and what was seen last.
    """
    began = changed = time.monotonic()
    last: object = None
    while True:
        tried = time.monotonic()
        result = condition()
        if result:
            return result
        now = time.monotonic()
        latest = seen() if seen else result
        if latest != last:
            last, changed = latest, now
            log.info("%.0f s for %s: %r", now - began, what, latest)
        left = min(changed + patience, began + ENOUGH * patience) - now
        if left <= 0:
            raise LabError(
                f"waited {now - began:.0f} s for {what}, the last {now - changed:.0f} s without "
                f"progress; seen last: {latest!r}"
            )
        time.sleep(min(max(interval, now - tried), left))
