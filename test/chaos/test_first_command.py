"""A master is restarted: its minions are there again as soon as it is ready."""

from __future__ import annotations

import pytest

from lab.faults import down
from lab.trial import AT_ONCE, RECONNECTION, RECOVERY, Trial
from lab.wait import until


@pytest.mark.parametrize("mode", ["hot"], indirect=True)
def test_the_first_command_after_a_master_is_back_is_answered(trial: Trial) -> None:
    with trial.fault(down(trial.lab, "stop", trial.victim)):
        trial.answered_within(AT_ONCE)
    what = f"{trial.victim} to take a command"
    ready = until(lambda: trial.load.taken(trial.victim, trial.ended), RECOVERY, what)
    assert ready is not None
    # While the load goes on: the command that was taken first was given before.
    answered = trial.load.until_answered(ready, RECOVERY, trial.victim)
    assert answered <= RECONNECTION + trial.load.interval
    trial.recovered()
    missing = [*trial.account.lost, *trial.account.silent]
    assert not [job for job in missing if job.at >= ready]
