"""Asking many at once: what a restart does to questions, of the master or of a minion."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import multimaster_gather as gather


class Master:
    """A master with minions that answer, but for what is lost."""

    def __init__(self, pidfile: Path) -> None:
        self.pidfile, self.opts = pidfile, {"timeout": 5}
        self.given: list[tuple[str, list[str]]] = []
        self.event = SimpleNamespace(connect_pub=lambda: None, get_event=self.get_event)
        self.answers: list[dict[str, Any]] = []
        self.restarts, self.deaf = 0, 0
        self.pidfile.write_text(f"{os.getpid()}\n")

    def destroy(self) -> None:
        """Do what a client of Salt's has to do in the end: nothing here."""

    def run_job(self, ids: list[str], function: str, *_: Any, **flags: Any) -> dict[str, str]:
        import salt.client

        # Salt's own judge: another number than it was given stands for "as if none was".
        salts = salt.client.LocalClient._get_timeout(self, flags["timeout"])
        assert salts == flags["timeout"]
        jid = str(len(self.given))
        self.given.append((function, ids))
        said: Any = {} if function == "saltutil.find_job" else True
        if said and "web2" in ids and self.deaf:
            self.deaf -= 1
            ids = [name for name in ids if name != "web2"]
        for name in ids:
            tag = f"salt/job/{jid}/ret/{name}"
            self.answers.append({"tag": tag, "data": {"return": said}})
        return {"jid": jid}

    def get_event(self, wait: float, **_: Any) -> dict[str, Any] | None:
        if self.restarts and len(self.answers) == 1:
            self.restarts -= 1
            self.answers = []
            self.pidfile.write_text(f"{os.getppid()}\n")
        if self.answers:
            return self.answers.pop(0)
        time.sleep(min(wait, 0.01))
        return None


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Master:
    made = Master(tmp_path / "pid")
    monkeypatch.setattr("salt.client.get_local_client", lambda mopts: made)
    return made


def ask(master: Master, timeout: float) -> list[str]:
    """Ask two minions; return who has answered."""
    question = gather.Question(["web1", "web2"], "test.ping")
    opts = {"pidfile": str(master.pidfile)}
    return [answer.id for answer in gather.gather(opts, [question], timeout)]


@pytest.mark.parametrize("restarts", [0, 1])
def test_who_has_not_answered_a_master_that_was_restarted_is_asked_once_more(
    master: Master, restarts: int
) -> None:
    master.restarts = restarts
    assert ask(master, 60) == ["web1", "web2"]
    again = [("test.ping", ["web2"])] if restarts else []
    assert master.given == [("test.ping", ["web1", "web2"]), *again]


@pytest.mark.parametrize(("deaf", "answers"), [(1, ["web1", "web2"]), (9, ["web1"])])
def test_a_minion_that_is_there_and_knows_of_no_job_is_asked_once_more(
    master: Master, deaf: int, answers: list[str]
) -> None:
    master.deaf = deaf
    assert ask(master, 0.5) == answers
    assert master.given.count(("test.ping", ["web2"])) == 1


@pytest.mark.parametrize(("seconds", "taken"), [(0.1, 1), (5.0, 5), (12.5, 13), (60, 60)])
def test_salt_takes_the_seconds_that_are_meant(seconds: float, taken: int) -> None:
    import salt.client

    client = SimpleNamespace(opts={"timeout": 5})
    assert salt.client.LocalClient._get_timeout(client, gather.whole(seconds)) == taken
