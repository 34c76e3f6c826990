"""
When a daemon is restarted, what is waited for before, and what if it does not come.

The init system is made up here, as one that refuses; test/chaos has real ones.  So are minions that
answer a master's questions or do not; test/integration has those.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest

import multimaster_dial
import multimaster_keypair as keypair
import multimaster_restart as restart


class Init:
    """An init system that refuses some calls before it starts a daemon, a real process."""

    def __init__(self, pidfile, refusals):
        self.pidfile = pidfile
        self.refusals = refusals
        self.calls = []
        self.daemon = None
        # What `service.status` says of one that has not come yet.
        self.starting = False

    def cmd(self, function, service):
        self.calls.append(function)
        if function == "service.status":
            return self.starting or self.daemon is not None
        if len([call for call in self.calls if call != "service.status"]) <= self.refusals:
            raise OSError("it is being stopped")
        self.daemon = subprocess.Popen(["sleep", "1000"])
        self.pidfile.write_text(str(self.daemon.pid))
        return True


class Hangs(BaseException):
    """Something is done again and again; no error that anybody translates."""


def at_most(times, function):
    """Return a function that ends the test when it is called more often than that."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) > times:
            raise Hangs(arguments)
        return function(*arguments)

    return counted


@pytest.mark.parametrize("jid", ["../../x", "..", "a/b", ".waiting"])
def test_a_job_that_is_named_like_a_path_asks_for_nothing(tmp_path, jid):
    with pytest.raises(ValueError, match="jid: got "):
        restart.request(str(tmp_path / "restarts"), jid, 1, 9, 0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("POLL", "PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(restart, name, 0.01)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """The program on a host with a minion of its own and no daemon."""
    (tmp_path / "minion").write_text(f"root_dir: {tmp_path}\nid: saltm2\n")
    (tmp_path / "master").write_text(f"root_dir: {tmp_path}\nid: saltm2\n")
    args = SimpleNamespace(
        config=str(tmp_path / "minion"),
        service="salt-master",
        pidfile=str(tmp_path / "salt-master.pid"),
        master_config=str(tmp_path / "master"),
        journal="",
    )
    made = restart._Host(args)
    monkeypatch.setattr(made, "busy", lambda: False)
    return made


@pytest.fixture
def init(host, monkeypatch):
    import salt.client

    made = []

    def make(refusals):
        made.append(Init(Path(host.args.pidfile), refusals))
        monkeypatch.setattr(salt.client, "Caller", lambda mopts: made[-1])
        return made[-1]

    yield make
    for one in made:
        if one.daemon:
            one.daemon.kill()
            one.daemon.wait()


def test_jobs_that_only_look_at_a_minion_are_not_waited_for(host, monkeypatch):
    import salt.utils.minion

    monkeypatch.undo()
    functions = ["saltutil.find_job", "multimaster_orch.facts", "multimaster.ledger_pull"]
    jobs = [{"fun": function} for function in functions]
    # Also if the answer is to be signed.
    jobs.append({"fun": "multimaster.signed", "arg": ["multimaster_drift.report", "nonce"]})
    monkeypatch.setattr(salt.utils.minion, "running", lambda _: jobs)
    assert not host.busy()
    for job in (
        {"fun": "state.apply"},
        {"fun": "multimaster.signed", "arg": ["multimaster.key_decide", "nonce"]},
        {"fun": "multimaster.signed"},
    ):
        monkeypatch.setattr(salt.utils.minion, "running", lambda _, job=job: [*jobs, job])
        assert host.busy()


@pytest.mark.parametrize("refusals", [0, 1, 2])
def test_a_daemon_is_started_until_it_is_there(host, init, refusals):
    system = init(refusals)
    assert host.restart() is True
    starts = [call for call in system.calls if call != "service.status"]
    assert starts == ["service.restart", *["service.start"] * refusals]


def test_a_daemon_that_ends_at_every_start_is_told(host, init):
    system = init(99)
    assert host.restart() is False
    assert system.calls.count("service.start") == restart.FAILED


def test_a_daemon_that_is_slow_to_come_is_waited_for_however_long_it_takes(host, init):
    system = init(99)
    system.starting = True

    def come():
        while system.calls.count("service.status") < 20:
            time.sleep(0.01)
        system.refusals = 0
        system.cmd("service.start", "salt-master")

    slow = threading.Thread(target=come)
    slow.start()
    assert host.restart() is True
    slow.join()
    assert system.calls.count("service.start") == 1


def requested(host, jid="", pid=0):
    daemon = restart._daemon(host.args.pidfile)
    restart.request(host.requests, jid, pid, 600, daemon)


def test_one_restart_serves_all_requests_that_came_before_it(host, init, monkeypatch):
    monkeypatch.setattr(host, "_until_turn", lambda: None)
    monkeypatch.setattr(host, "_until_returned", list)
    system = init(0)
    system.cmd("service.start", "salt-master")
    first = system.daemon
    requested(host, "20260101000000000001")
    requested(host, "20260101000000000002")
    assert restart.outstanding(host.requests, first.pid)
    # As init would do it.
    first.kill()
    first.wait()
    assert host.serve() == 0
    assert system.calls.count("service.restart") == 1
    assert not restart.outstanding(host.requests, system.daemon.pid)
    assert os.listdir(host.requests) == []


def test_a_job_that_has_asked_is_waited_for(host):
    working = subprocess.Popen(["sleep", "1000"])
    try:
        requested(host, "20260101000000000001", working.pid)
        assert restart._at_work(host._wanted().values())
    finally:
        working.kill()
        working.wait()
    assert not restart._at_work(host._wanted().values())


def test_a_request_that_comes_while_served_ones_are_removed_stays(host, monkeypatch):
    look = restart._requests
    coming = Path(host.requests, ".20260101000000000002")

    def then_one_comes(*arguments):
        found = look(*arguments)
        requested(host, "20260101000000000001")
        coming.write_text("half of one")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(restart, "_requests", then_one_comes)
        host._settle()
    assert set(host._wanted()) == {"20260101000000000001"}
    assert coming.exists()


def test_a_clock_that_is_set_serves_no_request(host, init, monkeypatch):
    import psutil

    system = init(0)
    system.cmd("service.start", "salt-master")
    requested(host, "20260101000000000001")
    now = psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: now + 3600)
    assert restart.outstanding(host.requests, system.daemon.pid)


def test_a_daemon_counts_as_another_one_though_the_clock_was_set_back(host, init, monkeypatch):
    import psutil

    system = init(0)
    system.cmd("service.start", "salt-master")
    first, cmd, now = system.daemon, system.cmd, psutil._pslinux.boot_time()

    def set_back(function, service):
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: now - 3600)
        return cmd(function, service)

    system.cmd = at_most(20, set_back)
    try:
        assert host.restart() is True
    finally:
        first.kill()
        first.wait()


def test_a_restart_that_was_refused_is_asked_for_again(host, init):
    system = init(3)
    system.daemon = subprocess.Popen(["sleep", "1000"])
    Path(host.args.pidfile).write_text(str(system.daemon.pid))
    first, system.cmd = system.daemon, at_most(20, system.cmd)
    try:
        assert host.restart() is True
    finally:
        first.kill()
        first.wait()
    assert system.calls.count("service.restart") == 4


@pytest.mark.parametrize("by", ["another restart", "withdrawal"])
def test_a_request_that_is_none_any_more_restarts_nothing(host, init, monkeypatch, by):
    system = init(0)
    system.cmd("service.start", "salt-master")
    first = system.daemon
    requested(host, "20260101000000000001")

    def meanwhile():
        if by == "withdrawal":
            restart.withdraw(host.requests)
        else:
            first.kill()
            first.wait()
            system.cmd("service.start", "salt-master")

    monkeypatch.setattr(host, "_until_turn", meanwhile)
    monkeypatch.setattr(host, "_until_returned", list)
    assert host.serve() == 0
    assert "service.restart" not in system.calls


@pytest.mark.parametrize(("back", "restarts"), [(True, 1), (False, 0)])
def test_a_new_list_of_masters_is_proved_before_any_restart(
    host, init, tmp_path, monkeypatch, back, restarts
):
    """Unless the minion has gone back, and runs with the old one."""
    system = init(0)
    system.cmd("service.start", "salt-minion")
    first, system.calls = system.daemon, []
    requested(host)
    journal = {"serial": "1", "since": 1, "drop_in": "x", "masters": 1, "old": []}
    path = tmp_path / "cutover.json"
    path.write_text(json.dumps(journal | {"step": "proving", "back": back}))
    host.args.journal, host.args.master_config = str(path), ""
    try:
        assert host.serve() == 0
    finally:
        first.kill()
        first.wait()
    assert system.calls.count("service.restart") == restarts


@pytest.mark.parametrize(("back", "served"), [(True, [True]), (False, [])])
def test_a_request_is_served_beside_a_cut_over_that_waits(tmp_path, monkeypatch, back, served):
    import multimaster_cutover

    (tmp_path / "minion").write_text(f"root_dir: {tmp_path}\nid: web1\n")
    journal = {"serial": "1", "since": 1, "drop_in": "x", "masters": 1, "old": []}
    path = tmp_path / "cutover.json"
    path.write_text(json.dumps(journal | {"step": "proving", "back": back}))
    done = []
    monkeypatch.setattr(restart._Host, "serve", lambda _: done.append(True) or 0)
    argv = [f"--config={tmp_path}/minion", "--service=salt-minion", f"--pidfile={tmp_path}/pid"]
    with multimaster_cutover.taken_up(str(path)):
        restart.main([*argv, f"--journal={path}", f"--log={tmp_path}/log"])
    assert done == served


def test_a_disk_that_is_full_keeps_no_restart(host, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    host._say("running jobs")
    assert host.said == "running jobs"


def test_a_request_that_cannot_be_read_is_none(host):
    Path(host.requests, "20260101000000000001").write_text("{")
    assert restart.outstanding(host.requests, 0) == {}


def test_what_is_waited_for_is_said(host):
    requested(host)
    assert restart.outstanding(host.requests, 0)["waiting"] == "nobody yet"
    host._say("the returns of job 1")
    assert restart.outstanding(host.requests, 0)["waiting"] == "the returns of job 1"


class Minions:
    """Minions that answer questions as they are told to, and what they were asked."""

    def __init__(self, **says):
        self.says, self.rounds, self.patience = says, [], []

    def ask(self, ids, patience):
        self.rounds.append(sorted(ids))
        self.patience.append(patience)
        return {name: self.says[name] for name in ids if name in self.says}


def asked_for(minions, left, times=2):
    names = {"web1", "web2"} if left is None else left
    restart._ask_for(minions.ask, lambda: names, lambda told: told == {}, "saltm2", times)


def test_a_minion_that_works_on_it_is_waited_for_and_one_that_returned_is_not():
    minions = Minions(saltm2={}, web1={"jid": "1"}, web2={})
    left = {"web1", "web2"}
    original = minions.ask

    def ask(ids, patience):
        if len(minions.rounds) == 10:
            left.discard("web1")
        return original(ids, patience)

    minions.ask = ask
    asked_for(minions, left)
    assert len(minions.rounds) == 11
    # Twice, as its return might have been on its way.
    assert [len(ids) for ids in minions.rounds[:3]] == [3, 3, 2]


def test_a_minion_that_is_silent_while_another_one_answers_is_gone():
    minions = Minions(saltm2={})
    asked_for(minions, None)
    assert len(minions.rounds) == restart.SEVERAL


def test_a_minion_that_is_slow_gets_more_time_and_is_no_less_waited_for():
    minions = Minions(saltm2={})
    original = minions.ask

    def ask(ids, patience):
        if patience >= 20:
            minions.says |= {"web1": {}, "web2": {}}
        return original(ids, patience)

    minions.ask = ask
    asked_for(minions, None)
    assert minions.patience == [5, 10, 20, 20]


def test_nobody_is_taken_for_gone_while_nobody_at_all_answers():
    minions = Minions()
    original = minions.ask

    def ask(ids, patience):
        if len(minions.rounds) == 20:
            minions.says["saltm2"] = {}
        return original(ids, patience)

    minions.ask = ask
    asked_for(minions, None)
    assert len(minions.rounds) == 20 + restart.SEVERAL


@pytest.fixture
def running(host):
    """A daemon, and a request for its restart."""
    daemon = subprocess.Popen(["sleep", "1000"])
    Path(host.args.pidfile).write_text(str(daemon.pid))
    requested(host)
    yield daemon
    daemon.kill()
    daemon.wait()


DECLARED = [{"id": f"saltm{number}", "address": f"192.0.2.{number}"} for number in (1, 2, 3)]


@pytest.fixture
def turn(host, running, tmp_path, shared, monkeypatch):
    """Let the masters be declared, say what they and their minions say; return what was asked."""
    (tmp_path / "master.pub").write_text(shared.pub)

    def wait(says, outstanding, own="saltm2", declared=DECLARED, forge=lambda proof: proof):
        asked = []
        opts = {"id": own, "multimaster": {"masters": declared}, "pki_dir": str(tmp_path)}
        monkeypatch.setattr(host, "_master_options", lambda: opts)

        def prove(name, told, function, nonce):
            proof = keypair.prove({"told": told}, function, name, nonce, shared.pem)
            return proof if name == own else forge(proof)

        def command(ids, function, arguments, patience):
            assert function == "multimaster.signed"
            function, nonce, given, _ = arguments
            assert given == ["salt-master"]
            asked.append((function, sorted(ids)))
            says = {own: False} | {n: next(outstanding[n]) for n in ids if n in outstanding}
            return {name: prove(name, told, function, nonce) for name, told in says.items()}

        def lets_in(options, address, patience):
            asked.append(address)
            said = says.get(address, "refused")
            return (said if isinstance(said, str) else next(said)) == "accepted"

        monkeypatch.setattr(host, "_command", command)
        monkeypatch.setattr(multimaster_dial, "lets_in", lets_in)
        host._until_turn()
        return asked

    return wait


def test_a_master_waits_for_the_restarts_of_those_declared_before_it(turn):
    asked = turn({"192.0.2.3": "accepted"}, {"saltm1": iter([True, True, False])})
    assert asked[:3] == [("multimaster.outstanding", ["saltm1", "saltm2"])] * 3
    assert set(asked[3:]) == {"192.0.2.1", "192.0.2.3"}


def test_a_master_waits_until_another_one_lets_this_host_in(turn):
    asked = turn({"192.0.2.2": iter(["pending", "silent", "accepted"])}, {}, own="saltm1")
    assert asked.count("192.0.2.2") == 3
    assert all(isinstance(one, str) for one in asked)


def test_one_that_is_out_of_reach_is_not_waited_for(turn):
    asked = turn({"192.0.2.3": "accepted"}, {})
    assert len([one for one in asked if isinstance(one, tuple)]) == restart.SEVERAL


@pytest.mark.parametrize(
    "forge",
    [
        lambda proof: False,
        lambda proof: "'multimaster.signed' is not available.",
        lambda proof: {**proof, "signature": None},
        lambda proof: {**proof, "answer": {**proof["answer"], "told": False}},
    ],
    ids=["not signed", "older", "without a pair", "forged"],
)
def test_what_one_does_not_prove_lets_no_master_restart_and_is_not_waited_for(turn, forge):
    says = iter([True] * (restart.SEVERAL + 1))
    asked = turn({"192.0.2.3": "accepted"}, {"saltm1": says}, forge=forge)
    # As one that is out of reach.
    assert len([one for one in asked if isinstance(one, tuple)]) == restart.SEVERAL


@pytest.mark.parametrize("declared", [[], DECLARED[1:2]], ids=["none", "itself"])
def test_the_only_master_waits_for_nobody(turn, declared):
    assert turn({}, {}, declared=declared) == []


def test_a_declaration_that_changes_is_heeded_by_who_waits(host, running, tmp_path, monkeypatch):
    declared = [*DECLARED[:2]]
    opts = {"id": "saltm2", "multimaster": {"masters": declared}, "pki_dir": str(tmp_path)}
    monkeypatch.setattr(host, "_master_options", lambda: opts)

    def command(ids, *_):
        # It is taken out, and never answers anything else.
        opts["multimaster"] = {"masters": DECLARED[1:]}
        return dict.fromkeys(ids, True)

    monkeypatch.setattr(host, "_command", at_most(20, command))
    monkeypatch.setattr(multimaster_dial, "lets_in", lambda _, at, __: at == "192.0.2.3")
    host._until_turn()


def test_a_master_that_does_not_come_back_is_tried_again_at_once(host, running, monkeypatch):
    # It could not even ask whose turn it is.
    waits, tries = [], iter([False, False, True])

    def come():
        came = next(tries)
        if came:
            restart.withdraw(host.requests)
        return came

    monkeypatch.setattr(host, "_until_turn", lambda: waits.append(1))
    monkeypatch.setattr(host, "_until_returned", list)
    monkeypatch.setattr(host, "restart", come)
    assert host.serve() == 0
    assert len(waits) == 1


def test_a_master_that_runs_with_a_key_of_its_own_has_no_turn_to_wait_for(
    host, running, monkeypatch
):
    # The first waits for it, and its own minion will never be there.
    opts = {"id": "saltm2", "multimaster": {"masters": DECLARED}}
    monkeypatch.setattr(host, "_master_options", lambda: opts)
    said = {"192.0.2.2": "foreign key"}
    monkeypatch.setattr(host, "_command", at_most(20, lambda *_: {}))
    monkeypatch.setattr(host, "ask", lambda _, at, __: said.get(at, "silent"))
    monkeypatch.setattr(multimaster_dial, "lets_in", lambda _, at, __: at == "192.0.2.1")
    host._until_turn()


def test_salt_gives_a_question_as_patiently_as_it_is_asked(host, monkeypatch):
    import salt.client
    from salt.exceptions import SaltClientError

    given = []

    def pub(*_, timeout, **__):
        given.append(timeout)
        raise SaltClientError("no master")

    # Salt's own way from a question to the request of its master, which is not there.
    client = salt.client.LocalClient.__new__(salt.client.LocalClient)
    client.opts, client.pub = {"timeout": 5, "gather_job_timeout": 10}, pub
    client.event = SimpleNamespace(get_event=None, cpub=True, destroy=lambda: None)
    monkeypatch.setattr(
        "salt.client.get_local_client", lambda mopts: contextlib.nullcontext(client)
    )
    monkeypatch.setattr(host, "_master_options", dict)
    assert host._command({"web1"}, "test.ping", [], 40.0) == {}
    assert given == [40]


def test_a_request_holds_no_secret_and_is_for_nobody_else(host):
    requested(host, "20260101000000000001")
    assert os.stat(host.requests).st_mode & 0o777 == 0o700
    told = json.loads(Path(host.requests, "20260101000000000001").read_text())
    assert set(told) == {"jid", "job", "timeout", "daemon"}


# What the program does at its end, with a question that nobody has answered yet.
QUESTION = """
import sys, threading
import multimaster_dial, multimaster_restart, salt.config
opts, answer = salt.config.minion_config(sys.argv[1]), threading.Event()
multimaster_dial.put(opts, "127.0.9.8", 5, answer)
print(answer.wait(1), flush=True)
multimaster_restart.leave(3)
"""


OPTS = {"id": "web1", "master_port": 4506}
HEARD = ["192.0.2.1", "192.0.2.2"]


@pytest.mark.parametrize(
    ("connected", "told"),
    [(HEARD, HEARD), (HEARD[1:], HEARD[1:]), ([], HEARD)],
    ids=["hot", "failover", "on its way"],
)
def test_the_masters_that_a_minion_is_connected_to_are_told(monkeypatch, connected, told):
    import multimaster_dial

    tell = Mock()
    monkeypatch.setattr(multimaster_dial, "tell", tell)
    monkeypatch.setattr(multimaster_dial, "connected", lambda *_: connected)
    data = {"step": "kept", "heard": HEARD}
    restart._tell(OPTS, "", data)
    tag = "multimaster/minion/web1/cutover"
    assert sorted(tell.call_args_list) == [call(OPTS, at, restart.TELL, tag, data) for at in told]


@pytest.mark.parametrize("taking", [HEARD[:1], []])
def test_an_event_that_no_master_takes_is_logged(monkeypatch, caplog, taking):
    import multimaster_dial

    monkeypatch.setattr(multimaster_dial, "tell", lambda _, master, *__: master in taking)
    monkeypatch.setattr(multimaster_dial, "connected", lambda *_: HEARD)
    restart._tell(OPTS, "", {"step": "kept", "heard": HEARD})
    assert ("no master has taken the event" in caplog.text) == (not taking)


def test_a_master_that_takes_no_event_does_not_keep_the_program(monkeypatch):
    import multimaster_dial

    over, told = threading.Event(), []
    monkeypatch.setattr(restart, "TELL", 0.1)
    monkeypatch.setattr(multimaster_dial, "tell", lambda *_: told.append(over.wait(60)))
    monkeypatch.setattr(multimaster_dial, "connected", lambda *_: [])
    restart._tell(OPTS, "", {"step": "kept", "heard": HEARD})
    # Back while the events are still on their way.
    assert told == []
    over.set()


@pytest.mark.parametrize("name", ["yaml", "psutil", "salt", "multimaster_trap"])
def test_a_custom_module_of_another_name_takes_no_library_s_place(tmp_path, name):
    # Whatever else a site has synced to where this program is.
    for path in Path(restart.__file__).parent.glob("multimaster_*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / f"{name}.py").write_text("raise SystemExit('a trap')")
    (tmp_path / "minion").write_text(f"root_dir: {tmp_path}\nid: web1\n")
    argv = [sys.executable, str(tmp_path / "multimaster_restart.py"), "--service=salt-minion"]
    argv += [f"--config={tmp_path}/minion", f"--pidfile={tmp_path}/pid", f"--log={tmp_path}/log"]
    done = subprocess.run(argv, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_master_that_does_not_answer_does_not_keep_the_program(tmp_path):
    (tmp_path / "minion").write_text(f"root_dir: {tmp_path}\nid: web1\npki_dir: {tmp_path}/pki\n")
    (tmp_path / "pki").mkdir()
    argv = [sys.executable, "-c", QUESTION, str(tmp_path / "minion")]
    there = {**os.environ, "PYTHONPATH": str(Path(restart.__file__).parent)}
    done = subprocess.run(argv, env=there, timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "False\n"), done.stderr
