"""
How long an orchestration waits for hosts whose daemons restart, whom it asks, what it says of them.

What the hosts tell is made up here, and when; the laboratory has daemons.
"""

from __future__ import annotations

import types

import pytest

import multimaster_deploy

PLAN = types.SimpleNamespace(timeout=120, restart_timeout=600, batch="25%")
MASTERS = ("saltm1", "saltm2")
BEFORE, AFTER = 1, 2


@pytest.fixture
def runner(by_path, monkeypatch):
    """The runner, and a clock that only waiting moves."""
    module = by_path("salt/_runners/multimaster_orch.py")
    module.__utils__ = {
        f"multimaster_deploy.{name}": getattr(multimaster_deploy, name)
        for name in ("lacking", "largest")
    }
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    return module, clock


@pytest.fixture
def wait(runner, monkeypatch):
    """
    Wait for the minions of some hosts, given the process of each at every look or that it is
    silent; return the problems, and how long an answer was waited for at each look.
    """
    module, clock = runner

    def run(**looks):
        patience = []

        def facts(plan, ids, timeout):
            patience.append(timeout)
            number = len(patience) - 1
            seen = {name: told[min(number, len(told) - 1)] for name, told in looks.items()}
            answers = {name: seen[name] for name in ids if seen[name] is not None}
            if not answers:
                clock[0] += timeout
            return {name: process(number) for name, number in answers.items()}

        monkeypatch.setattr(module, "_facts", facts)
        before = {name: process(BEFORE) for name in looks}
        return module._until_restarted(PLAN, {name: {"minion"} for name in looks}, before), patience

    return run


def process(number):
    return {"daemons": {"master": None, "minion": number}}


def test_who_is_another_process_is_restarted(wait):
    assert wait(web1=[BEFORE, None, AFTER], web2=[AFTER])[0] == []


def test_who_stays_the_same_process_was_not_restarted(wait):
    problems, _ = wait(web1=[BEFORE], web2=[AFTER])
    assert problems == [
        "web1: its minion has not been restarted; see multimaster-restart.log on it"
    ]


def test_who_never_answers_is_not_said_to_be_the_same_process(wait):
    problems, _ = wait(web1=[None], web2=[BEFORE, AFTER])
    assert problems == [
        "web1: does not answer since its minion was to be restarted; "
        "see multimaster-restart.log on it"
    ]


def test_who_waits_for_its_jobs_is_waited_for_longer_than_who_is_silent(wait):
    looks = wait(web1=[BEFORE])[1], wait(web1=[None])[1]
    assert sum(looks[0]) > sum(looks[1])


def test_answers_are_waited_for_longer_while_nobody_answers(wait):
    _, patience = wait(web1=[None, None, None, None, None, BEFORE, None, AFTER])
    assert patience == [3, 3, 6, 12, 24, 30, 3, 3]


@pytest.fixture
def reach(runner, monkeypatch):
    """
    Wait until minions have answered, given who answers which master at every look; return what
    they lack, who was asked at every look, and how long an answer was waited for.
    """
    module, clock = runner

    def run(mode, ids, looks, seconds=120):
        asked, patience = [], []

        def answer(plan, master, left, function, here, arguments, timeout):
            number = len(patience) // len(MASTERS)
            asked.append((master, sorted(left)))
            patience.append(timeout)
            clock[0] += timeout
            told = looks[min(number, len(looks) - 1)].get(master, [])
            return {name: True for name in left if name in told}

        monkeypatch.setattr(module, "_asked", answer)
        plan = types.SimpleNamespace(mode=mode, masters=dict.fromkeys(MASTERS, ""))
        lacking = module._until_reached(plan, ids, None, seconds)
        return lacking, asked, patience[:: len(MASTERS)]

    return run


def test_who_has_answered_a_master_is_not_asked_again_on_it(reach):
    looks = [{"saltm1": ["web1", "web2"]}, {"saltm2": ["web2"]}, {"saltm2": ["web1"]}]
    lacking, asked, _ = reach("hot", ["web1", "web2"], looks)
    assert lacking == {}
    both, nobody = ["web1", "web2"], []
    assert asked == [
        ("saltm1", both),
        ("saltm2", both),
        ("saltm1", nobody),
        ("saltm2", both),
        ("saltm1", nobody),
        ("saltm2", ["web1"]),
    ]


def test_in_failover_mode_one_master_is_enough(reach):
    looks = [{"saltm1": ["web1"], "saltm2": ["web2"]}]
    lacking, asked, _ = reach("failover", ["web1", "web2"], looks)
    assert lacking == {}
    assert asked == [("saltm1", ["web1", "web2"]), ("saltm2", ["web2"])]


def test_who_does_not_answer_is_named_with_the_masters_that_it_lacks(reach):
    looks = [{"saltm1": ["web1", "web2"], "saltm2": ["web1"]}, {}]
    lacking, _, patience = reach("hot", ["web1", "web2"], looks)
    assert lacking == {"web2": ["saltm2"]}
    assert patience[:5] == [3, 3, 3, 6, 12]


def test_a_look_without_time_is_one_look(reach):
    assert len(reach("hot", ["web1"], [{}], seconds=0)[1]) == len(MASTERS)


@pytest.mark.parametrize(("number", "sizes"), [(3, [3]), (12, [10, 2]), (50, [12, 12, 12, 12, 2])])
def test_not_all_minions_get_something_to_do_at_once(runner, number, sizes):
    module, _ = runner
    ids = {f"web{index}" for index in range(number)}
    groups = list(module._groups(PLAN, ids, module.TOGETHER))
    assert [len(group) for group in groups] == sizes
    assert {name for group in groups for name in group} == ids


def test_all_that_a_minion_compares_is_brought_to_it(runner, by_path):
    module, _ = runner
    kinds = by_path("salt/_modules/multimaster.py").SYNCED
    assert {f"saltutil.sync_{kind}" for kind in kinds} == set(module.SYNC)


def test_who_does_not_get_the_modules_is_told(runner, monkeypatch):
    module, clock = runner
    said = []
    monkeypatch.setattr(module, "_say", said.append)
    monkeypatch.setattr(module, "_anywhere", lambda *_: {})
    monkeypatch.setattr(module, "_stale", lambda plan, ids: set(ids) - {"web2"})
    module._sync(PLAN, {"web1", "web2"})
    assert said[-1] == "modules: still not the file server's on web1"
    assert clock[0] > module.MODULES
