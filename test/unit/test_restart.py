"""
A daemon that does not come at the first try.

The init system is made up here, as one that refuses; test/chaos has real ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

import multimaster_restart as restart


class Init:
    """An init system that refuses some calls before it starts a daemon, a real process."""

    def __init__(self, pidfile, refusals):
        self.pidfile = pidfile
        self.refusals = refusals
        self.calls = []
        self.daemon = None

    def cmd(self, function, service):
        self.calls.append(function)
        if function == "service.status":
            return self.daemon is not None
        if len([call for call in self.calls if call != "service.status"]) <= self.refusals:
            raise OSError("it is being stopped")
        self.daemon = subprocess.Popen(["sleep", "60"])
        self.pidfile.write_text(str(self.daemon.pid))
        return True


@pytest.fixture
def init(tmp_path, monkeypatch):
    import salt.client

    monkeypatch.setattr(restart, "AGAIN", 0.3)
    made = []

    def make(refusals):
        made.append(Init(tmp_path / "salt-minion.pid", refusals))
        monkeypatch.setattr(salt.client, "Caller", lambda mopts: made[-1])
        return made[-1]

    yield make
    for one in made:
        if one.daemon:
            one.daemon.kill()
            one.daemon.wait()


def test_jobs_that_only_look_at_a_minion_are_not_waited_for(monkeypatch):
    import salt.utils.minion

    functions = ["saltutil.find_job", "state.apply", "multimaster_orch.facts"]
    monkeypatch.setattr(salt.utils.minion, "running", lambda _: [{"fun": f} for f in functions])
    assert restart._jobs({}) == [{"fun": "state.apply"}]


@pytest.mark.parametrize("refusals", [0, 1, 2])
def test_a_daemon_is_started_until_it_is_there(init, refusals):
    system = init(refusals)
    assert restart._restart({}, "salt-minion", str(system.pidfile)) == 0
    starts = [call for call in system.calls if call != "service.status"]
    assert starts == ["service.restart", *["service.start"] * refusals]


def test_a_daemon_that_never_comes_is_given_up(init, monkeypatch):
    monkeypatch.setattr(restart, "PERSISTENCE", 1)
    system = init(99)
    assert restart._restart({}, "salt-minion", str(system.pidfile)) == 1


# What the program does at its end, with a question that nobody has answered yet.
QUESTION = """
import sys, threading
import multimaster_dial, multimaster_restart, salt.config
opts, answer = salt.config.minion_config(sys.argv[1]), threading.Event()
multimaster_dial.put(opts, "127.0.9.8", 5, answer)
print(answer.wait(1), flush=True)
multimaster_restart.leave(3)
"""


class Daemon:
    """A daemon's event bus: nothing is heard of what comes before it is ready."""

    def __init__(self, ready, masters):
        # How many events it drops.
        self.drops = ready
        self.masters = masters
        self.got, self.answers = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def fire_event(self, data, tag):
        if self.drops:
            self.drops -= 1
            return
        self.got.append(tag)
        number, _, master = tag.removeprefix(restart.PAYLOAD).partition("/")
        if master in self.masters:
            self.answers.append({"tag": restart.TAKEN + number, "data": {"ret": ["base"]}})

    def get_event(self, wait, tag, full):
        return self.answers.pop(0) if self.answers else None


@pytest.mark.parametrize(
    ("kind", "drops", "masters", "told"),
    [
        ("str", 0, ["m1", "m2"], True),
        ("str", 3, ["m1", "m2"], True),
        ("failover", 3, ["m2"], True),
        ("str", 10**6, ["m1", "m2"], False),
    ],
    ids=["ready", "hot, not ready yet", "failover, with one of them", "never"],
)
def test_an_event_waits_for_a_daemon_that_is_not_ready(monkeypatch, kind, drops, masters, told):
    import salt.utils.event

    monkeypatch.setattr(restart, "READY", 5 if told else 2)
    daemon = Daemon(drops, masters)
    monkeypatch.setattr(salt.utils.event, "get_event", lambda *_, **__: daemon)
    started = time.monotonic()
    restart._tell({"id": "web1", "master_type": kind}, {"step": "kept", "heard": ["m1", "m2"]})
    assert ("fire_master" in daemon.got) is told
    assert time.monotonic() - started < 4


def test_an_event_bus_that_is_gone_does_not_keep_the_program(monkeypatch):
    import salt.utils.event

    monkeypatch.setattr(restart, "READY", 0.2)
    over = threading.Event()
    gone = Mock(side_effect=lambda *_, **__: over.wait(10) and Daemon(0, []))
    monkeypatch.setattr(salt.utils.event, "get_event", gone)
    started = time.monotonic()
    restart._tell({"id": "web1", "master_type": "str"}, {"step": "restored", "heard": []})
    took = time.monotonic() - started
    over.set()
    assert took < 5


def test_a_master_that_does_not_answer_does_not_keep_the_program(tmp_path):
    (tmp_path / "minion").write_text(f"root_dir: {tmp_path}\nid: web1\npki_dir: {tmp_path}/pki\n")
    (tmp_path / "pki").mkdir()
    argv = [sys.executable, "-c", QUESTION, str(tmp_path / "minion")]
    there = {**os.environ, "PYTHONPATH": str(Path(restart.__file__).parent)}
    done = subprocess.run(argv, env=there, timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "False\n"), done.stderr
