"""Bounded waiting: poll a named condition, never sleep for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lab.model import LabError

T = TypeVar("T")


def until(condition: Callable[[], T], timeout: float, what: str, interval: float = 0.2) -> T:
    """Call ``condition`` until its result is true, and return that result.

    :param timeout: seconds; the condition is tried at least once, whatever the value.
    :param what: the condition in words; it completes "waited N s for ...".
    :param interval: seconds between two tries.
    :raises LabError: when the time is over, naming ``what`` and the last result.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        left = deadline - time.monotonic()
        if left <= 0:
            raise LabError(f"waited {timeout:g} s for {what}; last result: {result!r}")
        time.sleep(min(interval, left))
