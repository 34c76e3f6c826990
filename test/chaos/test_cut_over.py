"""A minion's new list of masters: kept once a master answers; without one the old comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from chaos.places import everywhere, in_docker
from lab.faults import cut_off
from lab.laboratory import PATIENCE, Laboratory, changed, failures
from lab.wait import until

# Kills what carries a cut-over out, from the host's own process table.
KILL = """
import psutil, sys
for process in psutil.process_iter(["cmdline"]):
    line = process.info["cmdline"] or []
    if any(a.endswith("multimaster_restart.py") for a in line) and sys.argv[1] in line:
        process.kill()
"""


@pytest.fixture
def declared(lab: Laboratory, mode: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Afterwards every minion is back at the laboratory's declaration."""
    yield mode
    lab.declare(**mode)
    lab.command(set(minions(lab)), "state.apply", "multimaster")
    lab.until_settled()
    lab.until_connected()


def minions(lab: Laboratory) -> list[str]:
    """Return the hosts that are no masters."""
    return [host.id for host in lab.lab.hosts if "master" not in host.roles]


def nowhere(lab: Laboratory) -> list[dict[str, str]]:
    """Return a declaration of masters that do not exist."""
    return [
        {"id": f"gone{number}", "address": f"{lab.lab.net}.{240 + number}"} for number in (1, 2)
    ]


def apply(lab: Laboratory, **declaration: Any) -> None:
    """Bring the minions to another declaration; returns when the job has been returned."""
    lab.declare(**declaration)
    result = lab.command(set(minions(lab)), "state.apply", "multimaster.minion")
    assert not failures(result)
    assert len(changed(result)) > 0


def told(lab: Laboratory, minion: str) -> dict[str, Any]:
    """Return what the minion tells of its masters."""
    return dict(lab.json(minion, "salt-call", "--local", "multimaster.masters")["local"])


def outcome(lab: Laboratory, minion: str) -> str:
    """Wait until the minion is with a list of masters; return ``kept`` or ``back``."""
    lab.until(lambda: not lab.cutting_over(minion), f"the list of {minion}", lab.steps)
    return str(lab.step(minion))


def until_step(lab: Laboratory, minion: str, *steps: str) -> None:
    """Wait until a cut-over has come to a step."""
    lab.until(
        lambda: lab.step(minion) in steps, f"{' or '.join(steps)} on {minion}", lab.steps, 0.02
    )


def kill(lab: Laboratory, minion: str) -> None:
    """Kill a minion and whatever brings it to its new configuration; start it again."""
    config = f"--config={lab.host(minion).config_dir}/minion"
    lab.run(minion, lab.python, "-c", KILL, config)

    def control(verb: str) -> bool:
        # It may be between its end and its start.
        with contextlib.suppress(Exception):
            lab.driver.control(lab.lab, lab.host(minion), verb, "salt-minion")
            return True
        return False

    control("kill")
    until(lambda: control("start"), 60, f"{minion} to start", interval=1)


@everywhere
def test_a_list_of_which_no_master_answers_gives_way_to_the_old_one(
    lab: Laboratory, declared: dict[str, Any]
) -> None:
    before = [host.address for host in lab.lab.masters]
    daemons = lab.command(set(minions(lab)), "multimaster.daemons")
    apply(lab, **declared, masters=nowhere(lab))
    for minion in minions(lab):
        assert outcome(lab, minion) == "back"
        found = told(lab, minion)
        assert found["cutover"]["wanted"] == [entry["address"] for entry in nowhere(lab)]
        assert found["configured"] == before
    lab.until_answering()
    # Nobody was restarted for it.
    assert lab.command(set(minions(lab)), "multimaster.daemons") == daemons
    problems = lab.status()[1]["problems"]
    assert any("web1 went back from" in problem for problem in problems), problems
    until(
        lambda: any("minion/web1/cutover" in lab.events(h.id) for h in lab.lab.masters),
        PATIENCE,
        "the event of the cut-over",
    )


@everywhere
def test_a_minion_that_is_killed_on_its_way_ends_with_masters_that_answer(
    lab: Laboratory, declared: dict[str, Any]
) -> None:
    before = [host.address for host in lab.lab.masters]
    apply(lab, **declared, masters=nowhere(lab))
    # Started again, it has the new list, and is to leave it.
    for minion, steps in zip(minions(lab), (["proving"], ["proving", "connecting"]), strict=True):
        for step in steps:
            until_step(lab, minion, step, "back")
            kill(lab, minion)
    for minion in minions(lab):
        assert outcome(lab, minion) == "back"
        assert told(lab, minion)["configured"] == before
    lab.until_answering()


@everywhere
def test_a_minion_that_is_killed_on_its_way_to_a_good_list_gets_there(
    lab: Laboratory, declared: dict[str, Any]
) -> None:
    wanted = lab.masters(3)[::-1]
    apply(lab, **declared, masters=wanted)
    for minion, step in zip(minions(lab), ("restarting", "connecting"), strict=True):
        until_step(lab, minion, step, "kept")
        kill(lab, minion)
    for minion in minions(lab):
        assert outcome(lab, minion) == "kept"
        assert told(lab, minion)["configured"] == [master["address"] for master in wanted]
    lab.until_answering()


@in_docker
def test_a_minion_that_is_cut_off_on_its_way_goes_on_when_the_network_is_back(
    lab: Laboratory, declared: dict[str, Any]
) -> None:
    apply(lab, **declared, masters=lab.masters(3)[::-1])
    until_step(lab, "web1", "restarting")
    with cut_off(lab, "web1", *[host.id for host in lab.lab.masters]):
        until_step(lab, "web1", "connecting")
        assert outcome(lab, "web2") == "kept"
        # Its old list is in the new one: there is nothing to go back to.
        assert lab.step("web1") == "connecting"
    assert outcome(lab, "web1") == "kept"
    lab.until_answering()
