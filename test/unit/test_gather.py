"""Asking many at once: what a restart of the asking master does to its questions."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import multimaster_gather as gather


class Master:
    """A master that answers for its minions unless it was restarted since it was asked."""

    def __init__(self, pidfile: Path, restarts: int) -> None:
        self.pidfile, self.restarts = pidfile, restarts
        self.asked: list[list[str]] = []
        self.event = SimpleNamespace(connect_pub=lambda: None, get_event=self.get_event)
        self.answers: list[dict[str, Any]] = []
        self.write(os.getpid())

    def write(self, pid: int) -> None:
        self.pidfile.write_text(f"{pid}\n")

    def destroy(self) -> None:
        """Do what a client of Salt's has to do in the end: nothing here."""

    def run_job(self, ids: list[str], function: str, *_: Any, **__: Any) -> dict[str, str]:
        jid = str(len(self.asked))
        self.asked.append(ids)
        self.answers += [
            {"tag": f"salt/job/{jid}/ret/{name}", "data": {"return": True}} for name in ids
        ]
        return {"jid": jid}

    def get_event(self, wait: float, **_: Any) -> dict[str, Any] | None:
        if self.restarts and len(self.answers) == 1:
            # Amid the answers: the last is lost.
            self.restarts -= 1
            self.answers = []
            self.write(os.getppid())
        if self.answers:
            return self.answers.pop(0)
        time.sleep(min(wait, 0.01))
        return None


@pytest.mark.parametrize(
    ("restarts", "asked"), [(0, [["web1", "web2"]]), (1, [["web1", "web2"], ["web2"]])]
)
def test_who_has_not_answered_a_master_that_was_restarted_is_asked_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: int, asked: list[list[str]]
) -> None:
    master = Master(tmp_path / "pid", restarts)
    monkeypatch.setattr("salt.client.get_local_client", lambda mopts: master)
    question = gather.Question(["web1", "web2"], "test.ping")
    began = time.monotonic()
    answers = list(gather.gather({"pidfile": str(master.pidfile)}, [question], 60.0))
    assert [answer.id for answer in answers] == ["web1", "web2"]
    assert master.asked == asked
    assert time.monotonic() - began < 60
