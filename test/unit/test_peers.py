"""When a peer is asked, which of its answers count, and the thread that carries questions."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import multimaster_peers as peers

# Decisions in one answer.
CHUNK = 3


class Fate(NamedTuple):
    """What becomes of a question: seconds of each part of its way, and where it gets lost."""

    give: float
    go: float
    come: float
    lost: str


class Event(NamedTuple):
    """Something that happens at a time: wake, back, decide, or a new ledger of the peer's."""

    at: float
    kind: str


class World:
    """An asker and a peer with a ledger, under a clock that goes from one event to the next."""

    def __init__(self, fates: list[Fate], events: list[Event], factor: float) -> None:
        self.fates, self.factor = itertools.cycle(fates), factor
        self.peer = peers.Peer("saltm1", 0.0)
        self.now, self.calm = 0.0, max((each.at for each in events), default=0.0) * factor
        self.epoch, self.ledger = 0, list(range(5))
        self.taken: set[int] = set()
        self.known = peers.Place("", 0)
        self.numbers = itertools.count()
        self.queue: list[tuple[float, int, str, Any]] = []
        for each in events:
            self.later(each.at * factor, each.kind)

    def later(self, at: float, kind: str, what: Any = None) -> None:
        heapq.heappush(self.queue, (at, next(self.numbers), kind, what))

    def run(self, steps: int = 20_000) -> int:
        """Go on until all is read, also after whatever was under way then; return the questions."""
        asked = 0
        for _ in range(steps):
            if self.whole() and not any(kind in self.NEWS for _, _, kind, _ in self.queue):
                while self.queue:
                    self.happen()
                assert self.whole()
                return asked
            due = self.peer.next()
            # In every state there is a next try, and it is not far away.
            assert due <= self.now + 2 * peers.LONGEST + peers.INTERVAL
            if self.queue and self.queue[0][0] <= due:
                self.happen()
            else:
                self.now = max(self.now, due)
                if self.peer.ready(self.now):
                    self.ask()
                    asked += 1
            self.check()
        raise AssertionError(f"not read in the end: {self.known} of {self.end()}")

    NEWS = ("decide", "lose")

    def happen(self) -> None:
        at, _, kind, what = heapq.heappop(self.queue)
        self.now = max(self.now, at)
        getattr(self, kind)(what)
        self.check()

    def end(self) -> peers.Place:
        return peers.Place(f"e{self.epoch}", len(self.ledger))

    def whole(self) -> bool:
        return self.known == self.end() and set(self.ledger) <= self.taken

    def check(self) -> None:
        # Nothing is passed over.
        if self.known.epoch == f"e{self.epoch}":
            assert set(self.ledger[: self.known.seq]) <= self.taken

    def ask(self) -> None:
        fate = next(self.fates)
        jid = f"jid{next(self.numbers)}"
        question = self.peer.ask(self.now, jid, "", self.known)
        given_at = self.now + fate.give * self.factor
        self.later(given_at, "given", jid)
        lost = fate.lost if self.now <= self.calm else ""
        if lost != "question":
            self.later(given_at + fate.go * self.factor, "read", (question, fate, lost))

    def given(self, jid: str) -> None:
        self.peer.sent(jid, self.now)

    def read(self, what: tuple[peers.Question, Fate, str]) -> None:
        question, fate, lost = what
        start = question.about.seq if question.about.epoch == f"e{self.epoch}" else 0
        part = self.ledger[start : start + CHUNK]
        place = peers.Place(f"e{self.epoch}", start + len(part))
        if lost != "answer":
            at = self.now + fate.come * self.factor
            self.later(at, "answer", (question.jid, place, len(self.ledger), part))

    def answer(self, what: tuple[str, peers.Place, int, list[int]]) -> None:
        jid, place, end, part = what
        question = self.peer.kept.get(jid)
        if question is None:
            return
        overtaken, before = self.peer.overtaken(question), self.known
        self.peer.answered(question, self.now)
        self.taken |= set(part)
        self.known = peers.place_after(before, question.about, place, overtaken)
        assert self.known.seq >= before.seq or self.known.epoch != before.epoch
        if place.seq < end or self.known.epoch != place.epoch or self.known.seq < place.seq:
            self.peer.woken(self.now)

    def wake(self, _: None) -> None:
        self.peer.woken(self.now)

    def back(self, _: None) -> None:
        self.peer.returned(self.now)

    def decide(self, _: None) -> None:
        self.ledger.append(1_000 * self.epoch + len(self.ledger))

    def lose(self, _: None) -> None:
        self.epoch += 1
        self.ledger = [1_000 * self.epoch + number for number in range(4)]


seconds = st.integers(0, 200).map(lambda number: number / 100)
fates = st.lists(
    st.builds(Fate, seconds, seconds, seconds, st.sampled_from(["", "", "question", "answer"])),
    min_size=1,
    max_size=12,
)
events = st.lists(
    st.builds(
        Event,
        st.integers(0, 1000).map(lambda number: number / 10),
        st.sampled_from(["wake", "back", "decide", "lose"]),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(fates, events, st.sampled_from([0.1, 1, 10]))
def test_a_peer_that_can_be_reached_in_the_end_is_read_to_its_end(fates, events, factor):
    World(fates, events, factor).run()


@settings(deadline=None, max_examples=60)
@given(fates, events)
def test_what_is_taken_in_is_the_same_when_all_takes_a_thousand_times_as_long(fates, events):
    quick, slow = World(fates, events, 1), World(fates, events, 1_000)
    quick.run()
    slow.run()
    assert (slow.known, slow.ledger) == (quick.known, quick.ledger)
    assert set(slow.ledger) <= slow.taken & quick.taken


@settings(deadline=None, max_examples=150)
@given(fates, st.lists(st.integers(0, 3000), min_size=1, max_size=300))
def test_whoever_wakes_for_nothing_cannot_have_a_peer_asked_more_than_now_and_then(fates, at):
    events = [Event(each / 10, ("wake", "back")[each % 2]) for each in at]
    # What came before the first answer is on top.
    assert World(fates, events, 1).run() <= 40 + 300 / peers.SPARSE


def asked(peer: peers.Peer, now: float, place: Any = None) -> peers.Question:
    assert peer.ready(now)
    question = peer.ask(now, f"jid{now}", "", place)
    peer.sent(question.jid, now)
    return question


def test_who_is_woken_while_a_question_is_open_asks_when_it_is_given_up():
    peer = peers.Peer("saltm1", 0.0)
    asked(peer, 0.0)
    peer.woken(1.0)
    # Not before that: the answer may be on its way.
    assert not peer.ready(4.9)
    assert peer.next() == peers.PATIENCE
    asked(peer, peers.PATIENCE)


def test_who_is_woken_while_a_question_is_open_asks_after_its_answer():
    peer = peers.Peer("saltm1", 0.0)
    question = asked(peer, 0.0)
    peer.woken(0.1)
    peer.answered(question, 0.15)
    assert peer.next() == 2 * 0.15
    question = asked(peer, 0.3)
    peer.answered(question, 0.5)
    assert peer.next() == 0.3 + peers.INTERVAL


def test_a_peer_with_much_to_do_is_asked_half_of_the_time_whoever_calls():
    peer = peers.Peer("saltm1", 0.0)
    peer.answered(asked(peer, 0.0), 4.0)
    peer.woken(4.0)
    for now in (8, 16, 24):
        question = asked(peer, now)
        peer.returned(now + 1)
        assert not peer.ready(now + 4)
        peer.answered(question, now + 4)
        peer.returned(now + 5)
        assert peer.next() == now + 8


def test_what_taking_in_an_answer_costs_is_not_the_peers_delay():
    peer = peers.Peer("saltm1", 0.0)
    question = peer.ask(0.0, "jid", "", None)
    # What was before it took until now.
    peer.sent("jid", 30.0)
    peer.answered(question, 30.0)
    peer.woken(30.0)
    assert peer.ready(30.0)


def test_a_peer_that_was_frozen_is_asked_at_once_when_it_has_news():
    peer = peers.Peer("saltm1", 0.0)
    first, second = asked(peer, 0.0), asked(peer, 5.0)
    for question in (first, second):
        peer.answered(question, 14.0)
    peer.woken(14.0)
    assert peer.ready(14.0)


def test_a_peer_that_is_back_is_asked_again_though_a_question_is_open():
    peer = peers.Peer("saltm1", 0.0)
    lost = asked(peer, 0.0)
    peer.returned(0.1)
    assert not peer.ready(0.1)
    assert peer.next() == peers.SHORTEST
    asked(peer, 0.3)
    # It had been on its way, after all.
    assert lost.jid in peer.kept


def test_a_question_that_is_not_given_yet_costs_no_patience():
    peer = peers.Peer("saltm1", 0.0)
    assert peer.ready(0.0)
    question = peer.ask(0.0, "jid", "", None)
    assert not peer.ready(60.0)
    peer.sent(question.jid, 60.0)
    assert not peer.ready(64.9)
    assert peer.ready(65.0)


def test_patience_doubles_and_is_the_first_one_again_after_an_answer_in_time():
    peer, now, patience = peers.Peer("saltm1", 0.0), 0.0, []
    for _ in range(8):
        question = asked(peer, now)
        patience.append(peer.next() - now)
        now = peer.next()
    assert patience == [5, 10, 20, 40, 80, 120, 120, 120]
    assert peer.silent
    peer.answered(question, question.asked + 1)
    assert not peer.silent
    assert peer.patience == peers.PATIENCE


def test_a_peer_that_takes_long_is_not_asked_twice_for_ever():
    peer = peers.Peer("saltm1", 0.0)
    first = asked(peer, 0.0)
    asked(peer, 5.0)
    second = asked(peer, 15.0)
    peer.answered(first, 30.0)
    # The last question is still open: its answer takes as long.
    assert peer.open is second
    peer.answered(second, 45.0)
    peer.woken(45.0)
    asked(peer, 45.0)
    assert peer.next() == 45.0 + 2 * 30


def test_only_the_last_questions_are_kept():
    peer = peers.Peer("saltm1", 0.0)
    jids = []
    for _ in range(peers.KEPT + 9):
        jids.append(asked(peer, peer.next()).jid)
    assert list(peer.kept) == jids[9:]


P = peers.Place


@pytest.mark.parametrize(
    ("known", "start", "told", "overtaken", "after"),
    [
        (P("", 0), P("", 0), P("a", 5), False, P("a", 5)),
        (P("a", 5), P("a", 5), P("a", 9), False, P("a", 9)),
        # Late, and something was read meanwhile.
        (P("a", 9), P("a", 0), P("a", 5), True, P("a", 9)),
        (P("a", 5), P("a", 0), P("a", 9), True, P("a", 9)),
        # What is between was not taken in.
        (P("a", 5), P("a", 7), P("a", 9), False, P("a", 5)),
        (P("", 0), P("a", 7), P("a", 9), False, P("", 0)),
        # The peer lost its ledger, or put an older copy of it back.
        (P("a", 9), P("a", 9), P("b", 5), False, P("b", 5)),
        (P("b", 5), P("a", 0), P("a", 5), True, P("b", 5)),
        (P("a", 9), P("a", 9), P("a", 5), False, P("a", 0)),
        (P("a", 3), P("a", 9), P("a", 5), False, P("a", 0)),
        # Asked later and read earlier.
        (P("a", 6), P("a", 0), P("a", 5), False, P("a", 6)),
    ],
)
def test_a_place_is_kept_so_that_nothing_is_passed_over(known, start, told, overtaken, after):
    assert peers.place_after(known, start, told, overtaken) == after


def test_equal_ledgers_are_read_to_the_end_whatever_was_read_before():
    assert peers.place_after(P("a", 2), P("a", 7), P("a", 9), False, equal=True) == P("a", 9)
    assert peers.place_after(P("", 0), P("", 0), P("a", 9), False, equal=True) == P("a", 9)
    assert peers.place_after(P("", 0), P("a", 7), P("a", 9), False, equal=True) == P("a", 9)
    # Put back from a copy: what is decided next must not be passed over.
    assert peers.place_after(P("a", 9), P("a", 9), P("a", 5), False, equal=True) == P("a", 5)


def test_a_ledger_that_was_put_back_is_read_from_the_beginning_though_it_has_grown_since():
    for known in (P("a", 9), P("a", 12)):
        after = peers.place_after(known, P("a", 9), P("a", 12), False, rewound=True)
        assert after == P("a", 0)
    # Known by a later answer already, or of no account.
    assert peers.place_after(P("a", 5), P("a", 9), P("a", 12), True, rewound=True) == P("a", 5)
    assert peers.place_after(P("", 0), P("a", 9), P("a", 12), False, rewound=True) == P("", 0)
    equal = peers.place_after(P("a", 9), P("a", 9), P("a", 12), False, equal=True, rewound=True)
    assert equal == P("a", 12)


# The courier


class Client:
    """Salt's client, which a test holds, or has fail."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []
        self.made = self.closed = 0
        self.free = threading.Event()
        self.free.set()
        self.errors: list[BaseException] = []

    def make(self, **_: Any) -> Client:
        self.made += 1
        return self

    def destroy(self) -> None:
        self.closed += 1

    def run_job(self, targets: Any, function: str, arguments: Any, **settings: Any) -> None:
        assert self.free.wait(60)
        if self.errors:
            raise self.errors.pop()
        self.given.append((targets, function, arguments, settings))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    import salt.client

    made = Client()
    monkeypatch.setattr(salt.client, "get_local_client", made.make)
    yield made
    made.free.set()


def until_sent(courier: peers.Courier, count: int) -> list[peers.Sent]:
    found: list[peers.Sent] = []
    deadline = time.monotonic() + 60
    while len(found) < count:
        assert time.monotonic() < deadline
        found += courier.sent()
        time.sleep(0.001)
    return found


def test_who_gives_a_job_does_not_wait_and_knows_its_id_before_it_is_given(client):
    courier = peers.courier({}, timeout=5)
    client.free.clear()
    jids = [courier.give(["saltm1"], "test.ping", [number]) for number in range(3)]
    assert len(set(jids)) == 3
    assert courier.sent() == []
    assert client.given == []
    client.free.set()
    assert [(job.jid, job.error) for job in until_sent(courier, 3)] == [(jid, "") for jid in jids]
    assert [(given[2], given[3]["jid"]) for given in client.given] == [
        ([number], jid) for number, jid in enumerate(jids)
    ]
    # Nobody looks an answer up later: the job cache does not keep it.
    assert client.given[0][3] == {"tgt_type": "list", "jid": jids[0], "timeout": 5, "nocache": True}
    assert client.made == 1


@pytest.mark.parametrize("error", [OSError("no socket"), SystemExit(1)], ids=repr)
def test_a_job_that_cannot_be_given_is_told_and_the_next_one_has_a_new_client(client, error):
    courier = peers.courier({})
    client.errors.append(error)
    first = courier.give(["saltm1"], "test.ping", [])
    courier.give(["saltm1"], "test.ping", [])
    failed, done = until_sent(courier, 2)
    assert (failed.jid, failed.error) == (first, f"{type(error).__name__}: {error}")
    assert done.error == ""
    assert (client.made, client.closed) == (2, 1)
