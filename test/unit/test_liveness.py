"""
When a minion leaves its master, and when not.

The masters are made up here, with their delays in parts of an interval; test/chaos has daemons.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

import multimaster_dial
import multimaster_gather

LOCAL = ["127.0.0.1", "127.0.0.2"]
MASTERS = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
INTERVAL = 0.4
NEVER = None


class World:
    """A minion, what its masters do, and the events that its engine fires."""

    def __init__(self, module, tmp_path, act):
        self.delays = dict.fromkeys(MASTERS, 0.0)
        self.present = MASTERS[0]
        self.fired = []
        self.asked = []
        # Masters that are there, and do not let the minion in.
        self.refusing = set()
        # Master -> where its name leads to; and where the minion is connected.
        self.names, self.places = {}, set()
        # The channels that were closed.
        self.forgotten = []
        # The masters that were asked, and where the channel for it is kept.
        self.kept = []
        self.module = module
        module.__opts__ = {"id": "web1", "cachedir": str(tmp_path), "master": MASTERS[0]}
        module.__opts__ |= {"master_port": 4506, "pidfile": str(tmp_path / "salt-minion.pid")}
        module.__opts__ |= {"return_retry_tries": 1, "return_retry_timer_max": 2}
        module.__opts__ |= {"recon_default": 100, "recon_max": 900}
        module.__utils__ = {"multimaster_dial.put": self.put}
        module.__utils__["multimaster_gather.next_event"] = multimaster_gather.next_event
        module.__utils__["multimaster_dial.links"] = lambda *_: set()
        module.__utils__["multimaster_dial.among"] = lambda *_: (
            {self.present: {self.present}} if self.present else {}
        )
        module._fire = self.fire
        module.__utils__["multimaster_dial.sockets"] = lambda _: frozenset()
        module.__utils__["multimaster_dial.resolve"] = lambda name: {self.names.get(name, name)}
        module.__utils__["multimaster_dial.forget"] = self.forgotten.append
        minion = module._Minion(MASTERS, 1)
        minion.runs = lambda: True
        self.watch = module._Watch(
            minion, None if act else MASTERS[0], INTERVAL, threading.Event(), {}
        )
        self.returns = module._Returns(minion, act, self.watch.heard, INTERVAL)
        self.links, self.ways = {MASTERS[0]}, []
        minion.links = lambda master: set(self.links)
        minion.places = lambda: set(self.places)

    def put(self, opts, address, timeout, heard, way, kept=None):
        if way == "there":
            if address in self.refusing:
                heard.set()
            return
        self.asked.append(address)
        self.kept.append((address, kept))
        self.ways.append(way)
        if self.delays[address] is not NEVER:
            timer = threading.Timer(self.delays[address] * INTERVAL, heard.set)
            timer.daemon = True
            timer.start()

    def fire(self, data, tag):
        self.fired.append((tag, data))
        if tag == "__master_disconnected":
            self.present = next(a for a in MASTERS if self.delays[a] is not NEVER)

    def judge(self):
        started = time.monotonic()
        self.watch.judge(self.present)
        return time.monotonic() - started

    def told(self):
        return [data["tag"].rpartition("/")[2] for tag, data in self.fired if tag == "fire_master"]

    @property
    def left(self):
        return [data["master"] for tag, data in self.fired if tag == "__master_disconnected"]


@pytest.fixture
def world(by_path, tmp_path, monkeypatch):
    import salt.utils.event

    monkeypatch.setattr(salt.utils.event, "get_event", lambda *_, **__: None)
    module = by_path("salt/_engines/multimaster_minion.py")
    return lambda act=True: World(module, tmp_path, act)


def test_a_master_that_answers_is_asked_once_and_kept(world):
    found = world()
    found.judge()
    assert (found.asked, found.left) == ([MASTERS[0]], [])


def test_a_silent_master_is_left_for_one_that_answers(world):
    found = world()
    found.delays[MASTERS[0]] = NEVER
    cut = found.module._Cut(found.watch.minion)
    cut.look(0)
    found.judge()
    assert found.left == [MASTERS[0]]
    cut.look(1)
    assert found.told() == ["moved"]
    assert found.fired[-1][1]["data"] == {"from": MASTERS[0], "to": MASTERS[1]}


def test_it_is_not_left_when_no_other_answers(world):
    found = world()
    found.delays = dict.fromkeys(MASTERS, NEVER)
    found.judge()
    found.judge()
    assert found.left == []
    assert found.told() == ["silent"]


@pytest.mark.parametrize("to", [None, MASTERS[1]])
def test_a_master_that_the_minion_is_leaving_is_not_left_once_more(world, to):
    found = world()
    found.delays[MASTERS[0]] = NEVER
    threading.Timer(INTERVAL, lambda: setattr(found, "present", to)).start()
    found.judge()
    assert found.left == found.told() == []


def test_it_is_left_for_one_that_takes_its_time(world):
    found = world()
    found.delays = {MASTERS[0]: NEVER, MASTERS[1]: 1.7, MASTERS[2]: NEVER}
    found.judge()
    assert found.left == [MASTERS[0]]


# With the shortest intervals a master has one for its answer; with longer ones almost a half more.
@pytest.mark.parametrize(("interval", "delay"), [(INTERVAL, 0.9), (2.0, 1.2)])
def test_a_slow_master_is_not_left(world, interval, delay):
    found = world()
    found.watch = found.module._Watch(found.watch.minion, None, interval, threading.Event(), {})
    found.delays[MASTERS[0]] = delay * interval / INTERVAL
    found.judge()
    assert (found.left, found.told()) == ([], [])


@pytest.mark.parametrize("interval", [1, 2, 10, 60])
def test_a_silent_master_is_found_out_in_time_for_salt_to_leave_it(world, interval):
    found = world()
    watch = found.module._Watch(found.watch.minion, None, interval, None, {})
    # The wait for the question, three of those for an answer, and the random one.
    longest = interval + 4 * watch.patience
    # Salt tries for 2 s to connect to the master that it leaves.
    assert longest + 2 < 3 * interval + 2 - 0.6
    assert 3 * watch.patience >= interval


def test_not_all_minions_leave_a_silent_master_at_once(world):
    found = world()
    found.delays[MASTERS[0]] = NEVER
    times = []
    for _ in range(6):
        found.present = MASTERS[0]
        times.append(found.judge())
    assert max(times) - min(times) > 0.05 * INTERVAL


def test_in_hot_mode_a_silent_master_is_only_reported_and_once(world):
    found = world(act=False)
    found.delays[MASTERS[0]] = NEVER
    found.judge()
    found.judge()
    assert (found.left, found.told()) == ([], ["silent"])
    assert set(found.asked) == {MASTERS[0]}


def test_who_answers_again_is_silent_no_longer(world, tmp_path):
    found = world(act=False)
    found.delays[MASTERS[0]] = NEVER
    found.judge()
    mark = tmp_path / "multimaster/silent" / MASTERS[0]
    assert mark.exists()
    found.delays[MASTERS[0]] = 0.0
    found.judge()
    assert (mark.exists(), found.told()) == (False, ["silent", "answers"])


def test_after_a_new_connection_the_minion_signs_in_once_more(world):
    found = world()
    found.judge()
    found.judge()
    found.links = {"another"}
    found.judge()
    assert found.ways == ["afresh", "ask", "afresh"]


def test_an_answer_that_was_late_is_as_good_as_one_in_time(world):
    found = world(act=False)
    found.delays[MASTERS[0]] = 0.7
    found.judge()
    assert found.ways[:2] == ["afresh", "ask"]
    found.delays[MASTERS[0]] = 0.0
    found.judge()
    assert found.ways[-1] == "ask"


@pytest.mark.parametrize(
    ("act", "links", "slowness"),
    [(False, {1}, [1, 1, 2, 4, 4]), (False, set(), [1] * 5), (True, {1}, [1] * 5)],
    ids=["hot", "hot, not connected", "failover"],
)
def test_a_hot_minion_asks_a_busy_master_less_often(world, act, links, slowness):
    found = world(act=act)
    found.links = links
    found.delays[MASTERS[0]] = 0.7
    seen = []
    for _ in slowness:
        seen.append(found.watch.slowness())
        found.judge()
    assert seen == slowness
    found.delays[MASTERS[0]] = 0.0
    found.judge()
    assert found.watch.slowness() == 1


@pytest.mark.parametrize("refuses", [True, False])
def test_only_a_master_that_is_there_and_refuses_makes_the_minion_look_whether_it_signs(
    world, refuses
):
    found = world()
    found.delays[MASTERS[0]] = NEVER
    found.refusing = {MASTERS[0]} if refuses else set()
    found.judge()
    assert found.watch.doubt.is_set() is refuses


@pytest.mark.parametrize(
    ("links", "doubt"),
    [({MASTERS[0]}, False), ({"another"}, True), (set(), True)],
    ids=["same connection", "another one", "none"],
)
def test_a_master_that_is_slow_on_the_same_connection_is_not_asked_whether_it_signs(
    world, links, doubt
):
    found = world(act=False)
    found.judge()
    found.links = links
    found.delays[MASTERS[0]] = NEVER
    found.refusing = {MASTERS[0]}
    found.judge()
    assert found.watch.doubt.is_set() is doubt


def test_a_master_that_restarts_while_it_is_asked_is_asked_again(world):
    found = world(act=False)
    found.judge()
    found.asked.clear()
    found.delays[MASTERS[0]] = NEVER
    found.refusing = {MASTERS[0]}
    later = iter([{MASTERS[0]}, {"another"}])
    found.watch.minion.links = lambda _: next(later)
    found.judge()
    assert found.asked.count(MASTERS[0]) == 2
    assert found.watch.doubt.is_set()


class Bus:
    """The minion's event bus, with the events that a test puts there."""

    def __init__(self, *events):
        self.events = list(events)

    def get_event(self, wait, full):
        return self.events.pop(0) if self.events else None


def payload(master, **load):
    return {"tag": f"__master_req_channel_payload/7/{master}", "data": {"jid": "1", **load}}


TAKEN = {"tag": "__master_req_channel_return/7", "data": {"ret": None}}
TIMED_OUT = {"tag": TAKEN["tag"], "data": {"ret": None, "error": "timeout"}}


def later(found, seconds=None):
    """Have the returns wait for so many seconds, by default until they are due again."""
    seconds = found.returns.again if seconds is None else seconds
    for one in found.returns.waiting.values():
        one.since -= seconds
        one.at -= seconds


def followed(found, *events):
    """Let the engine see events; return the returns that it sends elsewhere."""
    found.returns.bus = Bus(*events)
    for _ in range(len(events) + 1):
        found.returns.due = 0
        found.returns.follow(0)
    return [(tag, data) for tag, data in found.fired if "payload" in tag]


def test_a_return_follows_the_minion_to_its_new_master(world):
    found = world()
    found.present = MASTERS[1]
    ((tag, data),) = followed(found, payload(MASTERS[0], cmd="_return", id="web1"))
    assert tag == f"__master_req_channel_payload/7/{MASTERS[1]}"
    assert data == {"jid": "1", "cmd": "_return", "id": "web1", "tgt": ["web1"], "tgt_type": "list"}


def test_a_return_that_was_taken_goes_nowhere_else(world):
    found = world()
    assert followed(found, payload(MASTERS[0], cmd="_return"), TAKEN) == []
    found.present = MASTERS[1]
    assert followed(found) == []


@pytest.mark.parametrize("ret", ["", False], ids=repr)
def test_a_return_that_a_master_failed_to_keep_is_sent_again(world, ret):
    found = world()
    failed = {**TAKEN, "data": {"ret": ret}}
    assert followed(found, payload(MASTERS[0], cmd="_return"), failed) == []
    later(found)
    assert len(followed(found)) == 1
    # Its channel is well.
    later(found, found.module.STUCK + 1)
    found.returns.since[MASTERS[0]] -= found.module.STUCK + 1
    found.judge()
    followed(found, failed)
    assert found.returns.stuck() == []
    later(found)
    assert len(followed(found, TAKEN)) == 2
    assert not found.returns.waiting


def test_a_return_waits_while_there_is_no_master(world):
    found = world()
    found.present = None
    assert followed(found, payload(MASTERS[0], cmd="_return")) == []
    found.present = MASTERS[2]
    assert len(followed(found)) == 1


@pytest.mark.parametrize("act", [True, False])
def test_a_return_that_was_not_taken_is_sent_again_to_the_master_that_is_back(world, act):
    found = world(act)
    assert followed(found, payload(MASTERS[0], cmd="_return"), TIMED_OUT) == []
    found.present = None
    later(found)
    assert followed(found) == []
    found.present = MASTERS[0]
    ((tag, data),) = followed(found)
    assert tag == f"__master_req_channel_payload/7/{MASTERS[0]}"
    assert data == {"jid": "1", "cmd": "_return"}
    # And not at once again, but after a while.
    assert len(followed(found)) == 1
    later(found)
    assert len(followed(found)) == 2
    later(found)
    assert len(followed(found, TAKEN)) == 2


def test_where_no_return_is_taken_ever_fewer_are_sent_again(world):
    found = world(act=False)

    def some(tag, count, **data):
        return [{"tag": f"{tag.format(n)}", "data": data} for n in range(count)]

    returns = some(f"__master_req_channel_payload/{{}}/{MASTERS[0]}", 50, cmd="_return")
    assert followed(found, *returns) == []
    sent = []
    for _ in range(5):
        later(found)
        found.returns.flight = {n: at - 6 for n, at in found.returns.flight.items()}
        before = len(found.fired)
        followed(found)
        sent.append(len(found.fired) - before)
    assert sent == [10, 5, 2, 1, 1]
    # And more as soon as they are.
    later(found)
    found.fired.clear()
    followed(found, *some("__master_req_channel_return/{}", 50, ret=None))
    assert found.returns.window == found.module.AT_ONCE


@pytest.mark.parametrize("delay", [3, 30, 200])
def test_a_return_arrives_however_long_a_master_takes_to_answer(world, delay):
    found = world(act=False)
    tries, by_daemon = [], 0

    def give(opts, address, timeout, load):
        tries.append(timeout)
        return [None] if timeout > delay else []

    found.module.__utils__["multimaster_dial.give"] = give
    found.module._in_thread = lambda function: function()
    events = [payload(MASTERS[0], cmd="_return", id="web1"), TIMED_OUT]
    for _ in range(20):
        by_daemon += len(followed(found, *events))
        # Its own tries end after two seconds, whatever comes later.
        events = [
            {"tag": tag, "data": data} if "return" in tag else TIMED_OUT
            for tag, data in found.fired
        ]
        found.fired.clear()
        later(found)
    assert not found.returns.waiting
    assert not found.returns.brought
    assert by_daemon == found.module.LATE - 1
    assert tries == sorted(set(tries))
    assert tries[-1] > delay


def test_a_slow_master_is_brought_one_return_at_a_time(world):
    found = world(act=False)
    begun = []
    found.module._in_thread = begun.append
    for number in "78":
        for event in (payload(MASTERS[0], cmd="_return"), *[TIMED_OUT] * found.module.LATE):
            followed(found, {**event, "tag": event["tag"].replace("/7", f"/{number}")})
    later(found)
    followed(found)
    assert len(begun) == 1


def test_a_return_to_one_master_goes_to_no_other_in_hot_mode(world):
    found = world(act=False)
    found.present = MASTERS[1]
    assert followed(found, payload(MASTERS[0], cmd="_return"), TIMED_OUT) == []
    later(found)
    assert followed(found) == []


def test_only_too_many_returns_make_the_oldest_be_given_up(world, monkeypatch):
    found = world(act=False)
    monkeypatch.setattr(found.module, "MOST", 2)
    found.present = None
    for number in range(3):
        one = payload(MASTERS[0], cmd="_return")
        one["tag"] = one["tag"].replace("/7/", f"/{number}/")
        followed(found, one)
    later(found, 100_000)
    followed(found)
    assert list(found.returns.waiting) == ["1", "2"]


@pytest.mark.parametrize("fault", ["channel", "master", "connection", "one return", "slowness"])
def test_only_a_channel_that_hangs_is_told_from_what_else_keeps_a_return(world, fault):
    found = world(act=False)
    assert followed(found, payload(MASTERS[0], cmd="_return"), TIMED_OUT) == []
    later(found, found.module.STUCK + 1)
    found.returns.since[MASTERS[0]] -= found.module.STUCK + 1
    if fault != "slowness":
        # Else the last try has ended just now, and it goes on like that.
        found.returns.ended[MASTERS[0]] -= found.module.STUCK + 1
    if fault == "connection":
        found.present = None
        followed(found)
        found.present = MASTERS[0]
    if fault == "one return":
        other = payload(MASTERS[0], cmd="_return")
        other["tag"] = other["tag"].replace("/7/", "/8/")
        followed(found, other, {**TAKEN, "tag": TAKEN["tag"].replace("/7", "/8")})
    followed(found)
    if fault != "master":
        found.judge()
    assert found.returns.stuck() == ([MASTERS[0]] if fault == "channel" else [])


def test_a_minion_that_hangs_is_restarted_and_not_again_and_again(world, tmp_path):
    module, calls = world().module, []
    module.__salt__ = {"multimaster.restart": lambda *args, **kwargs: calls.append((args, kwargs))}
    mark = tmp_path / "stuck"
    module._get_unstuck([], mark, "salt-minion", 600)
    assert calls == []
    for _ in range(2):
        module._get_unstuck([MASTERS[0]], mark, "salt-minion", 600)
    assert calls == [(("salt-minion", 600), {"job": False})]


def test_what_cannot_be_finished_does_not_end_the_engine(world, tmp_path, caplog):
    found, calls = world(), []

    def fail(*_, **__):
        calls.append(1)
        raise KeyError("something that nobody thought of")

    found.module.__utils__["multimaster_cutover.journal_path"] = lambda _: "journal"
    found.module.__utils__["multimaster_cutover.pending"] = lambda _: True
    found.module.__salt__ = {"multimaster.resume": fail}
    for _ in range(2):
        found.module._finish(found.returns, None, tmp_path, "salt-minion", 600)
    assert len(calls) == 2
    assert "something that nobody thought of" in caplog.text


def test_a_return_that_is_given_up_is_not_told_to_the_log(world, monkeypatch, caplog):
    found = world(act=False)
    monkeypatch.setattr(found.module, "MOST", 1)
    found.present = None
    for number in "12":
        one = payload(MASTERS[0], cmd="_return", jid=f"2026010100000000000{number}")
        one["tag"], one["data"]["return"] = one["tag"].replace("/7/", f"/{number}/"), "hunter2"
        followed(found, one)
    later(found, 100_000)
    followed(found)
    assert "20260101000000000001" in caplog.text
    assert "hunter2" not in caplog.text


def test_what_is_no_return_goes_nowhere_else(world):
    found = world()
    found.present = MASTERS[1]
    assert followed(found, payload(MASTERS[0], cmd="_pillar")) == []


def test_a_channel_serves_one_master_only(world):
    found = world(act=True)
    for found.present in (MASTERS[0], MASTERS[0], MASTERS[1]):
        found.watch.stay_with(found.present)
        found.watch.judge(found.present)
    assert [address for address, _ in found.kept] == [MASTERS[0], MASTERS[0], MASTERS[1]]
    first, again, other = (kept for _, kept in found.kept)
    assert first is again
    assert other is not first
    assert any(closed is first for closed in found.forgotten)


@pytest.fixture
def minion(world, tmp_path, monkeypatch):
    """The minion's daemon, whose place this process takes, with its pid file."""
    module = world().module
    monkeypatch.setattr("os.getppid", os.getpid)
    pidfile = tmp_path / "salt-minion.pid"

    def make(content):
        pidfile.write_text(content)
        return module._Minion(LOCAL, 2), pidfile

    return make


@pytest.fixture
def looks(minion, monkeypatch):
    """That daemon with real connections, and what each look at them has found."""
    found, _ = minion(str(os.getpid()))
    utils, made = found.connected.__globals__["__utils__"], []

    def look(*arguments):
        made.append(multimaster_dial.links(*arguments))
        return made[-1]

    utils["multimaster_dial.sockets"] = multimaster_dial.sockets
    utils["multimaster_dial.links"] = look
    utils["multimaster_dial.among"] = multimaster_dial.among
    utils["multimaster_dial.subscriptions"] = multimaster_dial.subscriptions
    with socket.create_server((LOCAL[0], 0)) as server:
        # The same at all masters.
        found.connected.__globals__["__opts__"]["publish_port"] = server.getsockname()[1]
    return found, made


@pytest.fixture
def connection(looks):
    """Connects that daemon to a master's publisher, or to another port of its host."""
    published = looks[0].connected.__globals__["__opts__"]["publish_port"]

    @contextlib.contextmanager
    def connection(address, port=published):
        with socket.create_server((address, port)) as server, socket.socket() as client:
            client.connect(server.getsockname())
            yield

    return connection


def test_connections_are_looked_at_again_when_the_sockets_are_others(looks, connection):
    minion, made = looks
    with connection(LOCAL[0]):
        with connection(LOCAL[1]):
            assert [list(minion.connected()) for _ in range(3)] == 3 * [LOCAL]
            assert [len(minion.links(address)) for address in LOCAL] == [1, 1]
            assert len(made) == 1
        assert list(minion.connected()) == LOCAL[:1]


def test_what_a_minion_has_on_a_masters_host_beside_its_master_is_no_subscription(
    looks, connection
):
    minion, _ = looks
    # A log handler, or a database.
    with connection(LOCAL[0], 0):
        assert (minion.master(), minion.links(LOCAL[0])) == (None, set())
        with connection(LOCAL[1]):
            assert minion.master() == LOCAL[1]
        assert minion.master() is None


def test_the_loss_of_a_master_is_seen_though_its_host_is_connected(looks, connection, monkeypatch):
    minion, _ = looks
    engine, fired = minion.connected.__globals__, []
    monkeypatch.setitem(engine, "_fire", lambda data, tag: fired.append((tag, data)))
    cut = engine["_Cut"](minion)
    with connection(LOCAL[0], 0):
        with connection(LOCAL[0]):
            cut.look(0)
        cut.look(1)
        cut.look(3)
        assert fired == [("__master_disconnected", {"master": LOCAL[0]})]
        with connection(LOCAL[1]):
            cut.look(4)
    assert fired[1][1]["data"] == {"from": LOCAL[0], "to": LOCAL[1]}


def test_a_connection_that_is_missing_is_looked_for_each_time(looks, connection):
    minion, made = looks
    with connection(LOCAL[0]):
        assert [list(minion.connected()) for _ in range(3)] == 3 * [LOCAL[:1]]
    assert len(made) == 3


def test_a_name_that_leads_elsewhere_does_so_for_the_sockets_before_too(
    looks, connection, monkeypatch
):
    minion, _ = looks
    with connection(LOCAL[0]), connection(LOCAL[1]):
        assert minion.connected() == {address: {address} for address in LOCAL}
        names = {LOCAL[0]: {LOCAL[0]}, LOCAL[1]: {"192.0.2.9"}}
        monkeypatch.setattr(multimaster_dial, "resolve", names.get)
        with socket.socket():
            assert list(minion.connected()) == LOCAL[:1]
        assert list(minion.connected()) == LOCAL[:1]


def test_connections_are_looked_at_again_after_a_while(looks, connection, monkeypatch):
    minion, made = looks
    with connection(LOCAL[0]), connection(LOCAL[1]):
        minion.connected()
        now = time.monotonic()
        monkeypatch.setattr("time.monotonic", lambda: now + 60)
        minion.connected()
    assert len(made) == 2


def test_the_end_of_the_minion_is_seen_though_its_process_waits(minion, monkeypatch):
    found, pidfile = minion(str(os.getpid()))
    assert found.runs()
    pidfile.unlink()
    assert not found.runs()
    # The one that comes next.
    pidfile.write_text("1")
    assert not found.runs()


def test_the_end_of_the_process_is_the_end_of_the_minion(minion, monkeypatch):
    found, _ = minion(str(os.getpid()))
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert not found.runs()


def test_a_minion_that_cannot_write_its_pid_file_runs(minion, monkeypatch):
    found, _ = minion("")
    assert found.runs()
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert not found.runs()


def test_an_engine_with_nothing_to_do_is_small_and_ends_with_the_minion(minion, by_path):
    module = by_path("salt/_engines/multimaster_minion.py")
    _, pidfile = minion(str(os.getpid()))
    argv = [sys.executable, "-I", "-S", "-c", module.IDLE, str(os.getpid()), str(pidfile)]
    with subprocess.Popen(argv) as idle:
        with pytest.raises(subprocess.TimeoutExpired):
            idle.wait(2)
        pidfile.unlink()
        assert idle.wait(10) == 0


def test_after_a_move_salt_looks_no_longer_at_the_masters_before(world):
    found = world()
    found.watch.stay_with(MASTERS[0])
    found.fired.clear()
    found.watch.stay_with(MASTERS[0])
    assert found.fired == []
    found.watch.stay_with(MASTERS[1])
    assert [(tag, data["func"], data["name"]) for tag, data in found.fired] == [
        ("manage_schedule", "delete", f"__master_alive_{other}")
        for other in (MASTERS[0], MASTERS[2])
    ]


def test_a_master_that_was_left_is_not_said_to_be_silent_for_good(world):
    found = world()
    found.watch.stay_with(MASTERS[0])
    found.watch._silence(MASTERS[0])
    assert (found.watch.silent / MASTERS[0]).exists()
    found.watch.stay_with(MASTERS[1])
    assert not (found.watch.silent / MASTERS[0]).exists()
    assert found.watch.reported == set()


def test_a_hot_minion_looks_at_all_its_masters(world):
    found = world(act=False)
    found.watch.stay_with(MASTERS[0])
    assert found.fired == []


@pytest.mark.parametrize(
    ("seen", "left"),
    [
        # None: no connection.
        ([0, None, None, None, None], [0]),
        ([0, None, 0, None, 0], []),
        ([0, None, 1, 1, 1], []),
        ([0, None, None, 1, None, None], [0, 1]),
        ([None, None, None], []),
        ([0, None, None, 0, 1], [0]),
    ],
    ids=[
        "gone",
        "back at the next look",
        "moved by itself",
        "gone twice",
        "never there",
        "gone and moved",
    ],
)
def test_a_master_is_left_when_its_connection_has_ended(world, seen, left):
    found = world()
    cut = found.module._Cut(found.watch.minion)
    for number, place in enumerate(seen):
        found.present = None if place is None else MASTERS[place]
        # A second: as long as many minions take to come back to a master.
        cut.look(number)
    assert found.left == [MASTERS[place] for place in left]
    # Every other place is told of, whoever brought the minion there.
    places = [place for place in seen if place is not None]
    moves = [
        {"from": MASTERS[a], "to": MASTERS[b]} for a, b in itertools.pairwise(places) if a != b
    ]
    assert [data["data"] for tag, data in found.fired if tag == "fire_master"] == moves
    assert found.told() == ["moved"] * len(moves)


def refreshed(found):
    return [data for tag, data in found.fired if tag == "pillar_refresh"]


def test_a_minion_that_has_moved_gives_its_new_master_its_grains_and_gets_its_pillar(world):
    found = world()
    cut = found.module._Cut(found.watch.minion)
    cut.look(0)
    cut.look(5)
    assert refreshed(found) == []
    found.present = MASTERS[1]
    cut.look(6)
    # It is to answer first.
    cut.look(8)
    assert refreshed(found) == []
    cut.look(20)
    cut.look(30)
    assert refreshed(found) == [{}]


def test_a_minion_on_its_way_gives_its_grains_where_it_arrives(world):
    found = world()
    cut = found.module._Cut(found.watch.minion)
    cut.look(0)
    found.present = MASTERS[1]
    cut.look(1)
    found.present = None
    cut.look(20)
    assert refreshed(found) == []
    found.present = MASTERS[2]
    cut.look(21)
    assert refreshed(found) == []
    cut.look(40)
    assert refreshed(found) == [{}]


def moments(found, present, is_done):
    """Return when each of many minions has done something, once its master is another one."""
    told = set()
    for _ in range(30):
        cut = found.module._Cut(found.watch.minion)
        found.present, found.fired = MASTERS[0], []
        cut.look(0)
        found.present, now = present, 0.0
        while not is_done() and now < 10:
            now += 0.1
            cut.look(now)
        told.add(round(now, 1))
    assert len(told) > 3
    return told


def test_minions_do_not_have_their_pillars_compiled_all_at_the_same_time(world):
    found = world()
    assert max(moments(found, MASTERS[1], lambda: refreshed(found))) < 7.5


def test_minions_do_not_leave_a_master_all_at_the_same_time(world):
    found = world()
    assert max(moments(found, None, lambda: found.fired)) < 1.3


def test_a_lost_master_is_asked_through_the_minions_own_channel_until_it_is_back(world):
    found = world(act=False)
    lost = found.module._Lost(found.watch.minion, {})
    asked = []
    found.module._fire = lambda data, tag: asked.append((data["cmd"], tag.rpartition("/")[2]))
    lost.look(100)
    assert asked == []
    found.present = None
    lost.look(101)
    lost.look(101.5)
    lost.look(102)
    assert asked == [("_file_envs", MASTERS[0])] * 2
    found.present = MASTERS[0]
    lost.look(103)
    assert len(asked) == 2


def test_masters_that_a_minion_was_not_with_since_its_start_are_marked(world, tmp_path):
    unmet = tmp_path / "multimaster/unmet"
    unmet.mkdir(parents=True)
    # Of the minion before.
    (unmet / MASTERS[2]).touch()
    found = world(act=False)
    lost = found.module._Lost(found.watch.minion, {})
    found.present = None
    lost.look(1)
    # Nothing runs anywhere yet.
    assert list(unmet.iterdir()) == []
    found.present = MASTERS[1]
    lost.look(2)
    assert {path.name for path in unmet.iterdir()} == {MASTERS[0], MASTERS[2]}
    found.present = MASTERS[0]
    lost.look(3)
    found.present = None
    lost.look(4)
    assert {path.name for path in unmet.iterdir()} == {MASTERS[2]}


def lost_at_100(world):
    """Return a hot minion that has lost its first master, and when each master answered last."""
    found = world(act=False)
    answers = {}
    lost = found.module._Lost(found.watch.minion, answers)
    lost.look(90)
    found.present = None
    lost.look(100)
    return found, lost, answers


@pytest.mark.parametrize(
    ("heard", "leads", "places", "astray"),
    [
        (110, "192.0.2.99", set(), True),
        (104, "192.0.2.99", set(), False),
        (110, MASTERS[0], set(), False),
        (110, "192.0.2.99", {MASTERS[0]}, False),
    ],
    ids=["moved", "was not there since", "same address", "still connected to the old one"],
)
def test_a_minion_is_to_restart_when_a_lost_master_answers_elsewhere(
    world, heard, leads, places, astray
):
    found, lost, answers = lost_at_100(world)
    assert lost.astray() == []
    answers[MASTERS[0]], found.names[MASTERS[0]], found.places = heard, leads, places
    assert lost.astray() == ([MASTERS[0]] if astray else [])
    if astray:
        # Once: to restart takes longer than to look again.
        lost.look(111)
        assert lost.astray() == []


def test_where_a_master_was_is_where_the_minion_was_connected_to_it(world):
    found, lost, answers = lost_at_100(world)
    # What it believes for a while, though the name leads elsewhere by now.
    found.present, found.names[MASTERS[0]] = MASTERS[0], "192.0.2.99"
    lost.look(101)
    found.present = None
    lost.look(102)
    answers[MASTERS[0]] = 110
    assert lost.astray() == MASTERS[:1]


def test_a_minion_is_where_its_subscriptions_are(world):
    module = world(act=False).module
    links = {(MASTERS[0], 4506, 40001), (MASTERS[1], 4505, 40002)}
    module.__utils__["multimaster_dial.links"] = lambda *_: links
    module.__utils__["multimaster_dial.publishers"] = multimaster_dial.publishers
    assert module._Minion(MASTERS, 2).places() == {MASTERS[1]}


def test_a_request_without_an_answer_makes_no_new_connection_to_a_master(world):
    module = world(act=False).module
    links = {(MASTERS[0], 4506, 40001), (MASTERS[0], 4505, 40002), (MASTERS[1], 4505, 40003)}
    module.__utils__["multimaster_dial.links"] = lambda *_: links
    module.__utils__["multimaster_dial.subscriptions"] = multimaster_dial.subscriptions
    minion = module._Minion(MASTERS, 2)
    before = minion.links(MASTERS[0])
    links = {(MASTERS[0], 4506, 40004), (MASTERS[0], 4505, 40002), (MASTERS[1], 4505, 40003)}
    assert minion.links(MASTERS[0]) == before == {(MASTERS[0], 4505, 40002)}


@pytest.mark.parametrize(
    ("act", "links", "questions"),
    [(False, {"another"}, 2), (False, set(), 2), (False, {MASTERS[0]}, 1), (True, {MASTERS[0]}, 3)],
    ids=["hot", "hot, not connected", "hot, same connection", "failover"],
)
def test_a_master_that_does_not_answer_is_asked_again(world, act, links, questions):
    found = world(act=act)
    found.judge()
    found.asked.clear()
    found.links = links
    found.delays = dict.fromkeys(MASTERS, NEVER)
    found.judge()
    assert found.asked.count(MASTERS[0]) == questions


def test_not_all_minions_restart_at_once_for_a_name_that_has_moved(world):
    found = world(act=False)
    waits = {found.module._Lost(found.watch.minion, {}).spread for _ in range(30)}
    assert len(waits) > 3
    assert min(waits) >= 0


@pytest.mark.parametrize(
    ("seen", "heard", "unseen"),
    [
        (False, [600, 640, 660], True),
        (False, [600, 640], False),
        (False, [600], False),
        (True, [600, 660], False),
    ],
    ids=["never found", "not for long", "just back", "was connected before"],
)
def test_a_minion_is_to_restart_when_a_master_answers_that_it_never_found(
    world, seen, heard, unseen
):
    found = world(act=False)
    answers = {}
    lost = found.module._Lost(found.watch.minion, answers)
    assert lost.unseen() == []
    found.present = MASTERS[0] if seen else None
    lost.look(1)
    found.present = None
    lost.look(2)
    for answers[MASTERS[0]] in heard:
        restart = lost.unseen()
    assert restart == ([MASTERS[0]] if unseen else [])


def test_a_master_that_is_lost_for_long_is_asked_seldom_and_once_more_when_it_is_back(world):
    found = world(act=False)
    lost = found.module._Lost(found.watch.minion, {})
    asked = []
    found.module._fire = lambda data, tag: asked.append(tag)
    lost.look(0)
    found.present = None
    for now in range(1, 601):
        lost.look(now)
    often = found.module.SOME_TIME / found.module.AWAY
    assert often <= len(asked) <= often + 480 / found.module.SELDOM + 1
    before = len(asked)
    found.present = MASTERS[0]
    lost.look(601)
    assert len(asked) == before + 1


def test_a_master_that_the_minion_was_never_connected_to_is_not_asked(world):
    found = world(act=False)
    found.present = None
    lost = found.module._Lost(found.watch.minion, {})
    found.module._fire = lambda *_: pytest.fail("asked")
    lost.look(0)
    lost.look(10)
