"""The host of a master is gone: nothing answers, and no packet says so."""

from __future__ import annotations

import pytest

from lab.faults import gone
from lab.trial import AT_ONCE, UNNOTICED, Trial

DOCKER = [pytest.param("docker", marks=pytest.mark.docker)]


@pytest.mark.parametrize("built", DOCKER, indirect=True)
def test_a_host_that_vanishes_takes_no_minion_with_it(trial: Trial) -> None:
    with trial.fault(gone(trial.lab, trial.victim)):
        trial.answered_within(AT_ONCE if trial.hot else UNNOTICED)
    trial.recovered()
