"""A master is declared by a name, and the name's answer changes."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab.faults import alias, misled, moved
from lab.laboratory import Laboratory, failures
from lab.load import Given
from lab.trial import AT_ONCE, LAST_WORDS, RECOVERY, UNNOTICED, Trial
from lab.wait import until

DOCKER = [pytest.param("docker", marks=pytest.mark.docker)]
NAME = "master.example"
BEFORE, AFTER, NOBODY = 201, 202, 203
# Seconds before and after the start of a minion's daemon in which it is away.
AWAY = 8
# Seconds until Salt has looked the name up again, or a minion is restarted that was never connected
# to a master that answers, and the restart; the engine asks in every interval, which is 10 s.
FOUND = 45 + 2 * 10 + 20


@pytest.fixture
def named(lab: Laboratory, mode: dict[str, Any]) -> Iterator[None]:
    """Have the hosts dial the first master by a name, and the minions be with it."""
    masters = lab.masters(3)
    first = masters[0]["id"]
    with alias(lab, first, NAME, BEFORE):
        apply(lab, mode, [{"id": first, "address": NAME}, *masters[1:]])
        try:
            lab.bring_together()
            yield
        finally:
            apply(lab, mode, masters)


def apply(lab: Laboratory, mode: dict[str, Any], masters: list[dict[str, str]]) -> None:
    """Apply a list of masters to all hosts."""
    lab.declare(**mode, masters=masters)
    assert not (failed := failures(lab.command(lab.ids, "state.apply", "multimaster"))), failed
    lab.until_settled()
    lab.until_connected()


def started(lab: Laboratory, minion: str) -> list[float]:
    """Return when the daemon of a minion was started (epoch)."""
    done = lab.run(minion, "journalctl", "--unit=salt-minion", "--output=short-unix")
    return [float(line.split()[0]) for line in done.stdout.splitlines() if "Started" in line]


@pytest.mark.parametrize("built", DOCKER, indirect=True)
def test_a_name_that_changes_its_address_takes_no_minion_with_it(named: None, trial: Trial) -> None:
    lab, plain = trial.lab, set(trial.load.minions)
    with trial.fault(moved(lab, trial.victim, NAME, (BEFORE, AFTER))):
        trial.answered_within(AT_ONCE if trial.hot else UNNOTICED)
        if trial.hot:
            until(
                # Also those of the masters: a second change too soon is in docs/limits.md.
                lambda: lab.answering(trial.victim) == lab.ids,
                RECOVERY,
                f"all answers to {trial.victim} at its new address",
            )

    @functools.cache
    def starts(minion: str) -> list[float]:
        return [at for at in started(lab, minion) if at > trial.began]

    def missed(given: Given) -> bool:
        # A hot minion is away during its restart, and from that master until then.
        times = starts(given.minion)
        lost = given.master == trial.victim and any(
            since - LAST_WORDS <= given.at < start + AWAY
            for since, start in zip((trial.began, trial.ended), times, strict=False)
        )
        return lost or any(abs(start - given.at) < AWAY for start in times)

    trial.excuse = missed
    trial.recovered()
    # Once for each change; in failover mode it only moves.
    assert [len(starts(minion)) for minion in plain] == [2 if trial.hot else 0] * len(plain)


@pytest.mark.parametrize("mode", ["hot"], indirect=True)
@pytest.mark.parametrize("built", DOCKER, indirect=True)
def test_a_name_that_led_nowhere_as_a_minion_was_started_is_looked_up_again(
    named: None, lab: Laboratory
) -> None:
    first, *others = [host.id for host in lab.lab.masters]

    def subscribed() -> set[str]:
        return lab.driver.subscribed(lab.lab, lab.host("web1"))

    with misled(lab, "web1", NAME, (BEFORE, NOBODY)):
        with lab.stopped("web1", "salt-minion"):
            pass
        # By then it has looked up all names.
        until(lambda: subscribed() == set(others), 30, f"web1 to be connected to {others}")
    began = time.time()
    until(lambda: first in subscribed(), FOUND, f"web1 to be connected to {first}")
    print(f"connected after {time.time() - began:.1f} s")
    lab.until_connected()
