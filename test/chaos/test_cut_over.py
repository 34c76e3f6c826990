"""A minion's new list of masters: kept if a master answers, else the old one comes back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from chaos.places import everywhere, in_docker
from lab.faults import cut_off
from lab.laboratory import PATIENCE, Laboratory, changed, failures
from lab.wait import until

# Seconds for an answer, rather than 20.
QUICK = {"masters": 1, "timeout": 6}
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
    """Have cut-overs end soon; afterwards every minion is back at the laboratory's declaration."""
    quick = {**mode, "cutover": QUICK}
    yield quick
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


def outcome(lab: Laboratory, minion: str) -> dict[str, Any]:
    """Wait until the minion's cut-over has ended; return what it tells then."""
    found: dict[str, Any] = {}

    def over() -> bool:
        nonlocal found
        found = told(lab, minion)
        return found["cutover"].get("step") in ("kept", "restored")

    until(over, PATIENCE, f"the end of the cut-over of {minion}", interval=0.5)
    return found


def until_step(lab: Laboratory, minion: str, *steps: str) -> None:
    """Wait until the journal of a cut-over has come to a step."""
    path = f"{lab.host(minion).minion_cache_dir}/multimaster/cutover.json"

    def there() -> bool:
        with contextlib.suppress(ValueError):
            return json.loads(lab.read(minion, path)).get("step") in steps
        return False

    until(there, 60, f"{' or '.join(steps)} on {minion}", interval=0.02)


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
    apply(lab, **declared, masters=nowhere(lab))
    for minion in minions(lab):
        found = outcome(lab, minion)
        assert found["cutover"]["step"] == "restored"
        assert found["cutover"]["wanted"] == [entry["address"] for entry in nowhere(lab)]
        assert found["configured"] == before
    lab.until_answering()
    problems = lab.status()[1]["problems"]
    assert any("web1 went back from" in problem for problem in problems), problems
    until(
        lambda: any("minion/web1/cutover" in lab.events(h.id) for h in lab.lab.masters),
        PATIENCE,
        "the event of the cut-over",
    )


@everywhere
@pytest.mark.parametrize(
    "steps",
    # What comes before and between lasts too short a time to be met; test/unit has every place.
    [("restarting", "verifying"), ("returning", "returning")],
    ids=lambda steps: "-".join(steps),
)
def test_a_minion_that_is_killed_on_its_way_ends_with_masters_that_answer(
    lab: Laboratory, declared: dict[str, Any], steps: tuple[str, str]
) -> None:
    before = [host.address for host in lab.lab.masters]
    apply(lab, **declared, masters=nowhere(lab))
    for minion, step in zip(minions(lab), steps, strict=True):
        until_step(lab, minion, step, "restored")
        kill(lab, minion)
    for minion in minions(lab):
        found = outcome(lab, minion)
        assert (found["cutover"]["step"], found["configured"]) == ("restored", before)
    lab.until_answering()


@everywhere
def test_a_minion_that_is_killed_on_its_way_to_a_good_list_gets_there(
    lab: Laboratory, declared: dict[str, Any]
) -> None:
    wanted = lab.masters(3)[::-1]
    apply(lab, **declared, masters=wanted)
    for minion, step in zip(minions(lab), ("restarting", "verifying"), strict=True):
        until_step(lab, minion, step, "kept")
        kill(lab, minion)
    for minion in minions(lab):
        found = outcome(lab, minion)
        assert found["cutover"]["step"] == "kept"
        assert found["configured"] == [master["address"] for master in wanted]
    lab.until_answering()


@in_docker
def test_a_minion_that_is_cut_off_on_its_way_is_back_when_the_network_is(
    lab: Laboratory, declared: dict[str, Any]
) -> None:
    before = [host.address for host in lab.lab.masters]
    apply(lab, **declared, masters=lab.masters(3)[::-1])
    until_step(lab, "web1", "restarting")
    with cut_off(lab, "web1", *[host.id for host in lab.lab.masters]):
        found = outcome(lab, "web1")
        assert (found["cutover"]["step"], found["configured"]) == ("restored", before)
        assert found["cutover"]["heard"] == []
    assert outcome(lab, "web2")["cutover"]["step"] == "kept"
    lab.until_answering()
