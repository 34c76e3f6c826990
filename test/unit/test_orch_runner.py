"""
How long an orchestration waits for hosts whose daemons restart, whom it asks, what it says of them.

What the hosts tell is made up here, and when; the laboratory has daemons.
"""

from __future__ import annotations

import contextlib
import functools
import json
import types

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import multimaster_deploy
import multimaster_gather
import multimaster_keypair
import multimaster_said

PLAN = types.SimpleNamespace(
    timeout=120,
    restart_timeout=600,
    batch="25%",
    mode="hot",
    masters={},
    config_dir=None,
    service="salt-master",
    minion_service="salt-minion",
)
MASTERS = ("saltm1", "saltm2")
BEFORE, AFTER = 1, 2


@pytest.fixture
def runner(by_path, monkeypatch):
    """The runner, and a clock that only waiting moves."""
    module = by_path("salt/_runners/multimaster_orch.py")
    module.__utils__ = {
        f"multimaster_deploy.{name}": getattr(multimaster_deploy, name)
        for name in ("lacking", "largest", "progress", "stuck", "under_way", "unfinished")
    }
    module.__utils__ |= {
        f"multimaster_said.{name}": getattr(multimaster_said, name)
        for name in ("check", "told", "lines")
    }
    module.__utils__ |= {
        f"multimaster_gather.{name}": getattr(multimaster_gather, name)
        for name in ("proved", "signed")
    }
    module.__utils__ |= {
        f"multimaster_keypair.{name}": getattr(multimaster_keypair, name)
        for name in ("claimed", "proved")
    }
    module.__utils__["multimaster_gather.hardened"] = multimaster_gather.hardened
    module.__utils__["multimaster_gather.whole"] = multimaster_gather.whole
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

        def facts(plan, ids, timeout, to_be=False):
            patience.append(timeout)
            number = len(patience) - 1
            seen = {name: told[min(number, len(told) - 1)] for name, told in looks.items()}
            answers = {name: seen[name] for name in ids if seen[name] is not None}
            if not answers:
                clock[0] += timeout
            return {n: row if isinstance(row, dict) else process(row) for n, row in answers.items()}

        monkeypatch.setattr(module, "_facts", facts)
        before = {name: process(BEFORE) for name in looks}
        roles = {name: {"minion"} for name in looks}
        return module._until_restarted(PLAN, roles, before), patience, clock[0]

    return run


def process(number, **more):
    return {"daemons": {"master": None, "minion": number}, **more}


def test_who_is_another_process_is_restarted(wait):
    assert wait(web1=[BEFORE, None, AFTER], web2=[AFTER])[0] == []


def test_who_stays_the_same_process_was_not_restarted(wait):
    problems, *_ = wait(web1=[BEFORE], web2=[AFTER])
    assert problems == [
        "web1: its minion has not been restarted; see multimaster-restart.log on it"
    ]


def test_who_never_answers_is_not_said_to_be_the_same_process(wait):
    problems, *_ = wait(web1=[None], web2=[BEFORE, AFTER])
    assert problems == [
        "web1: does not answer since its minion was to be restarted; "
        "see multimaster-restart.log on it"
    ]


def test_who_waits_for_its_jobs_is_waited_for_longer_than_who_is_silent(wait):
    busy = wait(web1=[BEFORE])[2]
    silent = wait(web1=[None])[2] - busy
    assert busy > PLAN.restart_timeout > silent > PLAN.timeout


def test_answers_are_waited_for_longer_while_nobody_answers(wait):
    _, patience, _ = wait(web1=[None, None, None, None, None, BEFORE, None, AFTER])
    assert patience == [3, 3, 6, 12, 24, 30, 3, 3]


def proving(number, kind="silent"):
    return process(
        BEFORE, cutover={"step": "proving", "since": number, "seen": {"192.0.2.1": kind}}
    )


def test_who_gets_on_is_waited_for_however_long_it_takes(wait):
    # Each step is seen for nearly as long as nothing may change.
    slow = [look for number in range(9) for look in [proving(number)] * 110]
    problems, _, seconds = wait(web1=[*slow, process(AFTER, cutover={"step": "kept"})])
    assert problems == []
    assert seconds > PLAN.restart_timeout


def test_another_process_is_not_enough_while_the_change_of_masters_is_under_way(wait):
    told = process(AFTER, cutover={"step": "connecting", "seen": {"192.0.2.1": "pending"}})
    assert wait(web1=[told])[0] == [
        "web1: its minion has not been restarted (its change of masters is connecting, and sees "
        "192.0.2.1 pending); see multimaster-restart.log on it"
    ]


def test_a_restart_that_is_outstanding_is_waited_for_and_told(wait):
    waiting = {"salt-minion": {"since": 5, "waiting": "for saltm1's restart"}}
    told = process(BEFORE, restarts=waiting)
    problems, *_ = wait(web1=[told])
    assert problems == [
        "web1: its minion has not been restarted (salt-minion waits: for saltm1's restart); "
        "see multimaster-restart.log on it"
    ]
    assert wait(web1=[told, process(AFTER, restarts=waiting), process(AFTER)])[0] == []


def test_who_comes_and_goes_makes_no_progress(runner):
    module, _ = runner
    looks = iter(range(10_000))
    assert module._until(120, lambda: next(looks) % 2, lambda seen: False) in (0, 1)


def test_so_many_looks_have_to_be_alike_however_long_each_takes(runner):
    module, clock = runner
    taken = []

    def look():
        clock[0] += 100
        taken.append(clock[0])
        return "the same"

    module._until(120, look, lambda seen: False)
    assert len(taken) == module.ALIKE + 1


def test_what_is_not_known_of_a_host_is_a_problem(runner, monkeypatch):
    module, _ = runner
    answers = {"saltm1": process(BEFORE), "saltm3": "tells no facts: an error"}
    monkeypatch.setattr(module, "_facts", lambda plan, ids, timeout, to_be: answers)
    facts, problems = module._until_told(PLAN, MASTERS)
    assert facts["saltm1"] == process(BEFORE)
    assert problems == ["saltm2: tells no facts, so that nothing is known of its daemons"]
    assert module._until_told(PLAN, ["saltm3"])[1] == ["saltm3: tells no facts: an error"]


@pytest.fixture
def jobs(runner, monkeypatch):
    """Wait until jobs have ended, given what the master's host tells at every look."""
    module, _ = runner

    def run(*looks):
        left = list(looks)

        def command(plan, ids, function, arguments, timeout):
            return {"saltm2": left.pop(0) if len(left) > 1 else left[0]}

        monkeypatch.setattr(module, "_command", command)
        return module._until_finished(PLAN, "saltm2", {"web1", "web2"}, None)

    return run


def told(*minions, **jobs):
    rows = {jid: {"function": "test.sleep", "minions": list(on)} for jid, on in jobs.items()}
    return {"jobs": rows, "told": list(minions)}


BOTH = ("web1", "web2")


def test_no_jobs_are_none_only_if_all_have_told(jobs):
    assert jobs(told(*BOTH)) == []
    assert jobs(told("web1"), told("web2")) == []
    assert jobs(told("web1")) == ["web2: does not tell whether it works on a job of saltm2"]


def test_jobs_that_could_not_be_asked_for_are_a_problem(jobs):
    assert jobs(None) == ["saltm2: its minion does not answer"]
    assert jobs({}) == ["saltm2: an older version of the formula; apply that first"]


def test_a_job_is_over_when_all_who_worked_on_it_say_so(jobs):
    first = told(*BOTH, j1=BOTH)
    # Others begin meanwhile, and are not waited for; web2 is silent for a look.
    assert jobs(first, told("web1", j2=["web1"]), told(*BOTH, j2=BOTH)) == []
    assert jobs(first, told("web1")) == [
        "saltm2: its job j1 (test.sleep) still runs on web2, and nothing has changed for 600 s"
    ]


@pytest.fixture
def there(runner, monkeypatch):
    """Find out who is there, given who answers at every look and the number of connections."""
    module, clock = runner
    module.__context__, module.__opts__ = {}, {}

    def run(ids, looks, connections):
        left = list(looks)

        def anywhere(plan, ids, function, arguments, timeout):
            clock[0] += timeout
            return dict.fromkeys(set(left.pop(0) if len(left) > 1 else left[0]) & ids, True)

        monkeypatch.setattr(module, "_anywhere", anywhere)
        module.__utils__ |= {
            "multimaster_gather.tables": dict,
            "multimaster_trees.subscribed": lambda opts, tables: connections,
        }
        return *module._present(PLAN, set(ids)), clock[0]

    return run


def test_who_is_not_connected_is_absent_and_nobody_waits_for_it(there):
    present, slow, seconds = there(["web1", "web2"], [["web1"]], 1)
    assert (present, slow, seconds) == ({"web1"}, set(), 3)


def test_who_is_connected_and_answers_late_is_there(there):
    present, slow, _ = there(["web1", "web2"], [["web1"], [], [], ["web2"]], 2)
    assert (present, slow) == ({"web1", "web2"}, set())


def test_who_is_connected_and_does_not_answer_is_slow(there):
    assert there(["web1", "web2"], [["web1"]], 2)[:2] == ({"web1"}, {"web2"})


def test_where_it_is_not_known_who_is_connected_nobody_is_absent(there):
    assert there(["web1", "web2"], [["web1"]], 0)[:2] == ({"web1"}, {"web2"})


def test_slow_minions_have_an_exit_status_of_their_own(runner):
    module, _ = runner
    assert module._outcome([])["retcode"] == 0
    assert module._outcome(["x"], slow=["web1"])["retcode"] == 1
    assert module._outcome([], slow=["web1"])["retcode"] == 3
    assert module._left_out(PLAN, {"web1", "web2"}, {"web2"}) == [
        "absent, and left for a later run: web1",
        "slow, and left for a later run: web2",
    ]


@pytest.fixture
def reach(runner, monkeypatch):
    """
    Wait until minions have answered, given who answers which master at every look; return what
    they lack, who was asked at every look, and how long an answer was waited for.
    """
    module, clock = runner

    def run(mode, ids, looks):
        asked, patience = [], []

        def answer(plan, master, left, function, here, arguments, timeout):
            number = len(patience) // len(MASTERS)
            asked.append((master, sorted(left)))
            patience.append(timeout)
            clock[0] += timeout
            told = looks[min(number, len(looks) - 1)].get(master, [])
            return {name: True for name in left if name in told}

        monkeypatch.setattr(module, "_asked", answer)
        plan = types.SimpleNamespace(mode=mode, masters=dict.fromkeys(MASTERS, ""), timeout=120)
        lacking = module._until_reached(plan, ids, None)
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
    assert clock[0] > PLAN.timeout


# Whatever is said

FACTS = process([1, 1.0], version="3008.3", clock=1.0, free={"/var": 9999}, restarts={}, cutover={})
ANSWERS = {
    "multimaster.masters": {"configured": ["192.0.2.1"], "connected": []},
    "multimaster.report": {
        "running": True,
        "digest": "d",
        "fingerprint": "f",
        "accepted": ["saltm1"],
        "answering": list(MASTERS),
    },
    "multimaster.restart": True,
    "multimaster.synced": True,
    "multimaster_orch.ask": {"web1": FACTS},
    "multimaster_orch.connections": 2,
    "multimaster_orch.facts": FACTS,
    "multimaster_orch.hold_ports": {"pid": 7, "taken": []},
    "multimaster_orch.reach": {"192.0.2.1": {"4505": "open", "4506": "open"}},
    "multimaster_orch.unfinished": told("web1", j1=["web1"]),
    "state.apply": {"a_|-multimaster-master-x": {"result": True, "changes": {}, "comment": ""}},
    "test.ping": True,
}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def spoilt(draw, whole):
    if not isinstance(whole, dict) or not whole or draw(st.booleans()):
        return draw(anything)
    place = draw(st.sampled_from(sorted(whole)))
    return {**whole, place: draw(spoilt(whole[place]))}


@pytest.fixture
def answering(runner, tmp_path, shared, monkeypatch):
    """
    Have minions answer; returns what takes the answers (question, minion, arguments -> answer), and
    what makes another reply of the proof of a master's host, if anything does.
    """
    module, _ = runner
    # What is signed once need not be again.
    prove = functools.cache(
        lambda *proof: multimaster_keypair.prove(json.loads(proof[0]), *proof[1:])
    )
    (tmp_path / "master.pub").write_text(shared.pub)
    module.__opts__ = {"pidfile": "/nowhere", "id": "saltm1", "pki_dir": str(tmp_path)}
    module.__context__ = {}

    def reply(function, name, arguments, answer, forge):
        if function != "multimaster.signed":
            return answer(function, name, arguments)
        function, nonce, arguments, _ = arguments
        told = answer(function, name, arguments)
        with contextlib.suppress(TypeError, ValueError):
            proof = prove(json.dumps({"told": told}), function, name, nonce, shared.pem)
            return forge(name, proof)
        return told

    def answering(answer, forge=lambda name, proof: proof):
        class Client:
            event = types.SimpleNamespace(get_event=None)

            def cmd_iter(self, ids, function, arguments, **flags):
                for name in ids:
                    yield {name: {"ret": reply(function, name, arguments, answer, forge)}}

        monkeypatch.setattr(
            "salt.client.get_local_client", lambda mopts: contextlib.nullcontext(Client())
        )
        return lambda *question: reply(*question, answer, forge)

    return answering


def orchestrated(runner, monkeypatch, answering, mode, odd):
    """Take every look of an orchestration at hosts; saltm2 and web1 answer something odd."""
    module, _ = runner
    module.__context__ = {}
    module.__utils__["multimaster_gather.signed"] = lambda asked, given: [asked, "n", given, {}]
    for name in ("facts", "failures", "changes", "restarts", "preflight", "unhealthy", "order"):
        module.__utils__[f"multimaster_deploy.{name}"] = getattr(multimaster_deploy, name)
    module.__utils__["multimaster_gather.tables"] = dict
    module.__utils__["multimaster_trees.subscribed"] = lambda opts, tables: 3

    def answer(function, name, arguments):
        if not isinstance(function, str):
            function = "test.ping"
        if name in ("saltm2", "web1") and function in odd:
            return odd[function]
        return ANSWERS.get(function, True)

    answering(answer)
    monkeypatch.setattr(module, "_accepted", lambda: {*MASTERS, "web1"})
    monkeypatch.setattr(module, "_say", lambda message: None)
    declared = [{"id": n, "address": f"192.0.2.{at}"} for at, n in enumerate(MASTERS, 1)]
    plan = multimaster_deploy.plan({"mode": mode, "masters": declared, "restart_timeout": 60})
    ids = {*MASTERS, "web1"}
    problems = module.preflight(plan)["problems"]
    assert all(line.isprintable() for text in problems for line in text.split("\n"))
    assert not any(line.startswith("saltm1: tells") for line in problems)
    module._until_told(plan, ids)
    module._in_place(plan, ids)
    module._pointed_at(plan, ids)
    module._until_well(plan, list(MASTERS), None, ["web1"])
    module._until_finished(plan, "saltm2", {"web1"}, None)
    module._restart_master(plan, "saltm2", None)
    module._deploy_master(plan, "saltm2", list(MASTERS), None)
    module._deploy_minions(plan, ["web1"], None)
    return problems


ODD = st.fixed_dictionaries({}, optional={name: spoilt(ANSWERS[name]) for name in ANSWERS})


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mode=st.sampled_from(["hot", "failover"]), odd=ODD)
@example(mode="hot", odd={name: {"x": 5} for name in ANSWERS})
@example(mode="failover", odd={name: {} for name in ANSWERS})
@example(mode="hot", odd={"state.apply": []})
@example(mode="hot", odd={"multimaster.report": {"x": 5}})
def test_whatever_one_says_an_orchestration_goes_on(runner, monkeypatch, answering, mode, odd):
    orchestrated(runner, monkeypatch, answering, mode, odd)


def test_who_tells_something_odd_is_named_and_nothing_of_it_reaches_a_terminal(
    runner, monkeypatch, answering
):
    odd = {"multimaster_orch.facts": {**FACTS, "version": "3008\x1b[2J"}}
    problems = orchestrated(runner, monkeypatch, answering, "hot", odd)
    said = r"tells no facts: version: got '3008\\x1b[2J'; supported: a name"
    assert [line for line in problems if "tells no facts" in line] == [
        f"saltm2: {said}",
        f"web1: {said}",
    ]


def test_what_minions_say_to_another_master_is_heard_of_those_who_were_asked(runner, answering):
    module, _ = runner

    def answer(function, name, arguments):
        assert (function, name) == ("multimaster_orch.ask", "saltm2")
        return {"web1": FACTS, "web8": False, "web9": FACTS}

    answering(answer)
    question = ("saltm2", {"web1", "web8"}, "multimaster_orch.facts", "saltm1")
    assert module._asked(DECLARED, *question) == {"web1": FACTS}


# What is proved


DECLARED = types.SimpleNamespace(
    **{**vars(PLAN), "masters": {"saltm1": "192.0.2.1", "saltm2": "192.0.2.2"}}
)
NOT_SIGNED = "the answer is not signed"
OLDER = "'multimaster.signed' is not available."


def unsigned(name, proof):
    """What a host without a pair, or anybody in its name, answers."""
    return {**proof, "signature": None} if name == "saltm2" else proof


def older(name, proof):
    return OLDER if name == "saltm2" else proof


def told_by(function, name, arguments):
    return ANSWERS.get(function, True)


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (unsigned, NOT_SIGNED),
        (older, f"{NOT_SIGNED}: {OLDER}"),
        (
            lambda name, proof: {**proof, "signature": "A" * 1_000_000},
            "the answer is not signed with the masters' key",
        ),
    ],
    ids=["unsigned", "older", "badly signed"],
)
def test_no_master_is_restarted_because_of_what_a_host_does_not_prove(
    runner, answering, monkeypatch, forge, why
):
    module, _ = runner
    module.__utils__["multimaster_deploy.facts"] = multimaster_deploy.facts
    module.__utils__["multimaster_deploy.unhealthy"] = multimaster_deploy.unhealthy
    monkeypatch.setattr(module, "_inside", lambda: False)
    answering(told_by, forge)
    done = module.restart_masters(DECLARED)
    assert done["changes"] == {}
    assert f"saltm2: tells no facts: {why}" in done["problems"]
    # Nor is it taken to be well, or to have nothing left to do.
    problems = module._until_well(DECLARED, ["saltm2"], None)
    assert f"saltm2: the minion on its host gives no answer: {why}" in problems
    assert module._until_finished(DECLARED, "saltm2", {"web1"}, None) == [f"saltm2: {why}"]
    # Nobody is absent for what it says of its connections.
    module.__utils__ |= {
        "multimaster_gather.tables": dict,
        "multimaster_trees.subscribed": lambda opts, tables: 2,
    }
    failover = types.SimpleNamespace(**{**vars(DECLARED), "mode": "failover"})
    assert module._connected_beside(failover, {"saltm1", "saltm2"}) is None
    question = ("saltm2", {"web1"}, "test.ping", "saltm1")
    assert module._asked(failover, *question) == {}


def test_all_that_is_to_be_proved_is_signed(runner, by_path):
    module, _ = runner
    assert set(module.PROVED) <= set(by_path("salt/_modules/multimaster.py").SIGNED)


def test_what_hosts_prove_is_believed(runner, answering, monkeypatch):
    module, _ = runner
    module.__utils__["multimaster_deploy.facts"] = multimaster_deploy.facts
    answering(told_by)
    assert module._until_told(DECLARED, MASTERS) == (dict.fromkeys(MASTERS, FACTS), [])


def test_a_masters_host_proves_itself_through_another_master(runner, answering):
    module, _ = runner

    def answer(function, name, arguments):
        if function == "multimaster_orch.ask":
            ids, asked, given, *_ = arguments
            return {n: said(asked, n, given) for n in ids}
        return told_by(function, name, arguments)

    said = answering(answer)
    question = ("saltm1", {"saltm2", "web1"}, "multimaster_orch.facts", None)
    assert module._asked(DECLARED, *question) == {"saltm2": FACTS, "web1": FACTS}
    said = answering(answer, unsigned)
    found = module._asked(DECLARED, *question)
    assert found == {"saltm2": {**FACTS, "unproved": NOT_SIGNED}, "web1": FACTS}


def test_the_formula_is_applied_to_who_proves_nothing_whatever_it_says(
    runner, answering, monkeypatch
):
    module, _ = runner
    for name in ("facts", "order"):
        module.__utils__[f"multimaster_deploy.{name}"] = getattr(multimaster_deploy, name)
    looked = []
    monkeypatch.setattr(module, "_in_place", lambda plan, ids: looked.extend(ids) or ids)
    monkeypatch.setattr(module, "_say", lambda message: None)
    running = {**FACTS, "daemons": {"master": [1, 1.0], "minion": [2, 1.0]}}
    answering(lambda function, *_: running if "facts" in function else True, unsigned)
    done = module.deploy_masters(DECLARED, test=True)
    assert looked == ["saltm1"]
    assert done["changes"] == {"saltm2": "would be deployed"}
    # As in a test run before there are any masters; minions are led to those that are there.
    assert module._until_told(DECLARED, MASTERS, to_be=True)[1] == []
    assert module._until_told(DECLARED, MASTERS)[1] == [f"saltm2: tells no facts: {NOT_SIGNED}"]


def test_who_proves_nothing_is_not_this_master(runner, tmp_path):
    import os

    import psutil

    module, _ = runner
    own = psutil.Process()
    module.__opts__ = {"pidfile": str(tmp_path / "pid")}
    (tmp_path / "pid").write_text(str(os.getpid()))
    facts = {"daemons": {"master": [own.pid, own.create_time()], "minion": None}}
    assert module._here(DECLARED, {"saltm2": facts}) == "saltm2"
    assert module._here(DECLARED, {"saltm2": {**facts, "unproved": NOT_SIGNED}}) is None


def test_who_does_not_prove_that_it_was_restarted_is_waited_for_and_named(runner, answering):
    module, _ = runner
    module.__utils__["multimaster_deploy.facts"] = multimaster_deploy.facts
    answering(told_by, unsigned)
    before = {"saltm2": process(BEFORE)}
    assert module._until_restarted(DECLARED, {"saltm2": {"minion"}}, before) == [
        f"saltm2: tells no facts: {NOT_SIGNED}; so it is not known whether its minion has been "
        "restarted; see multimaster-restart.log on it"
    ]


def test_a_preflight_names_who_proves_nothing(runner, answering, monkeypatch):
    module, _ = runner
    for name in ("facts", "preflight"):
        module.__utils__[f"multimaster_deploy.{name}"] = getattr(multimaster_deploy, name)
    module.__utils__["multimaster_gather.tables"] = dict
    module.__utils__["multimaster_trees.subscribed"] = lambda opts, tables: 3
    monkeypatch.setattr(module, "_accepted", lambda: {*MASTERS, "web1"})
    monkeypatch.setattr(module, "_say", lambda message: None)
    answering(told_by, unsigned)
    masters = [{"id": n, "address": at} for n, at in DECLARED.masters.items()]
    notes = module.preflight(multimaster_deploy.plan({"masters": masters}))["notes"]
    assert f"saltm2: {NOT_SIGNED}; as of one that is to be a master" in notes
