"""The disk of a master is full."""

from __future__ import annotations

import pytest

from lab.faults import full, own_disk
from lab.trial import AT_ONCE, UNNOTICED, Trial

DOCKER = [pytest.param("docker", marks=pytest.mark.docker)]


@pytest.mark.parametrize("built", DOCKER, indirect=True)
def test_a_master_whose_disk_is_full_stops_no_command_through_the_others(trial: Trial) -> None:
    cache = trial.lab.host(trial.victim).master_cache_dir
    with own_disk(trial.lab, trial.victim, cache, "64m"):
        trial.lab.until_connected(trial.others[0])
        with trial.fault(full(trial.lab, trial.victim, cache)):
            trial.answered_within(AT_ONCE if trial.hot else UNNOTICED, *trial.others)
        trial.lab.until_connected(trial.others[0])
    trial.recovered()
