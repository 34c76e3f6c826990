"""The network between a master and half of the minions drops all packets."""

from __future__ import annotations

import pytest

from lab.faults import cut_off
from lab.trial import AT_ONCE, UNNOTICED, Trial

DOCKER = [pytest.param("docker", marks=pytest.mark.docker)]


@pytest.mark.parametrize("built", DOCKER, indirect=True)
def test_minions_that_do_not_reach_a_master_are_served_by_another(trial: Trial) -> None:
    half = trial.load.minions[: len(trial.load.minions) // 2]
    rest = [minion for minion in trial.load.minions if minion not in half]
    with trial.fault(cut_off(trial.lab, trial.victim, *half)):
        masters = trial.others if trial.hot else trial.masters
        trial.answered_within(AT_ONCE if trial.hot else UNNOTICED, *masters)
        # Whoever reaches it stays.
        assert all(
            trial.victim in seen[minion]
            for at, seen in trial.load.listening
            for minion in rest
            if at > trial.began
        )
    trial.recovered()
