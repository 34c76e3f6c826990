"""``salt-run multimaster.status``: what is a problem, the exit status, and the tables."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

IDS = ("saltm1", "saltm2")
UNEQUAL = "the masters' decisions on keys differ; see salt-run multimaster.keys"
ADDRESSES = ["192.0.2.1", "192.0.2.2"]


def master(address, **changed):
    row = {"address": address, "reachable": True, "version": "3008.3", "fingerprint": "f" * 64}
    row |= {"accepted": 3, "pending": 0, "denied": 0, "rejected": 0}
    row |= {"digest": "d" * 64, "conflicts": 0}
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
    settings = {"root_dir": str(loaded_host.root), "module_dirs": modules}
    loaded_host.write("etc/salt/master", settings)
    opts = dict(salt.config.master_config(str(loaded_host.config_dir / "master")))
    opts["grains"] = loaded_host.runtime.opts["grains"]
    masters = [{"id": n, "address": at} for n, at in zip(IDS, ADDRESSES, strict=True)]
    opts["multimaster"] = {"mode": "hot", "masters": masters}
    return SimpleNamespace(
        # As salt-run makes it.
        runner=salt.loader.runner(opts, utils=salt.loader.utils(opts)),
        output=salt.loader.outputters(opts),
        opts=opts,
    )


@pytest.fixture
def problems(loaders):
    function = loaders.runner["multimaster.status"].func.__globals__["_problems"]
    return lambda topology, mode="hot": function(
        topology.masters, topology.minions, ADDRESSES, mode
    )


# Problems


@pytest.mark.parametrize("mode", ["hot", "failover"])
def test_a_healthy_topology_has_no_problem(problems, mode):
    assert problems(healthy(), mode) == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"reachable": False}, "master saltm2 (192.0.2.2) does not answer"),
        ({"reachable": False, "pending": None}, "master saltm2 (192.0.2.2) does not answer"),
        ({"pending": 2}, "master saltm2 has 2 pending keys"),
        ({"fingerprint": "0" * 64}, "the masters have different keys"),
        ({"fingerprint": None}, "the masters have different keys"),
        (
            {"digest": "0" * 64},
            "the masters' decisions on keys differ; see salt-run multimaster.keys",
        ),
        ({"digest": None}, "the masters' decisions on keys differ; see salt-run multimaster.keys"),
        ({"conflicts": 2}, "master saltm2 knows 2 ids with two keys"),
    ],
    ids=repr,
)
def test_a_master_is_a_problem_with(problems, row, problem):
    topology = healthy()
    topology.masters["saltm2"] |= row
    assert problems(topology) == [problem]


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


@pytest.fixture
def status(loaders, monkeypatch):
    """Run it with the masters' reports and the minions' lists of masters."""

    def status(reports, configured):
        class Client:
            # There is no master here whose bus would carry the questions.
            def cmd(self, target, function, *args, **kwargs):
                return {"multimaster.report": reports, "multimaster.masters": configured}[function]

        monkeypatch.setattr(
            "salt.client.get_local_client", lambda mopts: contextlib.nullcontext(Client())
        )
        return loaders.runner["multimaster.status"]()

    return status


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"silent": ["192.0.2.1"]}, "minion web1 gets no answer from 192.0.2.1"),
        (
            {"cutover": {"step": "restored", "wanted": ["192.0.2.8", "192.0.2.9"]}},
            "minion web1 went back from 192.0.2.8, 192.0.2.9: too few masters answered",
        ),
        (
            {"cutover": {"step": "verifying"}},
            "minion web1 is on its way to a new configuration",
        ),
        ({"cutover": {"step": "kept", "heard": ["192.0.2.1"]}}, None),
    ],
)
def test_what_a_minion_tells_of_its_masters_is_shown(problems, row, problem):
    topology = healthy()
    topology.minions["web1"] |= row
    assert problems(topology) == ([problem] if problem else [])


def report(**changed):
    names = ["saltm1", "saltm2", "web1"]
    row = {"running": True, "version": "3008.3", "fingerprint": "f" * 64}
    row |= {"accepted": names, "answering": names, "pending": [], "denied": [], "rejected": []}
    row |= {"digest": "d" * 64, "conflicts": []}
    return row | changed


CONFIGURED = {
    name: {"configured": ADDRESSES, "connected": ADDRESSES} for name in ("saltm1", "saltm2", "web1")
}


def test_all_is_well_with_exit_status_0(status):
    shown = status({name: report() for name in IDS}, CONFIGURED)
    assert shown["outputter"] == "multimaster"
    data = shown["data"]
    assert data["masters"] == {n: master(at) for n, at in zip(IDS, ADDRESSES, strict=True)}
    assert data["minions"]["web1"] == {
        "connected": dict.fromkeys(IDS, True),
        "configured": ADDRESSES,
        "silent": [],
        "cutover": {},
    }
    assert (data["problems"], data["retcode"]) == ([], 0)


@pytest.mark.parametrize(
    "reports",
    [
        {},
        {"saltm1": report()},
        {"saltm1": report(), "saltm2": report(running=False, answering=[])},
        {"saltm1": report(), "saltm2": report(answering=[])},
        {"saltm1": report(), "saltm2": "The minion function caused an exception"},
        {"saltm1": report(), "saltm2": False},
    ],
    ids=["nobody", "absent", "stopped", "frozen", "error", "no return"],
)
def test_a_master_without_a_report_is_exit_status_1(status, reports):
    data = status(reports, CONFIGURED)["data"]
    assert data["retcode"] == 1
    assert "master saltm2 (192.0.2.2) does not answer" in data["problems"]
    assert data["masters"]["saltm2"]["reachable"] is False


@pytest.mark.parametrize("lists", [{}, {**CONFIGURED, "web1": "an error"}], ids=["none", "error"])
def test_a_minion_whose_list_is_unknown_is_shown_all_the_same(status, lists):
    data = status({name: report() for name in IDS}, lists)["data"]
    assert data["minions"]["web1"]["configured"] is None
    assert data["retcode"] == 0


def test_without_a_topology_the_exit_status_is_1(status, loaders, monkeypatch):
    monkeypatch.delitem(loaders.runner.opts, "multimaster")
    data = status({}, {})["data"]
    assert data["problems"] == ["this master declares no topology; apply the formula first"]
    assert data["retcode"] == 1


# The outputter


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
def on_masters(loaders, monkeypatch):
    """Run a runner with what the masters' hosts answer; returns its result and what was asked."""
    import multimaster_ledger

    def run(function, *args, answers, asked=None, **kwargs):
        asked = [] if asked is None else asked

        class Client:
            # There is no master here whose bus would carry the questions.
            def cmd(self, targets, name, arguments, **flags):
                asked.append((targets, name.partition(".")[2], arguments))
                found = {host: answers[host] for host in targets if host in answers}
                if asked[-1][1] == "key_page":
                    found = {h: multimaster_ledger.squeeze(page) for h, page in found.items()}
                return found

        monkeypatch.setattr(
            "salt.client.get_local_client", lambda mopts: contextlib.nullcontext(Client())
        )
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
    ],
)
def test_keys_shows_where_masters_differ(on_masters, loaders, here, there, differs):
    shown, _ = on_masters("keys", answers={"saltm1": here, "saltm2": there})
    data = shown["data"]
    assert data["keys"]["web1"]["differs"] is differs
    assert data["retcode"] == int(differs)
    line = loaders.output["multimaster"](data).splitlines()[1]
    assert line.startswith("! web1") == differs


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


@pytest.mark.parametrize("test", [True, False])
def test_repair_names_what_differs(on_masters, test):
    answers = {"saltm1": states(web1=("accepted", "a")), "saltm2": {}}
    done, asked = on_masters("keys_repair", answers=answers, test=test)
    assert done == {"differing": ["web1"], "repaired": not test}
    assert ([name for _, name, _ in asked][-1] == "ledger_wake") is not test
