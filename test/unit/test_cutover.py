"""
A minion's way to its new list of masters, with every place at which it can be broken off.

Masters and daemon are made up here, and so is time where that matters; test/integration and
test/chaos have real ones.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import threading
import time
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import multimaster_cutover as cutover
import multimaster_restart
from multimaster_cutover import ACCEPTED, FOREIGN, PENDING, REFUSED, REJECTED, SILENT

A, B, C = "192.0.2.8", "192.0.2.9", "192.0.2.7"
OLD_MASTER = "192.0.2.1"
OLD, NEW = f"master: [{OLD_MASTER}]\n", f"master: [{A}, {B}]\n"
FALLBACK = "engines: []\n"
MAIN = "192.0.2.5"


def course(step="proving", control=(OLD_MASTER,), **more):
    return cutover.Course(step, [A, B], control, **more)


def rounds(one, count, **said):
    for _ in range(count):
        one.answer(A, said.get("a", SILENT))
        one.answer(B, said.get("b", SILENT))
        one.answer(OLD_MASTER, ACCEPTED)


class TestCourse:
    def test_goes_on_as_soon_as_enough_masters_let_the_minion_in(self):
        one = course(needed=2)
        one.answer(B, ACCEPTED)
        assert one.verdict() == "wait"
        one.answer(A, ACCEPTED)
        assert one.verdict() == "restart"
        one.answer(A, SILENT)
        assert one.verdict() == "wait"

    @pytest.mark.parametrize("said", [SILENT, REFUSED, FOREIGN])
    def test_goes_back_when_an_old_master_answers_and_none_of_ours_is_there(self, said):
        one = course()
        rounds(one, cutover.SEVERAL - 1, a=said)
        assert one.verdict() == "wait"
        rounds(one, 1, a=said)
        assert one.verdict() == "silent"

    @pytest.mark.parametrize("said", [PENDING, REJECTED])
    def test_waits_for_ever_for_a_master_that_has_not_accepted_the_key_yet(self, said):
        one = course()
        rounds(one, 100, b=said)
        assert one.verdict() == "wait"

    def test_does_not_go_back_while_no_old_master_answers(self):
        one = course()
        for _ in range(100):
            for address in (A, B, OLD_MASTER):
                one.answer(address, SILENT)
        assert one.verdict() == "wait"

    def test_a_round_counts_only_when_each_new_master_had_its_question(self):
        one = course()
        for _ in range(100):
            one.answer(A, SILENT)
            one.answer(OLD_MASTER, ACCEPTED)
        assert one.verdict() == "wait"

    def test_one_sign_of_life_makes_the_rounds_begin_again(self):
        one = course()
        rounds(one, cutover.SEVERAL - 1)
        one.answer(A, PENDING)
        rounds(one, cutover.SEVERAL - 1)
        assert one.verdict() == "wait"

    def test_is_kept_once_the_daemon_is_connected_to_a_master_that_lets_it_in(self):
        one = course("connecting")
        one.look(True, [B])
        assert one.verdict() == "wait"
        one.answer(A, ACCEPTED)
        assert one.verdict() == "wait"
        one.answer(B, ACCEPTED)
        assert one.verdict() == "keep"

    def test_in_failover_mode_others_may_answer_than_the_one_that_it_is_with(self):
        one = course("connecting", hot=False)
        one.answer(A, ACCEPTED)
        one.look(True, [B])
        assert one.verdict() == "keep"

    def test_goes_back_when_masters_answer_this_program_and_never_the_living_daemon(self):
        one = course("connecting")
        rounds(one, cutover.MANY - 1, a=ACCEPTED)
        assert one.verdict() == "wait"
        rounds(one, 1, a=ACCEPTED)
        assert one.verdict() == "deaf"

    def test_a_daemon_that_does_not_run_proves_nothing_about_its_masters(self):
        one = course("connecting")
        one.look(False, [])
        rounds(one, 100, a=ACCEPTED)
        assert one.verdict() == "wait"

    def test_goes_back_when_the_daemon_ends_at_its_start_even_without_another_list(self):
        one = course("connecting", control=())
        for _ in range(cutover.FAILED):
            assert one.verdict() == "wait"
            one.ended()
        assert one.verdict() == "failed"


ANSWERS = st.tuples(
    st.sampled_from([A, B, OLD_MASTER]),
    st.sampled_from([ACCEPTED, PENDING, REJECTED, FOREIGN, REFUSED, SILENT]),
)
LOOKS = st.tuples(st.booleans(), st.lists(st.sampled_from([A, B]), unique=True))


def fed(one, events):
    verdicts = []
    for event in events:
        if isinstance(event[0], str):
            one.answer(*event)
        else:
            one.look(*event)
        verdicts.append(one.verdict())
    return verdicts


@given(
    st.sampled_from(["proving", "connecting"]),
    st.lists(st.one_of(ANSWERS, LOOKS), max_size=200),
    st.booleans(),
)
def test_a_list_that_contains_the_old_one_is_never_left(step, events, hot):
    verdicts = fed(course(step, control=(), hot=hot), events)
    assert set(verdicts) <= {"wait", "restart", "keep"}


@given(
    st.sampled_from(["proving", "connecting"]), st.lists(st.one_of(ANSWERS, LOOKS), max_size=200)
)
def test_who_has_gone_back_can_only_go_forth(step, events):
    assert set(fed(course(step, back=True), events)) <= {"wait", "restart", "keep"}


@given(st.lists(ANSWERS, max_size=200))
def test_without_an_answer_of_an_old_master_nobody_goes_back(events):
    events = [(address, said) for address, said in events if address != OLD_MASTER]
    assert set(fed(course(), events)) <= {"wait", "restart"}


@given(st.lists(ANSWERS, max_size=100), st.sampled_from([A, B]))
def test_from_anywhere_a_master_that_lets_the_minion_in_leads_on(events, address):
    one = course(back=True)
    fed(one, events)
    one.answer(address, ACCEPTED)
    assert one.verdict() == "restart"


class World:
    """Masters with the time from which each is there and the time that it takes; a clock."""

    def __init__(self, masters, connects, factor):
        self.masters = {
            address: (since * factor, takes * factor) for address, (since, takes) in masters.items()
        }
        self.connects = connects * factor

    def answer(self, address, now, patience):
        """Return what is said to a question, and when."""
        since, takes = self.masters[address]
        if now + patience < since + takes or takes > patience:
            return SILENT, now + patience
        return ACCEPTED, max(now, since) + takes

    def follow(self, one, now, jitter):
        """Ask as the program does until there is a verdict."""
        order = itertools.count()
        paces = {address: cutover.Pace() for address in {*one.wanted, *one.control}}
        due = []
        began = now

        def ask(address, at):
            said, when = self.answer(address, at, paces[address].patience)
            heapq.heappush(due, (when, next(order), address, said, when - at))

        for address in paces:
            ask(address, now)
        while (verdict := one.verdict()) == "wait":
            now, _, address, said, took = heapq.heappop(due)
            assert now < 10**9, "there is a next try, and it leads nowhere"
            one.answer(address, said, took)
            paces[address].learn(said)
            ask(address, now + jitter * paces[address].pause)
            if one.step == "connecting":
                there = [a for a in one.wanted if self.masters[a][0] <= now]
                one.look(True, there if now >= began + self.connects else [], now - began)
        return verdict, now

    def play(self, old, jitter):
        """Return the verdicts until the list is kept."""
        now, verdicts, back = 0.0, [], False
        while "keep" not in verdicts:
            control = [] if back else [a for a in old if a not in (A, B)]
            for step in ("proving", "connecting"):
                one = cutover.Course(step, [A, B], control, 1, back and step == "proving")
                verdict, now = self.follow(one, now, jitter)
                verdicts.append(verdict)
                if verdict not in ("restart", "keep"):
                    back = True
                    break
                back = False
        return verdicts


SOON = st.floats(0.01, 0.25)


@settings(deadline=None)
@given(st.tuples(SOON, SOON, SOON), st.floats(0, 0.3), st.floats(0.5, 1), st.booleans())
def test_decisions_are_the_same_when_everything_takes_a_thousand_times_as_long(
    takes, connects, jitter, contained
):
    masters = dict(zip((A, B, OLD_MASTER), ((0, each) for each in takes), strict=True))
    old = [A] if contained else [OLD_MASTER]
    played = [World(masters, connects, factor).play(old, jitter) for factor in (1, 1000)]
    assert played[0] == played[1] == ["restart", "keep"]


@settings(deadline=None)
@given(
    st.tuples(*[st.tuples(st.floats(0, 10_000), SOON)] * 2),
    st.floats(0, 100),
    st.floats(0.5, 1),
    st.sampled_from([1, 1000]),
)
def test_a_master_that_comes_at_any_time_is_found_and_kept(new, connects, jitter, factor):
    masters = {A: new[0], B: new[1], OLD_MASTER: (0, 0.1)}
    verdicts = World(masters, connects, factor).play([OLD_MASTER], jitter)
    assert verdicts[-2:] == ["restart", "keep"]


class Killed(BaseException):
    """The end of the program, at once."""


class Minion:
    """A minion's files, a daemon that reads them when it is restarted, and masters that answer."""

    def __init__(self, tmp_path):
        self.drop_in = tmp_path / "minion.d/multimaster.conf"
        self.drop_in.parent.mkdir()
        self.journal = str(tmp_path / "cache/multimaster/cutover.json")
        self.says = {}
        self.running, self.restarts, self.jobs = OLD, 0, 0
        # What the daemon does at its start, and whether it finds a master that is there.
        self.comes, self.finds, self.at = True, True, time.time() - 100
        self.drop_in.write_text(OLD)
        self.moves = []
        self.thread = threading.Thread()

    def read(self):
        return self.drop_in.read_text() if self.drop_in.exists() else ""

    def prepare(self, text, masters=1, again=False):
        old = yaml.safe_load(self.running).get("master", [MAIN]) if self.running else [MAIN]
        job = multimaster_restart.process(os.getpid())
        more = {"again": again, "job": job, "daemon": self.daemon()}
        cutover.prepare(self.journal, str(self.drop_in), masters, old, FALLBACK, 600, **more)
        self.drop_in.write_text(text)

    def options(self):
        found = yaml.safe_load(self.read()) or {}
        return {"master": [MAIN], "master_type": "str", "master_port": 4506, **found}

    def begun(self):
        return self.at if self.comes else 0.0

    def daemon(self):
        return [1, self.at, "boot"] if self.comes else None

    def restart(self):
        self.restarts += 1
        if self.comes is not True and self.read() == NEW:
            return False
        self.comes = True
        self.running = self.read()
        # Which is told by times of more than a second apart.
        self.at = time.time()
        os.utime(self.drop_in, (self.at - 10, self.at - 10))
        return True

    def start(self):
        return not self.restart()

    def busy(self):
        self.jobs -= 1
        return self.jobs > 0

    def ask(self, options, address, patience):
        return self.says.get(address, REFUSED)

    def linked(self, options, addresses):
        there = (yaml.safe_load(self.running) or {}).get("master", [MAIN])
        found = [a for a in there if self.says.get(a) == ACCEPTED and a in addresses]
        return found if self.finds else []

    def same(self, one, other):
        return one == other

    def carry_out(self):
        return cutover.carry_out(self.journal, self, self.moved)

    def moved(self, journal):
        self.moves.append((journal["step"], bool(journal.get("back"))))

    def until(self, condition):
        """Carry it out in a thread, unless one is at it, until something is so; return that."""
        if not self.thread.is_alive():
            self.thread = threading.Thread(target=self.carry_out)
            self.thread.start()
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, cutover.read(self.journal)
            assert self.thread.is_alive() or condition(), cutover.read(self.journal)
            time.sleep(0.001)
        return self.thread

    def back(self):
        # The old drop-in is there and that has been told.
        return bool(self.moves) and self.moves[-1] == ("proving", True)


@pytest.fixture
def minion(tmp_path, monkeypatch):
    for name, value in {"POLL": 0.001, "PAUSE": 0.001, "LONGEST_PAUSE": 0.002}.items():
        monkeypatch.setattr(cutover, name, value)
    made = Minion(tmp_path)
    yield made
    cutover.forget(made.journal)
    if made.thread.is_alive():
        made.thread.join(60)


def test_a_list_with_a_master_that_lets_the_minion_in_is_kept(minion):
    minion.says = {B: ACCEPTED}
    minion.prepare(NEW)
    journal = minion.carry_out()
    assert (journal["step"], journal["heard"], journal["wanted"]) == ("kept", [B], [A, B])
    assert (minion.read(), minion.running, minion.restarts) == (NEW, NEW, 1)
    assert not cutover.pending(minion.journal)
    assert minion.moves == [("kept", False)]


def test_the_daemon_works_on_until_a_master_lets_the_minion_in(minion):
    minion.says = {OLD_MASTER: ACCEPTED, A: PENDING}
    minion.prepare(NEW)
    thread = minion.until(lambda: cutover.read(minion.journal).get("seen", {}).get(A))
    assert cutover.read(minion.journal)["seen"][A][0] == PENDING
    assert (minion.restarts, minion.running) == (0, OLD)
    minion.says[A] = ACCEPTED
    thread.join(60)
    assert (minion.restarts, minion.running) == (1, NEW)


def test_a_restart_waits_for_jobs(minion):
    minion.says, minion.jobs = {B: ACCEPTED}, 50
    minion.prepare(NEW)
    assert minion.carry_out()["step"] == "kept"
    assert minion.jobs <= 0


def test_with_silence_there_and_answers_here_the_old_list_is_put_back_unread(minion):
    minion.says = {OLD_MASTER: ACCEPTED}
    os.chmod(minion.drop_in, 0o640)
    before = minion.drop_in.stat().st_mtime
    minion.prepare(NEW)
    thread = minion.until(minion.back)
    assert (minion.read(), minion.running, minion.restarts) == (OLD, OLD, 0)
    assert minion.drop_in.stat().st_mode & 0o777 == 0o640
    assert minion.drop_in.stat().st_mtime == before
    journal = cutover.read(minion.journal)
    assert (journal["wanted"], journal["why"]) == ([A, B], "silent")
    # And moves by itself when there is somebody.
    minion.says[B] = ACCEPTED
    thread.join(60)
    assert (minion.read(), minion.running, minion.restarts) == (NEW, NEW, 1)
    assert cutover.read(minion.journal)["step"] == "kept"


def test_after_a_reboot_on_the_way_it_goes_back_with_a_restart(minion):
    minion.prepare(NEW)
    thread = minion.until(lambda: cutover.read(minion.journal)["step"] == "proving")
    minion.restart()
    minion.says = {OLD_MASTER: ACCEPTED}
    minion.until(minion.back)
    assert (minion.read(), minion.running, minion.restarts) == (OLD, OLD, 2)
    minion.says[B] = ACCEPTED
    thread.join(60)
    assert minion.running == NEW


def test_after_a_reboot_before_the_first_step_it_goes_back_with_a_restart(minion):
    minion.says = {OLD_MASTER: ACCEPTED}
    minion.prepare(NEW)
    minion.restart()
    minion.until(minion.back)
    assert minion.read() == minion.running == OLD


def test_a_daemon_that_finds_no_master_goes_back_and_is_tried_again(minion, monkeypatch):
    monkeypatch.setattr(cutover, "AGAIN", 0.2)
    minion.says = {OLD_MASTER: ACCEPTED, A: ACCEPTED}
    minion.finds = False
    minion.prepare(NEW)
    thread = minion.until(minion.back)
    assert minion.running == OLD
    assert cutover.read(minion.journal)["why"] == "deaf"
    minion.finds = True
    thread.join(60)
    assert minion.running == NEW


def test_a_daemon_that_does_not_start_with_the_new_list_runs_with_the_old_one(minion, monkeypatch):
    monkeypatch.setattr(cutover, "AGAIN", 1000)
    minion.says = {A: ACCEPTED}
    minion.comes = None
    minion.prepare(NEW)
    thread = minion.until(minion.back)
    assert minion.running == OLD
    assert cutover.read(minion.journal)["why"] == "failed"
    # Not tried again at once, though the master is there.
    seen = minion.restarts
    minion.until(lambda: cutover.read(minion.journal).get("seen"))
    assert minion.restarts == seen
    # But counted, also for the same list that is declared once more.
    minion.prepare(NEW, again=True)
    assert cutover.read(minion.journal)["tries"] == 1
    minion.prepare(NEW)
    assert "tries" not in cutover.read(minion.journal)
    cutover.forget(minion.journal)
    thread.join(60)


def test_fewer_masters_than_required_are_too_few(minion):
    minion.says = {OLD_MASTER: ACCEPTED, B: ACCEPTED}
    minion.prepare(NEW, masters=2)
    thread = minion.until(lambda: len(cutover.read(minion.journal).get("seen", {})) == 2)
    assert minion.running == OLD
    minion.says[A] = ACCEPTED
    thread.join(60)
    assert minion.running == NEW


def test_a_first_drop_in_gives_way_to_one_with_the_engine(minion):
    minion.drop_in.unlink()
    minion.running = ""
    minion.says = {MAIN: ACCEPTED}
    minion.prepare(NEW)
    minion.until(minion.back)
    assert minion.read() == FALLBACK


@pytest.mark.parametrize("there", [OLD_MASTER, B])
@pytest.mark.parametrize("place", range(1, 11))
def test_broken_off_anywhere_it_ends_as_if_it_had_not_been(minion, monkeypatch, place, there):
    minion.says = {there: ACCEPTED}
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
        # Each writing of the journal or a drop-in, and each restart.
        patch.setattr(cutover, "_replace", counted(cutover._replace))
        patch.setattr(minion, "restart", counted(minion.restart))
        if there == B:
            try:
                minion.carry_out()
            except Killed:
                assert cutover.pending(minion.journal)
        else:
            # Which may get to its end, and then goes on.
            minion.thread = thread = threading.Thread(target=_killed, args=(minion,))
            thread.start()
            while thread.is_alive() and not minion.back():
                time.sleep(0.001)
    if there == B:
        minion.carry_out()
        assert cutover.read(minion.journal)["step"] == "kept"
        assert minion.read() == minion.running == NEW
        assert minion.restarts == 1
    else:
        minion.until(minion.back)
        assert minion.read() == minion.running == OLD
        minion.says[B] = ACCEPTED
        minion.until(lambda: cutover.read(minion.journal).get("step") == "kept")
        assert minion.read() == minion.running == NEW


def _killed(minion):
    try:
        minion.carry_out()
    except Killed:
        return


@pytest.mark.parametrize(("seconds", "read"), [(-5, False), (0, False), (5, True)])
def test_a_daemon_has_read_what_was_there_before_it_started(tmp_path, seconds, read):
    drop_in = tmp_path / "multimaster.conf"
    drop_in.write_text(NEW)
    journal = {"drop_in": str(drop_in), "at": 0}
    assert cutover._has_read(journal, drop_in.stat().st_mtime + seconds) is read
    drop_in.unlink()
    journal["at"] = time.time()
    assert cutover._has_read(journal, journal["at"] + seconds) is read


@pytest.mark.parametrize("step", ["proving", "restarting", "returning"])
def test_a_clock_that_is_set_makes_no_daemon_read_anything(minion, monkeypatch, step):
    """What says when it began then says that it was after the drop-in."""
    minion.says = {B: ACCEPTED}
    minion.prepare(NEW)
    if step == "returning":
        minion.says, minion.finds = {OLD_MASTER: ACCEPTED, B: ACCEPTED}, False
        monkeypatch.setattr(cutover, "STARTING", 0)
    reached, note = [], cutover._write

    def then(path, journal):
        note(path, journal)
        if journal["step"] == step and not reached:
            reached.append(minion.restarts)
            monkeypatch.setattr(minion, "begun", lambda: minion.at + 3600)

    monkeypatch.setattr(cutover, "_write", then)
    if step == "returning":
        minion.until(minion.back)
        assert minion.running == OLD
    else:
        minion.until(lambda: minion.running == NEW).join(60)


def test_one_that_ended_is_not_begun_again(minion):
    minion.says = {B: ACCEPTED}
    minion.prepare(NEW)
    minion.carry_out()
    minion.carry_out()
    assert minion.restarts == 1


def test_a_newer_one_keeps_what_the_first_has_saved_and_ends_it(minion):
    minion.says = {OLD_MASTER: ACCEPTED}
    minion.prepare(NEW)
    first = minion.until(lambda: cutover.read(minion.journal)["step"] == "proving")
    minion.prepare(f"master: [{C}]\n")
    first.join(60)
    assert cutover.read(minion.journal)["step"] == "prepared"
    minion.until(minion.back)
    assert minion.read() == OLD


@pytest.mark.parametrize("back", [True, False], ids=["back", "forth"])
def test_a_newer_drop_in_is_not_overwritten_by_who_was_at_work(minion, monkeypatch, back):
    """At whichever copying of a drop-in the newer one comes."""
    minion.says = {OLD_MASTER: ACCEPTED}
    minion.prepare(NEW)
    if not back:
        minion.until(minion.back)
    newer, copy = f"master: [{C}]\n", cutover._copy
    waits = threading.Event()

    def then(source, target, **how):
        if target == str(minion.drop_in) and not waits.is_set():
            waits.set()
            # It waits for its turn, unless nobody keeps it.
            one = threading.Thread(target=minion.prepare, args=(newer,))
            one.start()
            one.join(0.2)
            copy(source, target, **how)
            return
        copy(source, target, **how)

    monkeypatch.setattr(cutover, "_copy", then)
    if not back:
        minion.says[B] = ACCEPTED
    minion.until(waits.is_set).join(60)
    deadline = time.monotonic() + 10
    while minion.read() != newer and time.monotonic() < deadline:
        time.sleep(0.01)
    assert minion.read() == newer
    assert cutover.read(minion.journal)["step"] == "prepared"


def test_what_a_newer_one_has_saved_is_not_removed_with_the_first_one_s(minion, monkeypatch):
    minion.says = {B: ACCEPTED}
    minion.prepare(NEW)
    unlink, waiting = os.unlink, []

    def then(path, *arguments):
        if path.endswith(".old") and not waiting:
            waiting.append(threading.Thread(target=minion.prepare, args=(f"master: [{C}]\n",)))
            waiting[0].start()
            waiting[0].join(0.2)
        unlink(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cutover.os, "unlink", then)
        minion.carry_out()
        waiting[0].join(60)
    with open(f"{minion.journal}.old") as handle:
        assert handle.read() == NEW


def test_a_disk_that_is_full_is_not_littered(minion, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cutover.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        cutover._replace(str(minion.drop_in), b"x", 0o600, (-1, -1))
    assert os.listdir(minion.drop_in.parent) == [minion.drop_in.name]


@pytest.mark.parametrize("tries", [1, 5000])
@pytest.mark.parametrize("clock", [0, -1e9], ids=["", "set back"])
def test_a_list_is_tried_again_after_any_number_of_tries(minion, monkeypatch, tries, clock):
    minion.prepare(NEW)
    way = cutover._Way(minion.journal, minion, minion.moved)
    way.journal |= {"tries": tries, "returned": time.time() - clock}
    slept = []

    def sleep(_):
        slept.append(1)
        if len(slept) > 61:
            raise Killed

    # Each sleep is a minute.
    minutes = SimpleNamespace(sleep=sleep, time=time.time, monotonic=lambda: 60.0 * len(slept))
    monkeypatch.setattr(cutover, "time", minutes)
    monkeypatch.setattr(way, "_check", lambda: None)
    way._rest()


@pytest.mark.parametrize(
    "rubbish",
    [
        {"step": "prepared"},
        {"step": "proving", "serial": "1"},
        {"step": "returning", "serial": 1, "drop_in": None, "masters": 1},
    ],
    ids=str,
)
def test_a_journal_that_lacks_something_is_none(minion, rubbish):
    minion.prepare(NEW)
    with open(minion.journal, "w") as handle:
        json.dump(rubbish, handle)
    assert not cutover.pending(minion.journal)
    assert not cutover.at_work(minion.journal, multimaster_restart.process)
    minion.carry_out()
    assert minion.restarts == 0


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
    process = multimaster_restart.process
    # By the clock this would be a process that has the number of one from before a reboot.
    os.utime(minion.journal, (1, 1))
    assert cutover.at_work(minion.journal, process)
    with open(minion.journal) as handle:
        journal = json.load(handle)
    gone, later = [2**22 + 1, *journal["job"][1:]], [journal["job"][0], 1, "another boot"]
    for changed in ({"step": "restarting"}, {"job": gone}, {"job": later}, {"job": None}):
        with open(minion.journal, "w") as handle:
            json.dump(journal | changed, handle)
        assert not cutover.at_work(minion.journal, process)


def test_journal_and_saved_drop_in_are_for_nobody_else(minion):
    os.chmod(minion.drop_in, 0o600)
    minion.prepare(NEW)
    for path in (minion.journal, f"{minion.journal}.old"):
        assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(minion.journal)).st_mode & 0o777 == 0o700


def test_one_works_on_a_journal_and_the_next_on_the_next(minion):
    minion.prepare(NEW)
    with cutover.taken_up(minion.journal) as first, cutover.taken_up(minion.journal) as second:
        assert (first, second) == (True, False)
    went = []

    def take():
        with cutover.taken_up(minion.journal) as mine:
            went.append(mine)

    with cutover.taken_up(minion.journal):
        minion.prepare(NEW)
        thread = threading.Thread(target=take)
        thread.start()
        assert not went
    thread.join(60)
    assert went == [True]


def test_a_restart_that_somebody_works_on_is_not_free(tmp_path):
    path = str(tmp_path / "lock")
    with cutover.alone(path) as first, cutover.alone(path, wait=False) as second:
        assert (first, second) == (True, False)
    with cutover.alone(path, wait=False) as third:
        assert third is True


def test_a_lock_is_for_nobody_else_to_hold_and_no_link(tmp_path):
    path, victim = tmp_path / "journal", tmp_path / "victim"
    with cutover.alone(str(tmp_path / "lock")), cutover.taken_up(str(path)) as mine:
        assert mine
        for name in ("lock", "journal.lock"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    for name in ("lock", "journal.lock"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"), cutover.alone(str(tmp_path / "lock")):
        pass
    with pytest.raises(OSError, match="symbolic links"), cutover.taken_up(str(path)):
        pass
    assert not victim.exists()
