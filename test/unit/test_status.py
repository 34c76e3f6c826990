"""``salt-run multimaster.status``: what is a problem, the exit status, and the tables."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import time
from collections import Counter, deque
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import multimaster_drift
import multimaster_keypair
import multimaster_ledger

IDS = ("saltm1", "saltm2")
UNEQUAL = "the masters' decisions on keys differ"
ADDRESSES = ["192.0.2.1", "192.0.2.2"]
PROPOSED = {
    "verdict": "deletion proposed",
    "origin": "saltm1",
    "since": 1_700_000_000_000,
    "until": 1_700_000_001_000,
    "count": 5,
    "ids": ["web1", "web2", "web3", "web4"],
}
# /proc/net/tcp with two connections to 192.0.2.1:4505, and others.
TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 010200C0:1199 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 020200C0:1199 0100007F:8235 01 00000000:00000000 00:00000000 00000000     0        0 2
   2: 010200C0:119A 0100007F:8236 01 00000000:00000000 00:00000000 00000000     0        0 3
   3: 010200C0:1199 0100007F:8237 01 00000000:00000000 00:00000000 00000000     0        0 4
   4: 010200C0:1199 0100007F:8238 01 00000000:00000000 00:00000000 00000000     0        0 5
"""


def master(address, **changed):
    row = {"address": address, "reachable": True, "version": "3008.3", "fingerprint": "f" * 64}
    row |= {"accepted": 3, "pending": 0, "denied": 0, "rejected": 0}
    row |= {"digest": "d" * 64, "conflicts": 0, "signs": False, "signing_fingerprint": None}
    row |= {
        "connections": 3,
        "formula": "0.1.0",
        "offset": 0.0,
        "reported": True,
        "remotes_down": 0,
        "aside": {},
        "proposed": [],
        "unknown": None,
        "running": True,
        "astray": {},
        "refused": {},
        "unwritable": None,
    }
    return row | changed


def healthy():
    """Two masters, of whose hosts one is a minion, too, and a minion of both."""
    connected = dict.fromkeys(IDS, True)
    return SimpleNamespace(
        masters={name: master(at) for name, at in zip(IDS, ADDRESSES, strict=True)},
        minions={
            name: {
                "connected": dict(connected),
                "configured": list(ADDRESSES),
                "silent": [],
                "cutover": {},
                "restarts": {},
                "beacons": None,
                "denied": {},
            }
            for name in ("saltm1", "web1")
        },
    )


@pytest.fixture(scope="module")
def loaders(loaded_host):
    """The runner and the outputter in Salt's loader."""
    import salt.config
    import salt.loader

    loaded_host.reset()
    modules = [str(loaded_host.extension_modules)]
    # An address that no connection of this machine has.
    settings = {"root_dir": str(loaded_host.root), "interface": "192.0.2.1", "id": "saltm1"}
    settings |= {"module_dirs": modules}
    loaded_host.write("etc/salt/master", settings)
    opts = dict(salt.config.master_config(str(loaded_host.config_dir / "master")))
    opts["grains"] = loaded_host.runtime.opts["grains"]
    masters = [{"id": n, "address": at} for n, at in zip(IDS, ADDRESSES, strict=True)]
    opts["multimaster"] = {"mode": "hot", "masters": masters}
    utils = salt.loader.utils(opts)
    return SimpleNamespace(
        # As salt-run makes it.
        runner=salt.loader.runner(opts, utils=utils),
        utils=utils,
        output=salt.loader.outputters(opts),
        opts=opts,
    )


@pytest.fixture
def full_problems(loaders):
    """What a topology is told to have, with what to do about it."""
    function = loaders.runner["multimaster.status"].func.__globals__["_problems"]
    return lambda topology, mode="hot": function(
        topology.masters, topology.minions, ADDRESSES, mode
    )


@pytest.fixture
def problems(full_problems):
    """The same without what to do about it, of which there is a test below."""
    return lambda *args: [what(line) for line in full_problems(*args)]


def what(problem):
    """Return what is wrong, without the remedy."""
    found, _, remedy = problem.rpartition("; ")
    while "salt" in (more := found.rpartition("; ")[2]) and REMEDY.search(f"; {more}"):
        found = found.rpartition("; ")[0]
    assert remedy, problem
    return found


# A command in a remedy: it ends the sentence, or a part of it.
REMEDY = re.compile(r"(?:: |; |see )(salt(?:-run|-call)? [^,;]+)(?=[,;]|$)")


# Problems


def test_masters_that_sign_with_one_pair_are_no_problem(problems):
    topology = healthy()
    for row in topology.masters.values():
        row |= {"signs": True, "signing_fingerprint": "a" * 64}
    assert problems(topology) == []


def test_a_master_with_another_signing_pair_is_a_problem(problems):
    topology = healthy()
    for row, letter in zip(topology.masters.values(), "ab", strict=True):
        row |= {"signs": True, "signing_fingerprint": letter * 64}
    assert problems(topology) == ["the masters have different signing pairs (master_sign.pem)"]


def test_a_master_that_does_not_sign_while_another_does_is_a_problem(problems):
    topology = healthy()
    topology.masters["saltm1"] |= {"signs": True, "signing_fingerprint": "a" * 64}
    (problem,) = problems(topology)
    assert problem.startswith("saltm2: configured not to sign")


@pytest.mark.parametrize("mode", ["hot", "failover"])
def test_a_healthy_topology_has_no_problem(problems, mode):
    assert problems(healthy(), mode) == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"reachable": False},
            "master saltm2 (192.0.2.2) does not answer the minion on its host",
        ),
        ({"reachable": False, "running": False}, "master saltm2 (192.0.2.2) does not run"),
        (
            {"astray": {"web1": "missing, and decided: accepted", "...": "4 more"}},
            "master saltm2 has keys otherwise than decided: web1 (missing, and decided: accepted), "
            "and 4 more",
        ),
        (
            {"astray": {"web1": "missing, and decided: accepted"}, "aside": {"web1": "no space"}},
            "master saltm2 has keys otherwise than decided: web1 (missing, and decided: accepted; "
            "no space)",
        ),
        (
            {"unwritable": "/pki/minions: read-only file system"},
            "master saltm2 cannot write keys, /pki/minions: read-only file system",
        ),
        ({"pending": 2}, "master saltm2 has 2 pending keys"),
        ({"fingerprint": "0" * 64}, "the masters have different keys"),
        ({"fingerprint": None}, "the masters have different keys"),
        ({"digest": "0" * 64}, UNEQUAL),
        ({"digest": None}, UNEQUAL),
        ({"aside": {"web1": "no space"}}, "master saltm2 has set 'web1' aside: no space"),
        ({"conflicts": 2}, "master saltm2 knows 2 ids with two keys"),
        (
            {"proposed": [PROPOSED]},
            "deletion proposed, by what was done on saltm1 at 2023-11-14T22:13:20Z: web1, web2, "
            "web3 and 2 more",
        ),
    ],
    ids=repr,
)
def test_a_master_is_a_problem_with(problems, row, problem):
    topology = healthy()
    topology.masters["saltm2"] |= row
    assert problems(topology) == [problem]


DENIED = {"denied": "a" * 64, "state": "accepted", "fingerprint": "1" * 20 + "b" * 44}


def test_a_minion_that_was_installed_anew_is_named_with_both_of_its_keys(full_problems):
    """It was said to be not connected, and one of the numbers was a 1."""
    topology = healthy()
    for name in IDS:
        topology.masters[name]["refused"] = {"web1": DENIED}
        topology.minions["web1"]["denied"][name] = "a" * 64
        topology.minions["web1"]["connected"][name] = False
    # A fingerprint of decimal digits only would be a number on a command line.
    own = "1" * 20 + "b"
    assert full_problems(topology) == [
        f"minion web1 is denied on saltm1, saltm2 with key {'a' * 16}, and its key {own} is "
        f"accepted; if it was installed anew: salt-run multimaster.delete web1 {own}, and when it "
        f"waits: salt-run multimaster.accept web1 {'a' * 16}; if it is somebody else: "
        f"salt-run multimaster.delete web1 {'a' * 16}"
    ]


def test_a_denied_key_that_was_left_behind_is_named_and_one_that_is_about_to_go_is_not(
    full_problems,
):
    topology = healthy()
    left = {"denied": "a" * 64, "state": None, "fingerprint": None}
    topology.masters["saltm2"]["refused"] = {"web9": left}
    topology.masters["saltm1"]["refused"] = {"web1": DENIED | {"fingerprint": "a" * 64}}
    assert full_problems(topology) == [
        f"minion web9 is denied on saltm2 with key {'a' * 16}, and has no other; to clear it: "
        f"salt-run multimaster.delete web9 {'a' * 16}"
    ]


def test_of_many_ids_with_denied_keys_some_are_named(problems):
    topology = healthy()
    topology.masters["saltm2"]["refused"] = {f"web{number}": DENIED for number in range(30)}
    found = problems(topology)
    assert (len(found), found[-1]) == (6, "25 more ids have denied keys")


def test_what_is_proposed_is_named_once_though_all_masters_know_it(problems):
    topology = healthy()
    fewer = PROPOSED | {"count": 2, "ids": ["web1", "web2"]}
    for row, group in zip(topology.masters.values(), (PROPOSED, fewer), strict=True):
        row["proposed"] = [group, group | {"origin": "saltm3", "count": 1, "ids": ["db1"]}]
    first, second = problems(topology)
    assert "web3 and 2 more" in first
    assert "on saltm3 at 2023-11-14T22:13:20Z: db1" in second


@pytest.mark.parametrize("row", [{"denied": 1}, {"rejected": 1}], ids=repr)
def test_a_key_that_was_decided_on_is_no_problem(problems, row):
    topology = healthy()
    topology.masters["saltm2"] |= row
    assert problems(topology) == []


@pytest.mark.parametrize(
    ("mode", "minion", "silent", "problem"),
    [
        ("hot", "web1", ["saltm2"], "saltm2"),
        ("hot", "web1", IDS, "saltm1, saltm2"),
        # Connected to one master at a time, whichever that is.
        ("failover", "web1", ["saltm2"], None),
        ("failover", "web1", IDS, "saltm1, saltm2"),
        # The hosts of masters are connected to all of them in every mode.
        ("failover", "saltm1", ["saltm2"], "saltm2"),
    ],
)
def test_a_minion_has_to_be_connected_to_its_masters(problems, mode, minion, silent, problem):
    topology = healthy()
    topology.minions[minion]["connected"] |= dict.fromkeys(silent, False)
    expected = [f"minion {minion} is not connected to {problem}"] if problem else []
    assert problems(topology, mode) == expected


@pytest.mark.parametrize(
    ("configured", "wrong"),
    [(["192.0.2.9"], True), (ADDRESSES[::-1], True), (ADDRESSES, False), (None, False)],
)
def test_a_minion_has_to_be_configured_for_them(problems, configured, wrong):
    topology = healthy()
    topology.minions["web1"]["configured"] = configured
    expected = f"minion web1 is configured for {', '.join(configured or [])}"
    assert problems(topology) == ([expected] if wrong else [])


# The runner


def proof(value, function, host, nonce, pem):
    """Return the answer of a master's host; a text is what Salt says instead of one."""
    if isinstance(value, str):
        return value
    with contextlib.suppress(TypeError, ValueError):
        return multimaster_keypair.prove({"told": value}, function, host, nonce, pem)
    # What cannot be signed.
    return {"answer": {"told": value}, "signature": "AAAA"}


class Bus:
    """Stands in for a master's bus: a job is answered at once by those who have an answer."""

    def __init__(self, answers, pem):
        # (function, minion) -> what it returns, or a function of the job's arguments.
        self.answers = answers
        # The masters' private key; and minion -> what makes another answer of its signed one.
        self.pem, self.forged = pem, {}
        self.asked, self.flags = [], []
        self.events = deque()
        # Minions that are slow -> their jobs; how often they were looked for; and who is silent.
        self.busy, self.asked_for, self.dead = {}, Counter(), set()
        self.event = self
        # Goes on only while there is nothing to hear, so that no machine is too slow for it.
        self.now = 0.0

    def connect_pub(self):
        return True

    def run_job(self, targets, function, arguments, **flags):
        jid = str(len(self.asked))
        self.flags.append(flags)
        if function == "saltutil.find_job":
            self.asked.append((targets, function, arguments))
            for name in targets:
                self.look_for(name, jid, *arguments)
            return {"jid": jid}
        signed, named = function == "multimaster.signed", {}
        if signed:
            function, nonce, _, named = arguments
            self.nonce = nonce
        self.asked.append((targets, function, named))
        for name in (*IDS, "web1") if targets == "*" else targets:
            if (function, name) in self.answers:
                value = self.answers[function, name]
                value = value(**named) if callable(value) else value
                if isinstance(value, dict) and isinstance(value.get("now"), float):
                    # Told as the clock's offset.
                    value = value | {"now": time.time() + value["now"]}
                if signed:
                    value = proof(value, function, name, nonce, self.pem)
                    value = self.forged.get(name, lambda reply: reply)(value)
                if name in self.busy:
                    self.busy[name].append((jid, value))
                else:
                    self.say(jid, name, value)
        return {"jid": jid}

    def say(self, jid, name, value):
        tag = f"salt/job/{jid}/ret/{name}"
        self.events.append({"tag": tag, "data": {"return": value, "id": name}})

    def look_for(self, name, jid, wanted):
        """Tell what a minion is at work on; one that is busy has it ready when asked again."""
        if name in self.dead:
            return
        todo = self.busy.get(name, [])
        found = [value for job, value in todo if job == wanted]
        self.say(jid, name, {"jid": wanted} if found else {})
        if found and self.asked_for[name] > 1:
            self.say(wanted, name, found[0])
        self.asked_for[name] += 1

    def get_event(self, wait, tag, full):
        if self.events:
            return self.events.popleft()
        self.now += wait
        return None

    def destroy(self):
        pass


@pytest.fixture
def bus(loaders, loaded_host, shared, monkeypatch):
    """Have the runners meet such a bus, on a master that has accepted three minions."""
    loaded_host.write("etc/salt/pki/master/master.pub", shared.pub)
    loaded_host.accept(dict.fromkeys(("saltm1", "saltm2", "web1"), "a key"))
    look = loaders.utils["multimaster_gather.look"].func

    def bus(answers):
        made = bus.last = Bus(answers, shared.pem)
        clock = SimpleNamespace(time=time.time, monotonic=lambda: made.now)
        monkeypatch.setitem(look.__globals__, "time", clock)
        monkeypatch.setattr("salt.client.get_local_client", lambda mopts: made)
        return made

    return bus


@pytest.fixture
def status(loaders, bus):
    """Run it with the masters' reports and the minions' lists of masters."""

    def status(reports, lists, connected=("web1",), busy=(), forged=None):
        answers = {("multimaster_drift.report", name): value for name, value in reports.items()}
        answers |= {("multimaster.masters", name): lists[name] for name in lists}
        bus(answers).busy = {name: [] for name in busy}
        bus.last.forged = forged or {}
        return loaders.runner["multimaster.status"](timeout=0)

    return status


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"silent": ["192.0.2.1"]}, "minion web1 gets no answer from 192.0.2.1"),
        (
            {"beacons": "192.0.2.1"},
            "minion web1 runs no beacons until it has been with 192.0.2.1, the first of its "
            "masters",
        ),
        (
            {
                "cutover": {
                    "step": "proving",
                    "back": True,
                    "why": "silent",
                    "wanted": ["192.0.2.8", "192.0.2.9"],
                    "seen": {"192.0.2.8": ["refused", NOW - 7]},
                }
            },
            "minion web1 went back from 192.0.2.8, 192.0.2.9 (silent), and goes on proving them: "
            "192.0.2.8 refused for 7 s",
        ),
        (
            {"cutover": {"step": "proving", "seen": {"192.0.2.1": ["pending", NOW - 3]}}},
            "minion web1 is on its way to a new list of masters, proving: 192.0.2.1 pending for "
            "3 s",
        ),
        (
            {"cutover": {"step": "prepared"}},
            "minion web1 is on its way to a new list of masters, prepared",
        ),
        ({"cutover": {"step": "kept", "heard": ["192.0.2.1"]}}, None),
        (
            {"restarts": {"salt-master": {"since": NOW - 601, "timeout": 600, "waiting": "x"}}},
            "salt-master on web1 is to be restarted for 601 s; waiting for x",
        ),
        ({"restarts": {"salt-master": {"since": NOW - 599, "timeout": 600, "waiting": "x"}}}, None),
    ],
)
def test_what_a_minion_tells_of_its_masters_is_shown(problems, row, problem, monkeypatch):
    monkeypatch.setattr("time.time", lambda: NOW)
    topology = healthy()
    topology.minions["web1"] |= row
    assert problems(topology) == ([problem] if problem else [])


def report(answers=True, stale=(), offset=0.0, subjects=None, **changed):
    """What the host of a master reports."""
    row = {"running": True, "version": "3008.3", "fingerprint": "f" * 64, "formula": "0.1.0"}
    row |= {"accepted": 3, "pending": 0, "denied": 0, "rejected": 0, "connections": 3}
    row |= {"digest": "d" * 64, "conflicts": 0, "signs": False, "signing_fingerprint": None}
    leaves = {"config": {"worker_threads": 5}, "keys": {"ledger": "d"}} | (subjects or {})
    return {
        "master": {"answers": answers, **row, **changed},
        "host": {"configured": ADDRESSES, "connected": ADDRESSES},
        "subjects": {name: multimaster_drift.digest(found) for name, found in leaves.items()},
        "proof": {"sample": None},
        "stale": list(stale),
        "places": {},
        "remotes": {},
        "minions": None,
        "now": float(offset),
    }


CONFIGURED = {"web1": {"configured": ADDRESSES, "connected": ADDRESSES}}


def test_all_is_well_with_exit_status_0(status):
    shown = status({name: report() for name in IDS}, CONFIGURED)
    assert shown["outputter"] == "multimaster"
    data = shown["data"]
    for name, address in zip(IDS, ADDRESSES, strict=True):
        assert data["masters"][name] == master(address)
    assert data["minions"]["web1"] == {
        "connected": dict.fromkeys(IDS, True),
        "configured": ADDRESSES,
        "unknown": None,
        "silent": [],
        "cutover": {},
        "restarts": {},
        "beacons": None,
        "denied": {},
    }
    assert (data["problems"], data["retcode"]) == ([], 0)


def test_a_git_remote_that_is_down_is_named_once_with_the_masters_that_say_so(status):
    url = "https://git.example.com/salt.git"
    down = {name: {url: f"Connection refused after {ms} ms"} for ms, name in enumerate(IDS)}
    told = {name: report() | {"remotes": down[name]} for name in IDS}
    both = status(told, CONFIGURED)["data"]
    assert [what(line) for line in both["problems"]] == [
        f"saltm1, saltm2: git remote {url}: Connection refused after 0 ms; "
        "what was fetched last is served"
    ]
    assert both["masters"]["saltm2"]["remotes_down"] == both["retcode"] == 1


ALONE = {"configured": ADDRESSES, "connected": ADDRESSES[:1]}


@pytest.mark.parametrize(
    ("reports", "lists", "up", "words"),
    [
        # Somebody who is there says that it is not connected to it: known.
        (
            {"saltm1": report() | {"host": ALONE}},
            ALONE,
            False,
            "does not answer: its host does not report, and nobody is connected to it",
        ),
        # Or is, and nobody can tell from here.
        (
            {"saltm1": report()},
            CONFIGURED["web1"],
            None,
            "is unknown: its host does not report, and saltm1, web1 have a connection to it",
        ),
        # A connection of somebody who gets no answer through it is none.
        (
            {"saltm1": report() | {"host": CONFIGURED["web1"] | {"silent": ADDRESSES[1:]}}},
            CONFIGURED["web1"] | {"silent": ADDRESSES[1:]},
            False,
            "does not answer: its host does not report, and nobody is connected to it",
        ),
        (
            {},
            {"configured": ADDRESSES[:1], "connected": ADDRESSES[:1]},
            None,
            "is unknown: its host does not report, and nobody says whether it is connected to it",
        ),
        (
            {"saltm1": report(), "saltm2": report(running=False, answers=False)},
            CONFIGURED["web1"],
            False,
            "does not run",
        ),
        (
            {"saltm1": report(), "saltm2": report(answers=False)},
            CONFIGURED["web1"],
            False,
            "does not answer the minion on its host",
        ),
    ],
    ids=["absent", "connected", "silent", "nobody", "stopped", "frozen"],
)
def test_a_master_is_up_down_or_unknown_by_what_was_heard(
    status, loaders, reports, lists, up, words
):
    shown = status(reports, {"web1": lists})["data"]
    assert shown["retcode"] == 1
    assert f"master saltm2 (192.0.2.2) {words}" in [what(line) for line in shown["problems"]]
    assert shown["masters"]["saltm2"]["reachable"] is up
    (line,) = [
        line
        for line in loaders.output["multimaster"](shown).splitlines()
        if line.startswith("saltm2  192")
    ]
    assert line.split()[2] == {False: "NO", None: "?"}[up]
    metrics = loaders.utils["multimaster_drift.metrics"](shown | {"troubled": 0}, 0)
    assert ('multimaster_up{master="saltm2"}' in metrics) == (up is False)


def test_a_master_that_nobody_answers_to_says_so_and_nothing_of_the_others(status):
    """All the others were said to be down."""
    data = status({"saltm1": report() | {"host": ALONE}}, {})["data"]
    assert data["problems"] == [
        "nobody but saltm1 answers to this master, and nothing is known of the others; on another "
        "master: salt-run multimaster.status"
    ]
    assert data["masters"]["saltm2"]["reachable"] is None
    assert data["minions"]["web1"]["connected"] == {"saltm1": False, "saltm2": None}
    data = status({}, {})["data"]
    assert data["problems"][0].startswith("nobody answers to this master, and nothing is known")


@pytest.mark.parametrize("error", ["closed", "gone"])
@pytest.mark.parametrize("name", ["status", "drift", "keys", "down", "metrics"])
def test_a_master_that_takes_no_commands_is_told_in_a_line(bus, loaders, monkeypatch, name, error):
    """It was a traceback of 60 lines."""
    import salt.exceptions

    made = bus({})

    def refuse(*_, **__):
        if error == "closed":
            raise salt.exceptions.SaltClientError("Salt request timed out. The master is not ...")
        raise salt.exceptions.SaltReqTimeoutError("no\x1b[2J")

    monkeypatch.setattr(made, "run_job", refuse)
    data = loaders.runner[f"multimaster.{name}"](timeout=0)["data"]
    why = {"closed": "Salt request timed out", "gone": r"no\x1b[2J"}[error]
    line = f"this master takes no commands: {why}"
    if name in ("status", "drift"):
        (said,) = data["problems"]
        assert said.startswith(f"{line}; it may be slow or starting: ")
        assert (
            "salt-run multimaster.status timeout=30; if that says the same, on its host: " in said
        )
    elif name != "metrics":
        assert data["unknown"] == dict.fromkeys(IDS, line)
    if name == "status":
        assert [row["reachable"] for row in data["masters"].values()] == [None, None]
        assert data["minions"]["web1"]["connected"] == dict.fromkeys(IDS)
    if name == "metrics":
        assert "multimaster_check_complete 0" in data["metrics"]
        # Nobody knows how many.
        assert not re.search("^multimaster_minions_in_trouble ", data["metrics"], re.M)
    else:
        assert data["retcode"] == 1


def test_who_is_silent_to_one_master_may_be_connected_to_another(status, loaders):
    """In hot mode only the master that is asked asks."""
    reports = {name: report() for name in IDS}
    shown = status(reports, {})["data"]
    assert shown["minions"]["web1"]["connected"] == {"saltm1": False, "saltm2": None}
    assert [what(line) for line in shown["problems"]] == [
        "minion web1 does not answer to saltm1, and whether it is connected to saltm2 is not known"
    ]
    reports["saltm2"] = report(running=False, answers=False)
    shown = status(reports, {})["data"]
    assert shown["minions"]["web1"]["connected"] == dict.fromkeys(IDS, False)


def test_a_minion_is_denied_on_the_master_that_says_so(status, loaders):
    refused = {"web1": DENIED, "web9": DENIED}
    told = {"saltm1": report(), "saltm2": report(denied=1, refused=refused)}
    lists = {"web1": {"configured": ADDRESSES, "connected": ADDRESSES[:1]}}
    data = status(told, lists)["data"]
    assert data["minions"]["web1"]["denied"] == {"saltm2": "a" * 64}
    first, _ = data["problems"]
    assert first.startswith("minion web1 is denied on saltm2 with key aaaa")
    lines = loaders.output["multimaster"](data).splitlines()
    assert ["web1", "yes", "DENIED"] in [line.split() for line in lines]


def test_what_a_key_store_has_otherwise_than_decided_is_no_agreement(status, loaders):
    """The ledgers were equal, and so everything was said to be well."""
    how = {"web1": "missing, and decided: accepted"}
    subjects = {"keys": {"ledger": "d", "stored:web1": how["web1"]}}
    told = {"saltm1": report(), "saltm2": report(subjects=subjects, astray=how)}
    shown = status(told, CONFIGURED)["data"]
    assert [what(line) for line in shown["problems"]] == [
        "master saltm2 has keys otherwise than decided: web1 (missing, and decided: accepted)"
    ]
    assert shown["subjects"]["keys"]["differs"] is True


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("\x1b[2J", r"the answer is not signed: \x1b[2J"),
        (
            "'multimaster.signed' is not available.",
            "the answer is not signed: 'multimaster.signed' is not available.",
        ),
        (False, "answer: got False; supported: a mapping"),
        ({}, "master: got nothing; supported: a mapping"),
        (report() | {"now": float("nan")}, "now: got nan; supported: a number"),
        (
            report(accepted="9\x1b[2J"),
            r"master:accepted: got '9\\x1b[2J'; supported: a whole number",
        ),
    ],
)
def test_a_master_whose_answer_is_none_is_unknown_with_the_reason(status, loaders, said, why):
    shown = status({"saltm1": report(), "saltm2": said}, CONFIGURED)["data"]
    problem = f"master saltm2 (192.0.2.2) is unknown: its answer is none: {why}"
    assert [what(line) for line in shown["problems"]] == [problem]
    assert shown["masters"]["saltm2"]["reachable"] is None
    assert shown["masters"]["saltm2"]["unknown"] == why
    assert shown["masters"]["saltm1"] == master(ADDRESSES[0])
    assert f"! {problem}; " in loaders.output["multimaster"](shown)


NOT_SIGNED = "the answer is not signed"
NOT_WITH_KEY = "the answer is not signed with the masters' key"
ANOTHER = "the answer is one to another question, or of another host"


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        # As an older version of the formula does.
        (lambda reply, _: reply["answer"]["told"], NOT_SIGNED),
        (lambda reply, _: {"answer": reply["answer"]}, NOT_SIGNED),
        (lambda reply, _: {**reply, "signature": None}, NOT_SIGNED),
        (lambda reply, _: {**reply, "signature": ["x"]}, NOT_WITH_KEY),
        (lambda reply, _: {**reply, "signature": {"x": 1}}, NOT_WITH_KEY),
        (lambda reply, _: {**reply, "signature": 10**400}, NOT_WITH_KEY),
        (lambda reply, _: {**reply, "signature": b"\xff" * 1_000_000}, NOT_WITH_KEY),
        (lambda reply, _: {**reply, "signature": "A" * 1_000_000}, NOT_WITH_KEY),
        (lambda reply, _: {**reply, "answer": 5}, NOT_WITH_KEY),
        (lambda reply, _: {**reply, "answer": {**reply["answer"], "told": {}}}, NOT_WITH_KEY),
        (lambda reply, sign: sign(reply, pem="other"), NOT_WITH_KEY),
        (lambda reply, sign: sign(reply, nonce="of an earlier question"), NOT_WITH_KEY),
        (lambda reply, sign: sign(reply, function="multimaster.report"), ANOTHER),
        (lambda reply, sign: sign(reply, host="saltm1"), ANOTHER),
    ],
    ids=range(14),
)
def test_what_a_master_does_not_prove_is_neither_good_nor_bad(
    status, bus, shared, other, forge, why
):
    def sign(reply, pem="shared", nonce=None, function="multimaster_drift.report", host="saltm2"):
        answer = {"told": reply["answer"]["told"]}
        key = {"shared": shared.pem, "other": other.pem}[pem]
        return proof(answer["told"], function, host, nonce or bus.last.nonce, key)

    forged = {"saltm2": lambda reply: forge(reply, sign)}
    told = {"saltm1": report(), "saltm2": report(pending=9)}
    shown = status(told, CONFIGURED, forged=forged)["data"]
    problem = f"master saltm2 (192.0.2.2) is unknown: its answer is none: {why}"
    assert [what(line) for line in shown["problems"]] == [problem]
    # Another key pair is mended on a master that is right; anything else by the formula.
    remedy = "salt saltm2 state.apply multimaster"
    if why == NOT_WITH_KEY:
        remedy += """ pillar='{"multimaster": {"replace_keypair": true}}'"""
    assert shown["problems"][0].endswith(f": {remedy}")
    assert shown["masters"]["saltm2"]["pending"] is None
    assert shown["masters"]["saltm1"] == master(ADDRESSES[0])


def test_a_private_key_that_does_not_fit_the_public_one_is_named(status, other):
    """It was said that this master does not answer, and has another configuration."""
    why = "the private key /etc/salt/pki/master/saltm2.pem does not fit the public key beside it"

    def forge(reply):
        asked = (reply["answer"]["function"], "saltm2")
        return multimaster_keypair.prove({"error": why}, *asked, "nonce", other.pem)

    told = {"saltm1": report(), "saltm2": report(subjects={"config": {"worker_threads": 9}})}
    shown = status(told, CONFIGURED, forged={"saltm2": forge})["data"]
    (problem,) = shown["problems"]
    assert what(problem).endswith(f"none: {NOT_WITH_KEY}: {why}")
    assert "replace_keypair" in problem
    assert not shown["subjects"]["config"]["differs"]


def test_a_master_is_heard_though_somebody_was_quicker_in_its_name(bus, loaders):
    class Hasty(Bus):
        def say(self, jid, name, value):
            if isinstance(value, dict) and "signature" in value:
                for forged in ("x", {**value, "signature": None}, {**value, "signature": "AAAA"}):
                    super().say(jid, name, forged)
            super().say(jid, name, value)

    bus_of = bus({})
    bus_of.__class__ = Hasty
    bus_of.answers = {("multimaster_drift.report", name): report() for name in IDS}
    bus_of.answers["multimaster.masters", "web1"] = CONFIGURED["web1"]
    assert loaders.runner["multimaster.status"](timeout=0)["data"]["problems"] == []


def test_what_another_master_is_told_in_the_name_of_a_masters_host_is_not_heard(status, loaders):
    pack = loaders.utils["multimaster_ledger.squeeze"]
    lists = CONFIGURED["web1"] | {"silent": ["192.0.2.1"]}
    for parts in ({"minions": pack({"saltm2": lists})}, {"unknown": pack({"saltm2": "an error"})}):
        data = status({"saltm1": report() | parts}, CONFIGURED)["data"]
        assert data["minions"]["saltm2"]["configured"] is None
        assert data["minions"]["saltm2"]["connected"] == {"saltm1": False, "saltm2": None}
        assert data["masters"]["saltm2"]["unknown"] is None


def test_a_minion_that_answers_and_has_no_such_module_is_unknown_and_not_away(status, loaders):
    error = "'multimaster.masters' is not available."
    shown = status({name: report() for name in IDS}, {"web1": error})["data"]
    row = shown["minions"]["web1"]
    # It has answered the one that asks.
    assert row["connected"] == {"saltm1": True, "saltm2": None}
    assert row["unknown"] == error
    (problem,) = shown["problems"]
    assert problem == (
        f"minion web1 is unknown: its answer is none: {error}; without the formula: "
        "salt web1 state.apply multimaster"
    )
    lines = loaders.output["multimaster"](shown).splitlines()
    assert ["web1", "yes", "?"] in [line.split() for line in lines]


def test_what_a_master_has_not_understood_of_its_minions_is_told(status, loaders, monkeypatch):
    pack = loaders.utils["multimaster_ledger.squeeze"]
    minions, unknown = pack({"web1": {"configured": 5}}), pack({"web1": "an error"})
    for parts in ({"minions": minions}, {"minions": pack({}), "unknown": unknown}):
        told = {"saltm1": report(), "saltm2": report() | parts}
        row = status(told, {})["data"]["minions"]["web1"]
        assert row["connected"] == {"saltm1": None, "saltm2": True}
        assert row["unknown"] in ("configured: got 5; supported: a list", "an error")


def test_only_who_was_asked_is_heard_and_once(status, bus, loaders):
    class Noisy(Bus):
        def say(self, jid, name, value):
            for stranger in range(9):
                super().say(jid, f"stranger{stranger}", value)
            super().say(jid, name, value)
            super().say(jid, name, {"configured": ["192.0.2.9"], "connected": []})

    bus_of = bus({})
    bus_of.__class__ = Noisy
    bus_of.answers = {("multimaster_drift.report", name): report() for name in IDS}
    bus_of.answers["multimaster.masters", "web1"] = CONFIGURED["web1"]
    assert loaders.runner["multimaster.status"](timeout=0)["data"]["problems"] == []


def test_a_minion_whose_list_is_unknown_is_shown_all_the_same(status):
    data = status({name: report() for name in IDS}, {})["data"]
    assert data["minions"]["web1"]["configured"] is None
    # Nobody has heard of it.
    assert len(data["problems"]) == 1


def test_without_a_topology_the_exit_status_is_1(status, loaders, monkeypatch):
    status_globals = loaders.runner["multimaster.status"].func.__globals__
    opts = {name: value for name, value in loaders.opts.items() if name != "multimaster"}
    monkeypatch.setitem(status_globals, "__opts__", opts)
    data = status({}, {})["data"]
    assert data["problems"] == [
        "this master declares no topology; apply the formula first: "
        "salt-call state.apply multimaster"
    ]
    assert data["retcode"] == 1


def test_who_is_not_there_is_not_waited_for(status, bus, loaders, monkeypatch):
    look = loaders.utils["multimaster_gather.look"].func.__globals__
    monkeypatch.setitem(look, "SLACK", 600)
    # The hosts of two masters and one minion; web1 has never been here.
    monkeypatch.setitem(look, "tables", lambda: {"tcp": TABLE})
    data = status({name: report() for name in IDS}, {})["data"]
    assert bus.last.now < 600
    assert "minion web1 does not answer to saltm1, " in data["problems"][0]


def test_who_is_at_work_on_an_answer_is_waited_for(status, bus):
    data = status({name: report() for name in IDS}, CONFIGURED, busy=["saltm2", "web1"])["data"]
    assert data["problems"] == []
    # Salt's own patience, three times.
    assert bus.last.now < 10


def test_who_is_at_work_for_ever_is_not_waited_for_that_long(status, bus, monkeypatch):
    monkeypatch.setattr(
        Bus, "look_for", lambda self, name, jid, wanted: self.say(jid, name, {"jid": wanted})
    )
    data = status({name: report() for name in IDS}, CONFIGURED, busy=["saltm2"])["data"]
    assert any("saltm2" in problem for problem in data["problems"])
    assert bus.last.now < 60


def test_who_is_connected_and_was_never_seen_is_asked_all_the_same(status, loaders, monkeypatch):
    look = loaders.utils["multimaster_gather.look"].func.__globals__
    table = TABLE + TABLE.splitlines()[-1] + "\n"
    monkeypatch.setitem(look, "tables", lambda: {"tcp": table})
    data = status({name: report() for name in IDS}, CONFIGURED)["data"]
    assert data["problems"] == []


def test_who_was_never_seen_is_asked_though_a_masters_host_is_dead(status, loaders, monkeypatch):
    look = loaders.utils["multimaster_gather.look"].func.__globals__
    monkeypatch.setitem(look, "tables", lambda: {"tcp": TABLE})
    data = status({"saltm1": report()}, CONFIGURED)["data"]
    assert data["minions"]["web1"]["connected"] == dict.fromkeys(IDS, True)
    assert not [problem for problem in data["problems"] if problem.startswith("minion web1")]


def test_who_was_asked_late_may_be_at_work_on_it(status, bus, loaders, monkeypatch):
    look = loaders.utils["multimaster_gather.look"].func.__globals__
    monkeypatch.setitem(look, "tables", lambda: {"tcp": TABLE})
    data = status({"saltm1": report()}, CONFIGURED, busy=["web1"])["data"]
    assert data["minions"]["web1"]["connected"] == dict.fromkeys(IDS, True)
    assert bus.last.now < 20


def test_a_minion_that_is_here_without_its_grains_is_a_note(status, loaders, monkeypatch):
    look = loaders.utils["multimaster_gather.look"].func.__globals__
    monkeypatch.setitem(look, "without_grains", lambda opts, ids: {"web1"} & set(ids))
    # As the masters report it in failover mode.
    elsewhere = report() | {"grainless": multimaster_ledger.squeeze(["web1", "../x"])}
    data = status({"saltm1": report(), "saltm2": elsewhere}, CONFIGURED)["data"]
    assert data["notes"] == [
        f"master {name} has no grains of web1, which salt -G leaves out there; they are asked for"
        for name in IDS
    ]
    assert data["retcode"] == 0


def test_what_is_no_list_of_minions_is_none(status):
    odd = report() | {"grainless": multimaster_ledger.squeeze({"web1": 1})}
    data = status({"saltm1": report(), "saltm2": odd}, CONFIGURED)["data"]
    assert not [note for note in data["notes"] if "saltm2 has no grains" in note]


def test_many_minions_in_trouble_are_counted(problems):
    topology = healthy()
    lost = {**topology.minions["web1"], "connected": dict.fromkeys(IDS, False)}
    topology.minions |= {f"web{number:02}": lost for number in range(50)}
    found = problems(topology)
    assert len(found) == 21
    assert found[-1] == "30 more minions have such problems"


def test_what_differs_is_a_problem_and_marked(status, loaders):
    other = report(subjects={"config": {"worker_threads": 9}}, formula="0.0.9")
    shown = status({"saltm1": report(), "saltm2": other}, CONFIGURED)["data"]
    assert shown["problems"][0] == "config differs on saltm2; see salt-run multimaster.drift"
    assert shown["retcode"] == 1
    assert shown["subjects"]["config"]["differs"] is True
    assert shown["subjects"]["keys"]["differs"] is False
    lines = loaders.output["multimaster"](shown).splitlines()
    (line,) = [line for line in lines if line.startswith("! config  ")]
    assert line.endswith(" !")


@pytest.mark.parametrize(("offset", "wrong"), [(3, False), (-30, True)])
def test_a_clock_that_is_off_is_a_problem(status, offset, wrong):
    data = status({"saltm1": report(), "saltm2": report(offset=offset)}, CONFIGURED)["data"]
    assert data["masters"]["saltm2"]["offset"] == pytest.approx(offset, abs=1)
    assert data["problems"] == ["clock differs on saltm2; see salt-run multimaster.drift"] * wrong


def test_a_master_with_a_newer_configuration_than_it_runs_with_is_a_problem(status):
    stale = report(stale=["/etc/salt/master.d/x.conf"])
    data = status({"saltm1": report(), "saltm2": stale}, CONFIGURED)["data"]
    assert data["problems"] == ["running differs on saltm2; see salt-run multimaster.drift"]


def test_the_job_cache_is_told_whom_the_run_is_about(status, loaders, monkeypatch):
    import salt.loader

    function = loaders.runner["multimaster.status"].func
    jid = "20260101000000000001"
    monkeypatch.setitem(function.__globals__, "__jid__", jid)
    status({name: report() for name in IDS}, CONFIGURED)
    # Salt looks for it, and else through all keys.
    load = salt.loader.returners(loaders.opts, {})["local_cache.get_load"](jid)
    assert (load["fun"], load["Minions"]) == ("runner.multimaster.status", ["saltm1"])


# Remedies

TROUBLE = {
    "unknown": {"unknown": "an error"},
    "unsigned": {"unknown": NOT_SIGNED},
    "another key": {"unknown": NOT_WITH_KEY},
    "silent host, up": {"reported": False},
    "silent host, unknown": {"reported": False, "reachable": None},
    "silent host, down": {"reported": False, "reachable": False},
    "down": {"reachable": False, "running": False},
    "frozen": {"reachable": False},
    "pending": {"pending": 2},
    "keys": {"fingerprint": "0" * 64},
    "signing": {"signs": True, "signing_fingerprint": "0" * 64},
    "ledger": {"digest": "0" * 64},
    "conflicts": {"conflicts": 1},
    "aside": {"aside": {"web1": "no space"}},
    "astray": {"astray": {"web1": "missing"}},
    "unwritable": {"unwritable": "/x: no space left"},
    "refused": {"refused": {"web1": DENIED, "web 2": DENIED | {"fingerprint": None}}},
    "proposed": {"proposed": [PROPOSED, PROPOSED | {"origin": "x", "count": 1, "ids": ["a b"]}]},
}
MINIONS = {
    "away": {"configured": None, "connected": {"saltm1": False, "saltm2": None}},
    "apart": {"connected": {"saltm1": True, "saltm2": False}},
    "odd": {"configured": None, "unknown": "x", "connected": {"saltm1": True, "saltm2": None}},
    "no answer": {"silent": ADDRESSES[1:]},
    "back": {"cutover": {"step": "proving", "back": True, "why": "x", "wanted": ["192.0.2.8"]}},
    "on its way": {"cutover": {"step": "proving"}},
    "waiting": {"restarts": {"salt-master": {"since": 1.0, "timeout": 1, "waiting": "x"}}},
    "elsewhere": {"configured": ["192.0.2.9"]},
}


def assert_can_be_done(line, loaders, host):
    """Have the commands in a problem parsed as Salt does it; the functions take what they get."""
    import inspect

    import salt.utils.args

    commands = REMEDY.findall(line)
    assert commands, line
    for command in commands:
        name, *argv = [one for one in shlex.split(command) if one != "--local"]
        argv = argv[1:] if name == "salt" else argv
        function, *arguments = [one for one in argv if not one.startswith("--")]
        found = loaders.runner if name == "salt-run" else host.modules
        if function.startswith("service."):
            # Which one it is depends on the platform.
            assert function.partition(".")[2] in ("start", "restart", "status")
            continue
        assert function in found, command
        args, kwargs = salt.utils.args.parse_input(arguments, condition=False)
        inspect.signature(found[function].func).bind(*args, **kwargs)
        # A fingerprint that is a number is none.
        assert all(isinstance(one, str) for one in args), command


@pytest.mark.parametrize("mode", ["hot", "failover"])
@pytest.mark.parametrize("trouble", [*TROUBLE, *MINIONS])
def test_each_problem_has_a_remedy_that_can_be_carried_out(
    full_problems, loaders, loaded_host, trouble, mode
):
    topology = healthy()
    topology.masters["saltm2"] |= TROUBLE.get(trouble, {})
    topology.minions |= {f"web{n}": topology.minions["web1"] for n in range(30)}
    for name in topology.minions if trouble in MINIONS else ():
        topology.minions[name] = topology.minions[name] | MINIONS[trouble]
    found = full_problems(topology, mode)
    assert found or (mode, trouble) == ("failover", "apart")
    for line in found:
        assert_can_be_done(line, loaders, loaded_host)


def test_each_problem_of_a_status_has_one(status, loaders, loaded_host):
    problem = {"sample": "web1", "problem": "x"}
    odd = report(stale=["x"], subjects={"config": {"worker_threads": 9}}, offset=99)
    odd |= {"remotes": {"https://git.example.com": "down"}, "proof": problem}
    for reports, lists in (({"saltm1": odd, "saltm2": report()}, CONFIGURED), ({}, {})):
        data = status(reports, lists)["data"]
        assert data["problems"]
        for line in data["problems"]:
            assert_can_be_done(line, loaders, loaded_host)


# Drift


@pytest.fixture
def drift(loaders, bus):
    """Run it with reports whose details are asked for."""

    def drift(leaves, **flags):
        def told(name):
            def answer(detail=(), **named):
                found = report(subjects=leaves[name])
                chosen = {subject: leaves[name].get(subject) for subject in detail}
                found["details"] = loaders.utils["multimaster_ledger.squeeze"](chosen)
                return found

            return answer

        made = bus({("multimaster_drift.report", name): told(name) for name in leaves})
        return loaders.runner["multimaster.drift"](timeout=0, **flags)["data"], made.asked

    return drift


def test_masters_that_agree_are_asked_once(drift, loaders):
    data, asked = drift({name: {"salt": {"version": "3008.3"}} for name in IDS})
    assert (data["drift"], data["retcode"]) == ([], 0)
    assert len(asked) == 1
    shown = loaders.output["multimaster"](data)
    assert shown == "The masters agree on config, keys, salt, running, clock."


def test_a_difference_is_shown_with_its_values_and_its_remedy(drift, loaders):
    data, asked = drift({n: {"config": {"timeout": at}} for at, n in enumerate(IDS, 5)})
    assert data["retcode"] == 1
    assert len(asked) == 1
    lines = loaders.output["multimaster"](data).splitlines()
    assert lines[:4] == [
        "config: timeout",
        "    saltm1  5",
        "    saltm2  6  !",
        "    (measured by saltm1, the first master)",
    ]
    assert lines[4].endswith("salt saltm2 multimaster.restart salt-master")


def test_what_is_long_is_told_only_where_it_differs(drift):
    leaves = {
        name: {"files:base": {"top.sls": name}, "files:dev": {"top.sls": "same"}} for name in IDS
    }
    data, asked = drift(leaves)
    assert [one["subject"] for one in data["drift"]] == ["files:base"]
    assert [named["detail"] for *_, named in asked] == [
        ["config", "access"],
        ["files:base", "content"],
    ]


def test_one_subject_alone_can_be_asked_for(drift):
    leaves = {
        name: {"files:base": {"top.sls": f"{name}"}, "salt": {"version": name}} for name in IDS
    }
    for subject, expected in (("files", ["files:base"]), ("salt", ["salt"]), ("clock", [])):
        data, _ = drift(leaves, subject=subject)
        assert [one["subject"] for one in data["drift"]] == expected


@pytest.mark.parametrize("name", ["../web1", "/etc/x", "..", "", 5])
def test_a_sample_that_is_no_id_is_refused_before_anything_is_looked_up(drift, name):
    from salt.exceptions import CommandExecutionError

    with pytest.raises(CommandExecutionError, match=r"sample: got .*supported: a minion id"):
        drift({n: {} for n in IDS}, sample=name)


@pytest.mark.parametrize("many", [False, True], ids=["named", "by a glob"])
def test_the_answers_to_what_masters_ask_are_kept_in_no_job_cache(
    status, bus, loaders, monkeypatch, many
):
    if many:
        monkeypatch.setitem(loaders.utils["multimaster_gather.look"].func.__globals__, "NAMED", 1)
    made = bus({("multimaster_drift.report", name): report() for name in IDS})
    made.busy["web1"] = []
    loaders.runner["multimaster.status"](timeout=1)
    # The question whether somebody is at work on one, too.
    assert {function for _, function, _ in made.asked} >= {"saltutil.find_job"}
    assert len(made.flags) == len(made.asked)
    assert all(flags.get("nocache") is True for flags in made.flags)


def test_an_unknown_subject_is_refused(drift):
    from salt.exceptions import CommandExecutionError

    with pytest.raises(CommandExecutionError, match=r"subject: got 'files:dev'; supported: clock"):
        drift({name: {} for name in IDS}, subject="files:dev")


def test_a_master_that_does_not_tell_is_no_agreement(drift):
    data, _ = drift({"saltm1": {}})
    assert data["retcode"] == 1
    assert data["problems"] == [
        "the host of master saltm2 does not report; see salt-run multimaster.status"
    ]


# The sample


@pytest.fixture
def sampled(loaders, loaded_host, bus, monkeypatch):
    """Compare masters of which each has grains of its own: id -> grains, on this one."""
    import salt.cache

    look = loaders.utils["multimaster_gather.look"].func.__globals__
    # Of others than the sample nobody asks here.
    monkeypatch.setitem(look, "without_grains", lambda *_: set())

    def sampled(grains, proofs, runner="status", mode="hot", **declared):
        cache = salt.cache.factory(loaders.opts)
        shutil.rmtree(loaders.opts["cachedir"] + "/grains", ignore_errors=True)
        for name, found in grains.items():
            loaded_host.accept({name: "a key"})
            cache.store("grains", name, found)
        for name in ("status", "drift"):
            function = loaders.runner[f"multimaster.{name}"].func
            topology = {**loaders.opts["multimaster"], "mode": mode, "drift": declared}
            opts = {**loaders.opts, "multimaster": topology}
            monkeypatch.setitem(function.__globals__, "__opts__", opts)

        minions = loaders.utils["multimaster_ledger.squeeze"](CONFIGURED)

        def told(proof):
            return lambda sample=None, **_: (
                report(subjects=proof.get("leaves"))
                | {
                    "proof": {"sample": sample and sample[0], **proof.get("proof", {})},
                    # Asked for in failover mode.
                    "minions": minions,
                }
            )

        made = bus({("multimaster_drift.report", n): told(p) for n, p in proofs.items()})
        made.answers |= {("multimaster.masters", n): CONFIGURED["web1"] for n in ("web1", "0")}
        data = loaders.runner[f"multimaster.{runner}"](timeout=0)["data"]
        return data, [named for _, fun, named in made.asked if fun == "multimaster_drift.report"]

    yield sampled
    shutil.rmtree(loaded_host.pki / "minions")
    shutil.rmtree(loaders.opts["cachedir"] + "/grains")


SAME = {name: {"leaves": {"content": {"top:base:0": "web"}}} for name in IDS}
OTHERS = {**SAME, "saltm2": {"proof": {"skipped": "its grains of it are others"}}}


def test_a_job_has_of_the_samples_grains_nothing_but_a_digest(sampled):
    data, (named, *_) = sampled({"web1": {"id": "web1", "word": "x" * 1000}}, SAME)
    assert data["sample"] == "web1"
    minion_id, digest = named["sample"]
    assert (minion_id, len(digest)) == ("web1", 16)
    assert len(json.dumps(named)) < 300


@pytest.mark.parametrize("runner", ["status", "drift"])
def test_other_grains_of_the_sample_are_a_problem_in_hot_mode(sampled, runner, loaders):
    data, _ = sampled({"web1": {"id": "web1"}}, OTHERS, runner)
    why = "master saltm2 could not compile pillar and top file of web1: its grains of it are others"
    assert data["problems"][-1].startswith(f"{why}; saltutil.refresh_grains")
    assert data["retcode"] == 1
    assert data["notes"] == []


@pytest.mark.parametrize("runner", ["status", "drift"])
def test_other_grains_of_the_sample_are_a_note_in_failover_mode(sampled, runner, loaders):
    data, _ = sampled({"web1": {"id": "web1"}}, OTHERS, runner, mode="failover")
    assert (data["problems"], data["retcode"]) == ([], 0)
    note = "master saltm2 has compiled nothing for web1: its grains of it are others"
    assert data["notes"] == [note]
    assert note in loaders.output["multimaster"](data).splitlines()


@pytest.mark.parametrize("runner", ["status", "drift"])
def test_that_a_master_gives_minions_what_it_has_cached_is_a_note(sampled, runner):
    cached = {**SAME, "saltm2": {**SAME["saltm2"], "proof": {"cached": 77}}}
    data, _ = sampled({"web1": {"id": "web1"}}, cached, runner)
    assert data["notes"] == [
        "master saltm2 caches pillars (pillar_cache): what is compared is compiled anew, and a "
        "minion may be given one that is up to 77 s old"
    ]
    assert data["problems"] == []


def test_a_minion_with_odd_grains_is_no_sample_and_another_one_is(sampled):
    odd = {"id": "x", "more": "x" * 2**18}
    data, _ = sampled({"0": odd, "web1": {"id": "web1"}, "saltm2": odd}, SAME, sample=["0", "web1"])
    assert data["sample"] == "web1"
    assert data["notes"] == ["minion 0 is no sample: its grains are larger than 256 KiB"]
    assert data["problems"] == []


def test_what_no_master_has_compiled_yet_is_compiled_by_all_at_once(sampled):
    proof = {"problem": "not compiled since something has changed"}
    late = {name: {"proof": proof} for name in IDS}
    _, asked = sampled({"web1": {"id": "web1"}}, SAME, interval=60)
    assert [named["compiles"] for named in asked] == [False]
    _, asked = sampled({"web1": {"id": "web1"}}, late, interval=60)
    assert [named["compiles"] for named in asked] == [False, True]
    assert asked[0]["sample"] == asked[1]["sample"]
    # As the engine does it.
    _, asked = sampled({"web1": {"id": "web1"}}, late, interval=0)
    assert [named["compiles"] for named in asked] == [True]


@pytest.mark.parametrize("mode", ["hot", "failover"])
def test_only_a_declared_sample_is_one(sampled, mode):
    known = {"web1": {"id": "web1"}, "saltm1": {"id": "saltm1"}}
    data, _ = sampled(known, SAME, mode=mode, sample=["saltm1"])
    assert data["sample"] == "saltm1"
    data, (named, *_) = sampled(known, {n: {} for n in IDS}, mode=mode, sample=["0"])
    assert (data["sample"], named["sample"]) == (None, None)
    assert data["notes"] == ["minion 0 is no sample: there are no grains of it"]
    # In failover mode another master may have them.
    expected = ["no minion can be the sample: what masters would give it is not compared"]
    assert [what(line) for line in data["problems"]] == expected * (mode == "hot")


# Metrics


def test_metrics_are_written_at_once_and_for_all_to_read(loaders, bus, tmp_path):
    bus({("multimaster_drift.report", name): report() for name in IDS})
    path = tmp_path / "multimaster.prom"
    path.write_text("# HELP multimaster_up Whether a master answers (1) or not (0).\nold")
    assert loaders.runner["multimaster.metrics"](path=str(path), timeout=0).startswith("written")
    assert 'multimaster_up{master="saltm2"} 1' in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "kind", ["another file", "empty", "a link", "a directory", "a pipe", "a link to ours"]
)
def test_metrics_replace_nothing_that_is_not_theirs(loaders, bus, tmp_path, kind):
    from salt.exceptions import CommandExecutionError

    bus({("multimaster_drift.report", name): report() for name in IDS})
    path, other = tmp_path / "x.prom", tmp_path / "other.prom"
    ours = "# HELP multimaster_up Whether a master answers (1) or not (0).\n"
    other.write_text(ours if kind == "a link to ours" else "somebody's")
    if kind.startswith("a link"):
        path.symlink_to(other)
    elif kind == "a directory":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.write_text("" if kind == "empty" else "# HELP node_up x\n")
    before = {p.name: os.lstat(p).st_ino for p in tmp_path.iterdir()}
    with pytest.raises(CommandExecutionError, match=r"path: got .*; supported: "):
        loaders.runner["multimaster.metrics"](path=str(path), timeout=0)
    assert {p.name: os.lstat(p).st_ino for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "name", ["x.prom", "multimaster.conf", ".prom", "a/../x", "", 5, "x.prom/"]
)
def test_metrics_are_written_to_a_file_for_the_collector_only(loaders, bus, tmp_path, name):
    from salt.exceptions import CommandExecutionError

    bus({("multimaster_drift.report", n): report() for n in IDS})
    # One that is not absolute would be somewhere.
    path = name if name in ("x.prom", 5) else f"{tmp_path}/{name}"
    with pytest.raises(CommandExecutionError, match=r"path: got .*; supported: "):
        loaders.runner["multimaster.metrics"](path=path, timeout=0)
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_text_without_a_path(loaders, bus):
    bus({("multimaster_drift.report", name): report() for name in IDS})
    data = loaders.runner["multimaster.metrics"](timeout=0)["data"]
    assert loaders.output["multimaster"](data) == data["metrics"].rstrip()


def test_metrics_refuse_a_directory_that_is_not_there(loaders, bus, tmp_path):
    from salt.exceptions import CommandExecutionError

    bus({})
    with pytest.raises(CommandExecutionError, match=r"path: got .*No such file"):
        loaders.runner["multimaster.metrics"](path=f"{tmp_path}/no/x.prom", timeout=0)


# The outputter


def test_of_many_minions_those_in_trouble_are_shown(loaders):
    topology = healthy()
    topology.minions |= {f"web{n}": topology.minions["web1"] for n in range(100)}
    shown = {**vars(topology), "problems": []}
    lines = loaders.output["multimaster"](shown).splitlines()
    assert "and 81 more, all well; --out json has all" in lines
    lost = {**topology.minions["web1"], "connected": dict.fromkeys(IDS, False)}
    topology.minions |= {f"web{n}": lost for n in range(40)}
    lines = loaders.output["multimaster"](shown).splitlines()
    assert sum(line.endswith("NO      NO") for line in lines) == 20
    assert "and 81 more, 20 of them in trouble; --out json has all" in lines


def test_the_tables_of_a_healthy_topology(loaders):
    topology = healthy()
    topology.masters["saltm1"]["accepted"] = 1200
    shown = loaders.output["multimaster"]({**vars(topology), "problems": []})
    assert shown.splitlines() == [
        "MASTER  ADDRESS    UP   VERSION  KEY       LEDGER    ACCEPTED  PENDING  DENIED  REJECTED",
        "saltm1  192.0.2.1  yes  3008.3   ffffffff  dddddddd  1200      0        0       0",
        "saltm2  192.0.2.2  yes  3008.3   ffffffff  dddddddd  3         0        0       0",
        "",
        "MINION  saltm1  saltm2",
        "saltm1  yes     yes",
        "web1    yes     yes",
        "",
        "Everything is connected.",
    ]


def test_what_is_unknown_is_a_dash_and_what_is_wrong_is_loud(loaders):
    topology = healthy()
    fields = ("version", "fingerprint", "digest", "accepted", "pending", "denied", "rejected")
    unknown = dict.fromkeys(fields)
    topology.masters["saltm2"] |= {"reachable": False, **unknown}
    topology.minions["web1"]["connected"]["saltm2"] = False
    shown = loaders.output["multimaster"]({**vars(topology), "problems": ["one", "two"]})
    lines = shown.splitlines()
    assert lines[2].split() == ["saltm2", "192.0.2.2", "NO", *"-------"]
    assert lines[6].split() == ["web1", "yes", "NO"]
    assert lines[-2:] == ["! one", "! two"]


def test_the_tables_of_nothing(loaders):
    shown = loaders.output["multimaster"]({"masters": {}, "minions": {}, "problems": ["none"]})
    assert shown.splitlines()[-1] == "! none"


# Keys


@pytest.fixture
def on_masters(loaders, bus, shared):
    """Run a runner with what the masters' hosts answer; returns its result and what was asked."""
    import multimaster_ledger

    def said(name, host, nonce, value):
        with contextlib.suppress(TypeError, ValueError):
            return multimaster_keypair.prove({"told": value}, name, host, nonce, shared.pem)
        return value

    def run(function, *args, answers, asked=None, forged=None, quicker=False, **kwargs):
        asked = [] if asked is None else asked

        class Hosts(Bus):
            def run_job(self, targets, name, arguments, **flags):
                if name == "saltutil.find_job":
                    return {"jid": "look"}
                assert name == "multimaster.signed"
                name, nonce, arguments, _ = arguments
                asked.append((targets, name.partition(".")[2], arguments))
                jid = str(len(asked))
                for host in targets:
                    if host not in answers:
                        continue
                    value = answers[host]
                    if isinstance(value, dict):
                        # Or what it answers to each question.
                        value = value.get(asked[-1][1], value)
                    if asked[-1][1] == "key_page":
                        value = multimaster_ledger.squeeze(value)
                    if forged is not None:
                        self.say(jid, host, forged(name, host, nonce, value))
                    if forged is None or quicker:
                        self.say(jid, host, said(name, host, nonce, value))
                return {"jid": jid}

        bus({}).__class__ = Hosts
        return loaders.runner[f"multimaster.{function}"](*args, **kwargs), asked

    return run


def states(**found):
    return {n: {"state": state, "fingerprint": key * 64} for n, (state, key) in found.items()}


@pytest.mark.parametrize(
    ("here", "there", "differs"),
    [
        (states(web1=("accepted", "a")), states(web1=("accepted", "a")), False),
        (states(web1=("accepted", "a")), states(web1=("rejected", "a")), True),
        (states(web1=("accepted", "a")), states(web1=("accepted", "b")), True),
        (states(web1=("accepted", "a")), {}, True),
        # What one of them has denied says nothing of the id.
        (states(web1=("denied", "a")), {}, False),
        (states(web1=("accepted", "a")), states(web1=("denied", "b")), True),
    ],
)
def test_keys_shows_where_masters_differ(on_masters, loaders, here, there, differs):
    shown, _ = on_masters("keys", answers={"saltm1": here, "saltm2": there})
    data = shown["data"]
    assert data["keys"]["web1"]["differs"] is differs
    assert data["retcode"] == int(differs)
    line = loaders.output["multimaster"](data).splitlines()[1]
    assert line.startswith("! web1") == differs


def test_keys_shows_what_was_denied_beside_the_key_that_is_in_use(on_masters, loaders):
    good = states(web1=("accepted", "a"))
    there = {"web1": good["web1"] | {"denied": ["b" * 64]}}
    data = on_masters("keys", answers={"saltm1": good, "saltm2": there})[0]["data"]
    assert data["keys"]["web1"]["denied"] == {"saltm2": ["b" * 64]}
    assert (data["keys"]["web1"]["differs"], data["retcode"]) == (False, 0)
    lines = loaders.output["multimaster"](data).splitlines()
    assert lines[2] == f"web1: denied on saltm2 {'b' * 16}"


def test_a_denied_key_is_deleted_on_all_masters_that_have_it_and_no_other_is(on_masters):
    """It was refused on a master that does not have it, and what is deleted with it was good."""
    cleared = {"changed": True, "found": "a" * 64, "was": "minions_denied"}
    answers = {"saltm1": "fingerprint of web1: got 'bb'; this master has aa", "saltm2": cleared}
    done, asked = on_masters("delete", "web1", "b" * 16, answers=answers)
    unknown = {"saltm1": answers["saltm1"]}
    found = {"changed": True, "was": "minions_denied"}
    assert done == found | {"cleared": ["saltm2"], "unknown": unknown}
    assert [(hosts, args[0]) for hosts, _, args in asked] == [
        (["saltm1"], "delete"),
        (list(IDS), "clear"),
    ]


def test_what_no_master_has_denied_is_refused_with_what_this_one_has(on_masters):
    from salt.exceptions import CommandExecutionError

    nothing = {"changed": False, "found": "a" * 64}
    answers = {"saltm1": "fingerprint of web1: got 'bb'; this master has aa", "saltm2": nothing}
    with pytest.raises(CommandExecutionError, match="this master has aa"):
        on_masters("delete", "web1", "b" * 16, answers=answers)


def test_a_key_in_use_is_deleted_by_one_decision(on_masters):
    gone = {"changed": True, "found": "a" * 64, "was": "minions"}
    done, asked = on_masters("delete", "web1", "a" * 16, answers={"saltm1": gone}, test=True)
    assert done == gone
    assert asked == [(["saltm1"], "key_decide", ["delete", "web1", "a" * 16, True])]


def test_keys_of_a_master_that_does_not_answer_are_unknown(on_masters, loaders):
    shown, _ = on_masters("keys", answers={"saltm1": states(web1=("accepted", "a"))})
    assert shown["data"]["keys"]["web1"]["masters"] == {"saltm1": "accepted", "saltm2": "unknown"}
    assert shown["data"]["retcode"] == 1


def test_keys_reads_page_after_page(on_masters, loaders, monkeypatch):
    monkeypatch.setitem(loaders.runner["multimaster.keys"].func.__globals__, "PAGE", 2)
    names = ["web1", "web2", "web3", "web4", "web5"]
    have = {"saltm1": names, "saltm2": names[:3]}

    class Pages:
        """What each master says of the ids after one, two at a time."""

        def __contains__(self, host):
            return True

        def __getitem__(self, host):
            _, _, (_, after, count) = asked[-1]
            page = [name for name in have[host] if name > after][:count]
            return states(**dict.fromkeys(page, ("accepted", "a")))

    asked: list = []
    told = []
    monkeypatch.setitem(
        loaders.runner["multimaster.keys"].func.__globals__,
        "__jid_event__",
        SimpleNamespace(fire_event=lambda data, tag: told.append((tag, data["message"]))),
    )
    shown, _ = on_masters("keys", answers=Pages(), asked=asked)
    assert [targets for targets, _, _ in asked] == [["saltm1", "saltm2"]] * 2 + [["saltm1"]]
    rows = shown["data"]["keys"]
    assert [row["masters"]["saltm1"] for row in rows.values()] == ["accepted"] * 5
    assert [name for name, row in rows.items() if row["differs"]] == ["web4", "web5"]
    assert told[0] == ("progress", "read the keys of saltm1, saltm2 up to web2")


def test_resolve_asks_every_master_to_keep_one_key_only(on_masters):
    answers = {"saltm1": states(web1=("accepted", "a")), "saltm2": states(web1=("accepted", "b"))}
    _, asked = on_masters("resolve", "web1", "b" * 16, answers=answers, test=True)
    assert asked[-1] == (list(IDS), "key_decide", ["only", "web1", "b" * 16, True])


@pytest.mark.parametrize("fingerprint", ["", "c" * 16])
def test_resolve_refuses_a_key_that_nobody_has(on_masters, fingerprint):
    from salt.exceptions import CommandExecutionError

    answers = {"saltm1": states(web1=("accepted", "a")), "saltm2": states(web1=("accepted", "b"))}
    with pytest.raises(CommandExecutionError, match=r"supported: a{64}, b{64}"):
        on_masters("resolve", "web1", fingerprint, answers=answers)


def test_resolve_says_of_which_masters_nothing_is_known(on_masters):
    from salt.exceptions import CommandExecutionError

    answers = {"saltm1": states(web1=("accepted", "a"))}
    with pytest.raises(CommandExecutionError, match=r"a{64}; not known of saltm2 .does not answer"):
        on_masters("resolve", "web1", "b" * 16, answers=answers)


def of_keys(keys, digest="d", proposed=()):
    """What a master's host answers to the questions of a repair."""
    counts = {"accepted": 0, "pending": 0, "rejected": 0, "denied": 0}
    told = {"digest": digest and digest * 64, "conflicts": [], "counts": counts}
    told["proposed"] = list(proposed)
    return {"key_page": keys, "key_digest": told, "ledger_wake": True}


def test_a_test_of_a_repair_names_what_differs_and_wakes_nobody(on_masters):
    answers = {"saltm1": states(web1=("accepted", "a")), "saltm2": {}}
    done, asked = on_masters("keys_repair", answers=answers, test=True)
    assert done == {"differing": ["web1"], "repaired": False}
    assert {name for _, name, _ in asked} == {"key_page"}


@pytest.mark.parametrize(
    ("here", "there", "proposed", "repaired"),
    [
        (of_keys(states(web1=("accepted", "a"))), of_keys(states(web1=("accepted", "a"))), 0, True),
        # Their decisions differ.
        (
            of_keys(states(web1=("accepted", "a"))),
            of_keys(states(web1=("accepted", "a")), "e"),
            0,
            False,
        ),
        (
            of_keys(states(web1=("accepted", "a"))),
            of_keys(states(web1=("accepted", "a")), None),
            0,
            False,
        ),
        # Or what they have, as where something is proposed.
        (
            of_keys(states(web1=("accepted", "a")), proposed=[PROPOSED]),
            of_keys({}, proposed=[PROPOSED]),
            5,
            False,
        ),
    ],
)
def test_nothing_is_repaired_while_masters_differ(on_masters, here, there, proposed, repaired):
    answers = {"saltm1": here, "saltm2": there}
    done, asked = on_masters("keys_repair", answers=answers, timeout=0.2)
    differing = ["web1"] if proposed else []
    assert done == {
        "differing": differing,
        "left": differing,
        "proposed": proposed,
        "repaired": repaired,
    }
    assert "ledger_wake" in {name for _, name, _ in asked}


def test_nothing_is_repaired_while_a_master_does_not_answer(on_masters):
    answers = {"saltm1": of_keys(states(web1=("accepted", "a")))}
    assert on_masters("keys_repair", answers=answers, timeout=0.2)[0]["repaired"] is False


@pytest.mark.parametrize("verb", ["confirm", "take_back"])
@pytest.mark.parametrize("test", [True, False])
def test_what_is_proposed_is_settled_by_one_command(on_masters, loaders, verb, test):
    row = {"proposed": "deletion proposed", "origin": "saltm2", "recorded": 1_700_000_000_000}
    row["becomes"] = "deleted"
    answers = {"saltm1": {"count": 21, "keys": {"web1": row}}}
    shown, asked = on_masters(verb, "web1", "bulk*", answers=answers, test=test)
    assert asked == [(["saltm1"], "key_settle", [verb, ["web1", "bulk*"], test])]
    assert shown["data"]["retcode"] == 0
    lines = loaders.output["multimaster"](shown["data"]).splitlines()
    assert lines[0].split() == [
        *["MINION", "PROPOSED", "DONE", "ON", "AT"],
        *(["TO", "BE"] if test else ["NOW"]),
    ]
    assert lines[1].split() == [
        "web1",
        "deletion",
        "proposed",
        "saltm2",
        "2023-11-14T22:13:20Z",
        "deleted",
    ]
    assert lines[2] == "and 20 more"


@pytest.mark.parametrize("verb", ["confirm", "take_back"])
def test_nothing_is_settled_that_nobody_names(on_masters, verb):
    from salt.exceptions import CommandExecutionError

    with pytest.raises(CommandExecutionError, match="ids: got none; supported: ids or globs"):
        on_masters(verb, answers={})
    with pytest.raises(CommandExecutionError, match="none is proposed"):
        on_masters(verb, "*", answers={"saltm1": "ids: got *; supported: none is proposed"})


def told_of(*answering):
    names = ["web1", "web2", "saltm1"]
    found = {"running": True, "digest": None, "fingerprint": None}
    return found | {"accepted": names, "answering": list(answering)}


def test_who_answers_to_no_master_at_all_is_down(on_masters, loaders):
    answers = {"saltm1": told_of("saltm1"), "saltm2": told_of("web1")}
    shown, asked = on_masters("down", answers=answers)
    # All of its minions, and not only the one on its host.
    assert [(name, args) for _, name, args in asked] == [("report", [5, "*"])]
    assert shown["data"] == {"down": ["web2"], "not_known": [], "unknown": {}, "retcode": 1}
    assert loaders.output["multimaster"](shown["data"]) == "web2"
    answers["saltm1"]["answering"].append("web2")
    shown, _ = on_masters("down", answers=answers)
    assert shown["data"]["retcode"] == 0
    assert loaders.output["multimaster"](shown["data"]) == "All minions answer to a master."


def test_who_may_answer_to_a_master_that_does_not_tell_is_not_down(on_masters, loaders):
    shown, _ = on_masters("down", answers={"saltm1": told_of("saltm1", "web1")}, timeout=0.2)
    data = shown["data"]
    assert (data["down"], data["not_known"], data["retcode"]) == ([], ["web2"], 1)
    lines = loaders.output["multimaster"](data).splitlines()
    assert lines == ["? web2", "! master saltm2: does not answer"]


def test_keys_of_a_master_whose_answer_is_none_are_unknown_with_the_reason(on_masters, loaders):
    good = states(web1=("accepted", "a"))
    shown, _ = on_masters("keys", answers={"saltm1": good, "saltm2": {"web1": {}}})
    data = shown["data"]
    assert data["keys"]["web1"]["masters"] == {"saltm1": "accepted", "saltm2": "unknown"}
    assert data["unknown"] == {"saltm2": "web1:state: got nothing; supported: a name"}
    assert data["retcode"] == 1
    assert loaders.output["multimaster"](data).splitlines()[-1].startswith("! master saltm2: web1")


def test_keys_that_a_master_does_not_prove_are_unknown_and_end_no_conflict(on_masters, other):
    from salt.exceptions import CommandExecutionError

    good = {"saltm1": states(web1=("accepted", "a")), "saltm2": states(web1=("accepted", "a"))}

    def forged(name, host, nonce, value):
        return multimaster_keypair.prove({"told": value}, name, host, nonce, other.pem)

    # Who was only quicker is not heard.
    data = on_masters("keys", answers=good, forged=forged, quicker=True)[0]["data"]
    assert (data["unknown"], data["retcode"]) == ({}, 0)
    data = on_masters("keys", answers=good, forged=forged)[0]["data"]
    assert data["unknown"] == dict.fromkeys(IDS, NOT_WITH_KEY)
    with pytest.raises(CommandExecutionError, match="supported: none"):
        on_masters("resolve", "web1", "a" * 16, answers=good, forged=forged)
    with pytest.raises(CommandExecutionError, match=NOT_WITH_KEY):
        on_masters("key_history", "web1", answers={"saltm1": []}, forged=forged)


def test_pages_of_keys_that_never_end_are_none(on_masters, loaders, monkeypatch):
    runner = loaders.runner["multimaster.keys"].func.__globals__
    monkeypatch.setitem(runner, "PAGE", 1)
    monkeypatch.setitem(runner, "__jid_event__", SimpleNamespace(fire_event=lambda *_: None))
    shown, asked = on_masters("keys", answers={"saltm1": states(web1=("accepted", "a"))})
    assert len(asked) == 2
    assert shown["data"]["unknown"]["saltm1"] == "tells nothing of the ids after 'web1'"


def test_ids_are_shown_without_what_a_terminal_obeys(on_masters, loaders):
    odd = {"web\x1b[2J\n": {"state": "pending", "fingerprint": None}}
    shown, _ = on_masters("keys", answers=dict.fromkeys(IDS, odd))
    lines = loaders.output["multimaster"](shown["data"]).splitlines()
    assert lines[1].startswith(r"web\x1b[2J\n  pending")
    assert all(line.isprintable() for line in lines)


# Whatever is said

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    # Texts with surrogates, as names of files may have them; and what Python makes no text of.
    | st.sampled_from(["\udc80", "\x1b[2J", "9" * 5000, 10**400, {}, [], "", "multimaster"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.integers() | st.binary(), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def spoilt(draw, whole):
    """An answer with something else in one place, or something else altogether."""
    if not isinstance(whole, (dict, list)) or not whole or draw(st.booleans()):
        return draw(anything)
    places = sorted(whole) if isinstance(whole, dict) else list(range(len(whole)))
    place = draw(st.sampled_from(places))
    if isinstance(whole, dict) and draw(st.integers(0, 9)) == 0:
        return {name: value for name, value in whole.items() if name != place}
    changed = dict(whole) if isinstance(whole, dict) else list(whole)
    changed[place] = draw(spoilt(whole[place]))
    return changed


LISTS = {
    **CONFIGURED["web1"],
    "silent": ["192.0.2.1"],
    "cutover": {"step": "proving", "back": True, "seen": {"192.0.2.1": ["refused", 1.0]}},
    "restarts": {"salt-master": {"since": 1.0, "timeout": 1, "waiting": "x"}},
    "verifies": True,
}
FULL = report() | {
    "host": LISTS,
    "stale": {"worker_threads": [5, 6]},
    "remotes": {"https://git.example.com": "down"},
    "sources": {"worker_threads": ["/etc/salt/master"]},
    "declared": {"worker_threads": 5},
    "proof": {"sample": "web1", "grains": "d", "inputs": "d", "at": 1.0},
    "up": 1000.0,
    "places": {"config": "/etc"},
    "details": {"config": {"worker_threads": 7}, "keys": {"ledger": "e"}},
    "minions": {"web1": LISTS},
    "unknown": {"web2": "an error"},
}
FULL["master"] |= {
    "astray": {"web1": "missing, and decided: accepted", "...": "4 more"},
    "refused": {"web1": DENIED},
    "unwritable": "/pki: no space left",
    "aside": {"web1": "no space"},
}
FULL["subjects"] = {**FULL["subjects"], "config": "0", "keys": "1"}
PACKED = ("details", "minions", "unknown")
unhurried = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def packed(loaders, said):
    """Pack what is packed in a report, where that can be done."""
    if not isinstance(said, dict):
        return said
    found = dict(said)
    for part in set(PACKED) & set(found):
        with contextlib.suppress(TypeError, ValueError):
            found[part] = loaders.utils["multimaster_ledger.squeeze"](found[part])
    return found


def printed(loaders, shown):
    text = loaders.output["multimaster"](shown)
    assert all(line.isprintable() for line in text.splitlines())
    text.encode()


@unhurried
@given(report_=spoilt(FULL), lists=spoilt(LISTS))
@example(report_={}, lists={})
@example(report_=FULL, lists=LISTS)
@example(report_={**FULL, "master": {**FULL["master"], "astray": {"...": " "}}}, lists=LISTS)
def test_whatever_one_says_the_others_are_shown(loaders, bus, report_, lists):
    answers = {("multimaster_drift.report", "saltm1"): report()}
    answers["multimaster_drift.report", "saltm2"] = packed(loaders, report_)
    answers["multimaster.masters", "web1"] = lists
    bus(answers)
    for name in ("status", "drift", "metrics"):
        data = loaders.runner[f"multimaster.{name}"](timeout=0)["data"]
        printed(loaders, data)
        if name == "status":
            assert data["masters"]["saltm1"]["reachable"]
            assert set(data["minions"]) == {*IDS, "web1"}


@unhurried
@given(said=spoilt(states(web1=("accepted", "a"), web2=("pending", "b"))) | spoilt("x"))
@example(said={})
@example(said={"": {"state": "more", "fingerprint": None}})
def test_whatever_one_says_of_its_keys_those_of_the_others_are_shown(on_masters, loaders, said):
    from salt.exceptions import CommandExecutionError

    good = states(web1=("accepted", "a"))
    with contextlib.suppress(TypeError, ValueError):
        loaders.utils["multimaster_ledger.squeeze"](said)
        shown, _ = on_masters("keys", answers={"saltm1": good, "saltm2": said})
        assert shown["data"]["keys"]["web1"]["masters"]["saltm1"] == "accepted"
        printed(loaders, shown["data"])
    with contextlib.suppress(CommandExecutionError):
        on_masters("resolve", "web1", "a" * 16, answers={"saltm1": good, "saltm2": said})
    with contextlib.suppress(CommandExecutionError):
        on_masters("key_history", "web1", answers={"saltm1": said})


@unhurried
@given(said=spoilt(FULL))
@example(said={})
def test_whatever_one_says_the_engine_that_looks_goes_on(
    loaders, bus, by_path, tmp_path, monkeypatch, said
):
    module = by_path("salt/_engines/multimaster_drift.py")
    (tmp_path / "multimaster").mkdir(exist_ok=True)
    told = SimpleNamespace(fire_event=lambda data, tag: json.dumps(data).encode())
    monkeypatch.setattr(module, "__utils__", loaders.utils, raising=False)
    monkeypatch.setattr(module, "CONFIRM", 0)
    opts = {**loaders.opts, "cachedir": str(tmp_path)}
    monkeypatch.setattr(module, "__opts__", opts, raising=False)
    monkeypatch.setattr(
        module.salt.utils.event, "get_event", lambda *_, **__: contextlib.nullcontext(told)
    )
    answers = {("multimaster_drift.report", name): packed(loaders, FULL) for name in IDS}
    bus(answers | {("multimaster_drift.report", "saltm2"): packed(loaders, said)})
    module._Watcher().turn()
