"""
How long an orchestration waits for hosts whose daemons restart, and what it says of them.

What the hosts tell is made up here, and when; the laboratory has daemons.
"""

from __future__ import annotations

import types

import pytest

PLAN = types.SimpleNamespace(timeout=120, restart_timeout=600)
BEFORE, AFTER = 1, 2


@pytest.fixture
def wait(by_path, monkeypatch):
    """
    Wait for the minions of some hosts, given the process of each at every look or that it is
    silent; return the problems, and how long an answer was waited for at each look.
    """
    module = by_path("salt/_runners/multimaster_orch.py")
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))

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
