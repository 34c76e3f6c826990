"""A master is slow: a fifth of a processor is left to it."""

from __future__ import annotations

import time

from lab.faults import starved
from lab.trial import AT_ONCE, UNNOTICED, Trial
from lab.wait import until


def test_a_slow_master_is_not_left_by_all_its_minions_at_once(trial: Trial) -> None:
    with trial.fault(starved(trial.lab, trial.victim)):
        # Longer than a master that does not answer at all would be tolerated.
        enough = trial.began + 2 * UNNOTICED
        until(lambda: time.time() > enough, 3 * UNNOTICED, "two times the patience of a minion")
        masters = trial.others if trial.hot else trial.masters
        trial.answered_within(AT_ONCE if trial.hot else UNNOTICED, *masters)
        looks = [seen for at, seen in trial.load.listening if at > trial.began]
        assert all(any(trial.victim in masters for masters in seen.values()) for seen in looks)
    trial.recovered()
