"""What an orchestration decides: batches, order, findings, who lacks what."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import multimaster_deploy as deploy

DEFAULTS = Path(__file__).parents[2] / "salt/multimaster/defaults.yaml"
MASTERS = {"saltm1": "192.0.2.1", "saltm2": "192.0.2.2"}
IDS = ("saltm1", "saltm2", "web1")


def declared(**changed):
    masters = [{"id": name, "address": address} for name, address in MASTERS.items()]
    return {"mode": "hot", "masters": masters} | changed


def facts(**changed):
    row = {"version": "3008.3", "free": {"/var/cache/salt": 9000}}
    return row | changed


def seen(**changed):
    """Nothing is wrong: two masters-to-be, of which the first is one already, and a minion."""
    reached = {address: {"4505": "open", "4506": "open"} for address in MASTERS.values()}
    return {
        "version": "3008.3",
        "accepted": frozenset(IDS),
        "facts": {name: facts() for name in IDS},
        "clocks": dict.fromkeys(IDS, (-0.2, 0.3)),
        "reached": dict.fromkeys(IDS, reached),
        "taken": {name: [] for name in MASTERS},
    } | changed


def findings(plan=None, **changed):
    return deploy.preflight(plan or deploy.plan(declared()), **seen(**changed))


# The plan


def test_the_defaults_are_those_of_the_formula():
    assert yaml.safe_load(DEFAULTS.read_text())["deploy"] == deploy.DEFAULTS


def test_a_plan_has_what_an_orchestration_needs():
    config = {"ret_port": 14506, "external_auth": {"pam": {"secret": []}}}
    plan = deploy.plan(
        declared(deploy={"batch": 3, "disk": 7}, master={"config": config}, restart_timeout=9)
    )
    assert plan.masters == MASTERS
    assert (plan.batch, plan.disk, plan.clocks, plan.restart_timeout) == (3, 7, 5, 9)
    assert plan.ports == (4505, 14506)
    # Options may be secrets.
    assert "secret" not in str(asdict(plan))


@pytest.mark.parametrize(
    "declaration",
    [
        None,
        "rubbish",
        {},
        {"masters": None},
        {"masters": [5, {"id": 1, "address": "x"}]},
        {"deploy": {"batch": ["x"], "clocks": "soon", "disk": True, "timeout": -1}},
        {"deploy": [], "master": {"config": 5}, "mode": ["hot"], "restart_timeout": None},
    ],
    ids=repr,
)
def test_a_refused_declaration_gives_a_plan_all_the_same(declaration):
    plan = deploy.plan(declaration, ["why"])
    assert (plan.masters, plan.findings) == ({}, ("why",))
    assert {name: getattr(plan, name) for name in deploy.DEFAULTS} == deploy.DEFAULTS


# Batches and order


@pytest.mark.parametrize(
    ("batch", "total", "size"),
    [("25%", 0, 1), ("25%", 3, 1), ("25%", 20, 5), ("100%", 20, 20), (3, 20, 3), (100, 5, 100)],
)
def test_the_largest_batch_is_a_number_or_a_percentage(batch, total, size):
    assert deploy.largest(batch, total) == size


def sizes(most, total, seconds):
    """Return the batches of so many minions, of which each batch takes some seconds."""
    past = []
    while total > 0:
        size = min(deploy.batch_size(past, most), total)
        total -= size
        past.append((size, seconds(size) / size))
    return [size for size, _ in past]


@pytest.mark.parametrize(
    ("most", "total", "expected"),
    [(5, 20, [1, 2, 4, 5, 5, 3]), (1, 3, [1, 1, 1]), (100, 40, [1, 2, 4, 8, 16, 9])],
)
def test_batches_double_from_one_up_to_the_largest(most, total, expected):
    assert sizes(most, total, lambda size: 20) == expected


def test_batches_of_minions_that_share_a_processor_grow_no_further():
    # As measured on one machine with two cores.
    assert sizes(12, 50, lambda size: 14 + 6 * size) == [1, 2, 4, 8, 4, 4, 4, 4, 8, 4, 4, 3]


def test_one_slow_batch_does_not_keep_the_others_small_for_long():
    # The third waits for a minion's job to end.
    seconds = itertools.chain([20, 20, 300], itertools.repeat(20))
    assert sizes(64, 100, lambda _: next(seconds)) == [1, 2, 4, 2, 2, 2, 2, 4, 8, 16, 32, 25]


@pytest.mark.parametrize(
    ("here", "order"),
    [
        ("saltm1", ["saltm2", "saltm3", "saltm1"]),
        ("saltm3", ["saltm1", "saltm2", "saltm3"]),
        (None, ["saltm1", "saltm2", "saltm3"]),
    ],
)
def test_the_master_that_we_are_on_is_the_last(here, order):
    assert deploy.order(["saltm1", "saltm2", "saltm3"], here) == order


# Preflight


def test_running_masters_that_listen_elsewhere_are_findings_and_no_firewall():
    config = {"publish_port": 14505, "ret_port": 14506}
    plan = deploy.plan(declared(master={"config": config}))
    refused = {address: {"14505": "refused", "14506": "refused"} for address in MASTERS.values()}
    rows = {name: facts(serves=[4505, 4506]) for name in MASTERS} | {"web1": facts()}
    assert findings(plan, facts=rows, reached=dict.fromkeys(IDS, refused)) == [
        f"{name}: its master runs and listens on 4505, 4506, not on 14505, 14506; to change the "
        "ports of running masters, see docs/deploy.md"
        for name in MASTERS
    ]


def test_a_running_master_that_listens_and_is_refused_is_behind_a_firewall():
    rows = {name: facts(serves=[4505, 4506]) for name in MASTERS} | {"web1": facts()}
    reached = seen()["reached"] | {
        "web1": {address: {"4505": "refused", "4506": "open"} for address in MASTERS.values()}
    }
    assert findings(facts=rows, reached=reached) == [
        f"web1: cannot reach port 4505 of {name} ({address}): refused; a firewall rejects it, or "
        "its master listens at other addresses only"
        for name, address in MASTERS.items()
    ]


def test_running_masters_with_another_transport_are_findings():
    plan = deploy.plan(declared(master={"config": {"transport": "tcp"}}))
    rows = {name: facts(serves=[4505, 4506], transport="zeromq") for name in MASTERS}
    assert findings(plan, facts={**rows, "web1": facts()}) == [
        f"{name}: its master runs with transport zeromq, declared is tcp; to change that of "
        "running masters, see docs/deploy.md"
        for name in MASTERS
    ]
    assert findings(facts={**rows, "web1": facts()}) == []


def test_ipv6_masters_are_tried_with_ipv6():
    masters = [{"id": "saltm1", "address": "2001:db8::1"}]
    assert deploy.plan(declared(masters=masters)).listens == {"ipv6": True}
    assert deploy.plan(declared()).listens == {}


def test_nothing_speaks_against_a_sound_topology():
    assert findings() == []


def test_what_is_wrong_with_the_declaration_is_a_finding():
    plan = deploy.plan(declared(), ["mode: got 'x'; supported: hot, failover"])
    assert findings(plan) == ["declaration: mode: got 'x'; supported: hot, failover"]


def test_a_master_whose_key_is_not_accepted_is_a_finding():
    assert findings(accepted=frozenset(["saltm1", "web1"])) == [
        "saltm2: its minion's key is not accepted on this master; see salt-key -L"
    ]


def test_a_master_whose_minion_is_away_is_a_finding():
    there = {name: facts() for name in ("saltm1", "web1")}
    assert findings(facts=there) == [
        "saltm2: its minion does not answer; a host under 'masters' has to"
    ]


def test_another_minion_that_is_away_is_none():
    there = {name: facts() for name in MASTERS}
    assert findings(facts=there) == []


def test_an_error_instead_of_facts_is_a_finding():
    assert findings(facts=seen()["facts"] | {"web1": "not available"}) == ["web1: not available"]


@pytest.mark.parametrize(
    ("versions", "finding"),
    [
        ({"web1": "3005.1"}, "web1: has Salt 3005.1; supported: 3006 or newer"),
        (
            {"web1": "3009.0"},
            "web1: has Salt 3009.0, newer than 3008.3 of this master; "
            "supported: a master that is not older than its minions",
        ),
        (
            {"saltm2": "3007.1"},
            "this master: has Salt 3008.3, newer than 3007.1 of saltm2; "
            "supported: a master that is not older than its minions",
        ),
        ({"web1": "3006.9"}, None),
        # Salt's own releases within a series get along.
        ({"web1": "3008.9"}, None),
    ],
)
def test_versions_have_to_fit(versions, finding):
    rows = {name: facts(version=versions.get(name, "3008.3")) for name in IDS}
    assert findings(facts=rows)[:1] == ([finding] if finding else [])


@pytest.mark.parametrize(
    ("clock", "finding"),
    [
        ((7.0, 9.0), "web1: its clock is 7 s or more ahead of this master's"),
        ((-90.0, -60.0), "web1: its clock is 60 s or more behind this master's"),
        ((4.0, 20.0), None),
        # A slow answer is no wrong clock.
        ((-30.0, 1.0), None),
    ],
)
def test_a_clock_that_is_certainly_wrong_is_a_finding(clock, finding):
    found = findings(clocks={"web1": clock})
    assert found == ([f"{finding}; supported: 5 s (deploy: clocks)"] if finding else [])


def test_each_port_that_cannot_be_reached_is_a_finding():
    row = {"192.0.2.1": {"4505": "open", "4506": "open"}}
    row["192.0.2.2"] = {"4505": "refused", "4506": "no answer within 3 s"}
    assert findings(reached={"web1": row}) == [
        "web1: cannot reach port 4505 of saltm2 (192.0.2.2): refused; a firewall rejects it",
        "web1: cannot reach port 4506 of saltm2 (192.0.2.2): no answer within 3 s",
    ]


@pytest.mark.parametrize("told", [None, "x", {"192.0.2.1": 5}, {"192.0.2.1": {}}], ids=repr)
def test_whatever_a_minion_says_of_ports_is_no_more_than_a_finding(told):
    found = findings(reached={"web1": told})
    assert found[0] == "web1: cannot reach port 4505 of saltm1 (192.0.2.1): not told"
    assert len(found) == 4


FACTS = facts(clock=1.5, daemons={"master": None, "minion": [1, 2.5]})


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "an error",
        {},
        FACTS | {"clock": "now"},
        FACTS | {"version": 3008},
        FACTS | {"daemons": {}},
        FACTS | {"daemons": None},
        FACTS | {"free": {"/": "much"}},
    ],
    ids=repr,
)
def test_facts_that_make_no_sense_are_words(answer):
    assert deploy.facts(FACTS) == FACTS
    assert isinstance(deploy.facts(answer), str)


def test_a_refused_connection_says_nothing_where_nothing_could_listen():
    row = {"192.0.2.2": {"4505": "refused", "4506": "refused"}}
    row["192.0.2.1"] = {"4505": "open", "4506": "open"}
    assert findings(reached={"web1": row}, taken={"saltm1": []}) == []


def test_a_port_that_something_else_has_is_a_finding():
    assert findings(taken={"saltm2": [4506]}) == [
        "saltm2: port 4506 is taken, and not by salt-master"
    ]


def test_too_little_space_on_a_master_is_a_finding():
    rows = seen()["facts"] | {"saltm2": facts(free={"/var": 499, "/etc": 500})}
    assert findings(facts=rows) == ["saltm2: 499 MiB are free in /var; needed: 500 (deploy: disk)"]


def test_all_findings_are_there_at_once():
    found = findings(
        deploy.plan(declared(), ["one", "two"]),
        facts={"saltm1": facts(free={"/var": 1}), "web1": "error"},
        clocks={"web1": (60.0, 61.0)},
        taken={"saltm1": [4505]},
    )
    assert len(found) == 7


# Results of states


STATES = {
    "a": {"__id__": "multimaster-minion-config", "result": True, "changes": {"x": 1}},
    "b": {
        "__id__": "multimaster-minion-restart",
        "result": True,
        "changes": {"restart": "after this job"},
    },
}


@pytest.mark.parametrize(
    ("result", "failed"),
    [
        (STATES, []),
        (None, ["did not return"]),
        ([], ["tells of no state"]),
        ({}, ["tells of no state"]),
        (["Rendering failed"], ["Rendering failed"]),
        ("Passed invalid arguments", ["Passed invalid arguments"]),
        ({"a": {"__id__": "x", "result": False, "comment": "no"}}, ["x: no"]),
        ({"a": {"__id__": "x", "result": None, "comment": "would"}}, []),
    ],
)
def test_what_failed_is_said_in_words(result, failed):
    assert deploy.failures(result) == failed


def test_which_daemons_restart_is_read_from_the_states():
    assert deploy.restarts(STATES) == {"minion"}
    assert deploy.restarts({"a": STATES["a"]}) == set()
    master = {**STATES["b"], "__id__": "multimaster-master-restart"}
    assert deploy.restarts({"a": master, "b": STATES["b"]}) == {"master", "minion"}
    assert deploy.changes(STATES)
    assert not deploy.changes({"a": {**STATES["a"], "changes": {}}})


# Hosts whose daemons are restarted

SERVICES = {"master": "salt-master", "minion": "salt-minion"}
ROLES = {"master", "minion"}


def host(master, minion, **more):
    return {"clock": 5, "daemons": {"master": master, "minion": minion}} | more


@pytest.mark.parametrize(
    ("now", "left"),
    [
        (None, ["master", "minion"]),
        ("an error", ["master", "minion"]),
        (host([1, 1], [2, 1]), ["master", "minion"]),
        (host([3, 1], None), ["minion"]),
        (host([3, 1], [4, 1]), []),
        (host([3, 1], [4, 1], cutover={"step": "kept"}, restarts={}), []),
        (host([3, 1], [4, 1], cutover={"step": "proving"}), ["minion"]),
        (host([3, 1], [4, 1], restarts={"salt-master": {"waiting": "x"}}), ["master"]),
    ],
    ids=repr,
)
def test_a_restart_is_under_way_until_all_is_known_to_be_over(now, left):
    assert sorted(deploy.under_way(ROLES, host([1, 1], [2, 1]), now, SERVICES)) == left


def test_the_time_of_day_is_no_progress():
    told = host([1, 1], None, cutover={"step": "proving", "seen": {"192.0.2.1": "silent"}})
    assert deploy.progress(told) == deploy.progress(told | {"clock": 9})
    assert deploy.progress(told) != deploy.progress(told | {"restarts": {"salt-master": {}}})
    assert deploy.progress(None) is None


@pytest.mark.parametrize("answer", [None, "an error", {}, {"j1": "test.sleep"}, {"jobs": {}}])
def test_jobs_that_are_not_known_are_words(answer):
    assert isinstance(deploy.unfinished(answer), str)
    assert deploy.unfinished({"jobs": {}, "told": ["web1"]}) == ({}, {"web1"})


# Who lacks what


@pytest.mark.parametrize(
    ("mode", "answers", "found"),
    [
        ("hot", {"saltm1": ["web1"], "saltm2": ["web1"]}, {}),
        ("hot", {"saltm1": ["web1"], "saltm2": []}, {"web1": ["saltm2"]}),
        ("failover", {"saltm1": [], "saltm2": ["web1"]}, {}),
        ("failover", {"saltm1": [], "saltm2": []}, {"web1": ["saltm1", "saltm2"]}),
    ],
)
def test_a_minion_has_to_answer_where_its_mode_says(mode, answers, found):
    assert deploy.lacking(mode, ["web1"], answers) == found


def report(**changed):
    row = {"running": True, "answering": list(MASTERS), "accepted": list(IDS)}
    return row | {"fingerprint": "f", "digest": "d"} | changed


def problems(reports=None, answers=None, expected=("web1",)):
    reports = {name: report() for name in MASTERS} | (reports or {})
    answers = {name: list(IDS) for name in MASTERS} | (answers or {})
    return deploy.unhealthy(list(MASTERS), reports, answers, expected)


def test_masters_that_are_well_have_no_problem():
    assert problems() == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (None, "saltm2: the minion on its host does not answer"),
        ("an error", "saltm2: the minion on its host gives no answer: an error"),
        (report(running=False), "saltm2: its master does not run"),
        (report(answering=["saltm1"]), "saltm2: its master does not answer"),
        (report(fingerprint="0"), "saltm2: not the same key pair as on saltm1"),
        (report(digest="0"), "saltm2: not the same decisions on keys as on saltm1"),
        (report(digest=None), "saltm2: no decisions on keys yet"),
        (report(accepted=["saltm1"]), "saltm2: not the same accepted keys as on saltm1"),
    ],
    ids=repr,
)
def test_a_master_is_not_well_with(row, problem):
    assert problems({"saltm2": row}) == [problem]


def test_every_master_has_to_be_connected_to_all_masters_hosts():
    assert problems(answers={"saltm1": ["saltm1", "web1"]}) == [
        "saltm1: no answer to its master from saltm2"
    ]


def test_whoever_was_connected_before_has_to_be_back():
    assert problems(answers={"saltm2": list(MASTERS)}) == [
        "saltm2: no answer to its master from web1"
    ]
    assert problems(answers={"saltm1": list(MASTERS)}) == []
