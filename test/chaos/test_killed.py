"""A master is killed (SIGKILL)."""

from __future__ import annotations

from lab.faults import down
from lab.trial import AT_ONCE, NOTICED, Trial


def test_the_next_command_after_a_kill_is_answered_through_another_master(trial: Trial) -> None:
    with trial.fault(down(trial.lab, "kill", trial.victim)):
        trial.answered_within(AT_ONCE if trial.hot else NOTICED)
    trial.recovered()
