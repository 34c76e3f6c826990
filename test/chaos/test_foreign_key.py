"""A master comes back with the key pair of an old backup."""

from __future__ import annotations

import time

from lab.faults import foreign_pair
from lab.laboratory import failures
from lab.trial import AT_ONCE, NOTICED, RECOVERY, Trial
from lab.wait import until


def test_a_master_with_another_key_pair_is_refused_and_can_be_repaired(trial: Trial) -> None:
    lab, by = trial.lab, trial.others[0]
    with trial.fault(foreign_pair(lab, trial.victim)):
        foreign = time.time()
        trial.answered_within(AT_ONCE if trial.hot else NOTICED)
        code, data = lab.status(by)
        assert code == 1
        assert any(trial.victim in problem for problem in data["problems"])
        # They keep to the key that they know.
        assert trial.load.answered(foreign, trial.victim) is None
        # Nobody replaces a pair that minions may rely on without being told.
        refused = lab.apply(trial.victim, by)
        assert any("different key pair" in text for text in failures(refused)), refused
        lab.declare(**trial.declared, replace_keypair=True)
        try:
            assert not (failed := failures(lab.apply(trial.victim, by))), failed
        finally:
            lab.declare(**trial.declared)
        until(
            lambda: set(trial.masters) <= lab.answering(trial.victim, "saltm*"),
            RECOVERY,
            f"an answer to {trial.victim}",
        )
    trial.recovered()
