"""The ledger: one decision on a key, whichever master took it and whatever was interrupted."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import sqlite3
import stat
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import multimaster_ledger as ledger
from multimaster_ledger import BEFORE, Action, Decision, Key, Ledger, Stamp

MASTERS = ("saltm1", "saltm2", "saltm3")
IDS = ("web1", "web2")
PRINTS = ("aa" * 32, "bb" * 32)
A, B = PRINTS

stamps = st.builds(Stamp, st.integers(0, 3), st.integers(0, 2))


def decision(
    verdict="accepted", at=BEFORE, fingerprint=A, minion_id="web1", origin="saltm1"
) -> Decision:
    pub = "" if verdict in ledger.GONE else f"PEM of {fingerprint}"
    return Decision(minion_id, fingerprint, verdict, Stamp(*at), origin, pub)


decisions = st.builds(
    decision,
    st.sampled_from(ledger.VERDICTS),
    stamps,
    st.sampled_from(PRINTS),
    st.sampled_from(IDS),
    st.sampled_from(MASTERS),
)


@pytest.fixture
def opened(tmp_path):
    with Ledger(str(tmp_path / "ledger.db")) as made:
        yield made


def content(book: Ledger) -> list[Decision]:
    return sorted(book.since(0, 10**6)[0], key=lambda one: (one.id, one.fingerprint))


# Merge


@given(decisions, decisions)
def test_merge_does_not_depend_on_the_order(one, other):
    other = Decision(one.id, one.fingerprint, *_rest(other))
    assert ledger.merge(one, other).rank == ledger.merge(other, one).rank


@given(decisions, decisions, decisions)
def test_merge_does_not_depend_on_the_grouping(one, two, three):
    two, three = (Decision(one.id, one.fingerprint, *_rest(other)) for other in (two, three))
    left = ledger.merge(ledger.merge(one, two), three)
    right = ledger.merge(one, ledger.merge(two, three))
    assert left.rank == right.rank


@given(decisions)
def test_merge_with_itself_changes_nothing(one):
    assert ledger.merge(one, one) is one
    assert ledger.merge(None, one) is one


@pytest.mark.parametrize(
    ("lenient", "strict"),
    [
        ("accepted", "deleted"),
        ("deleted", "rejected"),
        ("accepted", "rejected"),
        ("accepted", "deletion proposed"),
        ("deletion proposed", "rejection proposed"),
        ("rejection proposed", "deleted if away"),
        ("deleted if away", "deleted"),
    ],
)
@pytest.mark.parametrize("origins", [("saltm1", "saltm3"), ("saltm3", "saltm1")])
def test_of_two_decisions_at_one_time_the_stricter_wins(lenient, strict, origins):
    one = decision(lenient, (5, 0), origin=origins[0])
    other = decision(strict, (5, 0), origin=origins[1])
    assert ledger.merge(one, other) is ledger.merge(other, one) is other


def test_a_later_decision_wins_though_it_is_more_lenient():
    one, other = decision("rejected", (5, 0)), decision("accepted", (5, 1))
    assert ledger.merge(one, other) is other


@given(stamps, st.integers(0, 5))
def test_a_new_event_is_later_than_all_that_its_master_knew_of(last, now):
    new = ledger.tick(last, now)
    assert new > last
    assert new.time == max(last.time, now)


# What somebody has decided here


@pytest.mark.parametrize(
    ("seen", "found", "news"),
    [
        (None, None, []),
        (None, Key("pending", A), []),
        (None, Key("accepted", A), [("accepted", A)]),
        (None, Key("rejected", A), [("rejected", A)]),
        (Key("accepted", A), Key("accepted", A), []),
        (Key("accepted", A), None, [("deleted", A)]),
        # Deleted, and the minion has asked again.
        (Key("accepted", A), Key("pending", A), [("deleted", A)]),
        (Key("accepted", A), Key("rejected", A), [("rejected", A)]),
        (Key("rejected", A), Key("accepted", A), [("accepted", A)]),
        (Key("accepted", A), Key("accepted", B), [("deleted", A), ("accepted", B)]),
    ],
)
def test_notices_what_was_decided_on_this_master(seen, found, news):
    assert ledger.noticed(seen, found, {}) == news
    # And not again, once the ledger has it.
    known = {fingerprint: decision(verdict, (1, 0), fingerprint) for verdict, fingerprint in news}
    assert ledger.noticed(seen, found, known) == []


def test_a_key_that_vanished_while_it_was_to_be_changed_is_nobodys_decision():
    seen = Key("accepted", A)
    rejected = {A: decision("rejected", (1, 0))}
    assert ledger.noticed(seen, None, rejected) is None
    # Unless Salt has said so.
    assert ledger.noticed(seen, None, rejected, deleted=True) == [("deleted", A)]
    # Or it was to be deleted anyway.
    assert ledger.noticed(seen, None, {A: decision("deleted", (1, 0))}) == []


@pytest.mark.parametrize(
    ("verdict", "seen", "found", "news", "remembered"),
    [
        # Who has removed the key, or does so elsewhere, too.
        ("deletion proposed", Key("accepted", A), None, [], Key("deleted", A)),
        ("deletion proposed", Key("accepted", A), Key("pending", A), [], Key("deleted", A)),
        ("deletion proposed", Key("deleted", A), None, [], Key("deleted", A)),
        ("rejection proposed", Key("accepted", A), Key("rejected", A), [], Key("rejected", A)),
        ("rejection proposed", Key("accepted", A), None, [("deleted", A)], Key("deleted", A)),
        # What the engine has put back.
        ("deletion proposed", None, Key("accepted", A), [], Key("accepted", A)),
        # What somebody has accepted again where it was removed.
        (
            "deletion proposed",
            Key("deleted", A),
            Key("accepted", A),
            [("accepted", A)],
            Key("accepted", A),
        ),
        (
            "rejection proposed",
            Key("rejected", A),
            Key("accepted", A),
            [("accepted", A)],
            Key("accepted", A),
        ),
        # A successor settles it.
        (
            "deletion proposed",
            Key("deleted", A),
            Key("accepted", B),
            [("deleted", A), ("accepted", B)],
            Key("accepted", B),
        ),
    ],
)
def test_what_is_proposed_is_settled_by_an_acceptance_and_by_nothing_else(
    verdict, seen, found, news, remembered
):
    known = {A: decision(verdict, (1, 0))}
    assert ledger.noticed(seen, found, known) == news
    assert ledger.remembered(seen, found, known) == remembered


def test_what_was_removed_is_remembered_as_such_for_as_long_as_that_is_proposed():
    for verdict in ("accepted", "deleted"):
        known = {A: decision(verdict, (1, 0))}
        assert ledger.remembered(Key("deleted", A), None, known) is None
    assert ledger.remembered(None, None, {A: decision("deletion proposed")}) is None


# What a master has to do


@pytest.mark.parametrize("verdict", ["deletion proposed", "rejection proposed"])
@pytest.mark.parametrize(
    ("seen", "found", "verb"),
    [
        (Key("accepted", A), Key("accepted", A), "none"),
        # Lost with its mount, or never heard of: nobody has removed it here.
        (Key("accepted", A), None, "accept"),
        (None, None, "accept"),
        (None, Key("pending", A), "accept"),
        (Key("accepted", A), Key("rejected", A), "accept"),
        # Where somebody has.
        (Key("deleted", A), None, "none"),
        (Key("deleted", A), Key("pending", A), "none"),
        (Key("rejected", A), Key("rejected", A), "none"),
    ],
)
def test_what_is_proposed_leaves_the_key_as_each_master_has_it(verdict, seen, found, verb):
    known = {A: decision(verdict, (1, 0))}
    assert ledger.plan("web1", known, found, seen).verb == verb
    if verb == "accept":
        assert ledger.plan("web1", known, found, seen).decision.pub == f"PEM of {A}"


def test_a_successor_wins_over_what_is_proposed():
    known = {A: decision("deletion proposed", (2, 0)), B: decision("accepted", (1, 0), B)}
    action = ledger.plan("web1", known, Key("accepted", A), Key("accepted", A))
    assert (action.verb, action.decision) == ("accept", known[B])


@pytest.mark.parametrize("verdict", ledger.GONE)
def test_a_key_is_deleted_whether_or_not_the_minion_was_known_to_be_there(verdict):
    known = {A: decision(verdict, (1, 0))}
    assert ledger.plan("web1", known, Key("accepted", A)).verb == "delete"


@pytest.mark.parametrize(
    ("verdicts", "found", "verb"),
    [
        ({}, None, "none"),
        ({}, Key("pending", A), "none"),
        # Nobody has noticed it yet, and so nobody has decided against it.
        ({}, Key("accepted", A), "none"),
        ({A: "accepted"}, None, "accept"),
        ({A: "accepted"}, Key("pending", A), "accept"),
        ({A: "accepted"}, Key("accepted", A), "none"),
        ({A: "accepted"}, Key("rejected", A), "accept"),
        ({A: "rejected"}, None, "reject"),
        ({A: "rejected"}, Key("pending", A), "reject"),
        ({A: "rejected"}, Key("accepted", A), "reject"),
        ({A: "deleted"}, None, "none"),
        ({A: "deleted"}, Key("accepted", A), "delete"),
        ({A: "deleted"}, Key("rejected", A), "delete"),
        ({A: "deleted"}, Key("pending", A), "none"),
        ({A: "deleted"}, Key("accepted", B), "none"),
        # Another key of the same minion, since the first was deleted.
        ({A: "deleted", B: "accepted"}, Key("accepted", A), "accept"),
        ({A: "deleted", B: "rejected"}, Key("accepted", A), "reject"),
        ({A: "deleted", B: "accepted"}, None, "accept"),
        # Two keys, one minion id.
        ({A: "accepted", B: "accepted"}, None, "conflict"),
        ({A: "accepted", B: "rejected"}, Key("accepted", A), "conflict"),
        # One of them is pending, which is nobody's word.
        ({A: "accepted"}, Key("pending", B), "accept"),
        ({A: "rejected"}, Key("pending", B), "reject"),
        ({A: "accepted"}, Key("accepted", B), "conflict"),
    ],
)
def test_plans_what_makes_the_key_store_say_what_the_ledger_says(verdicts, found, verb):
    known = {print_: decision(verdict, (1, 0), print_) for print_, verdict in verdicts.items()}
    action = ledger.plan("web1", known, found)
    assert (action.verb, action.id) == (verb, "web1")
    if verb in ("accept", "reject"):
        assert action.decision is not None
        assert action.decision.pub == f"PEM of {action.decision.fingerprint}"


@pytest.mark.parametrize(
    ("verdicts", "found", "verb"),
    [
        # It waits for the minion to bring its key here.
        ({A: "accepted"}, None, "none"),
        ({A: "rejected"}, Key("pending", B), "none"),
        ({A: "accepted"}, Key("pending", A), "accept"),
        ({A: "rejected"}, Key("accepted", A), "reject"),
        ({A: "rejected"}, Key("rejected", A), "none"),
        ({A: "deleted", B: "accepted"}, Key("accepted", A), "delete"),
        ({A: "accepted"}, Key("accepted", B), "conflict"),
    ],
)
def test_a_decision_without_a_text_is_applied_to_what_is_here(verdicts, found, verb):
    known = {
        print_: replace(decision(verdict, (1, 0), print_), pub="")
        for print_, verdict in verdicts.items()
    }
    assert ledger.plan("web1", known, found).verb == verb


@given(st.lists(decisions.filter(lambda one: one.id == "web1")), st.sampled_from([None, *PRINTS]))
def test_accepts_only_what_somebody_has_accepted(taken, pending):
    known: dict[str, Decision] = {}
    for one in taken:
        known[one.fingerprint] = ledger.merge(known.get(one.fingerprint), one)
    action = ledger.plan("web1", known, Key("pending", pending) if pending else None)
    if action.verb == "accept":
        assert action.decision.verdict == "accepted"
        # What is proposed was accepted, or there would be nothing to delete or to reject.
        assert action.decision in [
            replace(one, verdict="accepted") if one.verdict in ledger.PROPOSED else one
            for one in taken
        ]


def test_a_conflict_is_resolved_by_naming_the_key_that_stays():
    known = {A: decision("accepted", (1, 0), A), B: decision("accepted", (2, 0), B)}
    assert ledger.resolution("web1", known, A[:8]) == [("accepted", A), ("deleted", B)]
    for wrong in ("", "cc", "x"):
        with pytest.raises(ledger.LedgerError, match="supported: " + A):
            ledger.resolution("web1", known, wrong)


# What comes over the wire


@given(st.lists(decisions))
def test_decisions_survive_the_wire(some):
    assert ledger.unpack(ledger.pack(some)) == some


@pytest.mark.parametrize(
    "text", [None, 5, "", "rubbish", "eJxLBAAAYgBi", b"\0", ledger.pack([])[:-5]]
)
def test_what_holds_no_decisions_is_refused(text):
    with pytest.raises(ledger.LedgerError, match=r"^(decisions|packed): "):
        ledger.unpack(text)


def test_more_than_an_answer_can_hold_is_refused():
    bomb = base64.b64encode(zlib.compress(b" " * (ledger.MAX_BYTES + 1))).decode()
    with pytest.raises(ledger.LedgerError, match="got more than"):
        ledger.unpack(bomb)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "web1",
        [],
        ["web1", A, "accepted", 1, 0, "saltm1"],
        ["web1", A, "approved", 1, 0, "saltm1", "PEM"],
        ["web1", A, "accepted", "1", 0, "saltm1", "PEM"],
        ["web1", A, "accepted", True, 0, "saltm1", "PEM"],
        ["web1", A, "accepted", -1, 0, "saltm1", "PEM"],
        ["web1", A, "accepted", 1, -1, "saltm1", "PEM"],
        ["web1", A, "accepted", 1, 0, "saltm1", "x" * (ledger.MAX_TEXT + 1)],
        ["web1", A, "accepted", ledger.LATEST, 0, "saltm1", "PEM"],
        ["web1", A, "accepted", 1, ledger.LATEST, "saltm1", "PEM"],
        ["web1", "aa", "accepted", 1, 0, "saltm1", "PEM"],
        ["web\udcff", A, "accepted", 1, 0, "saltm1", "PEM"],
        ["web1", A, "deleted", 1, 0, "saltm1", "PEM"],
        ["web1", A, "deleted if away", 1, 0, "saltm1", "PEM"],
        [1, A, "accepted", 1, 0, "saltm1", "PEM"],
    ],
    ids=str,
)
def test_what_is_no_decision_is_refused(value):
    with pytest.raises(ledger.LedgerError, match="decision"):
        ledger.from_wire(value)


# The database


def test_a_decision_is_kept_and_told_in_the_history(opened):
    taken = opened.decide("web1", A, "accepted", "saltm1", "PEM", "event")
    assert opened.of("web1") == {A: taken}
    assert taken.stamp > BEFORE
    (entry,) = opened.history("web1")
    assert (entry["verdict"], entry["origin"], entry["via"]) == ("accepted", "saltm1", "event")
    assert opened.history("web2") == []


def test_a_decision_is_later_than_what_was_learnt_from_a_clock_ahead(opened):
    ahead = decision("accepted", (10**15, 7))
    opened.learn([ahead], "saltm2")
    taken = opened.decide("web1", A, "rejected", "saltm1", "PEM", "event")
    assert taken.stamp == (10**15, 8)
    assert opened.of("web1")[A] == taken


def test_what_was_there_before_a_ledger_gives_way_to_any_decision(opened):
    opened.witness([("web1", Key("accepted", A), "PEM"), ("web2", Key("rejected", B), "PEM")], "m")
    assert opened.all_seen() == {"web1": Key("accepted", A), "web2": Key("rejected", B)}
    assert opened.learn([decision("deleted", (1, 0))], "saltm2") == ["web1"]
    assert opened.of("web1")[A].verdict == "deleted"
    assert opened.of("web2")[B].stamp == BEFORE


def test_only_what_is_new_is_learnt(opened):
    assert opened.learn([decision(at=(2, 0)), decision(at=(1, 0), minion_id="web2")], "x") == list(
        IDS
    )
    before = opened.digest, opened.since(0, 10)
    assert opened.learn([decision(at=(2, 0)), decision("rejected", (1, 0))], "x") == []
    assert (opened.digest, opened.since(0, 10)) == before


@settings(deadline=None, max_examples=50)
@given(st.lists(decisions, max_size=12), st.randoms(use_true_random=False))
def test_equal_ledgers_have_equal_digests_and_others_have_not(tmp_path_factory, taken, order):
    directory = tmp_path_factory.mktemp("ledger")
    with Ledger(str(directory / "one")) as one, Ledger(str(directory / "other")) as other:
        one.learn(taken, "x")
        assert (one.digest == other.digest) == (not taken)
        shuffled = list(taken)
        order.shuffle(shuffled)
        for item in shuffled:
            other.learn([item, item], "y")
        assert content(one) == content(other)
        assert one.digest == other.digest
        assert one.epoch != other.epoch


def test_a_proposal_is_of_the_time_of_the_acceptance_that_it_is_about(opened, tmp_path):
    accepted = decision("accepted", (5, 0))
    opened.learn([accepted], "x")
    proposed = opened.propose("web1", A, "deletion proposed", "saltm3", "here")
    assert proposed == replace(accepted, verdict="deletion proposed", origin="saltm3")
    assert opened.of("web1") == {A: proposed}
    # A deletion elsewhere that its master did not know of is not undone by it.
    with Ledger(str(tmp_path / "other")) as other:
        other.learn([decision("deleted", (6, 0), origin="saltm2")], "x")
        assert other.learn([proposed], "saltm3") == []
        opened.learn(other.since(0, 9)[0], "saltm2")
        assert (opened.digest, opened.of("web1")[A].verdict) == (other.digest, "deleted")


def test_of_two_proposals_the_stricter_counts_wherever_it_came_from(opened):
    opened.learn([decision("accepted", (5, 0))], "x")
    strict = opened.propose("web1", A, "rejection proposed", "saltm1", "here")
    assert opened.propose("web1", A, "deletion proposed", "saltm1", "here") == strict


def test_of_a_key_that_nobody_has_decided_on_a_proposal_is_of_now(opened):
    proposed = opened.propose("web1", A, "deletion proposed", "saltm1", "here")
    assert proposed.stamp > BEFORE


def test_when_something_was_proposed_is_when_this_master_heard_of_it(opened):
    opened.learn(
        [decision("accepted", (5, 0)), decision("accepted", (6, 0), minion_id="web2")], "x"
    )
    for name in IDS:
        opened.propose(name, A, "deletion proposed", "saltm1", "here")
    (group,) = ledger.summary(opened.proposals(), 1)
    assert (group["count"], group["ids"], group["origin"]) == (2, ["web1"], "saltm1")
    assert group["since"] > 10**12


def test_what_is_proposed_is_listed_until_it_is_settled_either_way(opened):
    for name in ("web1", "web2", "web3"):
        opened.decide(name, A, "deletion proposed", "saltm1", "PEM", "here")
    assert [one.id for one, _ in opened.proposals()] == ["web1", "web2", "web3"]
    opened.decide("web1", A, "deleted", "saltm2", "", "confirmed")
    opened.decide("web2", A, "accepted", "saltm2", "", "taken back")
    assert [one.id for one, _ in opened.proposals()] == ["web3"]
    # The text outlives it.
    assert opened.of("web2")[A].pub == "PEM"


def test_what_was_removed_here_is_no_key_that_is_there(opened):
    opened.note({"web1": Key("deleted", A), "web2": Key("accepted", B)})
    assert opened.seen("web1") == Key("deleted", A)
    assert opened.all_seen() == {"web2": Key("accepted", B)}


@pytest.mark.parametrize("verdict", ["deletion proposed", "rejection proposed"])
def test_a_key_of_which_something_is_proposed_is_in_no_conflict_with_its_successor(opened, verdict):
    opened.learn([decision(verdict, (1, 0)), decision("accepted", (2, 0), B)], "x")
    assert opened.conflicts() == []


def test_is_read_in_pieces_and_from_where_one_was(opened):
    opened.learn([decision(minion_id=f"web{number}") for number in range(5)], "x")
    first, place = opened.since(0, 3)
    rest, end = opened.since(place, 3)
    assert [one.id for one in first + rest] == [f"web{number}" for number in range(5)]
    assert opened.since(end, 3) == ([], end)
    opened.learn([decision("rejected", (1, 0), minion_id="web1")], "x")
    news, _ = opened.since(end, 3)
    assert [one.id for one in news] == ["web1"]


def test_remembers_how_far_it_has_read_a_peer(opened):
    assert opened.place("saltm2") == ("", 0)
    opened.set_place("saltm2", "epoch", 7)
    opened.set_place("saltm2", "epoch", 9)
    assert opened.place("saltm2") == ("epoch", 9)


def test_a_mark_tells_one_past_from_another(tmp_path):
    marks = []
    for name in "ab":
        with ledger.Ledger(str(tmp_path / name)) as book:
            assert book.mark(0) == book.mark(7) == ""
            for number in range(3):
                book.decide(f"web{number}", A, "accepted", name, "PEM", "here")
            before = [book.mark(place) for place in range(book.end + 1)]
            assert len(set(before)) == 4
            book.decide("web0", A, "deleted", name, "", "here")
            book.purge(1 << 50)
            # Whatever comes later.
            assert [book.mark(place) for place in range(4)] == before
            assert book.mark(book.end)
            marks.append(before[3])
    assert marks[0] != marks[1]


def test_remembers_the_mark_of_the_place_that_it_has_read_a_peer_to(opened):
    assert opened.mark_of("saltm2") == ""
    opened.set_place("saltm2", "epoch", 7, "mark")
    assert (opened.place("saltm2"), opened.mark_of("saltm2")) == (("epoch", 7), "mark")
    opened.set_place("saltm2", "epoch", 9)
    assert opened.mark_of("saltm2") == ""


def test_old_deletions_are_forgotten_and_nothing_else(opened, tmp_path):
    kept = [decision("deletion proposed", (1, 0)), decision("deleted", (9, 0), B)]
    gone = [decision(verdict, (1, 0), minion_id=verdict) for verdict in ledger.GONE]
    opened.learn([*kept, *gone], "x")
    assert opened.purge(5) == 2
    assert content(opened) == kept
    with Ledger(str(tmp_path / "other")) as other:
        other.learn(kept, "x")
        assert other.digest == opened.digest


def test_a_transaction_that_fails_leaves_nothing_behind(opened):
    def broken():
        yield decision(at=(1, 0))
        raise OSError("cut off")

    before = opened.digest
    with pytest.raises(OSError, match="cut off"):
        opened.learn(broken(), "x")
    assert (content(opened), opened.digest) == ([], before)


def test_several_changes_in_one_transaction_are_all_or_nothing(opened):
    def decide(name, cut_off=False):
        with opened.transaction():
            opened.decide(name, A, "accepted", "saltm1", "PEM", "here")
            opened.note({name: Key("accepted", A)})
            if cut_off:
                raise OSError("cut off")

    before = opened.digest
    with pytest.raises(OSError, match="cut off"):
        decide("web1", cut_off=True)
    assert (content(opened), opened.digest, opened.end) == ([], before, 0)
    assert opened.seen("web1") is None
    with opened.transaction():
        decide("web1")
        decide("web2")
    assert list(opened.ids()) == ["web1", "web2"]
    assert opened.end == 2
    assert opened.digest != before


def test_is_there_again_with_all_it_knew(tmp_path):
    path = str(tmp_path / "ledger.db")
    with Ledger(path) as book:
        assert book.fresh
        book.learn([decision(at=(1, 0))], "x")
        book.note({"web1": Key("accepted", A), "web2": Key("pending", B)})
        digest, epoch = book.digest, book.epoch
    with Ledger(path) as book:
        assert not book.fresh
        assert (book.digest, book.epoch) == (digest, epoch)
        assert book.all_seen() == {"web1": Key("accepted", A)}
        book.note({"web1": None})
        assert book.seen("web1") is None
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640


@pytest.mark.parametrize("damage", ["no database", "a torn page", "emptied"])
def test_a_damaged_ledger_is_set_aside_and_a_fresh_one_made(tmp_path, damage):
    path = tmp_path / "ledger.db"
    with Ledger(str(path)) as book:
        book.learn([decision(minion_id=f"web{number}") for number in range(500)], "x")
        epoch = book.epoch
    if damage == "no database":
        path.write_bytes(b"rubbish" * 1000)
    elif damage == "a torn page":
        torn = bytearray(path.read_bytes())
        torn[4096:20480] = random.Random(1).randbytes(16384)
        path.write_bytes(torn)
    else:
        path.write_bytes(b"")
    with Ledger(str(path)) as book:
        assert book.fresh
        assert book.epoch != epoch
        assert content(book) == []
    aside = list(tmp_path.glob("ledger.db.damaged-*"))
    assert len(aside) == (damage != "emptied")


FUZZ = settings(deadline=None, max_examples=25)


class LaterRelease(Exception):
    """A ledger says that it is one."""


def usable(path: str) -> bool:
    """Open a ledger and use all of it; tell whether what was in it is still there."""
    try:
        opened = Ledger(path)
    except ledger.LedgerError as err:
        raise (LaterRelease if "got schema" in str(err) else AssertionError) from err
    with opened as book:
        kept = {"web1", "web2"} <= set(book.ids())
        assert kept != book.fresh
        book.decide("web3", A, "accepted", "saltm1", "PEM", "here")
        assert book.learn([decision("rejected", (5, 0), minion_id="web4")], "saltm2") == ["web4"]
        book.note({"web3": Key("accepted", A)})
        book.set_place("saltm2", "epoch", 5)
        book.put_aside({"web5": "no space"})
        assert book.place("saltm2") == ("epoch", 5)
        assert {one.id for one in content(book)} >= {"web3", "web4"}
        assert (book.history("web3")[-1]["verdict"], book.conflicts()) == ("accepted", [])
        book.purge(1)
    with Ledger(path, read_only=True) as book:
        assert book.aside() == {"web5": "no space"}
    return kept


@FUZZ
@given(st.binary(max_size=2000) | st.binary(max_size=500).map(lambda b: b"SQLite format 3\0" + b))
def test_any_file_is_a_ledger_or_set_aside(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "ledger.db"
    path.write_bytes(content)
    assert not usable(str(path))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A ledger with two decisions."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    with Ledger(str(path)) as book:
        book.look_at("store")
        for name in ("web1", "web2"):
            book.decide(name, A, "accepted", "saltm1", "PEM", "here")
            book.note({name: Key("accepted", A)})
        book.set_place("saltm2", "epoch", 5)
        book.completed()
    return path


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_bad_disk_gives_a_ledger_that_can_be_used_or_a_fresh_one(
    tmp_path_factory, recorded, changes
):
    path = tmp_path_factory.mktemp("bad") / "ledger.db"
    broken = bytearray(recorded.read_bytes())
    # Most of it is nothing.
    written = [place for place, byte in enumerate(broken) if byte]
    for number, byte in changes:
        broken[written[number % len(written)]] = byte
    path.write_bytes(broken)
    # What is a later release's, nobody can tell.
    with contextlib.suppress(LaterRelease):
        usable(str(path))


def test_what_a_ledger_says_is_not_believed_after_a_change_of_the_file(recorded, tmp_path):
    path = tmp_path / "ledger.db"
    path.write_bytes(recorded.read_bytes().replace(b"accepted", b"rejected"))
    with Ledger(str(path)) as book:
        assert (book.fresh, list(book.ids())) == (True, [])


def test_a_reader_does_not_write_and_is_told_what_is_not_there(tmp_path):
    path = tmp_path / "ledger.db"
    with pytest.raises(ledger.LedgerError, match="unable to open"):
        Ledger(str(path), read_only=True)
    assert list(tmp_path.iterdir()) == []
    with Ledger(str(path)) as writer, Ledger(str(path), read_only=True) as reader:
        writer.learn([decision(at=(1, 0))], "x")
        assert reader.digest == writer.digest
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.learn([decision(at=(2, 0))], "x")


def test_a_ledger_of_a_later_release_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "ledger.db"
    with Ledger(str(path)) as book:
        book._db.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    before = path.read_bytes()
    with pytest.raises(ledger.LedgerError, match="got schema 99; supported: 1"):
        Ledger(str(path))
    assert path.read_bytes() == before


class Fleet(RuleBasedStateMachine):
    """Three masters that decide, exchange, crash and lose their ledgers, in any order."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        # What Salt's key store has, by master and id; it outlives a ledger.
        self.stores: dict[str, dict[str, Key]] = {name: {} for name in MASTERS}
        self.books = {name: self._open(name) for name in MASTERS}
        # Keys that an administrator accepted, ever.
        self.accepted: set[tuple[str, str]] = set()

    def _open(self, name: str) -> Ledger:
        return Ledger(str(Path(self.directory.name, name)))

    @rule(master=st.sampled_from(MASTERS), minion=st.sampled_from(IDS), key=st.sampled_from(PRINTS))
    def administrator_accepts(self, master, minion, key):
        self.stores[master][minion] = Key("accepted", key)
        self.accepted.add((minion, key))

    @rule(master=st.sampled_from(MASTERS), minion=st.sampled_from(IDS), key=st.sampled_from(PRINTS))
    def administrator_rejects(self, master, minion, key):
        self.stores[master][minion] = Key("rejected", key)

    @rule(master=st.sampled_from(MASTERS), minion=st.sampled_from(IDS))
    def administrator_deletes(self, master, minion):
        self.stores[master].pop(minion, None)

    @rule(master=st.sampled_from(MASTERS), minion=st.sampled_from(IDS), key=st.sampled_from(PRINTS))
    def minion_asks(self, master, minion, key):
        self.stores[master].setdefault(minion, Key("pending", key))

    @rule(master=st.sampled_from(MASTERS), held=st.booleans())
    def engine_looks(self, master, held=False):
        book, store = self.books[master], self.stores[master]
        for minion in IDS:
            found, seen = store.get(minion), book.seen(minion)
            known = book.of(minion)
            news = ledger.noticed(seen, found, known)
            if news is None:
                continue
            for verdict, key in news:
                if held and len(news) == 1 and seen == Key("accepted", key):
                    verdict = {made: name for name, made in ledger.PROPOSED.items()}[verdict]
                    book.propose(minion, key, verdict, master, "scan")
                    continue
                pub = "" if verdict in ledger.GONE else f"PEM of {key}"
                book.decide(minion, key, verdict, master, pub, "scan")
            book.note({minion: ledger.remembered(seen, found, book.of(minion))})

    @rule(master=st.sampled_from(MASTERS), confirmed=st.booleans())
    def administrator_settles(self, master, confirmed):
        book = self.books[master]
        for one, _ in book.proposals():
            verdict = ledger.PROPOSED[one.verdict] if confirmed else "accepted"
            pub = "" if verdict in ledger.GONE else one.pub
            book.decide(one.id, one.fingerprint, verdict, master, pub, "settled")

    @rule(master=st.sampled_from(MASTERS), peer=st.sampled_from(MASTERS))
    def engine_pulls(self, master, peer):
        self.engine_looks(master)
        news, place = self.books[peer].since(self.books[master].place(peer)[1], 2)
        wire = [ledger.from_wire(ledger.to_wire(one)) for one in news]
        self.books[master].learn(wire, peer)
        self.books[master].set_place(peer, self.books[peer].epoch, place)

    @rule(master=st.sampled_from(MASTERS), crash=st.booleans())
    def engine_applies(self, master, crash):
        self.engine_looks(master)
        book, store = self.books[master], self.stores[master]
        for minion in IDS:
            action = ledger.plan(minion, book.of(minion), store.get(minion), book.seen(minion))
            if crash and action.verb in ("accept", "reject"):
                # Salt removes a key before it writes the new state.
                store.pop(minion, None)
                return
            self._apply(store, action)
            if crash:
                # Killed before it could note what it has done.
                return
            known = book.of(minion)
            book.note({minion: ledger.remembered(book.seen(minion), store.get(minion), known)})

    def _apply(self, store: dict[str, Key], action: Action) -> None:
        if action.verb in ("accept", "reject"):
            store[action.id] = Key(action.decision.verdict, action.decision.fingerprint)
        elif action.verb == "delete":
            del store[action.id]

    @rule(master=st.sampled_from(MASTERS))
    def master_restarts(self, master):
        self.books[master].close()
        self.books[master] = self._open(master)

    @rule(master=st.sampled_from(MASTERS))
    def master_loses_its_ledger(self, master):
        self.books[master].close()
        Path(self.directory.name, master).unlink()
        self.books[master] = book = self._open(master)
        assert book.fresh
        there = [
            (minion, key, f"PEM of {key.fingerprint}")
            for minion, key in self.stores[master].items()
        ]
        book.witness([entry for entry in there if entry[1].state in ledger.LIVE], master)

    @invariant()
    def nothing_is_accepted_that_nobody_accepted(self):
        for store in self.stores.values():
            for minion, key in store.items():
                assert key.state != "accepted" or (minion, key.fingerprint) in self.accepted

    def teardown(self):
        # Left alone, all masters come to say the same.
        for master in MASTERS:
            self.engine_looks(master)
        for _ in range(2):
            for master in MASTERS:
                for peer in MASTERS:
                    self.books[master].learn(self.books[peer].since(0, 100)[0], peer)
        digests = {book.digest for book in self.books.values()}
        assert len(digests) == 1
        for master in MASTERS:
            self.engine_applies(master, False)
        for minion in IDS:
            known = self.books["saltm1"].of(minion)
            live = [one for one in known.values() if one.verdict in ledger.LIVE]
            held = [one.fingerprint for one in known.values() if one.verdict in ledger.PROPOSED]
            for store in self.stores.values():
                found = store.get(minion)
                if not live and held:
                    assert not found or found.state == "pending" or found.fingerprint in held
                elif not live:
                    assert found is None or found.state == "pending"
                elif len(live) == 1 and not (found and found.state == "pending"):
                    assert found == Key(live[0].verdict, live[0].fingerprint)
        for book in self.books.values():
            book.close()
        self.directory.cleanup()


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def _rest(one: Decision) -> tuple[str, Stamp, str, str]:
    return one.verdict, one.stamp, one.origin, one.pub
