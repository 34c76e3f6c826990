"""A master is stopped as it should be."""

from __future__ import annotations

from lab.faults import down
from lab.trial import AT_ONCE, NOTICED, Trial


def test_a_master_that_is_stopped_hands_over_to_the_others(trial: Trial) -> None:
    with trial.fault(down(trial.lab, "stop", trial.victim)):
        trial.answered_within(AT_ONCE if trial.hot else NOTICED)
    trial.recovered()
