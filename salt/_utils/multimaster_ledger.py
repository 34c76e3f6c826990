"""
What the masters have decided on the minions' keys, and how their decisions become one.

A ledger is a last-writer-wins map.  Its key is a minion id together with the fingerprint of a
public key, its value the latest decision on that key: accepted, rejected or deleted; or proposed to
be: then every master keeps the key as accepted, but for those where somebody has removed it, until
a later decision says what is right.  The later decision wins, and of two at the same time the
stricter, so that merging is commutative, associative and idempotent.  Time is hybrid logical: wall
clock where that runs ahead of what has been seen, else a turn, so that a decision is later than all
that its master knew of.

An id of which two keys are accepted or rejected at once is a conflict, which is for an operator.

Imports nothing of Salt.  :class:`Ledger` keeps the map in SQLite; one process writes it.
"""

# Annotations stay evaluated: see multimaster_keypair.py.
import base64
import contextlib
import hashlib
import json
import os
import re
import reprlib
import secrets
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

# What somebody did on one master and is not done on the others until it is confirmed, and what it
# becomes then.
PROPOSED = {"deletion proposed": "deleted", "rejection proposed": "rejected"}
# Deleted; of the first it was not known on that master that the minion is there, and a master that
# has its answer proposes it instead.
GONE = ("deleted if away", "deleted")
# From lenient to strict: which of two simultaneous decisions wins.
VERDICTS = ("accepted", *PROPOSED, *GONE, "rejected")
# What a key that is in use can be.
LIVE = ("accepted", "rejected")
DIGEST_BITS = 256
SCHEMA_VERSION = 1
# Seconds that a reader and a writer wait for each other.
BUSY = 10
# Of the decisions in one answer.
MAX_BYTES = 16 << 20
# Of the text of a key; see multimaster_pubkey.py.
MAX_TEXT = 16 * 1024
# What SQLite, JSON and the next turn can hold; in the year 285,428.
LATEST = 1 << 53
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
# What SQLite says of a damaged database in the words that it has for one that cannot be opened.
_DAMAGED = ("unsupported file format",)


class LedgerError(ValueError):
    """A decision or a ledger that must not be used."""


class Stamp(NamedTuple):
    """A hybrid logical time: milliseconds since the epoch, and a turn within one of them."""

    time: int
    turn: int


# Of what was there before the ledger: anything that somebody has decided is later.
BEFORE = Stamp(0, 0)


class Key(NamedTuple):
    """A key in a master's key store.  state: accepted, rejected or pending."""

    state: str
    fingerprint: str


@dataclass(frozen=True)
class Decision:
    """
    What has been decided on one key of one minion.

    ``origin`` is the minion id on the host of the master where it was decided, or done first;
    ``pub`` the public key in PEM, empty if deleted, or if the text there was odd: then each master
    applies it to the text that it has itself.
    """

    id: str
    fingerprint: str
    verdict: str
    stamp: Stamp
    origin: str
    pub: str = ""

    @property
    def rank(self) -> tuple[int, int, int, str]:
        """What :func:`merge` compares: time, then strictness; the origin only makes it total."""
        return (*self.stamp, VERDICTS.index(self.verdict), self.origin)


@dataclass(frozen=True)
class Action:
    """What a master has to do with an id.  verb: none, accept, reject, delete or conflict."""

    verb: str
    id: str
    decision: Decision | None = None
    reason: str = ""


def tick(last: Stamp, now: int) -> Stamp:
    """Return the time of a new event: later than ``last``, and ``now`` (ms) if that is later."""
    return Stamp(now, 0) if now > last.time else Stamp(last.time, last.turn + 1)


def merge(one: Decision | None, other: Decision) -> Decision:
    """Return which of two decisions on the same key counts."""
    return other if one is None or other.rank > one.rank else one


def open_ledger(path: str, read_only: bool = False) -> "Ledger":
    """Return the :class:`Ledger` in a file; for Salt's loader, which shows functions only."""
    return Ledger(path, read_only)


def key(state: str, fingerprint: str) -> Key:
    """Return a :class:`Key`; for Salt's loader, too."""
    return Key(state, fingerprint)


def noticed(
    seen: Key | None,
    found: Key | None,
    known: Mapping[str, Decision],
    deleted: bool = False,
) -> list[tuple[str, str]] | None:
    """
    Tell what somebody has decided on this master, as (verdict, fingerprint).

    seen
        The id's key when this master last looked, or None.
    found
        Its key now; pending is as good as none.
    known
        The ledger's decisions on the id, by fingerprint.  What they already say was applied by
        the engine, which was then interrupted before it could note that it had seen it.  What is
        proposed already is not proposed again, and is settled by another key.
    deleted
        Whether Salt has told that somebody deleted the key.

    Returns None where nobody can tell: the engine was about to change the key, and now there is
    none.  Salt removes a key before it writes its new state, and may have been cut off between.
    """
    before, now = (key if key and key.state in LIVE else None for key in (seen, found))
    if before == now:
        return []
    said = known.get(before.fingerprint) if before else None
    changing = before and said and said.verdict in LIVE and said.verdict != before.state
    if changing and not now and not deleted:
        return None
    news = []
    if before and (now is None or now.fingerprint != before.fingerprint):
        news.append(("deleted", before.fingerprint))
    if now:
        news += [
            ("deleted", fingerprint)
            for fingerprint, one in known.items()
            if one.verdict in PROPOSED and fingerprint not in (now.fingerprint, *_prints(news))
        ]
        news.append((now.state, now.fingerprint))
    return [
        (verdict, fingerprint)
        for verdict, fingerprint in news
        if not _says(known.get(fingerprint), verdict, removed(seen, known), now)
    ]


def _prints(news: Iterable[tuple[str, str]]) -> list[str]:
    return [fingerprint for _, fingerprint in news]


def _says(known: Decision | None, verdict: str, removed_here: str | None, now: Key | None) -> bool:
    """Tell whether a decision says already what was found."""
    if known is None:
        return False
    if known.verdict not in PROPOSED:
        return known.verdict == verdict or (known.verdict in GONE and verdict in GONE)
    if verdict == "accepted":
        # As on every master but those where somebody has removed it.
        return removed_here != known.fingerprint
    replaced = now is not None and now.fingerprint != known.fingerprint
    return verdict == PROPOSED[known.verdict] and not replaced


def removed(seen: Key | None, decisions: Mapping[str, Decision]) -> str | None:
    """Return the fingerprint of the key that somebody has removed here, as is proposed, if any."""
    said = decisions.get(seen.fingerprint) if seen and seen.state != "accepted" else None
    return said.fingerprint if said and said.verdict in PROPOSED else None


def removed_by(decisions: Mapping[str, Decision], origin: str) -> Key | None:
    """Return what a master would remember that has removed a key, as is proposed, if it has."""
    for one in decisions.values():
        if one.verdict in PROPOSED and one.origin == origin:
            return Key("deleted", one.fingerprint)
    return None


def remembered(
    seen: Key | None, found: Key | None, decisions: Mapping[str, Decision]
) -> Key | None:
    """
    Return what is to be remembered as the id's key.

    That is what was found; or, where there is none now that is accepted or rejected, that the last
    one has been removed here, if that is proposed.
    """
    if seen and not (found and found.state in LIVE):
        said = decisions.get(seen.fingerprint)
        if said and said.verdict in PROPOSED:
            return Key("deleted", seen.fingerprint)
    return found


def plan(
    minion_id: str,
    decisions: Mapping[str, Decision],
    found: Key | None,
    seen: Key | None = None,
) -> Action:
    """
    Tell what a master has to do so that its key store says what the ledger says.

    decisions
        The ledger's decisions on the id, by fingerprint.
    found
        The id's key in the key store, or None.
    seen
        What is :func:`remembered` of it.
    """
    live = [decision for decision in decisions.values() if decision.verdict in LIVE]
    if len(live) > 1:
        return Action("conflict", minion_id, reason=_several(live))
    if not live:
        # One that is accepted for as long as nothing else is decided, if there is only one.
        kept = [decision for decision in decisions.values() if decision.verdict in PROPOSED]
        if len(kept) == 1 and removed(seen, decisions) != kept[0].fingerprint:
            live = [replace(one, verdict="accepted") for one in kept]
    if not live:
        said = decisions.get(found.fingerprint) if found and found.state in LIVE else None
        if said and said.verdict in GONE:
            return Action("delete", minion_id, said)
        return Action("none", minion_id)
    (wanted,) = live
    verb = {"accepted": "accept", "rejected": "reject"}[wanted.verdict]
    if found and found.fingerprint == wanted.fingerprint:
        same = found.state == wanted.verdict
        return Action("none", minion_id) if same else Action(verb, minion_id, wanted)
    # A pending key is nobody's word, and gives way.
    standing = found if found and found.state in LIVE else None
    if standing and standing.fingerprint not in decisions:
        return Action(
            "conflict",
            minion_id,
            reason=f"{wanted.fingerprint[:16]} is {wanted.verdict}, and here "
            f"{standing.fingerprint[:16]} is {standing.state}",
        )
    if wanted.pub:
        # In place of a key that was deleted elsewhere, perhaps.
        return Action(verb, minion_id, wanted)
    # It waits for the minion to bring that key here; a key that was deleted elsewhere does not.
    if standing:
        return Action("delete", minion_id, decisions[standing.fingerprint])
    return Action("none", minion_id)


def astray(
    minion_id: str,
    decisions: Mapping[str, Decision],
    found: Key | None,
    seen: Key | None = None,
) -> str | None:
    """
    Return in words what a master's key store has otherwise than its ledger says, or None.

    The arguments are those of :func:`plan`.  A conflict is for an operator, and not meant here.
    """
    action = plan(minion_id, decisions, found, seen)
    live = found is not None and found.state in LIVE
    if action.verb == "none" and found and live and found.fingerprint not in decisions:
        return f"{found.state}, and not decided on"
    if action.verb not in ("accept", "reject", "delete") or not action.decision:
        return None
    another = found is not None and found.fingerprint != action.decision.fingerprint
    now = f"{found.state}{' with another key' * another}" if found else "missing"
    return f"{now}, and decided: {action.decision.verdict}"


def seeding(found: Key | None, offered: Key) -> str | None:
    """
    Tell what keeps a key out that another master has decided on, or None if it is to be written.

    found
        The id's key on the master that starts for the first time, or None.
    offered
        What the other master has; the same is nothing to be written either, with an empty reason.
    """
    if found is None or found.state == "pending" or not found.fingerprint:
        return None
    if found == offered:
        return ""
    if found.fingerprint == offered.fingerprint:
        return f"is {found.state} here"
    return f"is {found.state} here with another key"


def settle(
    minion_id: str, fingerprint: str, decisions: Mapping[str, Decision], found: Key | None
) -> Action:
    """
    Tell what becomes of a seeded key when the ledger that it should be in was read to its end.

    Deleted if there is no decision on it, and it is what the key store has: it was deleted where it
    came from, before that master had a ledger.  Else as :func:`plan` says.
    """
    live = found is not None and found.state in LIVE and found.fingerprint == fingerprint
    if live and fingerprint not in decisions:
        return Action("delete", minion_id)
    return plan(minion_id, decisions, found)


def resolution(
    minion_id: str, decisions: Mapping[str, Decision], keep: str
) -> list[tuple[str, str]]:
    """
    Tell what ends a conflict, as (verdict, fingerprint): one key stays, the others are deleted.

    keep
        Fingerprint of the key that stays what it is, or the beginning of it.

    Raises :class:`LedgerError` unless that is exactly one of the keys in conflict.
    """
    live = [decision for decision in decisions.values() if decision.verdict in LIVE]
    chosen = [decision for decision in live if keep and decision.fingerprint.startswith(keep)]
    if len(chosen) != 1:
        found = ", ".join(sorted(decision.fingerprint for decision in live)) or "none"
        raise LedgerError(f"fingerprint of {minion_id}: got {keep!r}; supported: {found}")
    return [
        (decision.verdict if decision in chosen else "deleted", decision.fingerprint)
        for decision in live
    ]


def summary(proposals: Iterable[tuple[Decision, int]], shown: int) -> list[dict[str, Any]]:
    """
    Return proposals by what is proposed and the master where that was done.

    proposals
        And when each of them was recorded here (ms).
    shown
        Ids that are named, at most.

    Each entry has ``verdict``, ``origin``, ``since`` and ``until`` (ms), ``count`` and ``ids``.
    """
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for one, recorded in proposals:
        groups.setdefault((one.verdict, one.origin), []).append((recorded, one.id))
    return [
        {
            "verdict": verdict,
            "origin": origin,
            "since": min(several)[0],
            "until": max(several)[0],
            "count": len(several),
            "ids": sorted(name for _, name in several)[:shown],
        }
        for (verdict, origin), several in sorted(groups.items())
    ]


def settled(verb: str, proposal: Decision) -> str:
    """Return what a proposed key becomes with ``confirm`` or ``take_back``."""
    return PROPOSED[proposal.verdict] if verb == "confirm" else "accepted"


def pack(decisions: Iterable[Decision]) -> str:
    """Return decisions as a text that is short enough for Salt's event bus."""
    return squeeze([to_wire(decision) for decision in decisions])


def unpack(text: Any, refused: list[str] | None = None) -> list[Decision]:
    """
    Read what :func:`pack` made; :class:`LedgerError` for anything else.

    refused
        If given, takes the reasons for which single decisions cannot be used; the others can.
    """
    values = unsqueeze(text)
    if not isinstance(values, list):
        raise LedgerError("decisions: got no list")
    found = []
    for value in values:
        try:
            found.append(from_wire(value))
        except LedgerError as err:
            if refused is None:
                raise
            refused.append(str(err))
    return found


def squeeze(value: Any) -> str:
    """Return what JSON can say as a short text, which Salt is quicker with than with many dicts."""
    return base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()


def unsqueeze(text: Any) -> Any:
    """Read what :func:`squeeze` made; :class:`LedgerError` for anything else."""
    try:
        opener = zlib.decompressobj()
        plain = opener.decompress(base64.b64decode(text, validate=True), MAX_BYTES)
        if not opener.eof:
            raise LedgerError(f"packed: got more than {MAX_BYTES} bytes, or a part")
        return json.loads(plain)
    except (TypeError, ValueError, RecursionError, zlib.error) as err:
        raise LedgerError(f"packed: {err}") from err


def to_wire(decision: Decision) -> list[Any]:
    """Return a decision as what JSON and msgpack carry."""
    return [
        decision.id,
        decision.fingerprint,
        decision.verdict,
        *decision.stamp,
        decision.origin,
        decision.pub,
    ]


def sendable(decision: Decision) -> Decision | None:
    """Return a decision as peers take it, or None if a bad disk has made something else of it."""
    if isinstance(decision.pub, str) and len(decision.pub) > MAX_TEXT:
        # Of an older release.
        decision = replace(decision, pub="")
    try:
        return from_wire(to_wire(decision))
    except LedgerError:
        return None


def from_wire(value: Any) -> Decision:
    """Read what :func:`to_wire` made; :class:`LedgerError` for anything else."""
    kinds = (str, str, str, int, int, str, str)
    if not isinstance(value, (list, tuple)) or [type(part) for part in value] != list(kinds):
        raise LedgerError(f"decision: got {reprlib.repr(value)}")
    minion_id, fingerprint, verdict, moment, turn, origin, pub = value
    what = f"decision on {reprlib.repr(minion_id)}"
    if verdict not in VERDICTS or not (0 <= moment < LATEST and 0 <= turn < LATEST):
        raise LedgerError(
            f"{what}: got {reprlib.repr(verdict)} at {reprlib.repr(moment)}.{reprlib.repr(turn)}"
        )
    if not FINGERPRINT.fullmatch(fingerprint):
        raise LedgerError(f"{what}: got fingerprint {reprlib.repr(fingerprint)}")
    if len(pub) > MAX_TEXT or (pub and verdict in GONE):
        raise LedgerError(f"{what}: got a text of {len(pub)} letters, {verdict}")
    try:
        "".join((minion_id, origin, pub)).encode()
    except UnicodeEncodeError as err:
        # Half of a letter, which no database takes.
        raise LedgerError(f"{what}: {err.reason}") from err
    return Decision(minion_id, fingerprint, verdict, Stamp(moment, turn), origin, pub)


class Ledger:
    """
    The decisions that one master knows, in an SQLite database.

    ``fresh`` tells that the database was not there, or was damaged and set aside: what the key
    store holds is then no news, but was there :data:`BEFORE`.
    """

    def __init__(self, path: str, read_only: bool = False) -> None:
        self.path = path
        self.fresh = False
        try:
            self._open(read_only)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as err:
            # SQLite also quotes what is damaged.
            usable = isinstance(err, sqlite3.OperationalError) and str(err) not in _DAMAGED
            if read_only or usable:
                # Absent, locked or out of space is not damaged.
                raise LedgerError(f"{path}: {err}") from err
            self._set_aside()
            self._open(read_only)
            self.fresh = True

    def _open(self, read_only: bool) -> None:
        mode = "ro" if read_only else "rwc"
        self._db = sqlite3.connect(
            f"file:{self.path}?mode={mode}", uri=True, isolation_level=None, timeout=BUSY
        )
        # What a bad disk has made of a text is for whoever reads it to refuse.
        self._db.text_factory = lambda text: text.decode(errors="replace")
        try:
            if not read_only:
                os.chmod(self.path, 0o640)
                # Survives the end of this process; what a power cut takes is in the key store.
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                if self._db.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
                    raise sqlite3.DatabaseError("damaged")
                self._create()
            version = self._version()
            if version != SCHEMA_VERSION:
                raise LedgerError(f"{self.path}: got schema {version}; supported: {SCHEMA_VERSION}")
            if not read_only:
                self._check()
                if _ASIDE not in self._statements():
                    self._db.execute(_ASIDE)
        except BaseException:
            self._db.close()
            raise

    def _version(self) -> Any:
        """Return the version of the schema; that table is the same in all of them."""
        if _SCHEMA[0] not in self._statements():
            raise sqlite3.DatabaseError("damaged: it does not say what it is")
        try:
            return self._get("schema")
        except (RecursionError, TypeError, ValueError) as err:
            raise sqlite3.DatabaseError(f"damaged: {err}") from err

    def _statements(self) -> set[str]:
        rows = self._db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {sql for (sql,) in rows}

    def _check(self) -> None:
        """Raise :class:`sqlite3.DatabaseError` unless this is what was written."""
        if self._statements() - {_ASIDE} != set(_SCHEMA):
            raise sqlite3.DatabaseError("damaged: its tables are others")
        try:
            rows = self._db.execute("SELECT name, value FROM meta")
            known = {name: json.loads(value) for name, value in rows}
            clock, told = Stamp(*known["clock"]), int(known["digest"], 16)
            self._sum, last = 0, 0
            for row in self._db.execute(_SELECT):
                self._count(_decision(row), 1)
                last = max(last, row[-1])
            whole = (
                all(type(part) is int and 0 <= part < LATEST for part in clock)
                and isinstance(known["epoch"], str)
                and last <= known["seq"] < LATEST
            )
        except (KeyError, RecursionError, TypeError, ValueError) as err:
            raise sqlite3.DatabaseError(f"damaged: {err}") from err
        if not whole or self._sum % (1 << DIGEST_BITS) != told:
            raise sqlite3.DatabaseError("damaged: the decisions are not those that were recorded")

    def _set_aside(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S")
        os.replace(self.path, f"{self.path}.damaged-{stamp}")
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + suffix)

    def _create(self) -> None:
        if self._db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            return
        self._db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            self._db.execute(statement)
        self._set("schema", SCHEMA_VERSION)
        # Tells peers that their place in this ledger is worth nothing.
        self._set("epoch", secrets.token_hex(8))
        self._set("clock", list(BEFORE))
        self._set("seq", 0)
        self._set("digest", "0")
        self._db.execute("COMMIT")
        self.fresh = True

    def close(self) -> None:
        """Close the database; this object is of no use afterwards."""
        self._db.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def epoch(self) -> str:
        """Name of this database; another one after a ledger was lost."""
        return str(self._get("epoch"))

    @property
    def digest(self) -> str:
        """Equal for equal ledgers: the sum of the hashes of all decisions, in hexadecimal."""
        return str(self._get("digest"))

    @property
    def end(self) -> int:
        """The place after the last decision that was recorded here."""
        return int(self._get("seq"))

    def of(self, minion_id: str) -> dict[str, Decision]:
        """Return the decisions on an id, by fingerprint."""
        rows = self._db.execute(f"{_SELECT} WHERE id = ?", (minion_id,))
        return {decision.fingerprint: decision for decision in map(_decision, rows)}

    def ids(self) -> Iterator[str]:
        """Yield every id that there is a decision on."""
        for (minion_id,) in self._db.execute("SELECT DISTINCT id FROM decision ORDER BY id"):
            yield minion_id

    def conflicts(self) -> list[str]:
        """Return the ids of which more than one key is accepted or rejected."""
        rows = self._db.execute(
            "SELECT id FROM decision WHERE verdict IN ('accepted', 'rejected')"
            " GROUP BY id HAVING COUNT(*) > 1 ORDER BY id"
        )
        return [minion_id for (minion_id,) in rows]

    def ended(self) -> set[str]:
        """Return the ids of which a key was accepted once, or never, and is not any more."""
        rows = self._db.execute("SELECT DISTINCT id FROM decision WHERE verdict != 'accepted'")
        return {minion_id for (minion_id,) in rows}

    def suspects(self, states: Mapping[str, str]) -> list[str]:
        """
        Return the ids whose keys may be otherwise than decided, for :func:`astray` to tell.

        states
            Id -> state of its key, as the key store lists it.

        Whose state is as decided, and whose key was so when it was last looked at, is none of them:
        to read all keys takes longer than all the rest of a look at a master.
        """
        wanted: dict[str, list[tuple[str, str]]] = {}
        rows = self._db.execute("SELECT id, fingerprint, verdict FROM decision")
        for minion_id, fingerprint, verdict in rows:
            standing = wanted.setdefault(minion_id, [])
            if verdict not in GONE:
                standing.append((verdict, fingerprint))
        rows = self._db.execute("SELECT id, state, fingerprint FROM seen")
        seen = {minion_id: (state, fingerprint) for minion_id, state, fingerprint in rows}
        found = []
        for minion_id in sorted({*wanted, *states}):
            state = states.get(minion_id)
            standing = wanted.get(minion_id, [])
            if not standing and state not in LIVE:
                continue
            if standing != [(state, seen.get(minion_id, ("", ""))[1])]:
                found.append(minion_id)
        return found

    def proposals(self) -> list[tuple[Decision, int]]:
        """Return what is proposed and not settled, by id, and when it was recorded here (ms)."""
        marks = ", ".join("?" * len(PROPOSED))
        rows = self._db.execute(
            f"{_SELECT} WHERE verdict IN ({marks}) ORDER BY id", tuple(PROPOSED)
        ).fetchall()
        found = [_decision(row) for row in rows]
        return [(one, self.recorded(one.id, one.fingerprint)) for one in found]

    def since(self, place: int, limit: int) -> tuple[list[Decision], int]:
        """Return up to ``limit`` decisions recorded after a place, and the place after them."""
        rows = self._db.execute(
            f"{_SELECT} WHERE seq > ? ORDER BY seq LIMIT ?", (place, limit)
        ).fetchall()
        return [_decision(row) for row in rows], rows[-1][-1] if rows else self.end

    def decide(
        self, minion_id: str, fingerprint: str, verdict: str, origin: str, pub: str, via: str
    ) -> Decision:
        """
        Record what has been decided on this master, now.

        via
            How it became known, for the audit: an event, a scan, an operator's command.
        """
        with self.transaction():
            stamp = tick(Stamp(*self._get("clock")), int(time.time() * 1000))
            self._set("clock", list(stamp))
            decision = Decision(minion_id, fingerprint, verdict, stamp, origin, pub)
            self._put(decision, self.of(minion_id).get(fingerprint), via)
        return decision

    def propose(
        self, minion_id: str, fingerprint: str, verdict: str, origin: str, via: str
    ) -> Decision:
        """
        Record that it is proposed to delete or to reject a key; return what counts then.

        It is of the time of the acceptance that it is about: what somebody has decided since then,
        here or elsewhere, is later.
        """
        with self.transaction():
            mine = self.of(minion_id).get(fingerprint)
            if mine is None or mine.verdict not in ("accepted", *PROPOSED):
                pub = mine.pub if mine else ""
                return self.decide(minion_id, fingerprint, verdict, origin, pub, via)
            self._merge(replace(mine, verdict=verdict, origin=origin), via)
            return self.of(minion_id)[fingerprint]

    def witness(self, keys: Iterable[tuple[str, Key, str]], origin: str) -> None:
        """Record keys (id, key, PEM) that were there before this ledger."""
        with self.transaction():
            for minion_id, key, pub in keys:
                self._merge(
                    Decision(minion_id, key.fingerprint, key.state, BEFORE, origin, pub), "found"
                )
                self._note(minion_id, key)

    def learn(self, decisions: Iterable[Decision], via: str) -> list[str]:
        """Merge a peer's decisions; return the ids on which something is new."""
        changed: dict[str, None] = {}
        with self.transaction():
            latest = Stamp(*self._get("clock"))
            for decision in decisions:
                latest = max(latest, decision.stamp)
                if self._merge(decision, via):
                    changed[decision.id] = None
            self._set("clock", list(latest))
        return list(changed)

    def look_at(self, store: str) -> None:
        """Name the key store; what was seen in another one is forgotten, and not deleted here."""
        if self._get("store") != store:
            with self.transaction():
                self._db.execute("DELETE FROM seen")
                self._set("store", store)

    @property
    def complete(self) -> bool:
        """Whether all of the key store is recorded here, too: not before the first look at it."""
        return bool(self._get("complete"))

    def completed(self) -> None:
        """Remember that the key store has been looked at as a whole."""
        if not self.complete:
            with self.transaction():
                self._set("complete", True)

    def seen(self, minion_id: str) -> Key | None:
        """Return what is :func:`remembered` of an id's key since it was last looked at."""
        row = self._db.execute(
            "SELECT state, fingerprint FROM seen WHERE id = ?", (minion_id,)
        ).fetchone()
        return Key(*row) if row else None

    def all_seen(self) -> dict[str, Key]:
        """Return :meth:`seen` for every id that had a key then."""
        rows = self._db.execute("SELECT id, state, fingerprint FROM seen WHERE state != 'deleted'")
        return {minion_id: Key(state, fingerprint) for minion_id, state, fingerprint in rows}

    def note(self, keys: Mapping[str, Key | None]) -> None:
        """Remember what the key store has for some ids."""
        with self.transaction():
            for minion_id, key in keys.items():
                self._note(minion_id, key)

    def recorded(self, minion_id: str, fingerprint: str) -> int:
        """Return when the latest decision on a key was recorded here (ms); 0 if there is none."""
        row = self._db.execute(
            "SELECT MAX(recorded) FROM audit WHERE id = ? AND fingerprint = ?",
            (minion_id, fingerprint),
        ).fetchone()
        return row[0] if isinstance(row[0], int) else 0

    def directories(self) -> Any:
        """Return what tells the directories of the key store from any others, or None."""
        return self._get("directories")

    def put_directories(self, marks: Any) -> None:
        """Remember :meth:`directories`, as JSON says it."""
        if self._get("directories") != marks:
            with self.transaction():
                self._set("directories", marks)

    def place(self, peer: str) -> tuple[str, int]:
        """Return the epoch of a peer's ledger and the place up to which it was read."""
        row = self._db.execute("SELECT epoch, seq FROM peer WHERE id = ?", (peer,)).fetchone()
        # Whatever a bad disk has made of it: then all of it is read again.
        sound = row and isinstance(row[0], str) and isinstance(row[1], int)
        return (row[0], row[1]) if sound else ("", 0)

    def set_place(self, peer: str, epoch: str, place: int, mark: str = "") -> None:
        """Remember how far a peer's ledger was read, and the peer's :meth:`mark` of that place."""
        with self.transaction():
            self._db.execute("REPLACE INTO peer VALUES (?, ?, ?)", (peer, epoch, place))
            self._set(f"mark of {peer}", mark)

    def mark_of(self, peer: str) -> str:
        """Return the peer's mark of the place up to which it was read; empty if it gave none."""
        found = self._get(f"mark of {peer}")
        return found if isinstance(found, str) else ""

    def mark(self, place: int) -> str:
        """
        Return what tells the past up to a place from any other with as many decisions.

        A ledger that was put back from a copy has the old name, and gives old numbers to new
        decisions.  Empty if nothing was recorded there.
        """
        # One row for each number that was ever given, and none of them changes.
        row = self._db.execute(f"SELECT {_AUDIT} FROM audit WHERE number = ?", (place,)).fetchone()
        return hashlib.sha256(json.dumps(row).encode()).hexdigest()[:32] if row else ""

    def purge(self, before: int) -> int:
        """Forget deletions that are older than a time (ms); return how many."""
        with self.transaction():
            old = "FROM decision WHERE verdict IN ('deleted', 'deleted if away') AND time < ?"
            rows = self._db.execute(f"SELECT {_COLUMNS} {old}", (before,)).fetchall()
            for row in rows:
                self._count(_decision(row), -1)
            self._db.execute(f"DELETE {old}", (before,))
        return len(rows)

    def put_aside(self, items: Mapping[str, str]) -> None:
        """Remember what the engine could not do, and why: item -> reason."""
        with self.transaction():
            self._db.execute("DELETE FROM aside")
            # In the name of a file may be half of a letter, which no database takes.
            rows = [
                [text.encode(errors="backslashreplace").decode() for text in row]
                for row in items.items()
            ]
            self._db.executemany("REPLACE INTO aside VALUES (?, ?)", rows)

    def aside(self) -> dict[str, str]:
        """Return what the engine could not do so far: item -> reason."""
        try:
            # None of them is longer, nor anything but a text, unless a bad disk has made it so.
            rows = self._db.execute(
                "SELECT substr(item, 1, 512), substr(reason, 1, 512) FROM aside ORDER BY item"
            )
            return {i: why for i, why in rows if isinstance(i, str) and isinstance(why, str)}
        except sqlite3.OperationalError:
            # The engine that wrote this ledger is of an older release.
            return {}

    def history(self, minion_id: str) -> list[dict[str, Any]]:
        """Return what was recorded about an id, oldest first."""
        names = ("recorded", "fingerprint", "verdict", "decided", "origin", "via")
        rows = self._db.execute(
            f"SELECT {', '.join(names)} FROM audit WHERE id = ? ORDER BY number", (minion_id,)
        )
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _merge(self, decision: Decision, via: str) -> bool:
        mine = self.of(decision.id).get(decision.fingerprint)
        if merge(mine, decision) is mine:
            return False
        self._put(decision, mine, via)
        return True

    def _put(self, decision: Decision, mine: Decision | None, via: str) -> None:
        """Record a decision in place of the one that there was on the same key."""
        if mine:
            self._count(mine, -1)
        if mine and decision.verdict not in GONE and not decision.pub:
            # Of the same key, from a master where its text was not odd.
            decision = replace(decision, pub=mine.pub)
        self._count(decision, 1)
        self._seq += 1
        self._db.execute(
            "REPLACE INTO decision VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*to_wire(decision), self._seq)
        )
        self._db.execute(
            f"INSERT INTO audit ({_AUDIT}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                int(time.time() * 1000),
                decision.id,
                decision.fingerprint,
                decision.verdict,
                decision.stamp.time,
                decision.origin,
                via,
            ),
        )

    def _note(self, minion_id: str, key: Key | None) -> None:
        if key and key.state in (*LIVE, "deleted"):
            self._db.execute("REPLACE INTO seen VALUES (?, ?, ?)", (minion_id, *key))
        else:
            self._db.execute("DELETE FROM seen WHERE id = ?", (minion_id,))

    def _count(self, decision: Decision, times: int) -> None:
        """Add a decision to the digest, or take it away again."""
        text = json.dumps(to_wire(decision)[:-1]).encode()
        self._sum += times * int.from_bytes(hashlib.sha256(text).digest(), "big")

    def _get(self, name: str) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def _set(self, name: str, value: Any) -> None:
        self._db.execute("REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Do several things or none; the running totals are read and written once."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._seq = int(self._get("seq"))
            self._sum = int(self._get("digest"), 16)
            yield
            self._set("seq", self._seq)
            self._set("digest", f"{self._sum % (1 << DIGEST_BITS):x}")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


_AUDIT = "recorded, id, fingerprint, verdict, decided, origin, via"
_COLUMNS = "id, fingerprint, verdict, time, turn, origin, pub, seq"
_SELECT = f"SELECT {_COLUMNS} FROM decision"
_SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE decision (id TEXT, fingerprint TEXT, verdict TEXT NOT NULL,"
    " time INTEGER NOT NULL, turn INTEGER NOT NULL, origin TEXT NOT NULL, pub TEXT NOT NULL,"
    " seq INTEGER NOT NULL, PRIMARY KEY (id, fingerprint))",
    "CREATE UNIQUE INDEX decision_seq ON decision (seq)",
    "CREATE TABLE seen (id TEXT PRIMARY KEY, state TEXT NOT NULL, fingerprint TEXT NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE peer (id TEXT PRIMARY KEY, epoch TEXT NOT NULL, seq INTEGER NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE audit (number INTEGER PRIMARY KEY, recorded INTEGER NOT NULL, id TEXT NOT NULL,"
    " fingerprint TEXT NOT NULL, verdict TEXT NOT NULL, decided INTEGER NOT NULL,"
    " origin TEXT NOT NULL, via TEXT NOT NULL)",
    "CREATE INDEX audit_id ON audit (id)",
)


# Not in every ledger of this schema.
_ASIDE = "CREATE TABLE aside (item TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID"


def _decision(row: tuple[Any, ...]) -> Decision:
    minion_id, fingerprint, verdict, moment, turn, origin, pub, _ = row
    return Decision(minion_id, fingerprint, verdict, Stamp(moment, turn), origin, pub)


def _several(live: Iterable[Decision]) -> str:
    return "; ".join(
        f"{decision.fingerprint[:16]} is {decision.verdict} (by {decision.origin})"
        for decision in sorted(live, key=lambda decision: decision.fingerprint)
    )
