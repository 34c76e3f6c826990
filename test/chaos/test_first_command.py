"""A master is restarted: its minions are there again as soon as it is ready."""

from __future__ import annotations

import pytest

from lab.faults import down
from lab.trial import AT_ONCE, RECONNECTION, Trial


@pytest.mark.parametrize("mode", ["hot"], indirect=True)
def test_the_first_command_after_a_master_is_back_is_answered(trial: Trial) -> None:
    with trial.fault(down(trial.lab, "stop", trial.victim)):
        trial.answered_within(AT_ONCE)
    trial.recovered()
    ready = trial.load.taken(trial.victim, trial.ended)
    assert ready is not None
    missing = [*trial.account.lost, *trial.account.silent]
    assert not [job for job in missing if job.at >= ready]
    answered = trial.load.answered(ready, trial.victim)
    assert answered is not None
    assert answered <= RECONNECTION + trial.load.interval
