"""A master hangs with all its connections open (SIGSTOP)."""

from __future__ import annotations

from lab.faults import down
from lab.trial import AT_ONCE, UNNOTICED, Trial


def test_a_frozen_master_holds_no_minion(trial: Trial) -> None:
    with trial.fault(down(trial.lab, "freeze", trial.victim)):
        trial.answered_within(AT_ONCE if trial.hot else UNNOTICED)
    trial.recovered()
