"""All masters are gone at the same time, and come back."""

from __future__ import annotations

from lab.faults import down
from lab.trial import Trial
from lab.wait import until


def test_minions_return_by_themselves_when_all_masters_were_gone(trial: Trial) -> None:
    with trial.fault(down(trial.lab, "kill", *trial.masters), *trial.masters):
        until(lambda: not listening(trial), 10, "no minion to listen to any master")
    trial.recovered()


def listening(trial: Trial) -> set[str]:
    """Return the masters that any minion listens to."""
    hosts = [trial.lab.host(minion) for minion in trial.load.minions]
    return set().union(*(trial.lab.driver.subscribed(trial.lab.lab, host) for host in hosts))
