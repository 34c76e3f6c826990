"""The engine that compares all masters: whose turn it is, and what it tells."""

from __future__ import annotations

import contextlib
import json
import os
import time
from types import SimpleNamespace

import pytest

import multimaster_drift

IDS = ("saltm1", "saltm2", "saltm3")
INTERVAL = 60


@pytest.fixture
def engine(by_path, tmp_path, monkeypatch):
    """Make the watcher of a master that has been up for long; ``told`` is what it fired."""
    module = by_path("salt/_engines/multimaster_drift.py")
    (tmp_path / "multimaster").mkdir()
    found = SimpleNamespace(
        module=module, told=[], looks=[], patience=[], path=tmp_path / "multimaster/watch.json"
    )
    found.reports = {name: report() for name in IDS}

    def look(opts, tools, timeout, detail, watch):
        found.looks.append(watch)
        found.patience.append(timeout)
        found.path.write_text(json.dumps(watch))
        return SimpleNamespace(reports=dict(found.reports))

    utils = {f"multimaster_drift.{n}": getattr(multimaster_drift, n) for n in USED}
    utils |= {"multimaster_gather.look": look, "multimaster_ledger.unsqueeze": json.loads}
    for name in ("keypair.proved", "keypair.unproved", "said.check", "trees.subscribed"):
        utils[f"multimaster_{name}"] = None
    monkeypatch.setattr(module, "__utils__", utils, raising=False)
    monkeypatch.setattr(module, "CONFIRM", 0)
    bus = SimpleNamespace(fire_event=lambda data, tag: found.told.append((tag, data)))
    monkeypatch.setattr(
        module.salt.utils.event, "get_event", lambda *args, **kwargs: contextlib.nullcontext(bus)
    )

    def watcher(name="saltm1"):
        topology = {"masters": [{"id": each} for each in IDS], "drift": {"interval": INTERVAL}}
        opts = {"id": name, "cachedir": str(tmp_path), "multimaster": topology}
        monkeypatch.setattr(module, "__opts__", opts, raising=False)
        made = module._Watcher()
        made.started = time.time() - 3600
        return made

    found.watcher = watcher
    return found


USED = ("change", "differences", "differing", "problems", "sample_grains", "samples")


def report(threads=5):
    leaves = {"worker_threads": threads}
    return {
        "subjects": {"config": multimaster_drift.digest(leaves)},
        "details": {"config": leaves},
        "offset": 0,
    }


@pytest.mark.parametrize(
    ("name", "ago", "due"),
    [
        ("saltm1", 59, False),
        ("saltm1", 61, True),
        ("saltm2", 61, False),
        ("saltm2", 91, True),
        ("saltm3", 91, False),
        ("saltm3", 121, True),
    ],
)
def test_a_master_further_down_waits_longer_for_the_others(engine, name, ago, due):
    engine.path.write_text("{}")
    moment = time.time() - ago
    os.utime(engine.path, (moment, moment))
    assert engine.watcher(name).due() is due


@pytest.mark.parametrize("name", IDS)
def test_nobody_looks_just_after_the_start(engine, name):
    watcher = engine.watcher(name)
    watcher.started = time.time()
    assert not watcher.due()


def test_without_an_interval_nobody_looks(engine):
    watcher = engine.watcher()
    watcher.interval = 0
    assert not watcher.due()


def test_a_clock_that_was_set_back_stops_nobody(engine):
    engine.path.write_text("{}")
    moment = time.time() + 1e6
    os.utime(engine.path, (moment, moment))
    assert engine.watcher().due()


def test_who_could_leave_no_note_does_not_look_more_often_for_that(engine):
    watcher = engine.watcher()
    watcher.turn()
    # As if the note were from long ago.
    os.utime(engine.path, (1, 1))
    assert not watcher.due()
    watcher.looked -= INTERVAL
    assert watcher.due()


def test_a_master_that_needs_long_for_its_report_gets_the_time(engine):
    watcher = engine.watcher()
    engine.reports["saltm3"] = None
    for _ in range(6):
        watcher.turn()
    engine.reports["saltm3"] = report()
    for _ in range(2):
        watcher.turn()
    assert engine.patience == [5, 10, 20, 40, 80, 160, 320, 160]


def test_masters_that_agree_are_no_news(engine):
    engine.watcher().turn()
    assert engine.told == []
    assert len(engine.looks) == 1


def test_a_difference_is_told_once_and_so_is_its_end(engine):
    watcher = engine.watcher()
    engine.reports["saltm3"] = report(9)
    watcher.turn()
    watcher.turn()
    ((tag, data),) = engine.told
    assert (tag, data["count"], data["clean"]) == ("multimaster/drift", 1, False)
    engine.reports["saltm3"] = report()
    watcher.turn()
    assert (engine.told[-1][1]["clean"], len(engine.told)) == (True, 2)


def test_what_is_over_at_the_second_look_is_not_told(engine, monkeypatch):
    engine.reports["saltm3"] = report(9)
    mend = lambda seconds: engine.reports.update(saltm3=report())  # noqa: E731
    times = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=mend)
    monkeypatch.setattr(engine.module, "time", times)
    engine.watcher().turn()
    assert (engine.told, len(engine.looks)) == ([], 2)


def test_a_successor_knows_what_was_told(engine):
    engine.reports["saltm3"] = report(9)
    engine.watcher().turn()
    engine.watcher("saltm2").turn()
    assert len(engine.told) == 1
    engine.reports["saltm3"] = report()
    engine.watcher("saltm2").turn()
    assert engine.told[-1][1]["over"] == 1


def test_what_a_master_that_is_away_differs_in_is_not_over(engine):
    watcher = engine.watcher()
    engine.reports["saltm3"] = report(9)
    watcher.turn()
    engine.reports["saltm3"] = None
    watcher.turn()
    assert len(engine.told) == 1
    engine.reports["saltm3"] = report(9)
    watcher.turn()
    assert len(engine.told) == 1
