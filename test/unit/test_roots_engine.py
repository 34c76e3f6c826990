"""The engines that keep roots equal: a source, a follower, and the minion between them."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import multimaster_peers
import multimaster_seal as seal

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SOURCE, FOLLOWER = "saltm2", "saltm1"


class Bus:
    """A master's event bus, with the events that a test puts there."""

    def __init__(self):
        self.events = []

    def put(self, tag, **data):
        self.events.append({"tag": tag, "data": data})

    def get_event(self, wait, full):
        assert full
        assert wait > 0
        return self.events.pop(0) if self.events else None


@pytest.fixture(scope="module")
def loaders(loaded_host, tmp_path_factory):
    """Salt's loader of engines, as each of the two masters has it."""
    import salt.config
    import salt.loader

    made = {}
    for name in (SOURCE, FOLLOWER):
        loaded_host.reset()
        root = loaded_host.root if name == SOURCE else tmp_path_factory.mktemp(name)
        modules = [str(loaded_host.extension_modules)]
        settings = {"root_dir": str(root), "id": name, "module_dirs": modules}
        loaded_host.write("etc/salt/master", settings)
        opts = dict(salt.config.master_config(str(loaded_host.config_dir / "master")))
        opts |= {"__role": "master", "grains": loaded_host.runtime.opts["grains"]}
        opts["multimaster"] = {"masters": [{"id": SOURCE}, {"id": FOLLOWER}]}
        made[name] = (salt.loader.engines(opts, {}, {}, salt.loader.utils(opts)), opts)
    return made


class Courier:
    """Carries jobs at once, or fails to."""

    def __init__(self, carry):
        self.carry, self.error, self.jobs = carry, "", []

    def give(self, targets, function, arguments):
        jid = self.carry(targets, function.partition(".")[2], arguments, self.error)
        self.jobs.append(multimaster_peers.Sent(jid, time.monotonic(), self.error))
        return jid

    def sent(self):
        done, self.jobs = self.jobs, []
        return done


class Masters:
    """Two masters that share a key pair; their jobs are carried without Salt's daemons."""

    def __init__(self, host, loaded, pair, live):
        self.host, self.live = host, live
        self.loaders = {name: loader for name, (loader, _) in loaded.items()}
        self.opts = {name: opts for name, (_, opts) in loaded.items()}
        self.declared = {
            "source": SOURCE,
            "file_roots": {"base": [str(live / "salt")]},
            "pillar_roots": {"base": [str(live / "pillar")]},
        }
        (self.settings, *_) = [
            loader["multimaster_roots.start"].func.__globals__ for loader in self.loaders.values()
        ]
        for name in (SOURCE, FOLLOWER):
            shutil.rmtree(self.opts[name]["cachedir"], ignore_errors=True)
            pki = Path(self.opts[name]["pki_dir"])
            pki.mkdir(parents=True, exist_ok=True)
            (pki / f"{name}.pem").write_text(pair.pem)
        settings = {"root_dir": str(host.root), "id": SOURCE}
        declared = {"masters": [], "roots": {"replicate": self.declared}}
        host.write("etc/salt/master", {**settings, "multimaster": declared})
        self.buses, self.engines, self.jobs, self.number = {}, {}, [], 0
        # The job and the answer of the last question.
        self.last = None
        # What becomes of the source's answer on its way; None if it does not come.
        self.carry = lambda reply: reply
        for name in (SOURCE, FOLLOWER):
            self.start(name)

    def start(self, name):
        """Make an engine, as after a start of its master."""
        import multimaster_roots

        directory = os.path.join(self.opts[name]["cachedir"], "multimaster/roots")
        kind = "_Source" if name == SOURCE else "_Follower"
        self.buses[name] = Bus()
        store = multimaster_roots.Store(directory)
        engine = self.run(name, self.settings[kind], store, self.buses[name], self.declared)
        engine.courier = Courier(lambda *job: self._publish(name, *job))
        self.engines[name] = engine

    def run(self, name, function, *arguments):
        """Call a function as the engine of a master does."""
        # All loaders of a process share a module and its options; each master is a process.
        self.settings["__opts__"] = self.opts[name]
        return self.loaders[name].run(function, *arguments)

    def _publish(self, name, targets, function, arguments, error):
        self.jobs.append((name, function, arguments))
        self.number += 1
        jid = f"2024{self.number:016d}"
        if error:
            return jid
        if function == "pull":
            assert targets == [SOURCE]
            self.last = (jid, self.host.modules["multimaster_roots.pull"](*arguments))
            reply = self.carry(self.last[1])
            if reply is not None:
                self.reply(name, jid, reply)
        elif function == "wake":
            for target in targets:
                self.buses[target].put("multimaster/roots/wake", origin=arguments[0])
        return jid

    def reply(self, name, jid, reply):
        """Bring an answer of the source's to a master, however late."""
        tag = f"salt/job/{jid}/ret/{SOURCE}"
        self.buses[name].put(tag, **{"return": reply, "fun": "multimaster_roots.pull"})

    def turn(self, name, look=True):
        """One turn of an engine, with all that is due by the clock."""
        engine = self.engines[name]
        if look:
            engine.look_due = 0.0
        if name == SOURCE:
            # A test does not wait for directories to settle.
            engine.seen_at -= 10
        elif engine.peer.open is None and engine.peer.due < time.monotonic() + 1:
            engine.peer._asked -= 10
        self.run(name, engine.turn)

    def publish(self):
        for _ in range(2):
            self.turn(SOURCE)

    def follow(self, turns=30):
        """Let the follower go on until it has nothing under way; return the number of turns."""
        engine = self.engines[FOLLOWER]
        for number in range(turns):
            self.turn(FOLLOWER, look=number == 0)
            under_way = engine.peer.open or engine.wanted or self.buses[FOLLOWER].events
            if not under_way and engine.peer.due > time.monotonic() + 1:
                return number + 1
        return turns

    def served(self, name):
        store = self.engines[name].store
        if store.current() is None:
            return None
        top = Path(store.tree(store.current()))
        return {
            str(path.relative_to(top)): path.read_text()
            for path in top.rglob("*")
            if path.is_file()
        }

    def told(self, name):
        return self.engines[name].store.read_status()


@pytest.fixture
def live(tmp_path):
    made = tmp_path / "live"
    for path, text in {
        "salt/top.sls": "{}",
        "salt/web/init.sls": "one",
        "salt/web/files/page": "page",
        "pillar/top.sls": "a pillar's secret",
    }.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(text)
    return made


@pytest.fixture
def masters(host, loaders, shared, live):
    return Masters(host, loaders, shared, live)


@pytest.fixture
def equal(masters):
    """Two masters that serve the same."""
    masters.publish()
    masters.follow()
    assert masters.served(FOLLOWER) == masters.served(SOURCE) is not None
    masters.jobs.clear()
    return masters


def change(masters, path="salt/web/init.sls", text="two"):
    (masters.live / path).write_text(text)
    masters.publish()


def test_a_change_takes_one_wake_and_one_question(equal):
    change(equal)
    assert [job[:2] for job in equal.jobs] == [(SOURCE, "wake")]
    equal.follow()
    assert [job[:2] for job in equal.jobs] == [(SOURCE, "wake"), (FOLLOWER, "pull")]
    assert equal.served(FOLLOWER) == equal.served(SOURCE)
    assert equal.served(FOLLOWER)["file_roots/base/0/web/init.sls"] == "two"
    assert equal.told(FOLLOWER)["digests"] == equal.told(SOURCE)["digests"]
    assert equal.told(FOLLOWER)["problem"] is None


def test_nothing_new_changes_nothing(equal):
    names = equal.engines[FOLLOWER].store.names()
    equal.publish()
    assert equal.jobs == []
    equal.buses[FOLLOWER].put("multimaster/roots/wake", origin=SOURCE)
    equal.follow()
    equal.follow()
    assert [job[:2] for job in equal.jobs] == [(FOLLOWER, "pull")]
    assert equal.engines[FOLLOWER].store.names() == names


def test_what_travels_shows_nothing_of_what_is_in_it(masters):
    replies = []
    masters.carry = lambda reply: replies.append(reply) or reply
    masters.publish()
    masters.follow()
    assert replies
    digest = hashlib.sha256(b"a pillar's secret").hexdigest()
    for text in [*replies, *(job[2][-1] for job in masters.jobs)]:
        raw = base64.b64decode(text) if len(text) > 20 else text.encode()
        for needle in ("secret", "top.sls", digest):
            assert needle not in text
            assert needle.encode() not in raw


def test_a_restless_directory_is_not_taken(masters):
    engine = masters.engines[SOURCE]
    masters.turn(SOURCE)
    assert engine.store.current() is None
    assert engine.look_due - time.monotonic() <= 1
    (masters.live / "salt/top.sls").write_text("half")
    masters.turn(SOURCE)
    assert engine.store.current() is None
    masters.turn(SOURCE)
    assert masters.served(SOURCE)["file_roots/base/0/top.sls"] == "half"


def test_what_is_never_still_stays_what_it_was_and_the_rest_is_published(equal):
    engine, log = equal.engines[SOURCE], equal.live / "salt/web/files/page"
    (equal.live / "salt/web/init.sls").write_text("two")
    for number in range(equal.settings["RESTLESS"]):
        assert equal.served(SOURCE)["file_roots/base/0/web/init.sls"] == "one"
        log.write_text(f"line {number}")
        equal.turn(SOURCE)
    for number in range(4):
        log.write_text(f"more {number}")
        equal.turn(SOURCE)
    found = equal.served(SOURCE)
    assert found["file_roots/base/0/web/init.sls"] == "two"
    assert found["file_roots/base/0/web/files/page"] == "page"
    assert equal.told(SOURCE)["problem"] is None
    path = "file_roots/base/0/web/files/page"
    assert equal.told(SOURCE)["skipped"] == {path: "changing all the time"}
    # And that is no news, again and again.
    assert engine.store.current() == engine.store.names()[-1]
    names = engine.store.names()
    log.write_text("the last line")
    equal.turn(SOURCE)
    assert engine.store.names() == names
    # When it is still, it is as all others are.
    for _ in range(3):
        equal.turn(SOURCE)
    assert equal.served(SOURCE)[path] == "the last line"
    assert equal.told(SOURCE)["skipped"] == {}


def looks(masters, monkeypatch):
    """Have the looks at the live directories counted."""
    engine, made = masters.engines[SOURCE], []
    real = engine.look
    monkeypatch.setattr(engine, "look", lambda: made.append(1) or real())
    return made


def test_events_that_anybody_can_send_cost_no_look_each(equal, monkeypatch):
    engine, made = equal.engines[SOURCE], looks(equal, monkeypatch)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    engine.look_due = now + 5
    for _ in range(300):
        now += 0.1
        equal.buses[SOURCE].put("multimaster/roots/publish", origin="", force=True)
        equal.turn(SOURCE, look=False)
    # In half a minute; without any event it is six.
    assert len(made) < 16
    assert engine.due() - now <= equal.settings["LONGEST"]
    # Root on this host does not wait.
    before = len(made)
    multimaster_peers.demand(engine.store.demand)
    for _ in range(2):
        equal.buses[SOURCE].put("multimaster/roots/publish", origin="")
        equal.turn(SOURCE, look=False)
    assert len(made) == before + 1


def test_an_event_after_a_time_without_any_brings_a_look_at_once(equal, monkeypatch):
    made = looks(equal, monkeypatch)
    for _ in range(5):
        equal.turn(SOURCE)
        before = len(made)
        equal.engines[SOURCE].looked -= 1
        equal.buses[SOURCE].put("multimaster/roots/publish", origin="")
        for _ in range(2):
            equal.turn(SOURCE, look=False)
        assert len(made) == before + 1


def test_nothing_where_keys_are_is_published(equal):
    pki = Path(equal.opts[SOURCE]["pki_dir"])
    (equal.live / "salt/key").symlink_to(pki / f"{SOURCE}.pem")
    (equal.live / "salt/keys").symlink_to(pki)
    (equal.live / "salt/web/init.sls").write_text("two")
    equal.publish()
    found = equal.served(SOURCE)
    assert found["file_roots/base/0/web/init.sls"] == "two"
    assert not [path for path, text in found.items() if "key" in path or "PRIVATE" in text]
    assert set(equal.told(SOURCE)["skipped"].values()) == {"it is where keys are"}


def test_links_out_of_a_root_are_not_followed_where_salt_does_not(equal, monkeypatch, tmp_path):
    (tmp_path / "outside").write_text("outside")
    (equal.live / "salt/out").symlink_to(tmp_path / "outside")
    equal.publish()
    assert equal.served(SOURCE)["file_roots/base/0/out"] == "outside"
    monkeypatch.setitem(equal.opts[SOURCE], "fileserver_followsymlinks", False)
    equal.publish()
    assert "file_roots/base/0/out" not in equal.served(SOURCE)
    assert "followsymlinks" in equal.told(SOURCE)["skipped"][str(equal.live / "salt/out")]


def test_what_cannot_be_read_is_tried_again_and_named_meanwhile(equal, monkeypatch):
    path, real = equal.live / "salt/web/files/page", os.open

    def failing(name, *args, **kwargs):
        if str(name) == str(path):
            raise OSError(errno.EIO, "Input/output error")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", failing)
    path.write_text("two")
    (equal.live / "salt/web/init.sls").write_text("two")
    for _ in range(4):
        equal.publish()
        found = equal.served(SOURCE)
        assert found["file_roots/base/0/web/init.sls"] == "two"
        assert found["file_roots/base/0/web/files/page"] == "page"
        assert equal.told(SOURCE)["skipped"] == {str(path): "Input/output error"}
        assert equal.told(SOURCE)["problem"] is None
    monkeypatch.setattr(os, "open", real)
    equal.engines[SOURCE].again = 0.0
    equal.publish()
    assert equal.served(SOURCE)["file_roots/base/0/web/files/page"] == "two"
    assert equal.told(SOURCE)["skipped"] == {}


@pytest.mark.parametrize("who", [SOURCE, FOLLOWER])
@pytest.mark.parametrize("what", ["manifest", "status", "link"])
def test_what_a_disk_has_damaged_is_put_right(equal, who, what):
    expected, store = equal.served(FOLLOWER), equal.engines[who].store
    if what == "manifest":
        Path(store.trees, store.current(), "manifest").write_bytes(b"\xff")
    elif what == "status":
        Path(store.status_file).write_bytes(b'{"skipped": [')
    else:
        Path(store.directory, "current").unlink()
        Path(store.directory, "current").write_text("x")
    equal.start(who)
    for _ in range(2):
        equal.publish()
        equal.engines[FOLLOWER].peer.due = 0.0
        equal.follow()
    assert equal.served(SOURCE) == equal.served(FOLLOWER) == expected
    assert equal.told(who)["problem"] is None


def test_a_directory_that_has_become_empty_is_published_on_demand_only(equal):
    before = equal.served(SOURCE)
    (equal.live / "pillar/top.sls").unlink()
    equal.publish()
    assert equal.served(SOURCE) == before
    assert "has become empty" in equal.told(SOURCE)["problem"]
    # Which any minion can send: whoever may demand it leaves a note on the host.
    equal.buses[SOURCE].put("multimaster/roots/publish", origin="", force=True)
    equal.turn(SOURCE, look=False)
    equal.publish()
    assert equal.served(SOURCE) == before
    multimaster_peers.demand(equal.engines[SOURCE].store.demand)
    equal.buses[SOURCE].put("multimaster/roots/publish", origin="")
    equal.turn(SOURCE, look=False)
    equal.publish()
    equal.follow()
    assert equal.told(SOURCE)["problem"] is None
    assert "pillar_roots/base/0/top.sls" not in equal.served(FOLLOWER)


def test_a_demand_at_a_follower_is_not_left_for_when_it_becomes_the_source(equal):
    store = equal.engines[FOLLOWER].store
    multimaster_peers.demand(store.demand)
    equal.turn(FOLLOWER)
    assert not multimaster_peers.demanded(store.demand)


def test_an_absent_directory_is_a_problem_and_no_deletion(equal):
    before = equal.served(SOURCE)
    (equal.live / "pillar").rename(equal.live / "elsewhere")
    equal.publish()
    assert equal.served(SOURCE) == before
    assert "pillar: No such file or directory" in equal.told(SOURCE)["problem"]
    (equal.live / "elsewhere").rename(equal.live / "pillar")
    equal.publish()
    assert equal.told(SOURCE)["problem"] is None


def test_a_source_that_has_nothing_yet_is_asked_again_soon(masters):
    masters.follow()
    assert masters.served(FOLLOWER) is None
    assert "has no snapshot yet" in masters.told(FOLLOWER)["problem"]
    assert masters.engines[FOLLOWER].peer.due - time.monotonic() < 3


def ask(masters):
    """Have the follower ask, and note that its question is under way."""
    masters.engines[FOLLOWER].peer.due = 0.0
    for _ in range(2):
        masters.turn(FOLLOWER, look=False)


def impatient(masters):
    """Have the follower's patience with its open question be over, and ask again."""
    # First it notes that the job was given.
    masters.turn(FOLLOWER, look=False)
    assert masters.engines[FOLLOWER].peer.open
    masters.engines[FOLLOWER].peer.until = 0.0
    for _ in range(2):
        masters.turn(FOLLOWER, look=False)


def test_after_one_answer_that_was_lost_the_next_question_comes_soon(equal):
    peer, patience = equal.engines[FOLLOWER].peer, []
    change(equal)
    equal.carry = lambda reply: None
    ask(equal)
    for _ in range(7):
        patience.append(round(peer.until - time.monotonic()))
        impatient(equal)
    assert patience == [5, 10, 20, 40, 80, 120, 120]
    equal.carry = lambda reply: reply
    impatient(equal)
    equal.follow()
    assert equal.served(FOLLOWER) == equal.served(SOURCE)
    assert peer.patience == 5


def test_a_source_that_does_not_answer_is_named_once_and_the_last_content_stays(equal, caplog):
    before = equal.served(FOLLOWER)
    equal.carry = lambda reply: None
    ask(equal)
    for _ in range(3):
        impatient(equal)
    assert equal.served(FOLLOWER) == before
    assert caplog.text.count(f"the source {SOURCE} does not answer") == 1
    told = equal.told(FOLLOWER)
    assert told["problem"] == f"the source {SOURCE} does not answer"
    assert abs(told["problem_since"] - time.time()) < 60
    equal.carry = lambda reply: reply
    impatient(equal)
    equal.follow()
    assert equal.told(FOLLOWER)["problem"] is None


def reply_of(masters, pair, head=None, pieces=(), **changed):
    """An answer to the follower's last question, made by whoever has a key."""
    asker, nonce, _ = masters.jobs[-1][2]
    context = {"purpose": "answer", "origin": SOURCE, "asker": asker} | changed
    nonce = context.pop("nonce", nonce)
    return seal.seal(seal.pack(head or {}, pieces), pair.pem, nonce, *context.values())


@pytest.mark.parametrize(
    "lie",
    ["another key", "old nonce", "another origin", "another asker", "a question", "not sealed"],
)
def test_an_answer_is_refused_that_no_holder_of_the_key_has_made_for_this_question(
    equal, other, shared, lie, caplog
):
    before = equal.served(FOLLOWER)
    change(equal)
    head = {"digest": "0" * 64, "size": 3}
    equal.carry = lambda reply: {
        "another key": lambda: reply_of(equal, other, head),
        "old nonce": lambda: reply_of(equal, shared, head, nonce="0" * 32),
        "another origin": lambda: reply_of(equal, shared, head, origin="saltm3"),
        "another asker": lambda: reply_of(equal, shared, head, asker="saltm3"),
        "a question": lambda: reply_of(equal, shared, head, purpose="question"),
        "not sealed": lambda: "cnViYmlzaA==",
    }[lie]()
    equal.follow()
    assert equal.served(FOLLOWER) == before
    assert f"Refused the answer of {SOURCE}" in caplog.text
    # The source's own answer may still come.
    assert equal.engines[FOLLOWER].peer.open


@pytest.mark.parametrize("lie", ["another digest", "another content", "a path that leads out"])
def test_an_answer_that_does_not_add_up_changes_nothing(equal, shared, lie):
    before = equal.served(FOLLOWER)
    store = equal.engines[FOLLOWER].store
    manifest = store.manifest(store.current())
    sha256 = "1" * 64 if lie == "another content" else hashlib.sha256(b"abc").hexdigest()
    path = "file_roots/base/0/x" if lie != "a path that leads out" else "file_roots/base/0/../x"
    entries = {**manifest.entries, path: [sha256, 3, 0o644]}
    digest = type(manifest)(entries).digest if lie == "another content" else "0" * 64
    head = {"digest": digest, "delta": {"gone": [], "set": {path: [sha256, 3, 0o644]}}}
    equal.carry = lambda reply: reply_of(equal, shared, head, [seal.Piece(sha256, 0, b"abc")])
    equal.buses[FOLLOWER].put("multimaster/roots/wake", origin=SOURCE)
    equal.follow()
    equal.follow()
    assert equal.served(FOLLOWER) == before
    assert f"the answer of {SOURCE}" in equal.told(FOLLOWER)["problem"]


def test_a_question_is_answered_only_to_a_holder_of_the_key(equal, other):
    import salt.exceptions

    pull = equal.host.modules["multimaster_roots.pull"]
    question = seal.pack({"what": "look", "have": ""}, ())
    sealed = seal.seal(question, other.pem, "nonce", "question", FOLLOWER, SOURCE)
    with pytest.raises(salt.exceptions.CommandExecutionError, match="not sealed"):
        pull(FOLLOWER, "nonce", sealed)


def test_many_files_and_a_large_one_come_in_parts(masters):
    import random

    for number in range(300):
        (masters.live / f"salt/{number}").write_text(f"{number}" * 50)
    (masters.live / "salt/large").write_bytes(random.Random(1).randbytes(2_000_000))
    (masters.live / "salt/large").write_text((masters.live / "salt/large").read_bytes().hex())
    replies = []
    masters.carry = lambda reply: replies.append(len(reply)) or reply
    masters.publish()
    masters.follow()
    assert masters.served(FOLLOWER) == masters.served(SOURCE)
    assert max(replies) < 700 * 1024
    assert 5 <= len(replies) < 12


def test_a_transfer_goes_on_where_it_was_when_the_source_is_back(masters):
    import random

    (masters.live / "salt/large").write_text(random.Random(1).randbytes(1_000_000).hex())
    masters.publish()
    answered = []
    masters.carry = lambda reply: answered.append(1) or (reply if len(answered) < 3 else None)
    engine = masters.engines[FOLLOWER]
    for _ in range(6):
        masters.turn(FOLLOWER, look=False)
    assert engine.wanted
    part = sum(engine.store.received().values())
    assert part > 300_000
    assert masters.served(FOLLOWER) is None
    masters.carry = lambda reply: reply
    masters.jobs.clear()
    impatient(masters)
    masters.follow()
    assert masters.served(FOLLOWER) == masters.served(SOURCE)
    assert masters.jobs


def test_a_source_that_has_gone_on_meanwhile_is_followed(masters):
    import random

    (masters.live / "salt/large").write_text(random.Random(1).randbytes(1_000_000).hex())
    masters.publish()
    for _ in range(2):
        masters.turn(FOLLOWER, look=False)
    assert masters.engines[FOLLOWER].wanted
    change(masters)
    store = masters.engines[SOURCE].store
    store.remove(store.names()[0])
    masters.follow()
    assert masters.served(FOLLOWER) == masters.served(SOURCE)


@pytest.mark.parametrize("here", [True, False], ids=["in another tree", "at the source only"])
def test_an_edit_on_a_follower_is_kept_reported_and_put_right(equal, here):
    change(equal)
    equal.follow()
    expected = equal.served(FOLLOWER)
    store = equal.engines[FOLLOWER].store
    path = Path(store.tree(store.current(), "file_roots/base/0/web/files/page"))
    if here:
        path.unlink()
    # Otherwise the older tree has the very same file.
    path.write_text("edited")
    if here:
        equal.turn(FOLLOWER)
    else:
        equal.follow()
        equal.follow()
    assert equal.served(FOLLOWER) == expected
    (kept,) = equal.told(FOLLOWER)["kept"]
    copy = Path(store.kept, kept, "file_roots/base/0/web/files/page")
    assert copy.read_text() == "edited"
    assert equal.told(FOLLOWER)["problem"] is None


def test_an_edit_just_before_the_next_snapshot_is_kept(equal):
    change(equal)
    store = equal.engines[FOLLOWER].store
    old = store.current()
    Path(store.tree(old, "file_roots/base/0/web/files/page")).write_text("edited")
    for _ in range(3):
        equal.turn(FOLLOWER, look=False)
    assert store.current() != old
    (copy,) = Path(store.kept).glob("*/file_roots/base/0/web/files/page")
    assert copy.read_text() == "edited"


def test_an_edit_on_the_source_is_kept_and_put_right_from_the_live_directory(equal):
    expected = equal.served(SOURCE)
    store = equal.engines[SOURCE].store
    Path(store.tree(store.current(), "file_roots/base/0/web/files/page")).write_text("edited")
    equal.publish()
    assert equal.served(SOURCE) == expected
    assert len(equal.told(SOURCE)["kept"]) == 1


class Runs:
    """Two minions whose state runs hold the tree before the newest, and what they are asked."""

    def __init__(self, masters, keys):
        import multimaster_roots

        self.masters, self.keys = masters, keys
        self.engine, self.bus = masters.engines[SOURCE], masters.buses[SOURCE]
        self.pins = multimaster_roots.Pins(self.engine.store.directory)
        pki = Path(masters.opts[SOURCE]["pki_dir"], "minions")
        pki.mkdir(exist_ok=True)
        for name in ("web1", "web2"):
            (pki / name).write_text(keys[name].pub)
            tree = self.engine.store.current()
            self.pins.put(name, multimaster_roots.Pin(tree, 1000.0, time.time(), run=True))
        change(masters)
        masters.jobs.clear()

    def returned(self, minion_id, function="state.apply"):
        """A minion's job has returned, or somebody says so."""
        self.bus.put(f"salt/job/20240101000000000000/ret/{minion_id}", fun=function)
        for _ in range(2):
            self.masters.turn(SOURCE)

    def asked(self):
        return [job[2][0] for job in self.masters.jobs if job[1] == "runs"]

    def answer(self, minion_id, runs=(), key=None, nonce=None, **changed):
        import multimaster_keypair

        answer = {"id": minion_id, "runs": list(runs)} | changed
        nonce = nonce or self.asked()[-1]
        pem = (key or self.keys[minion_id]).pem
        signature = multimaster_keypair.sign_answer(answer, nonce, pem)
        self.reply(minion_id, {"answer": answer, "signature": signature})

    def reply(self, minion_id, reply):
        jid = next(reversed(self.engine.questions))
        self.bus.put(f"salt/job/{jid}/ret/{minion_id}", **{"return": reply})
        self.masters.turn(SOURCE)

    def due(self, minion_id):
        """Let a minion be due to be asked again."""
        self.engine.runs[minion_id].asked = 0.0

    def goes_on(self, minion_id):
        return self.pins.get(minion_id).run


@pytest.fixture
def runs(equal, minion_keys):
    keys = {"web1": minion_keys["web1"], "web2": minion_keys["saltm1"]}
    return Runs(equal, keys)


def test_a_pin_is_released_when_its_minion_says_that_no_run_is_under_way(runs):
    runs.returned("web2", "test.ping")
    assert runs.asked() == []
    runs.returned("web1")
    assert runs.goes_on("web1")
    assert len(runs.asked()) == 1
    runs.answer("web1")
    assert not runs.goes_on("web1")
    assert runs.pins.get("web1").returned
    assert runs.goes_on("web2")


@pytest.mark.parametrize("driver", ["localfs_key", None])
def test_a_name_that_leads_to_a_pending_key_is_nobodys_that_was_accepted(runs, driver, monkeypatch):
    masters = runs.masters
    pki = Path(masters.opts[SOURCE]["pki_dir"])
    (pki / "minions_pre").mkdir(exist_ok=True)
    (pki / "minions_pre/evil").write_text(runs.keys["web1"].pub)
    opts = dict(masters.opts[SOURCE])
    if driver is None:
        # Before Salt 3008.
        del opts["keys.cache_driver"]
    monkeypatch.setitem(masters.settings, "__opts__", opts)
    find = runs.engine._minion_key
    for name in ("../minions_pre/evil", f"{pki}/minions_pre/evil", "..", ""):
        assert masters.run(SOURCE, find, name) is None
    assert masters.run(SOURCE, find, "web1") == runs.keys["web1"].pub


def test_nobody_else_releases_the_pin_of_a_minion(runs, other):
    runs.returned("web1")
    runs.answer("web1", key=runs.keys["web2"])
    runs.answer("web1", key=other)
    runs.answer("web1", nonce="0" * 32)
    runs.answer("web1", key=runs.keys["web2"], id="web2")
    runs.answer("web2", key=runs.keys["web2"])
    for reply in (None, True, [], {}, {"answer": {"id": "web1", "runs": []}}, {"answer": 5}):
        runs.reply("web1", reply)
    assert runs.goes_on("web1")
    assert runs.goes_on("web2")
    # Its own answer still counts.
    runs.answer("web1")
    assert not runs.goes_on("web1")


def test_a_run_that_is_under_way_goes_on_and_false_returns_cost_little(runs, monkeypatch):
    now = time.monotonic()
    with monkeypatch.context() as patch:
        # However long they take on this machine.
        patch.setattr(time, "monotonic", lambda: now)
        for _ in range(50):
            runs.returned("web1")
            if len(runs.asked()) == 1:
                runs.answer("web1", ["20240101000000000000"])
    assert len(runs.asked()) == 1
    assert runs.goes_on("web1")
    pauses = []
    for _ in range(4):
        runs.due("web1")
        runs.returned("web1")
        runs.answer("web1", ["20240101000000000000"])
        pauses.append(runs.engine.runs["web1"].pause)
    assert pauses == [10, 20, 40, 80]
    runs.due("web1")
    runs.returned("web1")
    runs.answer("web1")
    assert not runs.goes_on("web1")


def test_who_answers_nothing_and_fetches_files_is_in_its_run(runs):
    runs.returned("web1")
    for _ in range(2 * runs.masters.settings["UNANSWERED"]):
        runs.due("web1")
        runs.masters.turn(SOURCE)
    assert len(runs.asked()) == 1 + 2 * runs.masters.settings["UNANSWERED"]
    assert runs.goes_on("web1")


def test_an_answer_is_of_the_run_that_was_asked_about(runs):
    import multimaster_roots

    runs.returned("web1")
    old = runs.pins.get("web1")
    runs.pins.put("web1", multimaster_roots.Pin(old.tree, 2000.0, time.time(), run=True))
    runs.answer("web1")
    assert runs.goes_on("web1")


def test_a_run_that_holds_the_newest_tree_is_nobody_asked_about(runs):
    import multimaster_roots

    pin = multimaster_roots.Pin(runs.engine.store.current(), 1000.0, time.time(), run=True)
    runs.pins.put("web1", pin)
    runs.returned("web1")
    assert runs.asked() == []
    # But when there is a newer one.
    change(runs.masters, text="three")
    assert len(runs.asked()) == 1


def test_who_has_asked_for_nothing_for_long_is_asked_and_without_any_answer_gone(runs):
    import multimaster_roots

    tree = runs.pins.get("web1").tree
    for name in ("web1", "web2"):
        runs.pins.put(name, multimaster_roots.Pin(tree, 1000.0, time.time() - 5000, run=True))
    for number in range(runs.masters.settings["UNANSWERED"]):
        runs.masters.turn(SOURCE)
        assert len(runs.asked()) == number + 1
        runs.answer("web2", ["20240101000000000000"])
        assert runs.goes_on("web1")
        for name in ("web1", "web2"):
            runs.due(name)
    runs.masters.turn(SOURCE)
    assert runs.pins.get("web1") is None
    assert runs.goes_on("web2")


def test_a_minion_says_what_state_runs_are_under_way_and_signs_it(host, minion_keys, monkeypatch):
    import multimaster_keypair

    key = minion_keys["web1"]
    host.write("etc/salt/pki/minion/minion.pem", key.pem)
    found = [{"jid": 5, "fun": "state.apply"}, {"jid": 6, "fun": "test.sleep"}, {"jid": 7}]
    found += [{"jid": 8, "fun": ["test.ping", "state.sls"]}]
    monkeypatch.setattr("salt.utils.minion.running", lambda opts: found)
    told = host.modules["multimaster_roots.runs"]("nonce")
    assert told["answer"] == {"id": "saltm2", "runs": ["5", "8"]}
    multimaster_keypair.verify_answer(told["answer"], "nonce", told["signature"], key.pub)


def test_events_that_somebody_made_up_do_nothing_bad(equal):
    for bus in equal.buses.values():
        bus.events.append({"tag": "multimaster/roots/wake", "data": "no mapping"})
        for origin in (None, 5, "", "saltm9", ["x"]):
            bus.put("multimaster/roots/wake", origin=origin)
        bus.put("multimaster/roots/publish", force="yes")
        bus.put("salt/job/1/ret/../../etc", fun="state.apply")
        bus.put("salt/job/1/ret/web1", fun=["state.apply"])
    before = equal.served(FOLLOWER)
    equal.publish()
    equal.follow()
    assert equal.served(FOLLOWER) == before
    assert equal.jobs == []


def test_an_event_whose_name_is_no_text_stops_nothing(equal, caplog):
    for bus in equal.buses.values():
        events = iter([UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")] * 3)

        def get_event(wait, full, real=bus.get_event, events=events):
            if error := next(events, None):
                raise error
            return real(wait, full)

        bus.get_event = get_event
    change(equal)
    equal.follow()
    assert equal.served(FOLLOWER) == equal.served(SOURCE)
    assert equal.told(FOLLOWER)["problem"] is None
    assert "Traceback" not in caplog.text


def test_what_goes_wrong_with_one_event_stops_no_other(equal, monkeypatch, caplog):
    def bad(*_):
        raise KeyError("made up")

    for name, engine in equal.engines.items():
        monkeypatch.setattr(engine.pins, "get", bad)
        equal.buses[name].put("salt/job/1/ret/web1", fun="state.apply")
    change(equal)
    equal.follow()
    assert equal.served(FOLLOWER) == equal.served(SOURCE)
    assert "'made up'" in caplog.text


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FUZZ = settings(max_examples=60, suppress_health_check=list(HealthCheck))


NUMBERS = itertools.count()


def serves_on(masters):
    """Tell whether a change gets from the source to the follower."""
    text = f"change {next(NUMBERS)}"
    (masters.live / "salt/web/init.sls").write_text(text)
    masters.publish()
    masters.engines[FOLLOWER].peer.due = 0.0
    masters.follow()
    found = masters.served(FOLLOWER)
    return found == masters.served(SOURCE) and found["file_roots/base/0/web/init.sls"] == text


@FUZZ
@given(
    st.text()
    | st.sampled_from(
        [
            "multimaster/roots/wake",
            "multimaster/roots/publish",
            "multimaster/roots",
            "salt/job/1/ret/web1",
            "salt/job/1/ret",
            "salt/job//ret/",
            "salt/auth",
            "minion_start",
            f"salt/minion/{SOURCE}/start",
        ]
    ),
    anything
    | st.fixed_dictionaries(
        {},
        optional={
            "fun": anything | st.just("state.apply"),
            "id": anything | st.just(SOURCE),
            "origin": anything | st.just(SOURCE),
            "act": anything,
            "force": anything,
            "return": anything,
        },
    ),
)
def test_any_event_stops_nothing(equal, tag, data):
    for name, bus in equal.buses.items():
        bus.events.append({"tag": tag, "data": data})
        question = next(iter(equal.engines[name].questions), "2")
        bus.events.append({"tag": f"salt/job/{question}/ret/web1", "data": data})
    assert serves_on(equal)
    for name in (SOURCE, FOLLOWER):
        assert equal.told(name)["problem"] is None


def assert_heals(equal):
    """Assert that a follower that has heard something odd follows when it is told what is so."""
    equal.engines[FOLLOWER].peer.until = 0.0
    equal.turn(FOLLOWER)
    equal.engines[FOLLOWER].peer.until = 0.0
    assert serves_on(equal)
    assert equal.told(FOLLOWER)["problem"] is None


@FUZZ
@given(anything | st.text(st.characters(codec="ascii"), max_size=80) | st.just("A" * 500))
def test_any_reply_of_whoever_is_not_the_source_stops_nothing(equal, reply):
    equal.carry = lambda real: reply
    change(equal, text="asked")
    equal.engines[FOLLOWER].peer.due = 0.0
    equal.follow(turns=3)
    equal.carry = lambda real: real
    assert_heals(equal)


hashes = st.sampled_from(["0" * 64, "x", hashlib.sha256(b"abc").hexdigest()])
heads = st.dictionaries(st.text(), anything, max_size=2) | st.fixed_dictionaries(
    {"digest": anything | hashes},
    optional={
        "gone": anything,
        "size": anything | st.integers(0, 9),
        "delta": anything
        | st.fixed_dictionaries(
            {
                "gone": anything,
                "set": anything
                | st.dictionaries(
                    st.sampled_from(["file_roots/base/0/x", "file_roots/base/0/../x", "/x"]),
                    st.none() | st.tuples(hashes, st.integers(), st.integers(0, 0o777)),
                ),
            }
        ),
    },
)


@FUZZ
@given(heads, st.lists(st.tuples(hashes, st.integers(0, 4), st.binary(max_size=5)), max_size=3))
def test_any_answer_that_is_sealed_stops_nothing(equal, shared, head, pieces):
    equal.carry = lambda reply: reply_of(equal, shared, head, pieces)
    change(equal, text="asked")
    equal.engines[FOLLOWER].peer.due = 0.0
    equal.follow(turns=4)
    equal.carry = lambda reply: reply
    assert_heals(equal)


@FUZZ
@given(
    st.dictionaries(st.text(), anything, max_size=3)
    | st.fixed_dictionaries(
        {"what": st.sampled_from(["look", "pieces", "x"])},
        optional={
            "have": anything | hashes,
            "digest": anything | hashes,
            "wanted": anything | st.lists(st.tuples(hashes, st.integers() | anything), max_size=3),
        },
    )
)
def test_any_question_is_answered_or_refused(equal, shared, question):
    import salt.exceptions

    pull = equal.host.modules["multimaster_roots.pull"]
    store = equal.engines[SOURCE].store
    digest = store.manifest(store.current()).digest
    for asked in (question, {**question, "digest": digest}):
        packed = seal.pack(asked, ())
        sealed = seal.seal(packed, shared.pem, "nonce", "question", FOLLOWER, SOURCE)
        with contextlib.suppress(salt.exceptions.CommandExecutionError):
            assert isinstance(pull(FOLLOWER, "nonce", sealed), str)


# Where an engine may be killed: an object, a function of it, and whether that is done by then.
POINTS = {
    "before the answer": ("engine", "_learn", False),
    "before a piece": ("store", "receive", False),
    "after a piece": ("store", "receive", True),
    "before the tree is made": ("store", "build", False),
    "after the tree is made": ("store", "build", True),
    "before the switch": ("store", "switch", False),
    "after the switch": ("store", "switch", True),
    "before its status": ("store", "write_status", False),
    "before the capture": ("store", "capture", False),
    "after the capture": ("store", "capture", True),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("who", [SOURCE, FOLLOWER])
def test_whoever_is_killed_anywhere_completes_the_work(equal, who, point):
    place, function, done = POINTS[point]
    old = equal.served(FOLLOWER)
    (equal.live / "salt/web/init.sls").write_text("two")
    (equal.live / "salt/web/files/page").unlink()
    if who == FOLLOWER:
        equal.publish()
    child = os.fork()
    if not child:
        try:
            engine = equal.engines[who]
            target = engine if place == "engine" else engine.store
            real = getattr(target, function, None)

            def killed(*args, **kwargs):
                if done:
                    real(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)

            setattr(target, function, killed)
            if who == SOURCE:
                equal.publish()
            else:
                equal.follow()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    follows = "answer" in point or "piece" in point or "tree is" in point
    if follows or "capture" in point:
        assert os.WIFSIGNALED(status) == ((who == FOLLOWER) == follows)
    new = {path: text for path, text in old.items() if not path.endswith("page")}
    new["file_roots/base/0/web/init.sls"] = "two"
    assert equal.served(who) in (old, new)
    equal.start(who)
    assert equal.served(who) in (old, new)
    equal.publish()
    equal.engines[FOLLOWER].peer.due = 0.0
    equal.follow()
    assert equal.served(SOURCE) == equal.served(FOLLOWER) == new
    for engine in equal.engines.values():
        assert not engine.store.damage(engine.store.current())


def test_the_status_says_how_things_are(masters):
    status = masters.host.modules["multimaster_roots.status"]
    assert status()["problem"] == "there is no snapshot yet"
    masters.publish()
    masters.follow()
    told = status()
    assert (told["role"], told["source"], told["problem"]) == ("source", SOURCE, None)
    assert told["snapshot"] == masters.engines[SOURCE].store.current()
    assert told["digests"] == masters.told(FOLLOWER)["digests"]
    assert told["since"] <= told["checked"] <= time.time()
    assert told["kept"] == []
    masters.host.write("etc/salt/master", {"root_dir": str(masters.host.root), "id": SOURCE})
    assert status() == {"role": None}


# Late answers, and questions that were lost


def asked(masters):
    """Return how often the source was asked."""
    return [job[:2] for job in masters.jobs].count((FOLLOWER, "pull"))


def test_a_late_answer_counts_also_when_a_later_question_is_open(equal):
    change(equal)
    equal.carry = lambda reply: None
    ask(equal)
    jid, reply = equal.last
    impatient(equal)
    assert asked(equal) == 2
    equal.reply(FOLLOWER, jid, reply)
    for _ in range(3):
        equal.turn(FOLLOWER, look=False)
    assert equal.served(FOLLOWER) == equal.served(SOURCE)
    assert equal.told(FOLLOWER)["problem"] is None


def test_what_the_source_had_before_a_later_answer_is_not_served(equal):
    change(equal)
    equal.carry = lambda reply: None
    ask(equal)
    jid, reply = equal.last
    change(equal, text="three")
    equal.carry = lambda reply: reply
    impatient(equal)
    equal.follow()
    expected = equal.served(FOLLOWER)
    assert expected["file_roots/base/0/web/init.sls"] == "three"
    number = asked(equal)
    equal.reply(FOLLOWER, jid, reply)
    equal.follow()
    assert equal.served(FOLLOWER) == expected
    assert equal.told(FOLLOWER)["problem"] is None
    assert asked(equal) == number


def test_a_change_of_what_is_not_here_any_more_is_asked_for_again(equal):
    change(equal)
    equal.carry = lambda reply: None
    ask(equal)
    first = equal.last
    change(equal, text="three")
    impatient(equal)
    second = equal.last
    equal.reply(FOLLOWER, *first)
    for _ in range(3):
        equal.turn(FOLLOWER, look=False)
    assert equal.served(FOLLOWER)["file_roots/base/0/web/init.sls"] == "two"
    equal.carry = lambda reply: reply
    equal.reply(FOLLOWER, *second)
    equal.follow()
    assert equal.served(FOLLOWER) == equal.served(SOURCE)
    assert equal.told(FOLLOWER)["problem"] is None


def test_pieces_that_come_late_or_twice_are_taken_once(masters):
    import random

    (masters.live / "salt/large").write_text(random.Random(1).randbytes(1_000_000).hex())
    masters.publish()
    replies = []
    masters.carry = lambda reply: (
        replies.append(masters.last) or (reply if len(replies) == 1 else None)
    )
    engine = masters.engines[FOLLOWER]
    for _ in range(4):
        masters.turn(FOLLOWER, look=False)
    assert engine.peer.open
    impatient(masters)
    # Both questions were about the same part.
    assert len(replies) == 3
    for jid, reply in (*replies[1:], *replies[1:]):
        masters.reply(FOLLOWER, jid, reply)
    for _ in range(2):
        masters.turn(FOLLOWER, look=False)
    assert masters.told(FOLLOWER)["problem"] == "there is no snapshot yet"
    assert sum(engine.store.received().values()) > 300_000
    # The question after that was lost, too.
    masters.carry = lambda reply: reply
    impatient(masters)
    masters.follow()
    assert masters.served(FOLLOWER) == masters.served(SOURCE)


@pytest.mark.parametrize(
    ("tag", "data"),
    [
        (f"salt/minion/{SOURCE}/start", {}),
        ("minion_start", {"id": SOURCE}),
        ("salt/auth", {"id": SOURCE, "act": "accept"}),
    ],
)
def test_a_source_whose_minion_has_started_is_asked_though_a_question_is_open(equal, tag, data):
    equal.carry = lambda reply: None
    ask(equal)
    equal.engines[FOLLOWER].peer._asked -= 10
    equal.buses[FOLLOWER].put(tag, **data)
    for _ in range(2):
        equal.turn(FOLLOWER, look=False)
    assert asked(equal) == 2


def test_a_wake_that_could_not_be_given_is_given_again(equal):
    equal.engines[SOURCE].courier.error = "the master is busy"
    change(equal)
    assert equal.jobs == [(SOURCE, "wake", [SOURCE])]
    equal.engines[SOURCE].courier.error = ""
    equal.publish()
    assert equal.jobs == [(SOURCE, "wake", [SOURCE])] * 2
    equal.publish()
    assert len(equal.jobs) == 2


@pytest.mark.parametrize("force", [False, True])
def test_a_demand_is_a_note_on_the_host_and_its_event_only_wakes(host, monkeypatch, force):
    told = []
    bus = SimpleNamespace(fire_event=lambda data, tag: told.append((tag, data)) or True)
    found = lambda *args, **kwargs: contextlib.nullcontext(bus)  # noqa: E731
    monkeypatch.setattr("salt.utils.event.get_event", found)
    roots = host.root / "var/cache/salt/master/multimaster/roots"
    roots.mkdir(parents=True)
    assert host.modules["multimaster_roots.wake"]("", force) is True
    assert told == [("multimaster/roots/publish", {"origin": ""})]
    assert [path.name for path in roots.iterdir()] == ["demand"] * force
