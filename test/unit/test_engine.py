"""The engine that keeps keys equal, over a real key store and real ledgers."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unit.odd_keys import NAMES as ODD
from unit.odd_keys import odd

# Salt's Key leaves the socket of its event bus, and that socket's loop, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ME, PEERS = "saltm2", ("saltm1", "saltm3")
PULL = "ledger_pull"
STORES = {"accepted": "minions", "pending": "minions_pre", "rejected": "minions_rejected"}


@pytest.fixture(scope="module")
def loader(loaded_host):
    """Salt's loader of engines, as the master ``saltm2`` has it."""
    import salt.config
    import salt.loader

    loaded_host.reset()
    modules = [str(loaded_host.extension_modules)]
    settings = {"root_dir": str(loaded_host.root), "id": ME, "module_dirs": modules}
    loaded_host.write("etc/salt/master", settings)
    opts = dict(salt.config.master_config(str(loaded_host.config_dir / "master")))
    opts |= {"__role": "master", "grains": loaded_host.runtime.opts["grains"]}
    opts["multimaster"] = {"masters": [{"id": name} for name in (*PEERS, ME)]}
    return salt.loader.engines(opts, {}, {}, salt.loader.utils(opts))


class Bus:
    """The master's event bus, with the events that a test puts there."""

    def __init__(self):
        self.events = []

    def put(self, tag, **data):
        self.events.append({"tag": tag, "data": data})

    def get_event(self, wait, full):
        assert full
        return self.events.pop(0) if self.events else None


class Courier:
    """Carries jobs at once, into a list that a test looks at, or fails to."""

    def __init__(self, asked):
        self.asked, self.error, self.jobs = asked, "", []

    def give(self, targets, function, arguments):
        import multimaster_peers

        self.asked.append((targets, function.partition(".")[2], arguments))
        jid = f"jid{len(self.asked)}"
        self.jobs.append(multimaster_peers.Sent(jid, time.monotonic(), self.error))
        return jid

    def sent(self):
        done, self.jobs = self.jobs, []
        return done


class Master:
    """A master that has the shared pair, its key store and its engine; and its peers."""

    def __init__(self, host, loader, shared, tmp_path):
        import multimaster_ledger

        self.host, self.loader, self.shared = host, loader, shared
        self.settings = loader["multimaster.start"].func.__globals__
        self.bus = Bus()
        self.asked, self.asked_at = [], {}
        host.write(f"etc/salt/pki/master/{ME}.pub", shared.pub)
        for directory in ("minions", "minions_pre", "minions_rejected", "minions_denied"):
            (host.pki / directory).mkdir()
        (host.root / "var/cache/salt/master").mkdir(parents=True)
        self.path = tmp_path / "ledger.db"
        self.books = {name: multimaster_ledger.Ledger(str(tmp_path / name)) for name in PEERS}
        self.start()

    def start(self):
        """Make the engine, as after a start of the master."""
        import multimaster_ledger

        self.book = multimaster_ledger.Ledger(str(self.path))
        self.engine = self.loader.run(self.settings["_Engine"], self.book, self.bus, list(PEERS))
        # There are no other masters here, and no running one that would carry a question.
        self.engine.courier = self.courier = Courier(self.asked)

    def restart(self):
        """Stop the master and start it."""
        self.book.close()
        self.start()

    def turn(self):
        """One turn of the engine, with all that is due."""
        for peer in self.engine.peers.values():
            # Not asked by the clock, but when a test has a peer wake this master.
            peer.due = 0.0 if peer._called else max(peer.due, time.monotonic() + 1000)
        self.engine.say_due = 0.0
        self.loader.run(self.engine.turn)

    def pull(self, peer, **lie):
        """Let a peer wake this master, and answer its question; the answer may be a lie."""
        self.bus.put("multimaster/wake", origin=peer)
        self.engine.peers[peer]._asked = 0.0
        self.turn()
        # The others may have been woken since, as time allows.
        arguments = next(
            given
            for names, function, given in reversed(self.asked)
            if (list(names), function) == ([peer], "ledger_pull")
        )
        reply = self.answer(peer, *arguments, **lie)
        self.reply(peer, reply)
        self.turn()

    def reply(self, peer, reply):
        """Put a peer's answer to its open question on the bus."""
        jid = self.engine.peers[peer].open.jid
        self.bus.put(f"salt/job/{jid}/ret/{peer}", **{"return": reply})

    def answer(
        self, origin, asker, nonce, epoch, place, digest, /, *, limit=1000, pem=None, **changed
    ):
        """What a peer answers: its real ledger, signed."""
        import multimaster_keypair
        import multimaster_ledger

        book = self.books[origin]
        before = book.mark(place) if epoch == book.epoch else ""
        decisions, end = book.since(place if epoch == book.epoch else 0, limit)
        answer = {
            "origin": origin,
            "asker": asker,
            "epoch": book.epoch,
            "place": end,
            "end": book.end,
            "digest": book.digest,
            "before": before,
            "mark": book.mark(end),
            "decisions": multimaster_ledger.pack(decisions),
        } | changed
        pem = pem or self.shared.pem
        signature = multimaster_keypair.sign_answer(answer, nonce, pem)
        return {"answer": answer, "signature": signature}

    def again(self):
        """Let everything be due that was set aside, and a look at all keys."""
        self.engine.aside = {
            item: aside._replace(due=0.0) for item, aside in self.engine.aside.items()
        }
        self.engine.came = {name: (tries, 0.0) for name, (tries, _) in self.engine.came.items()}
        self.engine.look_due = 0.0

    def put(self, name, state, pub):
        """What an administrator, or a minion that asks, leaves in the key store."""
        for directory in STORES.values():
            (self.host.pki / directory / name).unlink(missing_ok=True)
        if state:
            (self.host.pki / STORES[state] / name).write_text(pub)

    def has(self, name):
        """What the key store says of an id."""
        found = [s for s, where in STORES.items() if (self.host.pki / where / name).exists()]
        return "+".join(found) or None

    def verdicts(self, name):
        return [decision.verdict for decision in self.book.of(name).values()]

    def rotated(self):
        """Whether this master was asked for a new AES key since the last time."""
        flag = self.host.root / "var/cache/salt/master/.dfn"
        # It heeds no other request, and none that comes as long as that is there.
        asked = flag.exists() and flag.read_text() == ME
        flag.unlink(missing_ok=True)
        return asked


@pytest.fixture
def master(host, loader, shared, tmp_path):
    made = Master(host, loader, shared, tmp_path)
    yield made
    for book in (made.book, *made.books.values()):
        book.close()


@pytest.fixture
def decide(minion_keys):
    """Have a peer decide on the key of web1, or on another one."""
    import multimaster_keypair

    def decide(master, peer, verdict, name="web1", pub=None):
        pub = minion_keys["web1"].pub if pub is None else pub
        fingerprint = multimaster_keypair.fingerprint(pub)
        text = "" if verdict.startswith("deleted") else pub
        master.books[peer].decide(name, fingerprint, verdict, peer, text, "here")

    return decide


# What is decided here


def test_what_was_there_before_the_ledger_is_nobodys_news_but_reaches_the_peers(
    master, minion_keys
):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.put("web2", "pending", minion_keys["web1"].pub)
    # An event that was on the bus when the engine started.
    master.bus.put("salt/auth", id="web1", act="accept")
    master.turn()
    (known,) = master.book.of("web1").values()
    assert (known.verdict, known.stamp) == ("accepted", (0, 0))
    assert master.verdicts("web2") == []
    assert (list(PEERS), "ledger_wake", [ME]) in [(list(t), f, a) for t, f, a in master.asked]


@pytest.mark.parametrize("told", [True, False], ids=["event", "no event"])
@pytest.mark.parametrize(
    ("before", "after", "act", "verdict"),
    [
        ("pending", "accepted", "accepted", "accepted"),
        ("pending", "rejected", "rejected", "rejected"),
        ("accepted", "rejected", "rejected", "rejected"),
        ("accepted", None, "delete", "deleted"),
        ("accepted", "pending", "delete", "deleted"),
        ("rejected", "accepted", "accepted", "accepted"),
    ],
)
def test_a_decision_here_is_recorded_once_and_the_peers_are_woken(
    master, minion_keys, told, before, after, act, verdict
):
    pub = minion_keys["web1"].pub
    master.put("web1", before, pub)
    master.turn()
    master.asked.clear()
    master.put("web1", after, pub)
    if told:
        master.bus.put("salt/key", id="web1", act=act, result=True)
    else:
        master.engine.look_due = 0.0
    master.turn()
    assert master.verdicts("web1") == [verdict]
    assert [function for _, function, _ in master.asked] == ["ledger_wake"]
    master.asked.clear()
    digest = master.book.digest
    master.bus.put("salt/key", id="web1", act=act, result=True)
    master.engine.look_due = 0.0
    master.turn()
    assert master.book.digest == digest
    assert master.asked == []


def test_many_decisions_wake_the_peers_now_and_then_and_after_the_last(master, minion_keys):
    master.turn()
    master.asked.clear()
    for number in range(3):
        master.put(f"web{number}", "accepted", minion_keys["web1"].pub)
        master.bus.put("salt/key", id=f"web{number}", act="accepted", result=True)
        if number:
            master.loader.run(master.engine.turn)
        else:
            master.turn()
    assert [function for _, function, _ in master.asked] == ["ledger_wake"]
    master.turn()
    assert [function for _, function, _ in master.asked] == ["ledger_wake"] * 2
    master.turn()
    assert len(master.asked) == 2


def test_a_decision_that_could_not_be_said_is_said_later(master, minion_keys, caplog):
    master.turn()
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.bus.put("salt/key", id="web1", act="accepted", result=True)
    master.courier.error = "the master is busy"
    master.turn()
    master.courier.error = ""
    master.asked.clear()
    master.turn()
    assert "the master is busy" in caplog.text
    # Not again and again: when it is due.
    assert master.asked == []
    master.turn()
    assert [function for _, function, _ in master.asked] == ["ledger_wake"]


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("how", ["another", "none"])
def test_a_key_store_that_lost_its_directory_gets_its_keys_back(
    master, minion_keys, caplog, running, how
):
    names = [f"web{number}" for number in range(30)]
    for name in names:
        master.put(name, "accepted", minion_keys["web1"].pub)
    master.turn()
    # As where the mount is gone, and Salt has made the directory that it lacks.
    (master.host.pki / "minions").rename(master.host.pki / "away")
    if how == "another":
        (master.host.pki / "minions").mkdir()
    if not running:
        master.restart()
    master.engine.look_due = 0.0
    master.turn()
    assert "30 of 30 keys are gone" in caplog.text
    assert {verdict for name in names for verdict in master.verdicts(name)} == {"accepted"}
    (master.host.pki / "minions").mkdir(exist_ok=True)
    # Not at the second look, either.
    master.again()
    master.turn()
    assert [master.has(name) for name in names] == ["accepted"] * 30
    assert {verdict for name in names for verdict in master.verdicts(name)} == {"accepted"}


def test_a_key_store_that_was_changed_for_another_one_gets_all_keys(master, minion_keys):
    names = [f"web{number}" for number in range(3)]
    for name in names:
        master.put(name, "accepted", minion_keys["web1"].pub)
    master.turn()
    for name in names:
        master.put(name, None, "")
    master.book.look_at("another key store")
    master.book.close()
    master.start()
    master.turn()
    assert [master.has(name) for name in names] == ["accepted"] * 3
    assert [master.verdicts(name) for name in names] == [["accepted"]] * 3


def test_events_that_name_no_minion_or_no_change_do_nothing(master, minion_keys):
    master.put("web1", "pending", minion_keys["web1"].pub)
    master.turn()
    digest = master.book.digest
    for name in ("web1", "../web1", "", None, 5, ["web1"]):
        master.bus.put("salt/key", id=name, act="accepted", result=True)
        master.bus.put("salt/key", id=name, act="delete", result=True)
        master.bus.put("salt/auth", id=name, act="accept")
        master.bus.put("salt/auth", id="saltm1", act=name)
        master.bus.put("multimaster/wake", origin=name)
    master.bus.events.append({"tag": "salt/key", "data": "no mapping"})
    master.turn()
    assert master.book.digest == digest
    assert master.has("web1") == "pending"


def test_what_is_no_key_is_passed_over(master, minion_keys):
    master.turn()
    (master.host.pki / "minions/empty").write_bytes(b"\n")
    os.mkfifo(master.host.pki / "minions/fifo")
    (master.host.pki / "minions/directory").mkdir()
    (master.host.pki / "minions/with\\backslash").write_text(minion_keys["web1"].pub)
    (master.host.pki / "minions/.hidden").write_text(minion_keys["web1"].pub)
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.engine.look_due = 0.0
    master.turn()
    assert list(master.book.ids()) == ["web1"]


# What is decided elsewhere


@pytest.mark.parametrize("before", [None, "pending", "accepted", "rejected"])
@pytest.mark.parametrize(
    ("verdict", "after"), [("accepted", "accepted"), ("rejected", "rejected"), ("deleted", None)]
)
def test_a_decision_elsewhere_holds_here(master, decide, minion_keys, before, verdict, after):
    master.put("web1", before, minion_keys["web1"].pub)
    master.turn()
    decide(master, "saltm1", verdict)
    master.pull("saltm1")
    # Who asks may go on asking.
    kept = "pending" if (before, verdict) == ("pending", "deleted") else after
    assert master.has("web1") == kept
    assert master.verdicts("web1") == [verdict]
    digest, files = master.book.digest, master.host.files()
    master.pull("saltm1")
    assert (master.book.digest, master.host.files()) == (digest, files)


@pytest.mark.parametrize("verdict", ["rejected", "deleted"])
def test_who_had_been_accepted_is_shut_out(master, decide, minion_keys, verdict):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.turn()
    assert not master.rotated()
    decide(master, "saltm1", verdict)
    master.pull("saltm1")
    assert master.rotated()


def test_a_key_gives_way_to_its_successor(master, decide, minion_keys, other):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.turn()
    decide(master, "saltm1", "deleted")
    decide(master, "saltm1", "accepted", pub=other.pub)
    master.pull("saltm1")
    assert (master.host.pki / "minions/web1").read_text() == other.pub
    assert master.rotated()


def test_another_key_under_the_same_id_is_left_and_named_once(
    master, decide, minion_keys, other, caplog
):
    master.put("web1", "accepted", other.pub)
    master.turn()
    decide(master, "saltm1", "accepted")
    for _ in range(2):
        master.pull("saltm1")
        master.pull("saltm3")
    assert (master.host.pki / "minions/web1").read_text() == other.pub
    assert caplog.text.count("Conflict over the key of web1") == 1
    assert master.book.conflicts() == ["web1"]


class Killed(BaseException):
    """The end of the engine."""


@pytest.mark.parametrize("ended", [True, False], ids=["engine ended", "disk full"])
def test_a_change_that_was_cut_off_is_completed_and_is_no_decision(
    master, decide, minion_keys, ended
):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.turn()
    decide(master, "saltm1", "rejected")

    def cut_off(actions):
        # As Salt does: first the old state goes.
        master.put("web1", None, "")
        raise Killed if ended else OSError("no space left")

    master.engine.store.reject = cut_off
    if ended:
        with pytest.raises(Killed):
            master.pull("saltm1")
        master.book.close()
        master.start()
    else:
        master.pull("saltm1")
        assert "no space left" in master.book.aside()["web1"]
        del master.engine.store.reject
        master.again()
    master.turn()
    assert master.book.aside() == {}
    assert master.has("web1") == "rejected"
    assert master.verdicts("web1") == ["rejected"]


# Where a master may be killed between a peer's answer and the end of the work: an object of the
# engine, a function of it, and whether that has been done by then.
POINTS = {
    "before it is recorded": ("book", "learn", False),
    "amid recording": ("book", "_put", True),
    "after it was recorded": ("book", "learn", True),
    "before it is applied": ("store", "{verb}", False),
    "amid applying": ("store", "_write", False),
    "before the key is in its place": ("os", "replace", False),
    "before Salt has renamed its file": ("os", "rename", False),
    "before the old key is gone": ("os", "unlink", False),
    "after it was applied": ("store", "{verb}", True),
    "after it was noted": ("book", "note", True),
    "after the place was kept": ("book", "set_place", True),
}
ALWAYS = [point for point in POINTS if "record" in point or "place was" in point]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("before", [None, "pending", "accepted", "rejected"])
@pytest.mark.parametrize(
    ("verdict", "after"), [("accepted", "accepted"), ("rejected", "rejected"), ("deleted", None)]
)
def test_a_master_that_is_killed_anywhere_completes_the_work_and_decides_nothing(
    master, decide, minion_keys, point, before, verdict, after
):
    master.put("web1", before, minion_keys["web1"].pub)
    master.turn()
    decide(master, "saltm1", verdict)
    place, function, done = POINTS[point]
    verb = {"accepted": "accept", "rejected": "reject", "deleted": "delete"}[verdict]
    master.book.close()
    child = os.fork()
    if not child:
        # An SQLite connection must not be carried across a fork.
        master.books["saltm1"] = type(master.book)(master.books["saltm1"].path)
        master.start()
        target = {"book": master.book, "store": master.engine.store, "os": os}[place]
        function = function.format(verb=verb)
        real = getattr(target, function)

        def killed(*args, **kwargs):
            if done:
                real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            master.turn()
            setattr(target, function, killed)
            master.pull("saltm1")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    kept = "pending" if (before, verdict) == ("pending", "deleted") else after
    if place == "book" or (place == "store" and "{" in POINTS[point][1]):
        # The others are on the way of some decisions only; noting and applying, if there is work.
        needless = point not in ALWAYS and before == kept
        assert os.WIFSIGNALED(status) != needless
    master.start()
    for _ in range(2):
        master.pull("saltm1")
        master.engine.look_due = 0.0
        master.turn()
    assert master.has("web1") == kept
    assert master.verdicts("web1") == [verdict]
    assert set(master.book.ids()) == {"web1"}
    assert master.book.digest == master.books["saltm1"].digest
    shut_out = before == "accepted" and verdict != "accepted"
    # Salt itself asks for a new AES key after any deletion.
    assert master.rotated() == shut_out or (before, verdict) == ("rejected", "deleted")


def killed(*args):
    raise Killed


def test_what_was_applied_and_not_noted_is_no_decision(master, decide, minion_keys):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.turn()
    decide(master, "saltm1", "deleted")
    digest = master.books["saltm1"].digest
    master.book.note = killed  # The end comes between the two.
    with pytest.raises(Killed):
        master.pull("saltm1")
    assert master.has("web1") is None
    master.book.close()
    master.start()
    master.turn()
    assert master.book.digest == digest


# Which answers are believed


@pytest.mark.parametrize(
    "lie",
    [
        "unsigned",
        "signed with another key",
        "changed afterwards",
        "another origin",
        "for another asker",
        "an old nonce",
        "more than an answer",
        "no decisions",
        "an error message",
    ],
)
def test_an_answer_is_refused_that_is(master, decide, other, lie, monkeypatch, caplog):
    decide(master, "saltm1", "accepted")
    honest = master.answer

    def answer(peer, asker, nonce, *rest):
        told = honest(peer, asker, nonce, *rest)
        return {
            "unsigned": {**told, "signature": ""},
            "signed with another key": honest(peer, asker, nonce, *rest, pem=other.pem),
            "changed afterwards": {**told, "answer": {**told["answer"], "end": 9}},
            "another origin": honest("saltm3", asker, nonce, *rest),
            "for another asker": honest(peer, "saltm9", nonce, *rest),
            "an old nonce": honest(peer, asker, "0" * 32, *rest),
            "more than an answer": {**told, "more": 1},
            "no decisions": honest(peer, asker, nonce, *rest, decisions="rubbish"),
            "an error message": "'multimaster.ledger_pull' is not available.",
        }[lie]

    monkeypatch.setattr(master, "answer", answer)
    master.pull("saltm1")
    assert master.has("web1") is None
    assert master.verdicts("web1") == []
    assert ("Refused the answer of saltm1: " in caplog.text) == (lie != "an error message")
    # The peer's own answer still counts when it comes.
    question = next(a for t, f, a in master.asked if (t, f) == (["saltm1"], "ledger_pull"))
    master.reply("saltm1", honest("saltm1", *question))
    master.turn()
    assert master.has("web1") == "accepted"


def test_an_answer_that_is_no_mapping_does_not_end_the_engine(master, decide):
    master.bus.put("multimaster/wake", origin="saltm1")
    master.turn()
    tag = f"salt/job/{master.engine.peers['saltm1'].open.jid}/ret/saltm1"
    for data in (None, "text", ["list"]):
        master.bus.events.append({"tag": tag, "data": data})
    master.turn()
    assert master.book.of("web1") == {}


@pytest.mark.parametrize("obstacle", ["a later schema", "a full disk"])
def test_a_ledger_that_cannot_be_opened_is_tried_again_with_a_pause(
    master, monkeypatch, caplog, obstacle
):
    pauses, tries = [], []

    def opener():
        tries.append(1)
        if len(tries) <= 3:
            raise OSError(obstacle) if obstacle == "a full disk" else ValueError(obstacle)
        return "open"

    monkeypatch.setattr(master.settings["time"], "sleep", pauses.append)
    assert master.settings["_patiently"](opener) == "open"
    assert pauses == [master.settings["PAUSE"]] * 3
    assert obstacle in caplog.text


def test_a_ledger_that_was_damaged_meanwhile_is_opened_anew(master, monkeypatch):
    def damaged():
        raise sqlite3.DatabaseError("database disk image is malformed")

    pauses = []
    monkeypatch.setattr(master.settings["time"], "sleep", pauses.append)
    with pytest.raises(sqlite3.DatabaseError):
        master.settings["_patiently"](damaged)
    assert pauses == [master.settings["PAUSE"]]


def test_an_answer_that_nobody_asked_for_is_not_read(master, decide):
    decide(master, "saltm1", "accepted")
    reply = master.answer("saltm1", ME, "0" * 32, "", 0, "")
    for jid in (None, "", "jid1"):
        master.bus.put(f"salt/job/{jid}/ret/saltm1", **{"return": reply})
    master.turn()
    assert master.verdicts("web1") == []


@pytest.mark.parametrize("name", ["../web1", "a/b", "", ".."], ids=repr)
def test_what_is_no_minion_id_is_refused_and_the_rest_taken(master, decide, name, caplog):
    decide(master, "saltm1", "accepted", name=name)
    decide(master, "saltm1", "accepted")
    master.pull("saltm1")
    assert master.host.accepted() == {"web1"}
    assert f"has a decision on {name!r}" in caplog.text


def test_a_key_that_is_not_the_one_it_is_said_to_be_is_refused(
    master, decide, other, minion_keys, caplog
):
    import multimaster_keypair

    wrong = multimaster_keypair.fingerprint(other.pub)
    pub = minion_keys["web1"].pub
    master.books["saltm1"].decide("web1", wrong, "accepted", "saltm1", pub, "here")
    master.books["saltm1"].decide("web2", wrong, "accepted", "saltm1", "no key", "here")
    master.pull("saltm1")
    assert master.host.accepted() == set()
    assert caplog.text.count("that is none, or another one") == 2


# Who is asked, and when


def test_every_question_has_a_nonce_of_its_own_and_tells_how_far_it_has_read(master, decide):
    decide(master, "saltm1", "accepted")
    before = master.book.digest
    master.pull("saltm1")
    master.pull("saltm1")
    questions = [arguments for _, function, arguments in master.asked if function == "ledger_pull"]
    (_, first, *start), (_, second, *read) = questions
    assert first != second
    assert start == ["", 0, before]
    assert read == [master.books["saltm1"].epoch, 1, master.book.digest]


def test_a_long_ledger_is_read_in_pieces_at_once(master, decide):
    for number in range(5):
        decide(master, "saltm1", "accepted", name=f"web{number}")
    master.pull("saltm1", limit=2)
    assert master.host.accepted() == {"web0", "web1"}
    assert [function for _, function, _ in master.asked].count("ledger_pull") == 2
    assert master.asked[-1][2][2:4] == [master.books["saltm1"].epoch, 2]
    # Nobody else meanwhile.
    master.bus.put("multimaster/wake", origin="saltm3")
    master.engine.peers["saltm3"]._asked = 0.0
    master.turn()
    assert master.asked[-1][0] == ["saltm1"]
    reply_to_the_last(master, "saltm1")
    assert master.host.accepted() == {f"web{number}" for number in range(5)}
    master.turn()
    assert master.asked[-1][0] == ["saltm3"]


def test_of_two_peers_that_have_a_lot_to_say_one_is_heard_first(master, decide):
    for number in range(5):
        for peer in PEERS:
            decide(master, peer, "accepted", name=f"web{number}")
    for peer in PEERS:
        master.bus.put("multimaster/wake", origin=peer)
        master.engine.peers[peer].asked = 0.0
        master.turn()
    questions = [(names[0], question) for names, f, question in master.asked if f == PULL]
    assert [peer for peer, _ in questions] == list(PEERS)
    for peer, question in questions:
        master.reply(peer, master.answer(peer, *question, limit=2))
        master.loader.run(master.engine.turn)
    assert [names[0] for names, f, _ in master.asked if f == PULL] == [*PEERS, "saltm1"]
    reply_to_the_last(master, "saltm1")
    assert master.host.accepted() == {f"web{number}" for number in range(5)}
    master.engine.peers["saltm3"]._asked = 0.0
    master.turn()
    assert master.asked[-1][0] == ["saltm3"]


def locked(*args):
    raise sqlite3.OperationalError("database is locked")


def test_a_piece_that_could_not_be_taken_in_is_asked_for_again(master, decide):
    for number in range(4):
        decide(master, "saltm1", "accepted", name=f"web{number}")
    learn, master.book.learn = master.book.learn, locked
    with pytest.raises(sqlite3.OperationalError):
        master.pull("saltm1", limit=2)
    master.book.learn = learn
    # What was asked for ahead of time comes all the same.
    reply_to_the_last(master, "saltm1")
    master.pull("saltm1")
    assert master.host.accepted() == {f"web{number}" for number in range(4)}


def test_what_somebody_made_of_a_key_while_it_was_accepted_is_a_decision(
    master, decide, minion_keys
):
    master.turn()
    decide(master, "saltm1", "accepted")
    accept = master.engine.store.accept

    def overtaken(actions):
        accept(actions)
        master.put("web1", "rejected", minion_keys["web1"].pub)

    master.engine.store.accept = overtaken
    master.pull("saltm1")
    master.engine.look_due = 0.0
    master.turn()
    assert master.verdicts("web1") == ["rejected"]
    assert master.has("web1") == "rejected"


def reply_to_the_last(master, peer):
    """Answer the last question that a peer was asked."""
    question = next(a for t, f, a in reversed(master.asked) if (t, f) == ([peer], "ledger_pull"))
    master.reply(peer, master.answer(peer, *question))
    master.turn()


def test_a_peer_that_lost_its_ledger_is_read_from_the_start(master, decide, tmp_path):
    import multimaster_ledger

    decide(master, "saltm1", "accepted", name="web9")
    master.pull("saltm1")
    master.books["saltm1"].close()
    master.books["saltm1"] = multimaster_ledger.Ledger(str(tmp_path / "another"))
    decide(master, "saltm1", "accepted")
    master.pull("saltm1")
    assert master.host.accepted() == {"web9", "web1"}


def test_a_peer_that_has_no_ledger_yet_is_asked_again_soon(master, decide):
    decide(master, "saltm1", "accepted")
    master.pull("saltm1", epoch=None)
    assert master.host.accepted() == set()
    peer = master.engine.peers["saltm1"]
    assert peer.open is None
    assert not peer.silent
    assert peer.due - time.monotonic() < 3
    master.pull("saltm1")
    assert master.host.accepted() == {"web1"}


def test_a_peer_that_lacks_something_is_woken(master, decide, minion_keys):
    master.put("web2", "accepted", minion_keys["web1"].pub)
    master.turn()
    master.asked.clear()
    master.pull("saltm1")
    assert master.asked[-1] == (["saltm1"], "ledger_wake", [ME])


# What destroys much is proposed, and not done

BULK = [f"bulk{number}" for number in range(12)]
HELD, REFUSED, IF_AWAY = "deletion proposed", "rejection proposed", "deleted if away"


@pytest.fixture
def bulk(master, minion_keys):
    """A master with twelve accepted minions."""
    for name in BULK:
        master.put(name, "accepted", minion_keys["web1"].pub)
    master.turn()
    return master


def remove(master, names, after=None, told=True):
    """What ``salt-key -d`` or ``-r`` does, and Salt's events of it."""
    for name in names:
        pub = (master.host.pki / "minions" / name).read_text()
        master.put(name, after, pub)
        if told:
            act = "rejected" if after == "rejected" else "delete"
            master.bus.put("salt/key", id=name, act=act, result=True)


def look(master):
    """Have the engine look at all keys."""
    master.again()
    master.engine.scan_due = 0.0
    master.turn()


def said(master, names=BULK):
    return {verdict for name in names for verdict in master.verdicts(name)}


def settle(master, verb, *names):
    """What root leaves for the engine on this host."""
    wanted = [[n, print_] for n in names for print_ in master.book.of(n)]
    directory = master.host.root / "var/cache/salt/master/multimaster"
    directory.mkdir(exist_ok=True)
    (directory / "settle-1").write_text(json.dumps([verb, wanted]))
    master.bus.put("multimaster/wake", origin="")
    master.turn()
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("told", [True, False], ids=["events", "no events"])
@pytest.mark.parametrize(
    ("after", "verdict"), [(None, HELD), ("pending", HELD), ("rejected", REFUSED)]
)
def test_what_removes_many_is_proposed_as_a_whole_and_stays_done_here(bulk, told, after, verdict):
    remove(bulk, BULK, after, told)
    look(bulk)
    assert said(bulk) == {verdict}
    for _ in range(2):
        look(bulk)
        assert {bulk.has(name) for name in BULK} == {after}
        assert said(bulk) == {verdict}
        bulk.restart()


def test_a_few_go_at_once_until_they_are_many(bulk):
    remove(bulk, BULK[:5])
    bulk.turn()
    assert said(bulk, BULK[:5]) == {"deleted"}
    remove(bulk, BULK[5:6])
    bulk.turn()
    # Of the first five it is proposed as well: nobody can tell what they were a part of.
    assert said(bulk, BULK[:6]) == {HELD}
    assert {bulk.has(name) for name in BULK[:6]} == {None}
    assert all(one.pub for name in BULK[:6] for one in bulk.book.of(name).values())


def test_a_long_deletion_costs_no_more_for_each_key_than_a_short_one(bulk, caplog, monkeypatch):
    asked = []
    real = bulk.engine._propose_after_all
    monkeypatch.setattr(bulk.engine, "_propose_after_all", lambda one: asked.append(real(one)))
    for name in BULK:
        remove(bulk, [name])
        bulk.turn()
    assert (len(asked), said(bulk)) == (5, {HELD})
    assert caplog.text.count("keys are removed here") == 1


def test_few_within_any_such_time_are_few(bulk, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(bulk.settings["time"], "monotonic", lambda: now[0])
    for name in BULK:
        remove(bulk, [name])
        bulk.loader.run(bulk.engine._notice, {(name, True)})
        now[0] += 13
    assert said(bulk) == {"deleted"}


def test_the_bound_is_declared(bulk):
    bulk.engine.at_once = 2
    remove(bulk, BULK[:3])
    bulk.turn()
    assert said(bulk, BULK[:3]) == {HELD}


@pytest.mark.parametrize("state", ["pending", "rejected"])
def test_keys_that_were_not_accepted_are_nobodys_loss(master, minion_keys, state):
    for name in BULK:
        master.put(name, state, minion_keys["web1"].pub)
    master.turn()
    for name in BULK:
        after = "rejected" if state == "pending" else None
        master.put(name, after, minion_keys["web1"].pub)
        master.bus.put("salt/key", id=name, act="delete", result=True)
    look(master)
    assert said(master) == {"rejected" if state == "pending" else "deleted"}


def test_a_deletion_that_is_noticed_amid_its_events_stays_done(bulk):
    # What the engine sees in the directory is ahead of what Salt has told.
    remove(bulk, BULK[:8])
    remove(bulk, BULK[8:], told=False)
    look(bulk)
    for name in BULK[8:]:
        bulk.bus.put("salt/key", id=name, act="delete", result=True)
    for _ in range(3):
        look(bulk)
    assert (said(bulk), {bulk.has(name) for name in BULK}) == ({HELD}, {None})


def test_an_engine_that_is_killed_amid_a_deletion_leaves_it_done(bulk, minion_keys):
    remove(bulk, BULK[:8])
    bulk.turn()
    bulk.bus.events.clear()
    remove(bulk, BULK[8:], told=False)
    bulk.restart()
    look(bulk)
    assert {bulk.has(name) for name in BULK} == {None}
    assert said(bulk, BULK[:8]) == {HELD}


def test_what_is_accepted_after_that_stays_accepted(bulk, minion_keys):
    remove(bulk, BULK, "pending")
    look(bulk)
    for name in BULK:
        bulk.put(name, "accepted", minion_keys["web1"].pub)
        bulk.bus.put("salt/key", id=name, act="accepted", result=True)
    look(bulk)
    look(bulk)
    assert (said(bulk), {bulk.has(name) for name in BULK}) == ({"accepted"}, {"accepted"})


def test_a_new_key_that_is_accepted_after_that_is_the_minions(bulk, other):
    remove(bulk, BULK)
    look(bulk)
    bulk.put(BULK[0], "accepted", other.pub)
    bulk.bus.put("salt/key", id=BULK[0], act="accepted", result=True)
    look(bulk)
    assert sorted(bulk.verdicts(BULK[0])) == ["accepted", "deleted"]


@pytest.fixture
def proposed(bulk, decide):
    """The same, and another master proposes to delete them."""
    for name in BULK:
        decide(bulk, "saltm1", HELD, name)
    bulk.pull("saltm1")
    return bulk


def test_what_another_master_proposes_changes_nothing_here(proposed):
    look(proposed)
    assert {proposed.has(name) for name in BULK} == {"accepted"}
    assert not proposed.rotated()


def test_what_is_proposed_comes_back_with_a_lost_directory_and_reaches_who_never_had_it(proposed):
    (proposed.host.pki / "minions").rename(proposed.host.pki / "away")
    (proposed.host.pki / "minions").mkdir()
    look(proposed)
    look(proposed)
    assert ({proposed.has(name) for name in BULK}, said(proposed)) == ({"accepted"}, {HELD})


def test_who_removes_here_what_is_proposed_has_it_removed_here(proposed):
    remove(proposed, BULK)
    look(proposed)
    proposed.restart()
    look(proposed)
    assert ({proposed.has(name) for name in BULK}, said(proposed)) == ({None}, {HELD})
    assert {one.origin for name in BULK for one in proposed.book.of(name).values()} == {"saltm1"}


@pytest.mark.parametrize(("verb", "verdict"), [("confirm", "deleted"), ("take_back", "accepted")])
def test_what_is_proposed_is_settled_by_one_word(proposed, verb, verdict):
    proposed.asked.clear()
    settle(proposed, verb, *BULK[:9])
    assert said(proposed, BULK[:9]) == {verdict}
    left = {"deleted": None, "accepted": "accepted"}[verdict]
    assert {proposed.has(name) for name in BULK[:9]} == {left}
    assert (said(proposed, BULK[9:]), proposed.has(BULK[9])) == ({HELD}, "accepted")
    assert proposed.asked[0][1] == "ledger_wake"


def test_a_deletion_elsewhere_is_not_undone_by_a_proposal_that_did_not_know_of_it(bulk, decide):
    # As on a master that was stopped while it was deleted there, and by somebody else here.
    for name in BULK:
        decide(bulk, "saltm1", "deleted", name)
    remove(bulk, BULK, told=False)
    bulk.restart()
    look(bulk)
    assert said(bulk) == {HELD}
    bulk.books["saltm1"].learn(bulk.book.since(0, 100)[0], ME)
    bulk.pull("saltm1")
    look(bulk)
    assert (said(bulk), {bulk.has(name) for name in BULK}) == ({"deleted"}, {None})
    assert bulk.books["saltm1"].digest == bulk.book.digest


def test_what_two_masters_have_removed_stays_so_on_both(bulk, decide):
    remove(bulk, BULK)
    look(bulk)
    for name in BULK:
        bulk.books["saltm3"].learn(bulk.book.of(name).values(), ME)
        # By its name it has the last word on the origin.
        (one,) = bulk.books["saltm3"].of(name).values()
        bulk.books["saltm3"].propose(name, one.fingerprint, HELD, "saltm3", "here")
    bulk.pull("saltm3")
    look(bulk)
    bulk.restart()
    look(bulk)
    assert {one.origin for name in BULK for one in bulk.book.of(name).values()} == {"saltm3"}
    assert (said(bulk), {bulk.has(name) for name in BULK}) == ({HELD}, {None})


def test_what_was_confirmed_is_not_proposed_again_with_what_comes_next(bulk):
    remove(bulk, BULK[:6])
    look(bulk)
    settle(bulk, "confirm", *BULK[:6])
    remove(bulk, BULK[6:7])
    look(bulk)
    assert said(bulk, BULK[:7]) == {"deleted"}


@pytest.mark.parametrize("after", [None, "rejected"])
def test_what_was_removed_here_is_taken_back_here_too(bulk, after):
    remove(bulk, BULK, after)
    look(bulk)
    settle(bulk, "take_back", *BULK)
    look(bulk)
    assert (said(bulk), {bulk.has(name) for name in BULK}) == ({"accepted"}, {"accepted"})


@pytest.mark.parametrize("content", ["", "[]", '["confirm", 5]', '["confirm", [["web1"]]]'])
def test_a_word_that_is_none_settles_nothing_and_is_told_once(proposed, content):
    directory = proposed.host.root / "var/cache/salt/master/multimaster"
    directory.mkdir(exist_ok=True)
    (directory / "settle-1").write_text(content)
    look(proposed)
    assert (said(proposed), list(directory.iterdir())) == ({HELD}, [])


# The masters' hosts


@pytest.mark.parametrize("told", [True, False], ids=["events", "no events"])
@pytest.mark.parametrize("after", [None, "pending", "rejected"])
def test_the_key_of_a_masters_host_comes_back_and_goes_when_that_is_confirmed(
    master, minion_keys, told, after
):
    for name in (ME, *PEERS):
        master.put(name, "accepted", minion_keys["web1"].pub)
    master.turn()
    remove(master, (ME, *PEERS), after, told)
    look(master)
    assert {master.has(name) for name in (ME, *PEERS)} == {"accepted"}
    verdict = REFUSED if after == "rejected" else HELD
    assert said(master, (ME, *PEERS)) == {verdict}
    settle(master, "confirm", "saltm3")
    assert [master.has("saltm3"), master.has("saltm1")] == [
        "rejected" if after == "rejected" else None,
        "accepted",
    ]


def test_the_key_of_a_masters_host_is_replaced_by_accepting_another_one(master, minion_keys, other):
    master.put("saltm3", "accepted", minion_keys["web1"].pub)
    master.turn()
    master.put("saltm3", "accepted", other.pub)
    master.bus.put("salt/key", id="saltm3", act="accepted", result=True)
    look(master)
    assert sorted(master.verdicts("saltm3")) == ["accepted", "deleted"]


def test_masters_that_lost_each_others_keys_find_each_other_again(master, minion_keys, shared):
    for name in (ME, *PEERS, "web1"):
        master.put(name, "accepted", minion_keys["web1"].pub)
    master.host.write(f"etc/salt/pki/master/{ME}.pem", shared.pem)
    master.turn()
    master.asked.clear()
    # Its ledger lacks them.
    master.pull("saltm1")
    (names, function, (origin, word)) = master.asked[-1]
    assert (names, function, origin) == (["saltm1"], "ledger_wake", ME)
    for name in (ME, *PEERS, "web1"):
        master.put(name, None, "")
    master.path.unlink()
    master.restart()
    look(master)
    master.bus.put("multimaster/wake", origin="saltm1", word=word)
    master.turn()
    # Of the masters' hosts alone: who says it may have it from somebody else.
    assert {name: master.has(name) for name in (ME, *PEERS)} == dict.fromkeys(
        (ME, *PEERS), "accepted"
    )
    assert master.has("web1") is None


def test_a_master_is_told_of_a_masters_host_whose_removal_is_proposed_too(
    master, minion_keys, shared
):
    master.put("saltm3", "accepted", minion_keys["web1"].pub)
    master.host.write(f"etc/salt/pki/master/{ME}.pem", shared.pem)
    master.turn()
    remove(master, ["saltm3"])
    master.turn()
    word = master.loader.run(master.engine._word)
    master.put("saltm3", None, "")
    master.path.unlink()
    master.restart()
    look(master)
    master.bus.put("multimaster/wake", origin="saltm1", word=word)
    master.turn()
    assert (master.has("saltm3"), master.verdicts("saltm3")) == ("accepted", [HELD])


def test_a_word_on_the_masters_hosts_that_is_not_signed_or_older_changes_nothing(
    master, minion_keys, shared, other
):
    master.put("saltm3", "accepted", minion_keys["web1"].pub)
    master.host.write(f"etc/salt/pki/master/{ME}.pem", shared.pem)
    master.turn()
    word = master.loader.run(master.engine._word)
    settle_by = {"origin": "saltm1", "word": word}
    remove(master, ["saltm3"])
    master.turn()
    settle(master, "confirm", "saltm3")
    master.bus.put("multimaster/wake", **settle_by)
    for wrong in (5, {}, {**word, "signature": "x"}, {**word, "answer": {"decisions": "x"}}):
        master.bus.put("multimaster/wake", origin="saltm1", word=wrong)
    master.turn()
    assert (master.has("saltm3"), master.verdicts("saltm3")) == (None, ["deleted"])
    master.bus.events.append({"tag": "multimaster/wake", "data": "no mapping"})
    while master.bus.events:
        master.turn()
    # What anybody can send is nothing for the status to tell of.
    assert master.engine.aside == {}


# An old copy of the key store


def age(master, name, seconds=3600, state="accepted"):
    """Make a key as old as one from a backup."""
    path = master.host.pki / STORES[state] / name
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_key_store_that_went_back_in_time_is_brought_up_to_the_ledger(
    master, minion_keys, decide, other
):
    for name in ("deleted", "renewed", "refused", "same"):
        master.put(name, "accepted", minion_keys["web1"].pub)
    master.turn()
    decide(master, "saltm1", "deleted", "deleted")
    decide(master, "saltm1", "deleted", "renewed")
    decide(master, "saltm1", "accepted", "renewed", other.pub)
    decide(master, "saltm1", "rejected", "refused")
    for number in range(3):
        decide(master, "saltm1", "accepted", f"later{number}")
    master.pull("saltm1")
    look(master)
    digest = master.book.digest
    # What was there, with the times that it had.
    for name in ("deleted", "renewed", "refused", "same"):
        master.put(name, "accepted", minion_keys["web1"].pub)
        age(master, name)
    for number in range(3):
        master.put(f"later{number}", None, "")
    master.restart()
    look(master)
    look(master)
    assert master.book.digest == digest
    assert master.has("deleted") is None
    assert (master.host.pki / "minions/renewed").read_text() == other.pub
    assert (master.has("refused"), master.has("same")) == ("rejected", "accepted")
    assert [master.has(f"later{number}") for number in range(3)] == ["accepted"] * 3


def test_a_key_store_whose_directory_is_older_than_it_was_has_lost_what_is_gone(
    master, minion_keys
):
    for name in ("web1", "web2"):
        master.put(name, "accepted", minion_keys["web1"].pub)
    master.turn()
    look(master)
    master.put("web2", None, "")
    then = time.time() - 3600
    os.utime(master.host.pki / "minions", (then, then))
    master.restart()
    look(master)
    assert (master.has("web2"), master.verdicts("web2")) == ("accepted", ["accepted"])


@pytest.mark.parametrize("after", [None, "rejected"], ids=["deleted", "rejected"])
def test_what_happens_to_a_key_while_the_engine_looks_is_not_undone(
    master, minion_keys, decide, monkeypatch, after
):
    """Salt deletes a key before it writes it in its new place: for a moment there is none."""
    decide(master, "saltm1", "accepted")
    master.pull("saltm1")
    compare = master.engine._compare_all

    def compare_and_remove(entries):
        compare(entries)
        monkeypatch.undo()
        master.put("web1", None, "")

    monkeypatch.setattr(master.engine, "_compare_all", compare_and_remove)
    look(master)
    assert master.has("web1") is None
    master.put("web1", after, minion_keys["web1"].pub)
    look(master)
    assert (master.has("web1"), master.verdicts("web1")) == (after, [after or "deleted"])


def test_who_accepts_a_deleted_key_on_a_stopped_master_decides(master, minion_keys, decide):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.turn()
    decide(master, "saltm1", "deleted")
    master.pull("saltm1")
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.restart()
    look(master)
    assert (master.has("web1"), master.verdicts("web1")) == ("accepted", ["accepted"])


# Minions that are there


def job(master, kind, name="web1", jid="20260101000000000000"):
    """Have Salt tell of a job: that it was given, or that a minion has answered."""
    if kind == "new":
        master.bus.put(f"salt/job/{jid}/new", minions=[name], fun="test.ping")
    else:
        master.bus.put(f"salt/job/{jid}/ret/{name}", **{"return": True, "id": name})
    master.turn()


@pytest.mark.parametrize(
    ("told", "verdict"),
    [([], "deleted"), (["new"], IF_AWAY), (["new", "ret"], "deleted"), (["ret", "new"], IF_AWAY)],
    ids=str,
)
def test_who_deletes_a_minion_that_does_not_answer_deletes_it_if_it_is_away(
    master, minion_keys, told, verdict
):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.turn()
    for kind in told:
        job(master, kind)
    remove(master, ["web1"])
    master.turn()
    assert master.verdicts("web1") == [verdict]


@pytest.fixture
def away(master, minion_keys, decide):
    """A minion that this master has heard of is deleted on another one, where it did not answer."""
    for name in ("web1", "saltm2"):
        master.put(name, "accepted", minion_keys[name].pub)
    master.turn()
    for name in ("web1", "saltm2"):
        job(master, "ret", name)
    decide(master, "saltm1", IF_AWAY)
    return master


def doubted(master):
    """The job by which web1 was asked whether it is there."""
    return master.engine.parked["web1"].job


def pinged(master):
    """Whom the engine has asked whether they are there."""
    return [list(names) for names, function, *_ in master.asked if function == "ping"]


def later(master):
    """Let all the time pass for which minions are waited for."""
    parked = master.engine.parked
    parked |= {name: one._replace(due=0.0) for name, one in parked.items()}
    master.turn()


def test_a_minion_that_answers_here_is_not_deleted_but_that_is_proposed(away):
    away.pull("saltm1")
    assert pinged(away) == [["saltm2", "web1"]]
    assert away.has("web1") == "accepted"
    job(away, "ret", jid=doubted(away))
    look(away)
    assert (away.has("web1"), away.verdicts("web1")) == ("accepted", [HELD])
    ((held, _),) = away.book.proposals()
    assert (held.origin, bool(held.pub)) == ("saltm1", True)
    assert not away.rotated()


def test_a_minion_that_does_not_answer_here_is_deleted_and_back_when_it_does(away):
    away.pull("saltm1")
    jid = doubted(away)
    job(away, "ret", "saltm2", jid)
    later(away)
    assert away.has("web1") is None
    job(away, "ret", jid=jid)
    assert (away.has("web1"), away.verdicts("web1")) == ("accepted", [HELD])


@pytest.mark.parametrize("took", [0.0, 100.0])
def test_it_is_waited_for_as_long_as_follows_from_how_long_the_others_take(away, took):
    away.pull("saltm1")
    asked = away.engine.parked["web1"].asked - took
    away.engine.parked["web1"] = away.engine.parked["web1"]._replace(asked=asked)
    job(away, "ret", "saltm2", doubted(away))
    left = away.engine.parked["web1"].due - time.monotonic()
    assert left == pytest.approx(4 * took or away.settings["PATIENCE"], abs=5)
    assert away.has("web1") == "accepted"


def test_where_nobody_answers_it_is_asked_again_and_the_deletion_then_only_proposed(away):
    away.pull("saltm1")
    for _ in range(2):
        later(away)
        assert (away.has("web1"), away.verdicts("web1")) == ("accepted", [IF_AWAY])
    assert pinged(away) == [["saltm2", "web1"]] * 3
    later(away)
    assert (away.has("web1"), away.verdicts("web1")) == ("accepted", [HELD])


def test_somebody_elses_answer_and_that_to_another_question_say_nothing(away):
    away.pull("saltm1")
    job(away, "ret", "saltm2", doubted(away))
    job(away, "ret", "web1", "another")
    later(away)
    assert (away.has("web1"), away.verdicts("web1")) == (None, [IF_AWAY])


def test_whom_this_master_has_never_heard_of_is_deleted_at_once(master, minion_keys, decide):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.turn()
    decide(master, "saltm1", IF_AWAY)
    master.pull("saltm1")
    assert master.has("web1") is None


def test_what_is_confirmed_is_not_asked_about_again(away, decide):
    away.pull("saltm1")
    job(away, "ret", jid=doubted(away))
    settle(away, "confirm", "web1")
    assert (away.has("web1"), away.verdicts("web1")) == (None, ["deleted"])


def test_where_it_was_deleted_it_stays_so_though_it_answers_elsewhere(master, minion_keys, decide):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.turn()
    job(master, "new")
    remove(master, ["web1"])
    master.turn()
    import multimaster_keypair

    pub = minion_keys["web1"].pub
    arguments = [multimaster_keypair.fingerprint(pub), HELD, ME, pub, "it answers"]
    master.books["saltm1"].learn(master.book.since(0, 10)[0], ME)
    master.books["saltm1"].decide("web1", *arguments)
    master.pull("saltm1")
    look(master)
    assert (master.has("web1"), master.verdicts("web1")) == (None, [HELD])


def test_a_silent_peer_is_asked_less_and_less_and_complained_of_once(master, monkeypatch, caplog):
    now = [1000.0]
    monkeypatch.setattr(master.settings["time"], "monotonic", lambda: now[0])
    peer = master.engine.peers["saltm1"]
    master.engine.peers = {"saltm1": peer}
    peer.due = 0.0
    asked = []
    for _ in range(2000):
        before = len(master.asked)
        master.loader.run(master.engine.turn)
        if len(master.asked) > before:
            asked.append(now[0])
        now[0] += 0.5
    pauses = [later - sooner for sooner, later in itertools.pairwise(asked)]
    # The clock of this test goes on by half a second.
    assert pauses[:5] == pytest.approx([5, 10, 20, 40, 80], abs=1)
    assert pauses[5:] == pytest.approx([120] * len(pauses[5:]), abs=1)
    assert len(pauses) > 8
    assert caplog.text.count("saltm1 does not answer") == 1


def test_one_who_keeps_waking_this_master_for_nothing_is_heeded_less(master, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(master.settings["time"], "monotonic", lambda: now[0])
    for _ in range(100):
        master.bus.put("multimaster/wake", origin="saltm1")
        master.loader.run(master.engine.turn)
        peer = master.engine.peers["saltm1"]
        if peer.open:
            reply = master.answer("saltm1", *master.asked[-1][2])
            if master.asked[-1][1] == "ledger_pull" and master.asked[-1][0] == ["saltm1"]:
                master.reply("saltm1", reply)
        now[0] += 0.1
    questions = [a for a in master.asked if a[0] == ["saltm1"] and a[1] == "ledger_pull"]
    assert len(questions) < 10


def test_a_peer_whose_minion_signs_in_is_asked(master):
    master.turn()
    master.engine.peers["saltm3"]._asked = 0.0
    master.bus.put("salt/auth", id="saltm3", act="accept")
    master.turn()
    assert master.asked[-1][:2] == (["saltm3"], "ledger_pull")


def test_somebody_may_ask_to_look_at_everything_again(master, minion_keys):
    import multimaster_peers

    master.turn()
    path = master.host.pki / "minions/web1"
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.engine.snapshot = master.loader.run(master.engine.store.snapshot)
    # Unchanged as far as its name and its time go.
    master.bus.put("multimaster/wake", origin="")
    master.turn()
    # Any minion can say so.
    assert master.verdicts("web1") == []
    Path(master.engine.demand).parent.mkdir(exist_ok=True)
    multimaster_peers.demand(master.engine.demand)
    master.bus.put("multimaster/wake", origin="")
    master.turn()
    master.turn()
    assert os.path.exists(path)
    assert master.verdicts("web1") == ["accepted"]
    # Once.
    assert not os.path.exists(master.engine.demand)


def test_a_tag_that_is_no_text_costs_nobody_a_turn(master, monkeypatch, clock):
    def odd(wait, full):
        if odd.left:
            odd.left -= 1
            return b"\xff".decode()
        return Bus.get_event(master.bus, wait, full)

    odd.left = 5
    monkeypatch.setattr(master.bus, "get_event", odd)
    monkeypatch.setattr(master.settings["time"], "sleep", lambda _: pytest.fail("a pause"))
    master.bus.put("salt/key", id="web1", act="accept")
    master.turn()
    assert not master.bus.events


# Late answers, and questions that were lost


@pytest.fixture
def clock(master, monkeypatch):
    """A clock that goes on only when a test says so; saltm1 is the only peer."""
    now = [1000.0]
    monkeypatch.setattr(master.settings["time"], "monotonic", lambda: now[0])
    master.engine.peers = {"saltm1": master.engine.peers["saltm1"]}
    master.engine.peers["saltm1"].due = 0.0
    return now


def run(master, now, seconds=0.0):
    """Let time go by, in which whatever is due is done; a turn takes no time."""
    over = now[0] + seconds
    while True:
        for _ in range(3):
            master.loader.run(master.engine.turn)
        if now[0] >= over:
            return
        now[0] = min(over, now[0] + 0.5)


def questions(master):
    """Return the questions that saltm1 was asked: the job, and the arguments."""
    return [
        (f"jid{number}", arguments)
        for number, (targets, function, arguments) in enumerate(master.asked, 1)
        if (targets, function) == (["saltm1"], PULL)
    ]


def test_a_late_answer_counts_and_what_comes_then_puts_nothing_back(master, decide, clock):
    for number in range(4):
        decide(master, "saltm1", "accepted", name=f"web{number}")
    run(master, clock, 20)
    (first, one), (second, two), (third, three) = questions(master)
    late = master.answer("saltm1", *one, limit=2)
    master.bus.put(f"salt/job/{first}/ret/saltm1", **{"return": late})
    run(master, clock)
    assert master.host.accepted() == {"web0", "web1"}
    assert master.book.place("saltm1") == (master.books["saltm1"].epoch, 2)
    # The last question is still open.
    reply = master.answer("saltm1", *three)
    master.bus.put(f"salt/job/{third}/ret/saltm1", **{"return": reply})
    run(master, clock)
    assert master.host.accepted() == {f"web{number}" for number in range(4)}
    end = master.book.place("saltm1")
    assert end == (master.books["saltm1"].epoch, 4)
    digest, asked = master.book.digest, len(master.asked)
    late = master.answer("saltm1", *two, limit=1)
    for _ in range(2):
        master.bus.put(f"salt/job/{second}/ret/saltm1", **{"return": late})
        run(master, clock)
    assert (master.book.place("saltm1"), master.book.digest) == (end, digest)
    assert len(master.asked) == asked


def put_back(master, peer, copy):
    """Have a peer go on with a copy of its ledger, as from a backup."""
    import multimaster_ledger

    book = master.books[peer]
    with sqlite3.connect(copy) as source:
        source.backup(book._db)
    source.close()
    assert isinstance(book, multimaster_ledger.Ledger)


@pytest.mark.parametrize("later", [1, 3, 9])
def test_a_ledger_that_was_put_back_from_a_copy_is_read_again(
    master, decide, clock, tmp_path, later
):
    copy = str(tmp_path / "copy")
    decide(master, "saltm1", "accepted", name="kept")
    with sqlite3.connect(copy) as target:
        master.books["saltm1"]._db.backup(target)
    target.close()
    for name in ("lost1", "lost2", "lost3"):
        decide(master, "saltm1", "accepted", name=name)
    decide(master, "saltm1", "deleted", name="kept")
    master.pull("saltm1")
    assert master.verdicts("kept") == ["deleted"]
    put_back(master, "saltm1", copy)
    # Fewer than there were, about as many, and more.
    new = {f"new{number}" for number in range(later)}
    for name in new:
        decide(master, "saltm1", "accepted", name=name)
    for _ in range(2):
        master.pull("saltm1")
    assert master.host.accepted() == {"lost1", "lost2", "lost3", *new}
    # What was decided before does not come back.
    assert master.verdicts("kept") == ["deleted"]
    asked = len(master.asked)
    master.pull("saltm1")
    # And only once.
    assert len([a for a in master.asked[asked:] if a[1] == PULL and a[2][3] == 0]) == 0
    assert master.book.place("saltm1") == (
        master.books["saltm1"].epoch,
        master.books["saltm1"].end,
    )


def test_an_older_release_says_nothing_of_where_its_ledger_was_read_from(master, decide):
    decide(master, "saltm1", "accepted", name="web1")
    old = {"before": None, "mark": None}
    book = master.books["saltm1"]
    for name in ("web2", "web3"):
        decide(master, "saltm1", "accepted", name=name)
        master.bus.put("multimaster/wake", origin="saltm1")
        master.engine.peers["saltm1"]._asked = 0.0
        master.turn()
        reply = master.answer("saltm1", *master.asked[-1][2], **old)
        for part in old:
            del reply["answer"][part]
        reply = signed(master, reply["answer"], master.asked[-1][2][1])
        master.reply("saltm1", reply)
        master.turn()
    assert master.host.accepted() == {"web1", "web2", "web3"}
    assert master.book.place("saltm1") == (book.epoch, book.end)


def signed(master, answer, nonce):
    import multimaster_keypair

    signature = multimaster_keypair.sign_answer(answer, nonce, master.shared.pem)
    return {"answer": answer, "signature": signature}


def test_an_answer_that_takes_half_a_minute_is_read_to_the_end(master, decide, clock, caplog):
    for number in range(6):
        decide(master, "saltm1", "accepted", name=f"web{number}")
    replied = set()
    for _ in range(400):
        for jid, question in questions(master):
            asked = master.asked_at.setdefault(jid, clock[0])
            if jid not in replied and clock[0] >= asked + 30:
                replied.add(jid)
                reply = master.answer("saltm1", *question, limit=2)
                master.bus.put(f"salt/job/{jid}/ret/saltm1", **{"return": reply})
        run(master, clock, 0.5)
    assert master.host.accepted() == {f"web{number}" for number in range(6)}
    # While its answers were still expected sooner.
    assert len(questions(master)) < 10
    assert caplog.text.count("saltm1 does not answer") <= 1


def test_an_answer_that_comes_before_the_job_is_said_to_be_given_counts(master, decide, clock):
    decide(master, "saltm1", "accepted")
    give, master.courier.sent = master.courier.sent, list
    run(master, clock)
    ((jid, question),) = questions(master)
    reply = master.answer("saltm1", *question)
    master.bus.put(f"salt/job/{jid}/ret/saltm1", **{"return": reply})
    run(master, clock)
    assert master.has("web1") == "accepted"
    master.courier.sent = give
    run(master, clock, 30)
    assert len(questions(master)) == 1


def test_a_wake_while_a_question_is_lost_is_heeded_as_soon_as_that_is_given_up(master, clock):
    run(master, clock, 1)
    master.bus.put("multimaster/wake", origin="saltm1")
    run(master, clock, 3.5)
    assert len(questions(master)) == 1
    run(master, clock, 1)
    assert len(questions(master)) == 2


@pytest.mark.parametrize(
    ("tag", "data"),
    [
        ("salt/minion/saltm1/start", {}),
        ("minion_start", {"id": "saltm1"}),
        ("salt/auth", {"id": "saltm1", "act": "accept"}),
    ],
)
def test_a_peer_whose_minion_has_started_is_asked_though_a_question_is_open(
    master, clock, tag, data
):
    run(master, clock, 1)
    assert len(questions(master)) == 1
    master.bus.put(tag, **data)
    run(master, clock)
    assert len(questions(master)) == 2


@pytest.mark.parametrize(
    ("tag", "data"),
    [
        ("salt/minion/saltm9/start", {"id": "saltm9"}),
        ("salt/minion/saltm1/started", {"id": "saltm1"}),
        ("salt/minion//start", {}),
        ("minion_start", {"id": ["saltm1"]}),
    ],
)
def test_somebody_else_who_has_started_is_nobody_to_ask(master, clock, tag, data):
    run(master, clock, 1)
    master.bus.put(tag, **data)
    run(master, clock, 1)
    assert len(questions(master)) == 1


# Keys that came from another master before this one started


@pytest.fixture
def seeded(master, minion_keys):
    """Give the master a key as the formula does, and its engine a start."""
    import json

    import multimaster_keypair

    path = master.host.root / "var/cache/salt/master/multimaster/seeds.json"

    def seeded(*names, source="saltm1", state="accepted"):
        pub = minion_keys["web1"].pub
        keys = dict.fromkeys(names, multimaster_keypair.fingerprint(pub))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"source": source, "keys": keys}))
        for name in names:
            master.put(name, state, pub)
        restart()
        return path

    def restart():
        master.book.close()
        master.start()
        master.turn()

    seeded.restart = restart
    return seeded


@pytest.fixture(params=["fresh", "known"])
def ledger_state(request, master):
    """A master without a ledger, and one that has one."""
    if request.param == "known":
        master.turn()
        master.book.completed()


@pytest.mark.usefixtures("ledger_state")
@pytest.mark.parametrize("state", ["accepted", "rejected"])
def test_a_seed_is_no_decision_and_is_told_to_nobody(master, seeded, state):
    path = seeded("web1", "web2", state=state)
    for _ in range(2):
        master.bus.put("salt/auth", id="web1", act="accept")
        master.engine.look_due = 0.0
        master.turn()
        assert list(master.book.ids()) == []
        assert master.has("web1") == state
        seeded.restart()
    assert path.exists()


@pytest.mark.usefixtures("ledger_state")
def test_a_key_that_was_deleted_before_its_masters_ledger_began_does_not_come_back(
    master, seeded, decide
):
    path = seeded("web1", "web2")
    master.rotated()
    decide(master, "saltm1", "accepted", name="web1")
    master.pull("saltm1")
    assert (master.has("web1"), master.has("web2")) == ("accepted", None)
    assert master.verdicts("web2") == []
    assert master.rotated()
    assert not path.exists()
    # A key like any other now: deleting it is news.
    master.put("web1", None, "")
    master.bus.put("salt/key", id="web1", act="delete", result=True)
    master.turn()
    assert master.verdicts("web1") == ["deleted"]


@pytest.mark.parametrize(
    ("peer", "lie"),
    [("saltm3", {}), ("saltm1", {"settled": False}), ("saltm1", {"end": 1000})],
    ids=["another master", "seeds of its own", "not to the end"],
)
def test_seeds_wait_for_the_end_of_the_ledger_that_they_should_be_in(
    master, seeded, decide, peer, lie
):
    path = seeded("web1", "web2")
    decide(master, peer, "accepted", name="web1")
    master.pull(peer, **lie)
    assert (master.has("web1"), master.has("web2")) == ("accepted", "accepted")
    assert path.exists()


def test_seeds_whose_origin_nobody_could_tell_wait_for_any_complete_ledger(master, seeded, decide):
    path = seeded("web1", "web2", source="")
    decide(master, "saltm3", "accepted", name="web1")
    master.pull("saltm3", settled=False)
    assert path.exists()
    master.pull("saltm3")
    assert (master.has("web1"), master.has("web2"), path.exists()) == ("accepted", None, False)


@pytest.mark.usefixtures("ledger_state")
def test_seeds_of_a_master_that_is_declared_no_more_are_this_ones_own(master, seeded):
    path = seeded("web1", source="saltm9")
    assert master.verdicts("web1") == ["accepted"]
    (known,) = master.book.of("web1").values()
    assert known.stamp == (0, 0)
    assert not path.exists()


def test_seeds_that_cannot_be_read_are_this_masters_own(master, seeded):
    path = seeded("web1")
    path.write_text("{")
    (master.path).unlink()
    seeded.restart()
    assert master.verdicts("web1") == ["accepted"]
    assert not path.exists()


@pytest.mark.parametrize("at", ["running", "stopped"])
@pytest.mark.parametrize(
    ("after", "act", "verdict"),
    [("rejected", "rejected", "rejected"), (None, "delete", "deleted")],
)
def test_what_somebody_decides_on_a_seed_is_news_as_usual(
    master, seeded, decide, minion_keys, at, after, act, verdict
):
    seeded("web1")
    master.put("web1", after, minion_keys["web1"].pub)
    if at == "stopped":
        seeded.restart()
    else:
        master.bus.put("salt/key", id="web1", act=act, result=True)
        master.turn()
    assert master.verdicts("web1") == [verdict]
    decide(master, "saltm1", "accepted", name="web2")
    master.pull("saltm1")
    assert master.has("web1") == after


def test_a_seed_that_gave_way_to_a_successor_is_replaced(master, seeded, decide, other):
    seeded("web1")
    decide(master, "saltm1", "accepted", pub=other.pub)
    master.pull("saltm1")
    assert (master.host.pki / "minions/web1").read_text() == other.pub


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_master_that_is_killed_while_it_deletes_a_seed_decides_nothing(
    master, seeded, decide, point
):
    path = seeded("web1", "web2")
    decide(master, "saltm1", "accepted", name="web1")
    delete = master.engine.store.delete

    def cut_off(actions):
        if point == "after":
            master.loader.run(delete, actions)
        raise Killed

    master.engine.store.delete = cut_off
    with pytest.raises(Killed):
        master.pull("saltm1")
    assert path.exists()
    seeded.restart()
    assert master.verdicts("web2") == []
    master.pull("saltm1")
    assert (master.has("web2"), master.verdicts("web2"), path.exists()) == (None, [], False)


def test_a_ledger_is_complete_after_the_first_look_and_not_before(master):
    assert not master.book.complete
    master.turn()
    assert master.book.complete


# Whatever anybody says: one bad item stops nothing else


def odd_fingerprint(text):
    import multimaster_pubkey

    return multimaster_pubkey.of(text).fingerprint


def goes_on(master, decide, name="web9"):
    """Look at all keys and hear a peer, as if there were nothing else; and tell it to the end."""
    decide(master, "saltm1", "accepted", name=name)
    master.engine.look_due = 0.0
    master.pull("saltm1")
    assert master.has(name) == "accepted"
    assert master.book.place("saltm1") == (master.books["saltm1"].epoch, master.books["saltm1"].end)


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("state", STORES)
def test_a_key_that_is_odd_is_an_entry_all_the_same(master, decide, minion_keys, text, state):
    """Decisions on it are told, and its text is not."""
    raw = odd(minion_keys["web1"].pub)[text]
    master.turn()
    (master.host.pki / STORES[state] / "web1").write_bytes(raw)
    master.engine.look_due = 0.0
    master.turn()
    found = [(d.verdict, d.fingerprint, d.pub) for d in master.book.of("web1").values()]
    assert found == ([] if state == "pending" else [(state, odd_fingerprint(raw), "")])
    master.put("web1", None, "")
    (master.host.pki / "minions_rejected/web1").write_bytes(raw)
    master.engine.look_due = 0.0
    master.turn()
    found = [(d.verdict, d.fingerprint, d.pub) for d in master.book.of("web1").values()]
    assert found == [("rejected", odd_fingerprint(raw), "")]
    goes_on(master, decide)
    assert master.book.aside() == {}


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("here", ["accepted", "pending", "rejected"])
@pytest.mark.parametrize(
    ("verdict", "after"), [("accepted", "accepted"), ("rejected", "rejected"), ("deleted", None)]
)
def test_a_decision_on_an_odd_key_holds_for_the_text_that_is_here(
    master, minion_keys, text, here, verdict, after
):
    raw = odd(minion_keys["web1"].pub)[text]
    (master.host.pki / STORES[here] / "web1").write_bytes(raw)
    master.turn()
    master.books["saltm1"].decide("web1", odd_fingerprint(raw), verdict, "saltm1", "", "here")
    master.pull("saltm1")
    kept = "pending" if (here, verdict) == ("pending", "deleted") else after
    assert master.has("web1") == kept
    if kept:
        assert (master.host.pki / STORES[kept] / "web1").read_bytes() == raw
    assert master.rotated() or (here, verdict) != ("accepted", "rejected")
    assert master.book.digest == master.books["saltm1"].digest


def test_a_decision_without_a_text_waits_until_the_minion_brings_it(master, minion_keys):
    raw = odd(minion_keys["web1"].pub)["after END"]
    master.turn()
    master.books["saltm1"].decide("web1", odd_fingerprint(raw), "rejected", "saltm1", "", "here")
    master.pull("saltm1")
    assert master.has("web1") is None
    (master.host.pki / "minions_pre/web1").write_bytes(raw)
    master.engine.look_due = 0.0
    master.turn()
    assert master.has("web1") == "rejected"


def test_a_key_with_a_text_is_written_with_it_though_a_stranger_was_first(
    master, decide, minion_keys
):
    pub = minion_keys["web1"].pub
    (master.host.pki / "minions_pre/web1").write_text(f"{pub}\nmore")
    master.turn()
    decide(master, "saltm1", "accepted")
    master.pull("saltm1")
    assert master.has("web1") == "accepted"
    assert (master.host.pki / "minions/web1").read_text() == pub


def test_a_text_of_an_older_release_is_not_written_unless_it_is_the_keys_own(
    master, decide, minion_keys
):
    pub = minion_keys["web1"].pub
    decide(master, "saltm1", "accepted", pub=f"{pub}\nmore")
    decide(master, "saltm1", "accepted", name="web2", pub=f"\n{pub}\n")
    master.pull("saltm1")
    assert (master.has("web1"), master.verdicts("web1")) == (None, ["accepted"])
    assert (master.host.pki / "minions/web2").read_text() == pub


@pytest.mark.parametrize("verdict", ["accepted", "rejected"])
def test_a_pending_key_is_nobodys_word(master, decide, other, minion_keys, verdict):
    master.put("web1", "pending", other.pub)
    master.turn()
    decide(master, "saltm1", verdict)
    master.pull("saltm1")
    assert master.has("web1") == verdict
    assert (master.host.pki / STORES[verdict] / "web1").read_text() == minion_keys["web1"].pub
    assert not master.rotated()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\udcff", "x" * 100_000, "../../web1"])
def test_an_event_about_what_is_no_id_takes_no_answer_along(master, decide, name):
    decide(master, "saltm1", "accepted")
    master.bus.put("multimaster/wake", origin="saltm1")
    master.turn()
    for act in ("accept", "full"):
        master.bus.put("salt/auth", id=name, act=act)
        master.bus.put("salt/key", id=name, act="delete")
    reply_to_the_last(master, "saltm1")
    assert master.has("web1") == "accepted"


@pytest.mark.parametrize("size", [252, 255])
@pytest.mark.parametrize("verdict", ["accepted", "rejected"])
def test_a_decision_on_the_longest_id_holds(master, decide, size, verdict):
    decide(master, "saltm1", verdict, name="x" * size)
    master.pull("saltm1")
    assert master.has("x" * size) == verdict
    goes_on(master, decide)
    assert not list(master.host.pki.glob("minions*/*new*"))


def test_what_was_left_of_a_write_that_was_cut_off_is_in_nobodys_way(master, decide, tmp_path):
    scratch = master.host.pki / "minions" / master.settings["SCRATCH"]
    scratch.symlink_to(tmp_path / "elsewhere")
    goes_on(master, decide)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("verdict", ["accepted", "rejected"])
def test_a_key_that_cannot_be_written_is_set_aside_and_tried_again(master, decide, verdict, caplog):
    master.turn()
    obstacle = master.host.pki / STORES[verdict] / "web1"
    obstacle.mkdir()
    decide(master, "saltm1", verdict)
    decide(master, "saltm1", verdict, name="web2")
    decide(master, "saltm1", "accepted", name="web3")
    master.pull("saltm1")
    assert (master.has("web2"), master.has("web3")) == (verdict, "accepted")
    assert list(master.book.aside()) == ["web1"]
    assert "directory" in master.book.aside()["web1"]
    goes_on(master, decide)
    # Not at every look, and said once.
    tries = master.engine.aside["web1"].tries
    master.engine.look_due = 0.0
    master.turn()
    assert master.engine.aside["web1"].tries == tries
    assert caplog.text.count("Set 'web1' aside") == 1
    obstacle.rmdir()
    master.again()
    master.turn()
    assert master.has("web1") == verdict
    assert master.book.aside() == {}


def test_what_fails_again_and_again_is_tried_less_and_less(master, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(master.settings["time"], "monotonic", lambda: now[0])
    pauses = []
    for _ in range(2000):
        master.engine._set_aside("web1", "no space")
        pauses.append(master.engine.aside["web1"].due - now[0])
    assert pauses[:4] == [5, 10, 20, 40]
    assert pauses[-1] == master.settings["LONGEST"]


def test_a_key_that_salt_does_not_delete_is_set_aside_and_the_others_are_deleted(
    master, decide, minion_keys, monkeypatch
):
    import salt.exceptions
    import salt.key

    for name in ("web1", "web2", "web3"):
        master.put(name, "accepted", minion_keys["web1"].pub)
    master.turn()
    for name in ("web1", "web2", "web3"):
        decide(master, "saltm1", "deleted", name=name)

    class Keys:
        def delete_key(self, match_dict):
            for name in match_dict["minions"]:
                if name == "web2":
                    raise salt.exceptions.SaltCacheError("read-only file system")
                if name != "web1":
                    master.put(name, None, "")

    monkeypatch.setattr(salt.key, "get_key", lambda opts: Keys())
    master.pull("saltm1")
    assert [master.has(f"web{number}") for number in (1, 2, 3)] == ["accepted", "accepted", None]
    assert set(master.book.aside()) == {"web1", "web2"}
    assert "read-only" in master.book.aside()["web2"]
    monkeypatch.undo()
    master.again()
    master.turn()
    assert (master.has("web1"), master.has("web2"), master.book.aside()) == (None, None, {})


def test_a_key_that_cannot_be_read_is_not_gone(master, decide, minion_keys, monkeypatch):
    for name in ("web1", "web2"):
        master.put(name, "accepted", minion_keys["web1"].pub)
    master.turn()
    opened = os.open

    def bad_disk(path, *args, **kwargs):
        if str(path).endswith("/web1"):
            raise OSError(5, "Input/output error")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", bad_disk)
    os.utime(master.host.pki / "minions/web1", (1, 1))
    master.bus.put("salt/key", id="web1", act="accepted")
    goes_on(master, decide)
    assert master.verdicts("web1") == ["accepted"]
    assert "Input/output error" in master.book.aside()["web1"]
    monkeypatch.undo()
    master.again()
    master.turn()
    assert (master.verdicts("web1"), master.book.aside()) == (["accepted"], {})


def test_a_directory_of_keys_that_cannot_be_read_is_not_empty(master, decide, minion_keys):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.turn()
    (master.host.pki / "minions").rename(master.host.pki / "kept")
    (master.host.pki / "minions").write_text("what a bad disk makes of it")
    decide(master, "saltm1", "rejected", name="web2")
    master.engine.look_due = 0.0
    master.pull("saltm1")
    assert master.verdicts("web1") == ["accepted"]
    assert master.has("web2") == "rejected"
    assert any("Not a directory" in reason for reason in master.book.aside().values())
    (master.host.pki / "minions").unlink()
    (master.host.pki / "kept").rename(master.host.pki / "minions")
    goes_on(master, decide)
    assert (master.verdicts("web1"), master.book.aside()) == (["accepted"], {})


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_a_file_that_salt_has_not_finished_is_nobodys_key(master, decide, minion_keys, when):
    leftover = master.host.pki / "minions/tmpab1_x9zq"
    if when == "later":
        master.turn()
    leftover.write_text(minion_keys["web1"].pub)
    for _ in range(2):
        master.engine.look_due = master.engine.scan_due = 0.0
        master.turn()
    assert master.verdicts(leftover.name) == []
    assert list(master.book.aside()) == [leftover.name]
    goes_on(master, decide)
    # A minion of that name is known by the event.
    master.bus.put("salt/key", id=leftover.name, act="accepted")
    master.turn()
    assert master.verdicts(leftover.name) == ["accepted"]
    leftover.unlink()
    master.again()
    master.turn()
    assert (master.verdicts(leftover.name), master.book.aside()) == (["deleted"], {})


def test_of_the_decisions_in_an_answer_one_that_is_none_stops_nothing(master, decide, caplog):
    import multimaster_ledger

    decide(master, "saltm1", "accepted")
    (good,), _ = master.books["saltm1"].since(0, 9)
    wire = multimaster_ledger.to_wire(good)
    bad = [None, [], wire[:-1], [*wire[:3], 1 << 80, *wire[4:]], ["\ud800", *wire[1:]]]
    master.pull("saltm1", decisions=multimaster_ledger.squeeze([*bad, wire]))
    assert master.has("web1") == "accepted"
    assert caplog.text.count("what is no decision") == len(bad)
    assert master.book.place("saltm1")[1] == 1


@pytest.mark.parametrize("on_disk", [True, False])
def test_an_accepted_id_that_begins_with_a_dot_is_named(
    master, minion_keys, monkeypatch, caplog, on_disk
):
    pub = minion_keys["web1"].pub
    for name, state in ((".evil", "accepted"), (".knocks", "pending"), (".out", "rejected")):
        master.put(name, state, pub)
    # Salt's, and what is no key at all.
    (master.host.pki / "minions/.key_cache").write_bytes(b"x")
    (master.host.pki / "minions/.gitkeep").touch()
    if not on_disk:
        found = {".evil": ("accepted", pub), ".knocks": ("pending", pub), "web2": ("accepted", pub)}
        listed = {name: {"state": state, "pub": text} for name, (state, text) in found.items()}
        monkeypatch.setattr(master.engine.store, "on_disk", False)
        monkeypatch.setattr(
            master.engine.store,
            "cache",
            SimpleNamespace(
                list_all=lambda *_, **__: listed,
                list=lambda *_: [],
                fetch=lambda bank, name: listed.get(name, {}),
            ),
        )
    for _ in range(2):
        master.again()
        master.engine.marks = None
        master.turn()
    assert list(master.book.aside()) == ["minions/.evil"]
    assert "begins with a dot" in master.book.aside()["minions/.evil"]
    assert caplog.text.count("begins with a dot") == 1
    assert list(master.book.of(".evil")) == []
    if on_disk:
        master.put(".evil", None, pub)
    else:
        del listed[".evil"]
    master.again()
    master.engine.marks = None
    master.turn()
    assert master.book.aside() == {}


def test_an_answer_that_comes_twice_is_taken_once(master, decide):
    decide(master, "saltm1", "accepted")
    master.bus.put("multimaster/wake", origin="saltm1")
    master.turn()
    question = master.asked[-1][2]
    for _ in range(2):
        master.reply("saltm1", master.answer("saltm1", *question))
    master.turn()
    assert master.has("web1") == "accepted"
    assert master.book.aside() == {}


def test_what_was_decided_here_just_now_is_later_than_what_an_answer_brings(
    master, decide, minion_keys
):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.turn()
    decide(master, "saltm1", "deleted")
    master.bus.put("multimaster/wake", origin="saltm1")
    master.turn()
    master.put("web1", "rejected", minion_keys["web1"].pub)
    master.bus.put("salt/key", id="web1", act="rejected")
    reply_to_the_last(master, "saltm1")
    assert (master.has("web1"), master.verdicts("web1")) == ("rejected", ["rejected"])


def test_a_seed_that_cannot_be_deleted_does_not_become_a_decision(
    master, seeded, decide, monkeypatch
):
    path = seeded("web1", "web2")
    decide(master, "saltm1", "accepted", name="web1")

    def read_only(actions):
        raise OSError("read-only file system")

    monkeypatch.setattr(master.engine.store, "delete", read_only)
    master.pull("saltm1")
    master.bus.put("salt/auth", id="web2", act="accept")
    master.turn()
    assert (master.has("web2"), master.verdicts("web2"), path.exists()) == ("accepted", [], True)
    assert "web2" in master.book.aside()
    monkeypatch.undo()
    master.pull("saltm1")
    assert (master.has("web2"), master.verdicts("web2"), path.exists()) == (None, [], False)


# Denied keys are a second list


def deny(master, name, pub):
    (master.host.pki / "minions_denied" / name).write_text(pub)


def denied(master):
    return {path.name for path in (master.host.pki / "minions_denied").iterdir()}


@pytest.mark.parametrize("state", STORES)
def test_a_denied_key_is_no_state(master, minion_keys, other, state):
    master.put("web1", state, minion_keys["web1"].pub)
    deny(master, "web1", other.pub)
    deny(master, "web2", other.pub)
    master.turn()
    assert master.verdicts("web1") == ([] if state == "pending" else [state])
    assert master.verdicts("web2") == []
    # Somebody tries to get in under a name that has a key: that is worth knowing.
    assert denied(master) == {"web1", "web2"}


def test_a_reinstalled_minion_leaves_no_denied_key_on_a_master_where_it_was_not_decided_on(
    master, decide, minion_keys, other
):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.put("web2", "accepted", minion_keys["web1"].pub)
    master.turn()
    deny(master, "web1", other.pub)
    deny(master, "web2", other.pub)
    decide(master, "saltm1", "deleted")
    decide(master, "saltm1", "accepted", pub=other.pub)
    master.pull("saltm1")
    assert (master.host.pki / "minions/web1").read_text() == other.pub
    assert denied(master) == {"web2"}
    # What is denied beside an accepted key stays, until that is deleted.
    decide(master, "saltm1", "deleted", name="web2")
    master.pull("saltm1")
    assert (master.has("web2"), denied(master)) == (None, set())


@pytest.mark.parametrize("told", [True, False], ids=["event", "no event"])
def test_a_denied_key_that_is_accepted_here_is_cleared(master, other, told):
    deny(master, "web1", other.pub)
    master.put("web1", "pending", other.pub)
    master.turn()
    assert denied(master) == {"web1"}
    master.put("web1", "accepted", other.pub)
    if told:
        master.bus.put("salt/key", id="web1", act="accepted")
    else:
        master.engine.look_due = 0.0
    master.turn()
    assert (denied(master), master.verdicts("web1")) == (set(), ["accepted"])


def test_a_leftover_of_an_earlier_release_is_cleared_at_the_start(master, minion_keys):
    master.put("web1", "accepted", minion_keys["web1"].pub)
    master.turn()
    master.book.close()
    deny(master, "web1", minion_keys["web1"].pub)
    master.start()
    master.turn()
    assert denied(master) == set()
    assert master.has("web1") == "accepted"


# Anything at all, in every place that somebody else writes to

# One engine for all examples: what one of them has left behind is there for the next one.
ANYTHING = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
nested = st.recursive(
    plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
ids = st.text(st.characters(), max_size=300) | st.sampled_from(["web1", "x" * 255, "tmpabcdefgh"])


# Grains


class Grains:
    """The grains that a master has, and who is asked for them."""

    def __init__(self, master, series):
        import salt.cache

        self.master, self.newer = master, series == "3008"
        self.cache = salt.cache.factory(master.loader.opts)

    def put(self, name):
        bank, key = ("grains", name) if self.newer else (f"minions/{name}", "data")
        self.cache.store(bank, key, {"os": "Debian"})

    def signs_in(self, name):
        """A minion's sign-in, and the time that it has to send them by itself."""
        self.master.bus.put("salt/auth", id=name, act="accept", result=True)
        self.master.turn()
        self.master.again()
        self.master.turn()

    def asked(self):
        found = [names for names, function, _ in self.master.asked if function == "refresh_grains"]
        self.master.asked.clear()
        return found

    def named(self):
        return {item: why for item, why in self.master.book.aside().items() if "grains" in item}


@pytest.fixture
def grains(master, minion_keys, monkeypatch):
    """On a master that has accepted two minions and has had the grains of one."""

    def grains(series="3008", **settings):
        driver = "localfs_key" if series == "3008" else None
        settings = {"minion_data_cache": True, "keys.cache_driver": driver, **settings}
        for option, value in settings.items():
            monkeypatch.setitem(master.loader.opts, option, value)
            monkeypatch.setitem(master.loader.pack["__opts__"], option, value)
        found = Grains(master, series)
        for name in ("web1", "web2"):
            master.put(name, "accepted", minion_keys["web1"].pub)
        found.put("web2")
        master.turn()
        return found

    return grains


@pytest.mark.parametrize("series", ["3008", "3007"])
def test_who_signs_in_and_has_left_no_grains_is_asked_for_them(grains, master, series):
    found = grains(series)
    master.bus.put("salt/auth", id="web1", act="accept", result=True)
    master.turn()
    # Salt sends them at a minion's start.
    master.engine.look_due = 0.0
    master.turn()
    assert found.asked() == []
    found.signs_in("web2")
    assert found.asked() == [["web1"]]
    master.engine.look_due = 0.0
    master.turn()
    assert found.asked() == []
    master.again()
    master.turn()
    assert found.asked() == [["web1"]]
    found.put("web1")
    master.again()
    master.turn()
    assert (found.asked(), found.named(), master.engine.came) == ([], {}, {})


def test_who_answers_and_sends_no_grains_is_named(grains, master):
    found = grains()
    found.signs_in("web1")
    master.bus.put("salt/job/7/new", minions=["web1"])
    master.again()
    master.turn()
    master.turn()
    # It may not be there any more.
    master.engine.look_due = 0.0
    master.turn()
    assert found.named() == {}
    master.bus.put("salt/job/7/ret/web1", **{"return": True})
    master.turn()
    master.engine.look_due = 0.0
    master.turn()
    assert found.named() == {
        "grains/": "salt -G leaves out who is here and has not sent its grains, though asked: web1"
    }
    found.put("web1")
    master.engine.look_due = 0.0
    master.turn()
    assert found.named() == {}


def test_nobody_is_asked_for_grains_by_what_anybody_can_say(grains, master, minion_keys):
    found = grains()
    master.put("web3", "pending", minion_keys["web1"].pub)
    for name in ("web3", "nobody", "../web1"):
        found.signs_in(name)
    assert (found.asked(), master.engine.came) == ([], {})


def test_a_master_that_keeps_no_grains_asks_for_none(grains):
    found = grains(minion_data_cache=False)
    found.signs_in("web1")
    assert found.asked() == []


def test_grains_that_cannot_be_read_are_not_missing(grains, master, monkeypatch):
    import salt.cache
    from salt.exceptions import SaltCacheError

    found = grains()

    def away(*_):
        raise SaltCacheError("the cache is away")

    monkeypatch.setattr(salt.cache.Cache, "contains", away)
    found.signs_in("web1")
    assert found.asked() == []
    assert found.named() == {"grains/": "SaltCacheError: the cache is away"}
    monkeypatch.undo()
    master.again()
    master.turn()
    assert found.asked() == [["web1"]]


def deep(levels):
    found = None
    for _ in range(levels):
        found = [found]
    return found


class Counter:
    """Names that were not used yet."""

    def __init__(self):
        self.numbers = itertools.count()

    def __call__(self):
        return f"good{next(self.numbers)}"


@pytest.fixture
def fresh_name():
    return Counter()


@ANYTHING
@given(
    st.binary(max_size=300)
    | st.text().map(lambda text: f"-----BEGIN PUBLIC KEY-----{text}".encode()),
    st.sampled_from([*STORES.values(), "minions_denied"]),
    st.binary(min_size=1, max_size=255),
)
def test_any_file_among_the_keys_stops_nothing(master, decide, fresh_name, text, where, name):
    path = os.path.join(os.fsencode(master.host.pki), os.fsencode(where), name)
    if b"/" not in name and b"\0" not in name and name not in (b".", b".."):
        with open(path, "wb") as handle:
            handle.write(text)
    good = fresh_name()
    master.engine.scan_due = 0.0
    goes_on(master, decide, good)


@ANYTHING
@given(
    st.sampled_from(["salt/key", "salt/auth", "multimaster/wake", "minion_start", "salt/job"])
    | st.sampled_from(["salt/job/jid1/ret/saltm1", "salt/minion/saltm1/start"])
    | st.text(st.characters()),
    nested
    | st.fixed_dictionaries(
        {}, optional={"id": ids | nested, "act": nested, "origin": nested, "return": nested}
    ),
)
def test_any_event_stops_nothing(master, decide, fresh_name, tag, data):
    master.bus.events.append({"tag": tag, "data": data})
    if isinstance(data, dict) and isinstance(data.get("id"), str):
        for act in ("accept", "delete"):
            master.bus.events.append({"tag": "salt/key", "data": {**data, "act": act}})
            master.bus.events.append({"tag": "salt/auth", "data": {**data, "act": act}})
    goes_on(master, decide, fresh_name())
    assert "events/" not in master.book.aside()


@ANYTHING
@given(nested | st.integers(900, 100_000).map(deep))
def test_any_reply_of_whoever_is_not_a_master_stops_nothing(master, decide, fresh_name, value):
    master.bus.put("multimaster/wake", origin="saltm1")
    master.turn()
    for reply in (value, {"answer": value, "signature": value}, {"answer": value, "signature": ""}):
        if master.engine.peers["saltm1"].open:
            master.reply("saltm1", reply)
        master.turn()
    goes_on(master, decide, fresh_name())


@ANYTHING
@given(st.lists(nested | st.lists(plain, min_size=7, max_size=7)), nested)
def test_any_answer_of_a_master_stops_nothing(master, decide, fresh_name, decisions, value):
    import multimaster_ledger

    for lie in (
        {"decisions": value},
        {"decisions": multimaster_ledger.squeeze(decisions)},
        {"epoch": value},
        {"place": value},
        {"end": value},
        {"digest": value},
    ):
        master.pull("saltm1", **lie)
    # The place that it told may be beyond its ledger; and a question from there is still open.
    master.book.set_place("saltm1", "", 0)
    master.pull("saltm1")
    goes_on(master, decide, fresh_name())
