"""A master is declared by a name, and the name's answer changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from lab.faults import alias, moved
from lab.laboratory import failures
from lab.trial import AT_ONCE, RECOVERY, UNNOTICED, Trial
from lab.wait import until

DOCKER = [pytest.param("docker", marks=pytest.mark.docker)]
NAME = "master.example"
BEFORE, AFTER = 201, 202


@contextlib.contextmanager
def declared_by_name(trial: Trial) -> Iterator[None]:
    """Have the minions dial a master by a name."""
    masters = trial.lab.masters(len(trial.masters))
    for master in masters:
        if master["id"] == trial.victim:
            master["address"] = NAME
    apply(trial, masters)
    try:
        yield
    finally:
        apply(trial, trial.lab.masters(len(masters)))


def apply(trial: Trial, masters: list[dict[str, str]]) -> None:
    """Apply a list of masters to all hosts."""
    trial.lab.declare(**trial.declared, masters=masters)
    assert not (failed := failures(trial.lab.apply("*", trial.others[0]))), failed
    trial.lab.until_settled(*(trial.others[:1] if trial.hot else trial.masters))
    trial.lab.until_connected(trial.others[0])


@pytest.mark.parametrize("built", DOCKER, indirect=True)
def test_a_name_that_changes_its_address_takes_no_minion_with_it(trial: Trial) -> None:
    lab, plain = trial.lab, set(trial.load.minions)
    with alias(lab, trial.victim, NAME, BEFORE), declared_by_name(trial):
        with trial.fault(moved(lab, trial.victim, NAME, (BEFORE, AFTER))):
            trial.answered_within(AT_ONCE if trial.hot else UNNOTICED)
            if trial.hot:
                until(
                    lambda: plain <= lab.answering(trial.victim, "web*"),
                    RECOVERY,
                    f"an answer to {trial.victim} at its new address",
                )
        trial.recovered()
