"""What an orchestration has minions do, with real sockets and processes."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time

import psutil
import pytest

from lab.model import REPOSITORY

ADDRESS = "127.0.84.1"


@pytest.fixture
def orch(host):
    """Call a function of the module."""
    return lambda function, *args, **kwargs: host.modules[f"multimaster_orch.{function}"](
        *args, **kwargs
    )


def unused(count):
    """Return ports that nobody has at the moment."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server((ADDRESS, 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


@pytest.fixture
def held(orch):
    """Hold two ports as a master would have them; what is left of it afterwards is ended."""
    pids = []

    def hold(publish, ret, seconds=30):
        options = {"interface": ADDRESS, "publish_port": publish, "ret_port": ret}
        answer = orch("hold_ports", options, seconds)
        pids.append(answer["pid"])
        return answer

    yield hold
    for pid in filter(None, pids):
        orch("release_ports", pid)


def test_facts_are_those_of_this_host(orch, host):
    host.write("var/run/salt-minion.pid", str(os.getpid()))
    before = time.time()
    told = orch("facts", master=True)
    assert before <= told["clock"] <= time.time()
    started = psutil.Process().create_time()
    assert told["daemons"] == {"master": None, "minion": [os.getpid(), started]}
    # Of directories that are still to come.
    assert len(told["free"]) == 2
    assert all(free > 0 for free in told["free"].values())
    assert "free" not in orch("facts")


def test_facts_tell_where_a_running_master_listens(orch, host):
    assert "serves" not in orch("facts", master=True)
    host.write("var/run/salt-master.pid", str(os.getpid()))
    with socket.create_server((ADDRESS, 0)) as server:
        assert server.getsockname()[1] in orch("facts", master=True)["serves"]
    assert "serves" not in orch("facts")


def test_ports_are_held_for_both_kinds_of_addresses(orch, host):
    publish, ret = unused(2)
    answer = orch("hold_ports", {"ipv6": True, "publish_port": publish, "ret_port": ret}, 30)
    try:
        assert answer["taken"] == []
        reached = orch("reach", ["::1", ADDRESS], [publish, ret])
        assert {port: told for row in reached.values() for port, told in row.items()} == {
            str(publish): "open",
            str(ret): "open",
        }
    finally:
        orch("release_ports", answer["pid"])


def test_facts_tell_what_a_host_waits_for(orch, host, monkeypatch):
    waiting = {"salt-master": {"since": 5.0, "waiting": "for a job"}}
    told = {"cutover": {"step": "proving"}, "restarts": waiting, "configured": []}
    monkeypatch.setitem(host.modules._dict, "multimaster.masters", lambda: told)
    row = orch("facts")
    assert (row["cutover"], row["restarts"]) == (told["cutover"], waiting)


def test_whose_jobs_are_not_known_is_told_apart_from_who_has_none(orch, host, monkeypatch):
    module = host.modules["multimaster_orch.unfinished"].func.__globals__
    answers = {
        "web1": [{"jid": "1", "fun": "test.sleep"}, {"jid": "2", "fun": "test.ping"}],
        "web2": [
            {"jid": "1", "fun": "test.sleep"},
            {"fun": "multimaster_orch.unfinished"},
            # This very question, if the answer is signed.
            {"jid": "1", "fun": "multimaster.signed", "arg": ["multimaster_orch.unfinished", "n"]},
        ],
        "web3": "an error",
        "web4": [],
    }
    monkeypatch.setitem(module, "ask", lambda *_: answers)
    # Job 2 came from another master.
    loads = {"local_cache.get_load": lambda jid: {"jid": jid} if jid == "1" else {}}
    monkeypatch.setattr("salt.loader.returners", lambda opts, functions: loads)
    assert orch("unfinished", ["web1", "web2", "web3", "web4", "web5"]) == {
        "jobs": {"1": {"function": "test.sleep", "minions": ["web1", "web2"]}},
        "told": ["web1", "web2", "web4"],
    }


def test_held_ports_can_be_reached_until_they_are_released(orch, held):
    ports = unused(2)
    answer = held(*ports)
    assert answer["taken"] == []
    everywhere = {ADDRESS: dict.fromkeys(map(str, ports), "open")}
    for _ in range(3):
        assert orch("reach", [ADDRESS], ports) == everywhere
    assert orch("release_ports", answer["pid"]) is True
    assert orch("reach", [ADDRESS], ports) == {ADDRESS: dict.fromkeys(map(str, ports), "refused")}
    # For the master that is to have them.
    assert held(*ports)["taken"] == []


def test_held_ports_are_free_again_after_their_time(orch, held):
    pid = held(*unused(2), seconds=1)["pid"]
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(timeout=20)
    assert not psutil.pid_exists(pid)


def test_a_port_that_is_taken_is_told_and_the_other_held(orch, held):
    with socket.create_server((ADDRESS, 0)) as server:
        port = server.getsockname()[1]
        (other,) = unused(1)
        assert held(port, other)["taken"] == [port]
        assert orch("reach", [ADDRESS], [other])[ADDRESS] == {str(other): "open"}


def test_nothing_is_started_where_both_ports_are_taken(held):
    with socket.create_server((ADDRESS, 0)) as one, socket.create_server((ADDRESS, 0)) as other:
        ports = [server.getsockname()[1] for server in (one, other)]
        assert held(*ports) == {"pid": None, "taken": ports}


def test_only_what_holds_ports_is_ended(orch):
    assert orch("release_ports", os.getpid()) is False


def test_an_address_that_swallows_packets_is_told_from_one_that_refuses(orch):
    with socket.socket() as full:
        full.bind((ADDRESS, 0))
        full.listen(0)
        port = full.getsockname()[1]
        with contextlib.ExitStack() as stack:
            # Once nobody takes connections out of the queue, further ones get no answer.
            for _ in range(4):
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex((ADDRESS, port))
            outcome = orch("reach", [ADDRESS], [port], 0.5)[ADDRESS][str(port)]
    assert outcome == "no answer within 0.5 s; packets are dropped, or there is no way"


@pytest.mark.parametrize("function", ["cmd.run", ["test.ping", "cmd.run"]])
def test_a_master_is_asked_to_give_few_commands_only(orch, function):
    from salt.exceptions import CommandExecutionError

    with pytest.raises(CommandExecutionError, match=r"got .*'cmd.run'.*; supported: multimaster"):
        orch("ask", ["web1"], function, ["true"])


def test_the_runner_asks_for_no_command_that_is_refused(orch, host):
    # With mode: failover any of them may have to go through another master.
    runner = (host.checkout / "salt/_runners/multimaster_orch.py").read_text()
    asked = set(re.findall(r'_(?:anywhere|answers|asked)\([^()]*?"(\w+\.\w+)"', runner))
    supported = host.modules["multimaster_orch.ask"].func.__globals__["ASKED"]
    asked |= set(re.findall(r'"(saltutil\.\w+)"', runner))
    assert {"multimaster.masters", "saltutil.sync_utils"} <= asked
    # What a master's host has to prove, too.
    assert {*asked, "multimaster.signed"} <= set(supported)


def test_the_master_that_orchestrates_is_brought_all_that_it_calls():
    sls = (REPOSITORY / "salt/multimaster/orch/modules.sls").read_text()
    files = set(re.findall(r"'((?:runners|states|utils)/\w+\.py)'", sls))
    call = re.compile(r'(?:__utils__\["|import )(multimaster_\w+)\b')
    assert files
    called = {
        f"utils/{name}.py"
        for file in files
        for name in call.findall((REPOSITORY / f"salt/_{file}").read_text())
    }
    assert called - files == set()
