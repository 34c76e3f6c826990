"""
One hostile item in a batch, whatever it is, and the others come out as they do without it.

Also for files that only root writes, for a disk may have made anything of them.  ``make chaos``
runs this once more with many times as many examples.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import multimaster_cutover as cutover
import multimaster_gather as gather
import multimaster_keypair as keypair
import multimaster_ledger as ledger
import multimaster_pubkey as pubkey
import multimaster_restart as restart
import multimaster_roots as roots
import multimaster_said as said
import multimaster_seal as seal
import multimaster_trees as trees
from lab.keys import make_pair
from unit import test_engine, test_liveness

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

loader, master, decide = test_engine.loader, test_engine.master, test_engine.decide
world = test_liveness.world


def budget(part: float) -> settings:
    """So much of the profile's examples: what takes long has fewer."""
    return settings(
        max_examples=max(1, int(settings().max_examples * part)),
        suppress_health_check=list(HealthCheck),
    )


# What anybody may say


class Nested:
    """A list in a list, and so on: so deep that Hypothesis could not show it."""

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def __repr__(self) -> str:
        return f"Nested({self.levels})"


def real(value: object) -> object:
    """Put in what could not be shown."""
    if isinstance(value, dict):
        return {name: real(one) for name, one in value.items()}
    if isinstance(value, list):
        return [real(one) for one in value]
    if not isinstance(value, Nested):
        return value
    found: list[object] = []
    for _ in range(value.levels):
        found = [found]
    return found


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.sampled_from(["", "web1", "\udcff", "\x1b[2J", "../x", "x\0", "9" * 5000, 10**400, {}, []])
)
shallow = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters()) | st.integers() | st.binary(), inner, max_size=3)
    ),
    max_leaves=8,
)
anything = shallow | st.sampled_from([900, 5000]).map(Nested)


@st.composite
def spoilt(draw, whole, other=anything):
    """Something with something else in one place, or something else altogether."""
    if not isinstance(whole, (dict, list)) or not whole or draw(st.booleans()):
        return draw(other)
    changed = dict(whole) if isinstance(whole, dict) else list(whole)
    place = draw(st.sampled_from(sorted(whole) if isinstance(whole, dict) else range(len(whole))))
    if isinstance(whole, dict) and draw(st.integers(0, 9)) == 0:
        del changed[place]
    else:
        changed[place] = draw(spoilt(whole[place], other))
    return changed


def as_json(value: object) -> bytes:
    """As JSON; without keys that it has no word for."""
    try:
        return json.dumps(real(value), default=repr, skipkeys=True).encode()
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000


def as_msgpack(value: object) -> bytes:
    try:
        return bytes(msgpack.packb(real(value), unicode_errors="surrogatepass"))
    except (OverflowError, TypeError, ValueError):
        return b"\x91" * 5000 + b"\xc0"


def files(whole: object) -> st.SearchStrategy[bytes]:
    """What may be in a file that should have some JSON: other bytes, other JSON, a part of it."""
    text = json.dumps(whole)
    return (
        st.binary()
        | spoilt(whole).map(as_json)
        | st.integers(0, len(text)).map(lambda end: text[:end].encode())
        | st.sampled_from(["utf-16", "utf-32", "utf-8-sig"]).map(text.encode)
        | st.sampled_from([b"", b"\0" * 4096, b"[" * 100_000, b"NaN", b'{"a":' * 100_000])
    )


# The event bus, as Salt reads it


class Bus:
    """A bus with the frames that a test puts there; Salt takes them apart."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def put(self, tag, **data):
        self.frames.append(tag.encode() + b"\n\n" + as_msgpack(data))

    def get_event(self, wait=5, tag="", full=False):
        import salt.exceptions
        import salt.utils.event

        assert full
        while self.frames:
            # As Salt 3008 does; its predecessors raise that, too.
            with contextlib.suppress(salt.exceptions.SaltDeserializationError):
                found, data = salt.utils.event.SaltEvent.unpack(self.frames.pop(0))
                if found.startswith(tag):
                    return {"tag": found, "data": data}
        return None


tags = st.binary(max_size=60) | st.sampled_from(
    [
        b"\xff",
        b"salt/key",
        b"salt/auth",
        b"salt/job/1/ret/saltm1",
        b"multimaster/wake",
        b"minion_start",
        b"salt/minion/saltm1/start",
        b"__master_req_channel_payload/7",
        b"__master_req_channel_payload/8/192.0.2.1",
        b"__master_req_channel_payload/a/b/c",
        b"__master_req_channel_return/8",
    ]
)
loads = anything | st.fixed_dictionaries(
    {},
    optional={
        name: anything | st.sampled_from(also)
        for name, also in {
            "id": ["saltm1", "web1"],
            "act": ["accept", "delete"],
            "cmd": ["_return"],
            "origin": ["saltm1", ""],
            "return": [True],
            "ret": [None],
            "jid": ["1"],
        }.items()
    },
)
frames = st.binary(max_size=200) | st.builds(
    lambda tag, load: tag + b"\n\n" + load, tags, loads.map(as_msgpack) | st.binary()
)


@budget(0.5)
@given(st.lists(frames, max_size=5))
@example([b"\xff\n\n\x80"])
def test_whoever_listens_to_a_bus_hears_all_events_but_the_hostile_ones(hostile):
    for hear in (
        lambda bus: gather.next_event(bus, 1),
        lambda bus: gather.hardened(SimpleNamespace(event=bus)).event.get_event(full=True),
    ):
        heard_of_all(hostile, hear)


def heard_of_all(hostile, hear):
    bus, good = Bus(), {"tag": "good", "data": {"a": 1}}
    bus.frames = [frame for each in hostile for frame in (each, b"good\n\n\x81\xa1a\x01")]
    heard = []
    for _ in range(2 * len(hostile) + 1):
        heard.append(hear(bus))
    assert heard.count(good) == len(hostile)


# A master's keys, and what the others say of them

PUB = make_pair(bits=1024)[1].strip()
FINGERPRINT = pubkey.of(PUB.encode()).fingerprint
WIRE = ["web9", FINGERPRINT, "accepted", 1, 0, "saltm1", PUB]
wires = spoilt(WIRE, shallow).map(lambda wire: json.loads(as_json(wire)))
NUMBERS = itertools.count()
things = st.tuples(
    st.sampled_from([*test_engine.STORES.values(), "minions_denied"]),
    st.binary(min_size=1, max_size=255) | st.text(min_size=1, max_size=60).map(os.fsencode),
    st.binary(max_size=300)
    | st.binary().map(lambda junk: PUB.encode() + junk)
    | st.sampled_from([os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)]),
)


@contextlib.contextmanager
def lying_about(pki: Path, where: str, name: bytes, what: object) -> Iterator[None]:
    """Have something lie about among the keys of a master."""
    path = os.path.join(os.fsencode(pki), os.fsencode(where), name)
    if b"/" in name or b"\0" in name or name in (b".", b"..") or os.path.lexists(path):
        yield
        return
    if callable(what):
        what(path)
    else:
        Path(os.fsdecode(path)).write_bytes(what)
    yield
    for directory in (*test_engine.STORES.values(), "minions_denied"):
        found = os.path.join(os.fsencode(pki), os.fsencode(directory), name)
        if os.path.isdir(found):
            os.rmdir(found)
        elif os.path.lexists(found):
            os.unlink(found)


def outcome(master, decide, hostile, odd):
    """
    Have keys decided on here, with an event and without, and on another master, all at once.

    hostile
        Frames on the bus before, between and after the events.
    odd
        What is among the decisions of the other master.
    """
    number = next(NUMBERS)
    told, found, there, gone = names = [f"{w}{number}" for w in ("told", "found", "there", "gone")]
    pub = master.shared.pub
    bus = master.engine.bus = Bus()
    master.put(gone, "accepted", pub)
    bus.put("salt/key", id=gone, act="accepted")
    master.turn()
    for name in (told, found):
        master.put(name, "accepted", pub)
    decide(master, "saltm1", "accepted", name=there, pub=pub)
    decide(master, "saltm1", "rejected", name=gone, pub=pub)
    book = master.books["saltm1"]
    decisions, end = book.since(0, 10_000)
    mine = [ledger.to_wire(one) for one in decisions if one.id in names]
    packed = ledger.squeeze([*odd, *mine, *odd])
    master.engine.look_due = master.engine.scan_due = 0.0
    master.engine.peers["saltm1"]._asked = 0.0
    bus.frames += hostile
    bus.put("salt/key", id=told, act="accepted")
    bus.frames += hostile
    bus.put("multimaster/wake", origin="saltm1")
    for _ in range(3):
        master.turn()
    question = next(
        a for t, f, a in reversed(master.asked) if (t, f) == (["saltm1"], "ledger_pull")
    )
    reply = master.answer("saltm1", *question, decisions=packed, place=end)
    if master.engine.peers["saltm1"].open:
        jid = master.engine.peers["saltm1"].open.jid
        bus.frames += hostile
        bus.put(f"salt/job/{jid}/ret/saltm1", **{"return": reply})
    for _ in range(3):
        master.turn()
    return [(master.has(name), master.verdicts(name)) for name in names]


@budget(0.3)
@given(st.lists(things, max_size=3), st.lists(frames, max_size=3), st.lists(wires, max_size=3))
def test_keys_are_decided_on_as_without_what_is_hostile_among_them(
    master, decide, lying, hostile, odd
):
    expected = outcome(master, decide, [], [])
    assert expected == [
        ("accepted", ["accepted"]),
        ("accepted", ["accepted"]),
        ("accepted", ["accepted"]),
        ("rejected", ["rejected"]),
    ]
    with contextlib.ExitStack() as stack:
        for where, name, what in lying:
            stack.enter_context(lying_about(master.host.pki, where, name, what))
        assert outcome(master, decide, hostile, odd) == expected


@budget(0.2)
@given(st.text(st.characters()), st.text(st.characters()))
@example("web1", "cannot read '\udcff'")
def test_any_reason_for_which_an_item_is_set_aside_hides_no_other(master, item, reason):
    master.engine.aside.clear()
    master.loader.run(master.engine._set_aside, "good", "no space")
    master.loader.run(master.engine._set_aside, f"{item}/", reason)
    master.loader.run(master.engine._tell_aside)
    assert master.book.aside()["good"] == "no space"
    assert len(master.book.aside()) == 2


@budget(0.5)
@given(files({"source": "saltm1", "keys": {"web1": FINGERPRINT}}))
@example(b'{"source": "saltm1", "keys": [[1, 2]]}')
@example(b"[" * 100_000)
def test_any_file_in_place_of_the_seeds_stops_no_decision(master, decide, content):
    path = master.host.root / "var/cache/salt/master/multimaster/seeds.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    master.engine.seeds = master.loader.run(master.settings["_Seeds"], list(test_engine.PEERS))
    assert outcome(master, decide, [], [])[0] == ("accepted", ["accepted"])
    assert not any(isinstance(item, int) for item in master.engine.aside)


# What minions answer


@budget(0.5)
@given(st.lists(frames, max_size=5))
@example([b"\xff\n\n\x80"])
def test_the_answers_of_minions_are_gathered_from_among_anything(monkeypatch, hostile):
    bus = Bus()
    for number in range(3):
        bus.frames += hostile
        bus.put(f"salt/job/j/ret/web{number}", **{"return": number})
    bus.connect_pub = lambda: None
    client = SimpleNamespace(event=bus, destroy=lambda: None, run_job=lambda *_, **__: {"jid": "j"})
    monkeypatch.setattr("salt.client.get_local_client", lambda mopts: client)
    question = gather.Question(["web0", "web1", "web2"], "test.ping")
    # No matter how long that takes: to hear what is hostile costs time.
    found = gather.gather({}, [question], 60.0)
    assert [(one.id, one.value) for one in found] == [("web0", 0), ("web1", 1), ("web2", 2)]


@budget(0.5)
@given(st.sampled_from(sorted(said.ANSWERS)), anything)
def test_what_passes_the_check_of_answers_can_be_read_and_printed(function, value):
    found, why = said.check(function, real(value))
    if why is not None:
        assert found is None
        assert why.isprintable()
        return
    # What is in these is checked by itself.
    within = ("details", "minions", "multimaster.signed", "multimaster_orch.ask", "state.apply")
    if function not in within:
        json.dumps(found).encode()
    assert said.check(function, found)[1] is None


@budget(0.5)
@given(st.lists(frames, max_size=4))
@example([b"__master_req_channel_payload/7\n\n\x81\xa3cmd\xa7_return"])
@example([b"__master_req_channel_payload/a/b\n\n\xc0"])
def test_returns_go_on_to_a_master_from_among_any_events(world, hostile):
    found = world()
    found.present = test_liveness.MASTERS[1]
    bus = found.returns.bus = Bus()
    for number in range(3):
        bus.frames += hostile
        tag = f"__master_req_channel_payload/good{number}/{test_liveness.MASTERS[0]}"
        bus.put(tag, cmd="_return", jid=str(number))
    while bus.frames:
        found.returns.due = 0
        found.returns.follow(0)
    sent = [data["jid"] for tag, data in found.fired if "payload/good" in tag]
    assert sorted(sent) == ["0", "1", "2"]


# Files of which a disk has made something else


def recorded(path: Path) -> None:
    """Make a ledger with two decisions."""
    with ledger.Ledger(str(path)) as book:
        book.look_at("store")
        for name in ("web1", "web2"):
            book.decide(name, FINGERPRINT, "accepted", "saltm1", PUB, "here")
            book.note({name: ledger.key("accepted", FINGERPRINT)})
        book.set_place("saltm2", "epoch", 5)
        book.put_aside({"web1": "no space"})
        book.completed()


def is_usable(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        try:
            book = stack.enter_context(ledger.Ledger(str(path)))
        except ledger.LedgerError as err:
            if "got schema" in str(err):
                # Of a later release, as far as anybody can tell.
                return
            raise
        book.decide("web3", FINGERPRINT, "accepted", "saltm1", PUB, "here")
        assert book.of("web3")[FINGERPRINT].verdict == "accepted"
        book.look_at("store")
        book.completed()
        assert all(isinstance(name, str) for name in book.ids())
        assert [type(part) for part in book.place("saltm2")] == [str, int]
        aside = book.aside()
        assert all(isinstance(text, str) for pair in aside.items() for text in pair)
        assert said.check("unknown", aside)[1] is None
        json.dumps([book.digest, book.epoch, book.end, book.complete]).encode()


@budget(0.3)
@given(st.sampled_from(["cut", "joined", "utf-8", "utf-16"]), st.integers(0, 1 << 16), st.binary())
# A later file format, by its header: SQLite does not call that damaged.
@example("joined", 45, b"\0\0\5")
def test_a_ledger_that_was_cut_off_or_recoded_is_of_use_or_set_aside(
    tmp_path_factory, how, at, junk
):
    path = tmp_path_factory.mktemp("cut") / "ledger.db"
    recorded(path)
    whole = path.read_bytes()
    if how == "cut":
        path.write_bytes(whole[:at])
    elif how == "joined":
        path.write_bytes(whole[:at] + junk + whole[at:])
    else:
        path.write_bytes(whole.decode("latin-1").encode(how))
    is_usable(path)


cells = (
    st.none()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats()
    | st.binary()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | anything.map(as_json).map(lambda text: text.decode())
    | st.sampled_from(["[" * 100_000, "1e999", "NaN", "null", '"ffff"'])
)


@budget(0.5)
@given(
    st.sampled_from(
        [
            "UPDATE OR REPLACE meta SET value = ? WHERE name = 'schema'",
            "UPDATE OR REPLACE meta SET value = ? WHERE name = 'clock'",
            "UPDATE OR REPLACE meta SET value = ? WHERE name = 'seq'",
            "UPDATE OR REPLACE meta SET value = ? WHERE name = 'digest'",
            "UPDATE OR REPLACE meta SET value = ? WHERE name = 'epoch'",
            "UPDATE OR REPLACE meta SET value = ? WHERE name = 'store'",
            "UPDATE OR REPLACE meta SET value = ? WHERE name = 'complete'",
            "UPDATE OR REPLACE meta SET name = ? WHERE name = 'complete'",
            "UPDATE OR REPLACE decision SET time = ?",
            "UPDATE OR REPLACE decision SET verdict = ?",
            "UPDATE OR REPLACE decision SET pub = ?",
            "UPDATE OR REPLACE peer SET epoch = ?",
            "UPDATE OR REPLACE peer SET seq = ?",
            "UPDATE OR REPLACE seen SET state = ?",
            "UPDATE OR REPLACE seen SET fingerprint = ?",
            "UPDATE OR REPLACE aside SET item = ?",
            "UPDATE OR REPLACE aside SET reason = ?",
            "UPDATE OR REPLACE aside SET item = CAST(? AS BLOB)",
            "UPDATE OR REPLACE aside SET reason = CAST(? AS BLOB)",
        ]
    ),
    cells,
)
@example("UPDATE OR REPLACE meta SET value = ? WHERE name = 'clock'", "[" * 100_000)
@example("UPDATE OR REPLACE meta SET value = ? WHERE name = 'store'", "[" * 100_000)
@example("UPDATE OR REPLACE aside SET reason = ?", b"\xff")
@example("UPDATE OR REPLACE aside SET item = ?", "x" * 100_000)
def test_a_ledger_with_anything_in_a_place_of_it_is_of_use_or_set_aside(
    tmp_path_factory, statement, cell
):
    path = tmp_path_factory.mktemp("odd") / "ledger.db"
    recorded(path)
    with (
        contextlib.closing(sqlite3.connect(path)) as database,
        contextlib.suppress(sqlite3.IntegrityError),
        database,
    ):
        database.execute(statement, (cell,))
    is_usable(path)


JOURNAL = {
    "serial": "abc",
    "step": "prepared",
    "since": 1.0,
    "job": [1, 2, "boot"],
    "daemon": [1, 2, "boot"],
    "drop_in": "DROP_IN",
    "masters": 1,
    "timeout": 600,
    "old": ["192.0.2.1"],
    "wanted": ["192.0.2.8"],
    "heard": ["192.0.2.8"],
    "seen": {"192.0.2.8": ["accepted", 1.0]},
    "at": 1.0,
    "back": False,
    "read": True,
    "tries": 0,
    "returned": 1.0,
    "why": "silent",
    "seconds": 1.0,
}


class Host:
    """A minion whose new masters all let it in."""

    started = time.time()

    def options(self):
        return {"master": ["192.0.2.8"]}

    def begun(self):
        return self.started

    def daemon(self):
        return [7, self.started, "boot"]

    def restart(self):
        self.started += 1000.0
        return True

    start = restart

    def busy(self):
        return False

    def ask(self, options, address, patience):
        return cutover.ACCEPTED

    def linked(self, options, addresses):
        return list(addresses)

    def same(self, one, other):
        return one == other


@budget(0.5)
@given(files(JOURNAL), st.sampled_from(cutover.STEPS))
@example(b"[" * 100_000, "prepared")
@example(json.dumps({**JOURNAL, "job": 5}).encode(), "prepared")
@example(json.dumps({**JOURNAL, "seen": 5}).encode(), "proving")
@example(json.dumps({**JOURNAL, "heard": 5}).encode(), "connecting")
@example(json.dumps({**JOURNAL, "tries": "x"}).encode(), "proving")
@example(json.dumps({**JOURNAL, "drop_in": "\0"}).encode(), "proving")
@example(json.dumps({**JOURNAL, "old": [[]]}).encode(), "proving")
def test_any_journal_of_a_cut_over_is_carried_out_or_none(
    tmp_path_factory, monkeypatch, content, step
):
    monkeypatch.setattr(cutover, "AGAIN", 0.0)
    directory = tmp_path_factory.mktemp("journal")
    path, drop_in = str(directory / "cutover.json"), directory / "drop-in"
    drop_in.write_text("master: [192.0.2.8]\n")
    for suffix in ("old", "goal"):
        Path(f"{path}.{suffix}").write_text("master: [192.0.2.1]\n")
    content = content.replace(b"DROP_IN", os.fsencode(drop_in))
    Path(path).write_bytes(content.replace(b'"prepared"', json.dumps(step).encode()))
    cutover.at_work(path, lambda pid: None)
    cutover.resting(path)
    if cutover.read(path).get("drop_in", str(drop_in)) != str(drop_in):
        # Nobody else's files are to be written here.
        cutover.forget(path)
    if cutover.pending(path):
        done = cutover.carry_out(path, Host(), lambda journal: None)
        assert done["step"] == cutover.KEPT
    cutover.prepare(path, str(drop_in), 1, ["192.0.2.1"], "", 600)
    assert cutover.pending(path)
    assert cutover.carry_out(path, Host(), lambda journal: None)["step"] == cutover.KEPT


REQUEST = {"daemon": None, "jid": "1", "job": None, "timeout": 600}


@budget(0.5)
@given(files(REQUEST), files("nobody"))
@example(b"[" * 100_000, b"[" * 100_000)
@example(json.dumps({**REQUEST, "timeout": 10**400}).encode(), b"")
def test_any_file_among_the_requests_for_a_restart_hides_no_other(
    tmp_path_factory, content, waiting
):
    directory = tmp_path_factory.mktemp("requests")
    (directory / "good").write_text(json.dumps(REQUEST))
    (directory / "odd").write_bytes(content)
    (directory / ".waiting").write_bytes(waiting)
    found = restart.outstanding(str(directory), 0)
    assert found["timeout"] >= 600
    json.dumps(found).encode()
    restart.settle(str(directory), 0)
    assert (directory / "good").exists()


@budget(0.5)
@given(files({"FILE": [1, 2, 3, 4, "x" * 64]}))
@example(b"[" * 100_000)
@example(b'{"FILE": 5}')
@example(b'{"FILE": {"a": 1}}')
def test_any_file_in_place_of_known_hashes_changes_none(tmp_path_factory, content):
    directory = tmp_path_factory.mktemp("hashes")
    (directory / "file").write_text("content")
    path = directory / "hashes.json"
    path.write_bytes(content.replace(b"FILE", os.fsencode(directory / "file")))
    hashes = trees.Hashes(str(path))
    assert hashes.of(str(directory / "file")).startswith("ed7002b439e9ac845f22357d822bac14")
    hashes.save()


WATCH = {"by": "saltm1", "at": 1.0, "known": ["config"]}


@budget(0.3)
@given(files(WATCH), files({"web1": {"at": 1.0}}))
@example(b"[" * 100_000, b"[" * 100_000)
@example(b"{}", b'{"web1": 5}')
@example(b"{}", b"[]")
def test_any_note_of_an_earlier_look_is_read_or_none(by_path, tmp_path_factory, watch, proofs):
    directory = tmp_path_factory.mktemp("notes")
    (directory / "watch.json").write_bytes(watch)
    (directory / "proofs.json").write_bytes(proofs)
    engine = by_path("salt/_engines/multimaster_drift.py")
    known = engine._Watcher._known(SimpleNamespace(path=str(directory / "watch.json")))
    assert all(isinstance(name, str) for name in known)
    found = by_path("salt/_modules/multimaster_drift.py")._proofs(str(directory / "proofs.json"))
    assert all(isinstance(proof, dict) for proof in found.values())


# Snapshots of the roots


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The directory of a store with two snapshots, the names of these, and what is live."""
    directory = tmp_path_factory.mktemp("served")
    live = directory / "live"
    live.mkdir()
    store = roots.Store(str(directory / "store"))
    store.prepare()
    for text in ("one", "two"):
        (live / "top.sls").write_text(text)
        store.switch(store.capture(roots.scan({"file_roots": {"base": [str(live)]}})))
    return directory / "store", store.names(), live


BASE = "file_roots/base/0"
MANIFEST = {"version": 1, "entries": {BASE: None, f"{BASE}/top.sls": ["0" * 64, 1, 0o644]}}


@budget(0.5)
@given(
    files(MANIFEST) | files({f"{BASE}/top.sls": [1, 2, 3, 4, 5]}),
    st.sampled_from(["manifest", "index", "live"]),
    st.sampled_from([0, 1]),
)
@example(b"[" * 100_000, "manifest", 1)
@example(b'{"file_roots/base/0/top.sls": 5}', "live", 1)
def test_any_file_about_one_snapshot_leaves_the_others_served(
    served, tmp_path_factory, content, what, number
):
    source, names, live = served
    directory = tmp_path_factory.mktemp("store") / "store"
    shutil.copytree(source, directory, symlinks=True)
    (directory / "trees" / names[number] / what).write_bytes(content)
    store = roots.Store(str(directory))
    store.prepare()
    other = names[1 - number]
    assert other in store.names()
    assert store.manifest(other) == roots.Store(str(source)).manifest(other)
    now = store.current()
    assert now in (names[1], other)
    store.damage(now)
    store.outdated(set(), time.time())
    (live / "top.sls").write_text(f"{next(NUMBERS)}")
    made = store.capture(roots.scan({"file_roots": {"base": [str(live)]}}))
    store.switch(made)
    assert not store.damage(store.current())


@budget(0.5)
@given(files({"role": "source", "skipped": {}}))
@example(b"[" * 100_000)
def test_any_status_of_the_roots_on_disk_is_read_or_none(served, content):
    source, _, _ = served
    store = roots.Store(str(source))
    Path(store.status_file).write_bytes(content)
    assert isinstance(store.read_status(), dict)


# Whatever comes, in whichever of our own forms

PEM = make_pair(bits=2048)[0]
READERS = {
    "manifest": (roots.parse, roots.RootsError),
    "change": (lambda value: roots.apply(value, roots.Manifest({})), roots.RootsError),
    "decision": (ledger.from_wire, ledger.LedgerError),
    "decisions": (ledger.unpack, ledger.LedgerError),
    "packed": (ledger.unsqueeze, ledger.LedgerError),
    "bundle": (lambda value: keypair.open_bundle(value, "web1", PEM), keypair.KeypairError),
    "page": (lambda value: keypair.open_page(value, "web1", PEM), keypair.KeypairError),
    "answer": (lambda value: keypair.verify_answer(value, "n", "", PUB), keypair.KeypairError),
    "signature": (lambda value: keypair.verify_answer({}, "n", value, PUB), keypair.KeypairError),
    "sealed": (lambda value: seal.open_sealed(value, PEM, "n"), seal.SealError),
    "id": (pubkey.is_id, ()),
}


@pytest.mark.parametrize("name", READERS)
@budget(0.3)
@given(anything | anything.map(as_json) | anything.map(lambda value: as_json(value).decode()))
@example("[" * 100_000)
@example(Nested(5000))
@example({"gone": [], "set": {"x": ["0" * 64, Nested(5000), 0]}})
def test_anything_is_read_or_refused_by_one_error(name, value):
    read, refusal = READERS[name]
    with contextlib.suppress(refusal):
        read(real(value))


PAGE = {"origin": "a", "nonce": "n", "keys": [["web1", "accepted", PUB]], "last": True}
PAGE |= {"total": 1, "digest": "d"}


@budget(0.5)
@given(files({"pem": PEM, "pub": PUB}) | files(PAGE))
@example(b"[" * 100_000)
@example(json.dumps(PAGE | {"total": float("inf")}).encode())
def test_anything_that_is_sealed_to_a_minion_is_opened_or_refused(monkeypatch, content):
    monkeypatch.setattr(keypair, "_opened", lambda *_: content)
    with contextlib.suppress(keypair.KeypairError):
        assert isinstance(keypair.open_bundle("", "web1", PEM).pem, str)
    monkeypatch.setattr(keypair, "_opened", lambda *_: zlib.compress(content))
    with contextlib.suppress(keypair.KeypairError):
        assert isinstance(keypair.open_page("", "web1", PEM).total, int)


@budget(0.5)
@given(anything.map(as_json), st.binary(max_size=20))
@example(b"[" * 100_000, b"")
@example(json.dumps({"head": {}, "pieces": [["x", 0, -1]]}).encode(), b"")
def test_any_message_is_unpacked_or_refused(front, body):
    head = zlib.compress(front)
    for message in (body, len(head).to_bytes(4, "big") + head + zlib.compress(body)):
        with contextlib.suppress(seal.SealError):
            unpacked, pieces = seal.unpack(message)
            assert isinstance(unpacked, dict)
            assert b"".join(piece.data for piece in pieces) in (b"", body)


@budget(0.3)
@given(anything, anything)
@example({"multimaster": Nested(5000)}, {})
@example({"multimaster": {5: 6, "a": 7}}, {"multimaster": []})
def test_any_pillar_on_a_command_line_leaves_the_masters_own(by_path, said, merged):
    own = {"multimaster": {"mode": "hot"}}
    module = by_path("salt/multimaster/own_pillar.py")
    state = SimpleNamespace(_pillar_override=real(said) or {"x": 1}, state_con={})
    state.state_con["multimaster_own_pillar"] = own
    module.HighState = SimpleNamespace(get_active=lambda: SimpleNamespace(state=state))
    module.__opts__ = {"file_client": "remote"}
    module.given = real(merged if isinstance(merged, dict) else {"multimaster": merged})
    found = module.run()
    assert found["multimaster"]["mode"] == "hot"
    assert set(found["multimaster"]) <= {"mode", "replace_keypair"}
