"""
A daemon that does not come at the first try.

The init system is made up here, as one that refuses; test/chaos has real ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock, call

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


def test_a_master_that_does_not_answer_does_not_keep_the_program(tmp_path):
    (tmp_path / "minion").write_text(f"root_dir: {tmp_path}\nid: web1\npki_dir: {tmp_path}/pki\n")
    (tmp_path / "pki").mkdir()
    argv = [sys.executable, "-c", QUESTION, str(tmp_path / "minion")]
    there = {**os.environ, "PYTHONPATH": str(Path(restart.__file__).parent)}
    done = subprocess.run(argv, env=there, timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "False\n"), done.stderr
