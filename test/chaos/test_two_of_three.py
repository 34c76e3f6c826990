"""Two of three masters are gone at the same time."""

from __future__ import annotations

from lab.faults import down
from lab.trial import AT_ONCE, NOTICED, Trial

# Seconds that a minion tries to sign in to one that is down: auth_timeout with so few minions.
SIGN_IN = 5


def test_one_master_of_three_is_enough(trial: Trial) -> None:
    # The one that the minions are on, and the next.
    victims = [trial.victim, trial.others[0]]
    with trial.fault(down(trial.lab, "kill", *victims), *victims):
        trial.answered_within(AT_ONCE if trial.hot else NOTICED + SIGN_IN)
    trial.recovered()
