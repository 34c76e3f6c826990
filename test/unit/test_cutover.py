"""
A minion's way to its new configuration and back, with every place at which it can be broken off.

Who answers is made up here; test/chaos has daemons.
"""

from __future__ import annotations

import json
import math
import os
import time
from unittest.mock import Mock

import pytest

import multimaster_cutover as cutover
import multimaster_dial

OLD, NEW = "master: [192.0.2.1]\n", "master: [192.0.2.8, 192.0.2.9]\n"
ADDRESSES = {OLD: ["192.0.2.1"], NEW: ["192.0.2.8", "192.0.2.9"], "": ["192.0.2.5"]}


class Killed(BaseException):
    """The end of the program, at once."""


class Minion:
    """A minion's files, a daemon that reads them when it is restarted, and masters that answer."""

    def __init__(self, tmp_path, monkeypatch):
        self.drop_in = tmp_path / "minion.d/multimaster.conf"
        self.drop_in.parent.mkdir()
        self.journal = str(tmp_path / "cache/multimaster/cutover.json")
        # Masters that answer those who wait so many seconds; who was asked, and how patiently.
        self.reachable, self.takes, self.asked = set(), 0, []
        # When the daemon has its connections; and its process.
        self.connects, self.pid = 0.0, os.getpid()
        self.running, self.restarts = OLD, 0
        self.drop_in.write_text(OLD)
        # Which is told by times of more than a second apart: see the tests of it.
        monkeypatch.setattr(cutover, "_has_read", lambda *_: self.running == self.read())
        monkeypatch.setattr(multimaster_dial, "connected", self.connected)
        monkeypatch.setattr(multimaster_dial, "ask", self.ask)

    def read(self):
        return self.drop_in.read_text() if self.drop_in.exists() else ""

    def prepare(self, text, masters=1):
        cutover.prepare(self.journal, str(self.drop_in), masters, 1)
        self.drop_in.write_text(text)

    def restart(self):
        self.running = self.read()
        self.restarts += 1
        return True

    def connected(self, pid, addresses, request_port):
        if self.running == NEW and time.monotonic() < self.connects:
            return []
        return [a for a in ADDRESSES[self.running] if a in self.reachable and a in addresses]

    def ask(self, opts, address, timeout):
        self.asked.append((address, timeout))
        return address in self.reachable and timeout >= self.takes

    def opts(self):
        return {"master": ADDRESSES[self.read()], "master_type": "str", "master_port": 4506}

    def carry_out(self):
        return cutover.carry_out(
            self.journal,
            opts=self.opts,
            daemon=lambda: self.pid,
            begun=lambda: 0.0,
            restart=self.restart,
        )


@pytest.fixture
def minion(tmp_path, monkeypatch):
    return Minion(tmp_path, monkeypatch)


def test_a_configuration_with_a_master_that_answers_is_kept(minion):
    minion.reachable = {"192.0.2.9"}
    minion.prepare(NEW)
    journal = minion.carry_out()
    assert (journal["step"], journal["heard"]) == ("kept", ["192.0.2.9"])
    assert (minion.read(), minion.running, minion.restarts) == (NEW, NEW, 1)
    assert not cutover.pending(minion.journal)


def test_without_an_answer_the_old_configuration_comes_back_and_runs(minion):
    minion.reachable = {"192.0.2.1"}
    os.chmod(minion.drop_in, 0o640)
    minion.prepare(NEW)
    journal = minion.carry_out()
    assert (journal["step"], journal["heard"]) == ("restored", ["192.0.2.1"])
    assert journal["wanted"] == ADDRESSES[NEW]
    assert (minion.read(), minion.running, minion.restarts) == (OLD, OLD, 2)
    assert minion.drop_in.stat().st_mode & 0o777 == 0o640


def test_a_daemon_that_is_slow_to_start_has_longer_if_its_masters_are_there(minion):
    minion.reachable = {"192.0.2.9"}
    minion.prepare(NEW)
    minion.connects = time.monotonic() + 1.5
    assert minion.carry_out()["step"] == "kept"
    assert minion.running == NEW


def test_masters_that_are_slow_to_answer_are_given_more_time_each_time(minion, monkeypatch):
    monkeypatch.setattr(cutover, "PAUSE", 0.01)
    minion.reachable, minion.takes = {"192.0.2.9"}, cutover.LONGEST
    minion.prepare(NEW)
    assert minion.carry_out()["step"] == "kept"
    asked = [patience for address, patience in minion.asked if address == "192.0.2.9"]
    assert asked == [5, 10, 20]


def test_connections_are_not_looked_at_as_long_as_too_few_masters_answer(minion, monkeypatch):
    looked = Mock(side_effect=minion.connected)
    monkeypatch.setattr(multimaster_dial, "connected", looked)
    minion.reachable = {"192.0.2.1"}
    minion.prepare(NEW)
    assert minion.carry_out()["step"] == "restored"
    # When the time is over, and as the old one answers.
    assert looked.call_count == 2


def test_in_failover_mode_others_may_answer_than_the_one_that_it_is_with(minion, monkeypatch):
    opts = minion.opts
    monkeypatch.setattr(minion, "opts", lambda: {**opts(), "master_type": "failover"})
    monkeypatch.setattr(multimaster_dial, "connected", lambda *_: ["192.0.2.8"])
    minion.reachable = {"192.0.2.9"}
    minion.prepare(NEW)
    assert minion.carry_out()["heard"] == ["192.0.2.9"]


@pytest.mark.parametrize(("runs", "limit"), [(True, cutover.SLOW), (False, 1)])
def test_a_daemon_that_never_connects_goes_back_and_at_once_if_it_does_not_run(minion, runs, limit):
    minion.reachable = {"192.0.2.1", "192.0.2.9"}
    minion.prepare(NEW)
    minion.connects = math.inf
    minion.pid = minion.pid if runs else 0
    journal = minion.carry_out()
    assert (journal["step"], minion.running) == ("restored", OLD)
    # Of a second, and at most a look more.
    assert limit <= journal["seconds"] < limit + 1


def test_fewer_masters_than_required_are_too_few(minion):
    minion.reachable = {"192.0.2.1", "192.0.2.9"}
    minion.prepare(NEW, masters=2)
    assert minion.carry_out()["step"] == "restored"


def test_a_first_drop_in_is_taken_away_again(minion):
    minion.drop_in.unlink()
    minion.reachable = {"192.0.2.5"}
    minion.prepare(NEW)
    assert minion.carry_out()["step"] == "restored"
    assert (minion.drop_in.exists(), minion.running) == (False, "")


@pytest.mark.parametrize("reachable", ["192.0.2.1", "192.0.2.9"])
@pytest.mark.parametrize("place", range(1, 9))
def test_broken_off_anywhere_it_ends_as_if_it_had_not_been(minion, monkeypatch, place, reachable):
    minion.reachable = {reachable}
    minion.prepare(NEW)
    actions = 0

    def counted(function):
        def run(*arguments):
            nonlocal actions
            actions += 1
            if actions == place:
                raise Killed
            return function(*arguments)

        return run

    with monkeypatch.context() as patch:
        # Each writing of the journal or the drop-in, and each restart.
        patch.setattr(cutover, "_replace", counted(cutover._replace))
        patch.setattr(minion, "restart", counted(minion.restart))
        try:
            minion.carry_out()
        except Killed:
            assert cutover.pending(minion.journal)
    minion.carry_out()
    kept = reachable == "192.0.2.9"
    assert cutover.read(minion.journal)["step"] == ("kept" if kept else "restored")
    assert minion.read() == minion.running == (NEW if kept else OLD)


@pytest.mark.parametrize(("seconds", "read"), [(-5, False), (0, False), (5, True)])
def test_a_daemon_has_read_what_was_there_before_it_started(tmp_path, seconds, read):
    drop_in = tmp_path / "multimaster.conf"
    drop_in.write_text(NEW)
    journal = {"drop_in": str(drop_in), "at": 0}
    assert cutover._has_read(journal, drop_in.stat().st_mtime + seconds) is read
    drop_in.unlink()
    journal["at"] = time.time()
    assert cutover._has_read(journal, journal["at"] + seconds) is read


def test_one_that_ended_is_not_begun_again(minion):
    minion.reachable = {"192.0.2.9"}
    minion.prepare(NEW)
    minion.carry_out()
    minion.carry_out()
    assert minion.restarts == 1


def test_a_newer_one_keeps_what_the_first_has_saved_and_is_not_disturbed_by_it(minion):
    minion.prepare(NEW)
    original = minion.restart

    def overtaken():
        minion.prepare("")
        return original()

    minion.restart = overtaken
    assert minion.carry_out()["step"] == "restarting"
    assert cutover.read(minion.journal)["step"] == "prepared"
    minion.restart, minion.reachable = original, {"192.0.2.1"}
    assert minion.carry_out()["step"] == "restored"
    assert minion.read() == OLD


def test_a_journal_that_cannot_be_read_is_none(minion):
    minion.prepare(NEW)
    for rubbish in ("", "[]", "{", json.dumps({"step": "unheard of"})):
        with open(minion.journal, "w") as handle:
            handle.write(rubbish)
        assert not cutover.pending(minion.journal)
        assert minion.carry_out().get("step") in (None, "unheard of")
    assert minion.restarts == 0


def test_while_the_job_that_prepared_it_runs_nobody_else_takes_it_up(minion):
    minion.prepare(NEW)
    assert cutover.at_work(minion.journal)
    with open(minion.journal) as handle:
        journal = json.load(handle)
    for changed in ({"step": "restarting"}, {"pid": 2**22 + 1}):
        with open(minion.journal, "w") as handle:
            json.dump(journal | changed, handle)
        assert not cutover.at_work(minion.journal)
    minion.prepare(NEW)
    os.utime(minion.journal, (1, 1))
    assert not cutover.at_work(minion.journal)


def test_journal_and_saved_drop_in_are_for_nobody_else(minion):
    os.chmod(minion.drop_in, 0o600)
    minion.prepare(NEW)
    for path in (minion.journal, f"{minion.journal}.old"):
        assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(minion.journal)).st_mode & 0o777 == 0o700


def test_a_cut_over_that_somebody_works_on_is_not_free(tmp_path):
    path = str(tmp_path / "lock")
    with cutover.alone(path) as first, cutover.alone(path, wait=False) as second:
        assert (first, second) == (True, False)
    with cutover.alone(path, wait=False) as third:
        assert third is True
