"""Waits of the laboratory end on no progress."""

from __future__ import annotations

from itertools import chain, count, repeat

import pytest

from lab import wait
from lab.model import LabError
from lab.wait import until


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only waiting moves; the first item is its time in seconds."""
    now = [0.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

        @staticmethod
        def sleep(seconds: float) -> None:
            now[0] += seconds

    monkeypatch.setattr(wait, "time", Clock)
    return now


def test_a_wait_goes_on_while_something_changes(clock: list[float]) -> None:
    arrived = count(1)
    assert until(lambda: next(arrived) == 15, 2, "all to arrive", 1, lambda: clock[0] // 2)
    assert clock[0] > 2


def test_a_wait_without_progress_names_what_was_seen_last(clock: list[float]) -> None:
    with pytest.raises(LabError, match=r"waited 9 s for web1, .* 9 s .*; seen last: \['web1'\]"):
        until(lambda: False, 9, "web1", 1, lambda: ["web1"])
    assert clock[0] == 9


def test_another_result_of_the_condition_is_progress(clock: list[float]) -> None:
    results = chain([None, None, 0, 0, ""], repeat(False))
    with pytest.raises(LabError, match="last 3 s without progress; seen last: False"):
        until(lambda: next(results), 3, "anything", 1)
    assert clock[0] == 8


def test_a_wait_that_never_gets_there_has_an_end(clock: list[float]) -> None:
    ticks = count()
    with pytest.raises(LabError, match="waited 30 s for the end"):
        until(lambda: False, 3, "the end", 1, lambda: next(ticks))
