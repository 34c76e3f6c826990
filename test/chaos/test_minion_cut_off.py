"""A minion is cut off from all masters, and comes back."""

from __future__ import annotations

import time

import pytest

from lab.faults import cut_off
from lab.trial import UNNOTICED, Trial
from lab.wait import until

DOCKER = [pytest.param("docker", marks=pytest.mark.docker)]


@pytest.mark.parametrize("built", DOCKER, indirect=True)
def test_a_minion_that_was_cut_off_is_there_again(trial: Trial) -> None:
    minion = trial.load.minions[0]
    with trial.fault(cut_off(trial.lab, minion, *trial.masters), *trial.masters):
        until(lambda: time.time() > trial.began + 2 * UNNOTICED, 60, "it to notice")
    trial.recovered()
