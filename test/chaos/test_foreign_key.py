"""A master comes back with the key pair of an old backup."""

from __future__ import annotations

import time

from lab.faults import foreign_pair
from lab.laboratory import failures
from lab.trial import AT_ONCE, NOTICED, Trial


def test_a_master_with_another_key_pair_is_refused_and_can_be_repaired(trial: Trial) -> None:
    with trial.fault(foreign_pair(trial.lab, trial.victim)):
        foreign = time.time()
        trial.answered_within(AT_ONCE if trial.hot else NOTICED)
        code, data = trial.lab.status(trial.others[0])
        assert code == 1
        assert any(trial.victim in problem for problem in data["problems"])
        # They keep to the key that they know.
        assert trial.load.answered(foreign, trial.victim) is None
        # Nobody replaces a pair that minions may rely on without being told.
        refused = trial.lab.apply(trial.victim, trial.others[0])
        assert any("different key pair" in text for text in failures(refused)), refused
        trial.lab.declare(**trial.declared, replace_keypair=True)
        try:
            applied = trial.lab.apply(trial.victim, trial.others[0])
        finally:
            trial.lab.declare(**trial.declared)
        assert not failures(applied)
    trial.recovered()
