"""
Keeps the keys of minions equal on all masters: a decision taken on one holds on each.

Runs in every master.  Watches the master's own key store, records what somebody decides there in a
ledger, and wakes its peers; woken, or after a while, it pulls what it does not know from the
minions on their hosts, and applies it.  Events only wake: content comes from an answer that is
signed with the masters' shared key over a fresh nonce.  See docs/replication.md.
"""

import collections
import contextlib
import dataclasses
import glob
import inspect
import json
import logging
import os
import random
import re
import reprlib
import secrets
import sqlite3
import time
from typing import NamedTuple

import salt.cache
import salt.crypt
import salt.exceptions
import salt.key
import salt.utils.event
import salt.utils.verify

log = logging.getLogger(__name__)

__virtualname__ = "multimaster"

# Seconds between two full looks at the keys though nothing tells that they have changed.
INTERVAL = 60.0
# Seconds between two looks at all keys: what no event tells, such as a file that was put there.
LOOK = 5.0
# Seconds until something that failed is tried again, and, about, until the first questions.
PAUSE = 5.0
# Seconds for which the answer of a minion is waited for that may be away, no less than Salt's
# manage.down waits.
PATIENCE = 15.0
# So many others are asked with it, and it may take so many times as long as the slowest of them
# that has answered by then.
COMPARED, SLOWER = 5, 5
# Times that they are asked until somebody answers at all.
TRIES = 3
# Seconds until a peer is asked again that has no ledger yet: its master is about to restart.
UNREADY = 2.0
# Seconds for which more key events are collected once there is one.
GATHER = 0.02
# Seconds between two times that the peers are woken.
WAKE_PAUSE = 0.5
# Accepted keys that may be deleted or rejected here within so many seconds, and are so everywhere;
# of more it is only proposed.  Unless declared.
AT_ONCE, WITHIN = 5, 60.0
# Milliseconds by which a file's time may be wrong.
COARSE = 2000
# Seconds for which a minion that has signed in may send its grains by itself.
GRAINS = 30.0
# Of those that do not, how many are named.
SHOWN = 3
# Minions that were asked whether they are there, and may still answer.
ASKED = 10_000
# Deletions are remembered for that long, in days: so long may a master be away.
REMEMBERED = 180

# Seconds until an item that was set aside is tried again; twice as long each time, up to LONGEST.
LONGEST = 600.0
# What Salt says of a minion that it lets in.
SIGNED_IN = ("accept", "full")
# No ledger has so many decisions, and no database takes a higher number.
FARTHEST = 1 << 53
# What a key that is in use can be.
LIVE = ("accepted", "rejected")
# Verdicts of the ledger.
PROPOSED = {"deletion proposed": "deleted", "rejection proposed": "rejected"}
PROPOSAL = {verdict: name for name, verdict in PROPOSED.items()}
IF_AWAY = "deleted if away"
GONE = (IF_AWAY, "deleted")
# What the masters' key is used for beside answers: see _word.
WORD = "the keys of the masters' hosts"

STARTED = re.compile(r"salt/minion/[^/]+/start")
# What Salt 3008 calls a key file until it is complete; after a crash for good.
TEMPORARY = re.compile(r"tmp[a-z0-9_]{8}")

DAY = 24 * 60 * 60 * 1000


def __virtual__():
    return __virtualname__


def start():
    """Entry point of the engine; runs as long as its master."""
    peers = [m["id"] for m in __opts__["multimaster"]["masters"] if m["id"] != __opts__["id"]]
    with (
        _patiently(_open_ledger) as book,
        salt.utils.event.get_event("master", opts=__opts__) as bus,
    ):
        engine = _Engine(book, bus, peers)
        while True:
            _patiently(engine.turn)


def _open_ledger():
    directory = os.path.join(__opts__["cachedir"], "multimaster")
    os.makedirs(directory, mode=0o750, exist_ok=True)
    return __utils__["multimaster_ledger.open_ledger"](os.path.join(directory, "ledger.db"))


def _patiently(function):
    """Call a function until it does not fail: an engine that ends is started again at once."""
    while True:
        try:
            return function()
        except (OSError, ValueError, sqlite3.Error, salt.exceptions.SaltException) as err:
            log.exception("Cannot replicate keys; trying again")
            time.sleep(PAUSE)
            if type(err) is sqlite3.DatabaseError:
                # The ledger is damaged: whoever opens it again sets it aside.
                raise


class _Asked(NamedTuple):
    """What a question says of the asker: how far it has read, and the digest of its ledger."""

    place: tuple
    # The peer's mark of that place; not sent.
    mark: str
    digest: str
    # Asked before the answer to the last question was taken in.
    ahead: bool


class _Aside(NamedTuple):
    """Why an item could not be dealt with, how often it was tried, and when it is tried again."""

    reason: str
    tries: int
    due: float


class _Doubt(NamedTuple):
    """A minion that may be away, and is asked before its key is deleted here."""

    # The decision that counted before.
    before: tuple
    job: str
    asked: float
    tries: int
    # When nothing is waited for any more; and whether anybody who was asked with it has answered.
    due: float
    compared: bool


class _Removal(NamedTuple):
    """An accepted key that somebody has deleted or rejected on this master."""

    at: float
    id: str
    fingerprint: str
    verdict: str
    pub: str
    # The key as it was, and as it is.
    seen: tuple
    found: tuple


class _Engine:
    def __init__(self, book, bus, peers):
        self.book = book
        self.bus = bus
        self.store = _KeyStore()
        book.look_at(self.store.name)
        self.seeds = _Seeds(peers)
        now = time.monotonic()
        self.masters = {*peers, __opts__["id"]}
        bounds = __opts__["multimaster"].get("keys") or {}
        self.at_once = bounds.get("at_once", AT_ONCE)
        self.within = bounds.get("within", WITHIN)
        # Accepted keys that were removed here lately; and those of them that were so everywhere.
        self.removals, self.decided = collections.deque(), []
        # Minions that were heard of, and those that were asked for something and have not answered
        # since.
        self.heard, self.silent = set(), set()
        # Those that have signed in, and whose grains may be missing -> how often they were asked
        # for them, and when they are next.
        self.came = {}
        # Those that were asked whether they are there, as (job, id) -> their decision before; whose
        # deletion is only to be proposed, and why; and those that are waited for, by id.
        self.doubts, self.vouched, self.parked = {}, [], {}
        self.peers = {
            name: __utils__["multimaster_peers.peer"](name, now + random.uniform(0.5, 1.5) * PAUSE)
            for name in peers
        }
        # The key store as it was at the last look at all of it, and when to look though nothing
        # tells that it has changed.
        self.snapshot, self.marks = {}, ()
        self.look_due = self.scan_due = 0.0
        # Where root says on this host that everything is to be looked at again, or what is to
        # become of proposals.
        self.directory = os.path.join(__opts__["cachedir"], "multimaster")
        self.demand = os.path.join(self.directory, "look-again")
        # What is recorded and not yet applied, or not yet said to the peers.
        self.undone, self.unsaid = set(), False
        # Those of them whose keys are to be again what they were here.
        self.returning = set()
        self.say_due = 0.0
        self.courier = __utils__["multimaster_peers.courier"](__opts__, listen=False)
        # The job that wakes all peers, until it is given.
        self.saying = None
        self.problems = {}
        # What was on the bus and is still to be dealt with: (id, whether it was deleted), and
        # (peer, question, reply).
        self.touched, self.answers = set(), []
        # Item -> _Aside; and the reasons as the ledger has them, for the status.
        self.aside, self.told = {}, None

    def turn(self):
        """Do what is due, wait for events or for the next thing to become due, and do that."""
        if time.monotonic() >= self.look_due:
            self.look_due = time.monotonic() + LOOK
            # At first before any event: what is there already is nobody's news.
            self._look()
            with self._apart("grains/"):
                self._seek_grains()
        self._sent()
        self._release()
        waits = (one.due for one in self.parked.values())
        due = min([self.look_due, *waits, *(p.next() for p in self._in_turn())])
        if self.unsaid:
            due = min(due, self.say_due)
        self._gather(max(0.001, due - time.monotonic()))
        # First what is signed: events come from anybody, and as many as they like.
        while self.answers:
            peer, question, reply = self.answers.pop(0)
            with self._apart(f"answers/{peer.name}"):
                self._learn(peer, question, reply)
                self.aside.pop(f"answers/{peer.name}", None)
        self._notice(self.touched)
        self.touched = set()
        self._hold()
        if self.unsaid and time.monotonic() >= self.say_due:
            self.say_due = time.monotonic() + WAKE_PAUSE
            if not self.saying:
                self.saying, self.unsaid = self._wake(self.peers), False
        for peer in self._in_turn():
            self._attend(peer)
        self._tell_aside()

    @contextlib.contextmanager
    def _apart(self, item):
        """Set an item aside that fails, so that all the others are dealt with."""
        try:
            yield
        except sqlite3.Error:
            # Not the item's, but the ledger's.
            raise
        except Exception as err:
            # Any: what is in it was written by whoever wished to.
            self._set_aside(item, f"{type(err).__name__}: {err}")

    def _set_aside(self, item, reason):
        before = self.aside.get(item)
        tries = before.tries + 1 if before else 1
        due = time.monotonic() + min(PAUSE * 2 ** min(tries - 1, 20), LONGEST)
        # In an error of somebody else's may be half of a letter, which no log takes.
        reason = reason[:200].encode(errors="backslashreplace").decode()
        self.aside[item] = _Aside(reason, tries, due)
        if before is None or before.reason != reason:
            log.error("Set %r aside, to be tried again: %s", item, reason)

    def _tell_aside(self):
        """Have the status show what is set aside."""
        reasons = {item: aside.reason for item, aside in self.aside.items()}
        if reasons != self.told:
            with contextlib.suppress(sqlite3.Error):
                self.book.put_aside(reasons)
                self.told = reasons

    def _sent(self):
        """Take note of what has become of the jobs that were to be given."""
        for job in self.courier.sent():
            if job.error:
                log.error("Cannot give a job; trying again: %s", job.error)
            for peer in self.peers.values():
                peer.sent(job.jid, job.at)
            if job.jid == self.saying:
                self.saying = None
                if job.error:
                    self.unsaid, self.say_due = True, time.monotonic() + PAUSE

    def _in_turn(self):
        """Return the peers to attend to: the one that is still telling a lot, or else all."""
        # What the others know besides is little, or nothing, when that is over.
        return self._reading() or list(self.peers.values())

    def _reading(self):
        return [peer for peer in self.peers.values() if peer.open and peer.open.about.ahead]

    def _gather(self, wait):
        """Collect the ids that key events name, and the answers to our questions."""
        until = time.monotonic() + wait
        heard = __utils__["multimaster_gather.next_event"]
        while wait > 0 and (event := heard(self.bus, wait)):
            with self._apart("events/"):
                self._collect(event["tag"], event["data"])
                self.aside.pop("events/", None)
            if self.touched:
                until = min(until, time.monotonic() + GATHER)
            self._sent()
            if self.answers or any(each.next() <= time.monotonic() for each in self._in_turn()):
                until = min(until, time.monotonic() + (GATHER if self.touched else 0))
            wait = until - time.monotonic()

    def _collect(self, tag, data):
        # A minion may have made it up, and nothing need be what it is named.
        minion_id, origin = _text(data, "id"), _text(data, "origin")
        act = _text(data, "act")
        if minion_id and (tag == "salt/key" or (tag == "salt/auth" and act in SIGNED_IN)):
            self.touched.add((minion_id, act == "delete"))
        if minion_id and tag == "salt/auth" and act == "accept":
            self.came.setdefault(minion_id, (0, time.monotonic() + GRAINS))
        back = _back(tag, minion_id)
        if back in self.peers:
            # What it was not there for, it will answer now.
            self.peers[back].returned(time.monotonic())
        self._hear(tag, data)
        if tag == "multimaster/wake":
            self._woken(origin)
            if isinstance(data, dict) and "word" in data:
                self._heed(data["word"])
        peer, question = self._asked(tag)
        if question and isinstance(data, dict):
            self.answers.append((peer, question, data.get("return")))

    def _hear(self, tag, data):
        """Note who is there, and who was asked for something and may not be."""
        _, _, jid, kind, name = [*tag.split("/", 4), "", "", "", ""][:5]
        if not tag.startswith("salt/job/"):
            kind, name = "", _back(tag, _text(data, "id"))
        if kind == "new":
            asked = data.get("minions") if isinstance(data, dict) else None
            for one in asked if isinstance(asked, list) else ():
                if isinstance(one, str) and one in self.snapshot:
                    self.silent.add(one)
        elif name in self.snapshot:
            self.heard.add(name)
            self.silent.discard(name)
        if (before := self.doubts.pop((jid, name), None)) is not None:
            self.vouched.append((before, "it answers"))
        elif kind == "ret":
            self._compare_with(jid)

    def _asked(self, tag):
        """Return who may have answered which question with an event, or None twice."""
        with contextlib.suppress(ValueError):
            _, _, jid, kind, name = tag.split("/", 4)
            if kind == "ret" and name in self.peers:
                return self.peers[name], self.peers[name].kept.get(jid)
        return None, None

    def _woken(self, origin):
        """Ask whoever has news; or, where nobody is named, look at everything again."""
        if origin in self.peers:
            self.peers[origin].woken(time.monotonic())
        elif origin == "":
            self._obey()
            if not __utils__["multimaster_peers.demanded"](self.demand):
                return
            self.look_due = self.scan_due = 0.0
            self.snapshot = {}
            for name, peer in self.peers.items():
                self.book.set_place(name, "", 0)
                peer.woken(time.monotonic())

    def _seek_grains(self):
        """
        Have minions send their grains that have signed in, and of which this master has none.

        Salt drops them with a key, which may be accepted again, and sends them at a start only.
        """
        now = time.monotonic()
        # Anybody can name any.
        held = {name for name in self.came if self.snapshot.get(name, ("", ""))[1] in HELD}
        self.came = {name: self.came[name] for name in held}
        late = {name for name, (tries, due) in self.came.items() if tries or due <= now}
        missing = __utils__["multimaster_gather.without_grains"](__opts__, late)
        for name in late - missing:
            del self.came[name]
        # Who was asked and has not answered may be somewhere else by now.
        here = sorted(name for name in missing - self.silent if self.came[name][0])
        due = sorted(name for name in missing if self.came[name][1] <= now)
        for name in due:
            tries = self.came[name][0]
            self.came[name] = tries + 1, now + min(GRAINS * 2 ** min(tries, 20), LONGEST)
        if due:
            self.courier.give(due, "saltutil.refresh_grains", [])
        before = self.aside.pop("grains/", None)
        if here:
            more = f" and {len(here) - SHOWN} more" if len(here) > SHOWN else ""
            names = ", ".join(here[:SHOWN]) + more
            why = "salt -G leaves out who is here and has not sent its grains, though asked: "
            if before and before.reason == why + names:
                self.aside["grains/"] = before
            else:
                self._set_aside("grains/", why + names)

    def _notice(self, touched):
        """Record what was decided on this master on the ids that events name."""
        touched = [entry for entry in touched if self._is_id(entry[0])]
        if not touched:
            return
        names = {minion_id for minion_id, _ in touched}
        self._compare_all(touched)
        if own := names & self.masters:
            # Or this master could not ask them any more.
            self._apply(own)
        self._tidy(names)

    def _is_id(self, name):
        is_id = __utils__["multimaster_pubkey.is_id"]
        return is_id(name) and salt.utils.verify.valid_id(__opts__, name)

    def _look(self):
        """Record what was decided here without an event, or while this did not run."""
        self._obey()
        marks, now = self.store.marks(), time.monotonic()
        # The others are no ids.
        due = {item for item, aside in self.aside.items() if "/" not in item and aside.due <= now}
        if marks == self.marks and now < self.scan_due and not due:
            self._apply(())
            return
        snapshot = None
        with self._apart(self.store.name):
            snapshot = self.store.snapshot()
            self.aside.pop(self.store.name, None)
        if snapshot is None:
            # What cannot be listed is not gone.
            self._apply(())
            return
        self._note_seeds()
        self._name_dotted()
        odd = self._unfinished(snapshot)
        changed = {name for name, _ in snapshot.items() ^ self.snapshot.items()} - odd
        due -= odd
        first, lost = not self.snapshot, set()
        if self.book.fresh:
            names = [n for n, mark in snapshot.items() if mark[0] and n not in self.seeds.keys]
            self.book.witness(self._found(set(names) - odd), __opts__["id"])
            self.book.fresh = False
            self.unsaid = True
        elif changed or first or due:
            seen = self.book.all_seen()
            gone = {name for name in seen if not snapshot.get(name, (False,))[0]}
            old = {name for name in self._contradicting(changed, snapshot) if self._is_old(name)}
            why = gone and ("an older copy was put there" if old else self._lost(first))
            if why:
                # Nobody has deleted them.
                lost = gone
                log.error("%d of %d keys are gone, put back: %s", len(gone), len(seen), why)
            self.returning |= old | lost
            self._compare_all((n, False) for n in sorted((changed | due | gone) - old - lost))
            changed |= gone
        todo = {*changed, *self.book.ids()} if first else changed | due
        self._apply(todo)
        # A pending key has made nothing moot, and anybody can have many.
        self._tidy(n for n in self.store.denied_ids() if snapshot.get(n, (True,))[0])
        self.book.completed()
        self.book.purge((int(time.time() * 1000) // DAY - REMEMBERED) * DAY)
        if not lost & self.undone:
            self.book.put_directories(self.store.directories())
        self.snapshot, self.marks, self.scan_due = snapshot, marks, now + INTERVAL

    def _lost(self, first):
        """Tell why keys that are gone are not deleted but lost with their directory, if so."""
        before, now = self.book.directories(), self.store.directories()
        if not isinstance(before, dict):
            return ""
        for name, mark in now.items():
            was = before.get(name)
            if not was:
                continue
            if not mark:
                return f"{name} is gone"
            (inode, device, boot, changed), (inode0, device0, boot0, changed0) = mark, was
            if inode != inode0 or (boot == boot0 and device != device0):
                return f"{name} is another directory"
            # While this runs, somebody may have set the clock.
            if first and changed < changed0:
                return f"{name} is older than it was"
        return ""

    def _contradicting(self, names, snapshot):
        """Return those that are accepted or rejected, and may be so against the ledger."""
        ended = self.book.ended()
        return {
            name
            for name in names
            if snapshot.get(name, (False,))[0]
            and (name in ended or snapshot[name][1] in ("minions_rejected", "rejected"))
            # Salt before 3008 moves a key from one directory to the other.
            and snapshot[name][2] != self.snapshot.get(name, (False, "", None))[2]
        }

    def _is_old(self, minion_id):
        """Tell whether a key is what a later decision has ended: somebody has put back a copy."""
        with contextlib.suppress(OSError):
            key, _ = self.store.fetch(minion_id)
            said = self.book.of(minion_id).get(key.fingerprint) if key else None
            # What was seen already is what a crash kept from being changed.
            news = key and key.state in LIVE and self.book.seen(minion_id) != key
            if news and said and said.verdict not in (key.state, *PROPOSED):
                written = self.store.written(minion_id, key.state)
                recorded = self.book.recorded(minion_id, key.fingerprint)
                return written is not None and written + COARSE < recorded
        return False

    def _found(self, names):
        """Yield the id, key and text of each of the keys that are there."""
        for name in names:
            found = (None, None)
            with self._apart(name):
                found = self.store.fetch(name)
            if found[0]:
                yield name, *found

    def _unfinished(self, snapshot):
        """
        Return the names of files that Salt has not finished, or never will, and no minion's keys.

        Where there is a minion of such a name, an event tells what was decided on its key.
        """
        odd = {
            name
            for name, (live, *_) in snapshot.items()
            if live and TEMPORARY.fullmatch(name) and self.store.on_disk and not self.book.of(name)
        }
        # One that is there for a moment is nothing to tell of.
        for name in odd & self.snapshot.keys():
            self._set_aside(name, "named as Salt names a key file that it has not finished")
        return odd

    def _name_dotted(self):
        """Name those that Salt lets in and does not list, and that no other master hears of."""
        there = {f"minions/{name}" for name in self.store.dotted}
        for item in [one for one in self.aside if one.startswith("minions/")]:
            if item not in there:
                del self.aside[item]
        for item in there:
            self._set_aside(item, "accepted on this master alone: its id begins with a dot")

    def _note_seeds(self):
        """Look at what the formula has put there as seen: it is no decision of this master's."""
        if not self.seeds.unnoted:
            return
        there = {
            name: (key, pub)
            for name, key, pub in self._found(self.seeds.keys)
            if key.state != "pending" and key.fingerprint == self.seeds.keys[name]
        }
        new = {name: found for name, found in there.items() if not self.book.seen(name)}
        if self.seeds.orphaned:
            self.book.witness(((name, *found) for name, found in new.items()), __opts__["id"])
            self.seeds.forget()
            return
        self.book.note({name: key for name, (key, _) in new.items()})
        # What is not there has been decided on, or was never written.
        self.seeds.keys = {name: key.fingerprint for name, (key, _) in there.items()}
        self.seeds.unnoted = False

    def _settle(self, peer):
        """Delete the seeds without a decision: they were deleted where they came from."""
        names, unwanted = list(self.seeds.keys), []
        for name, fingerprint in self.seeds.keys.items():
            with self._apart(name):
                key, _ = self.store.fetch(name)
                action = __utils__["multimaster_ledger.settle"](
                    name, fingerprint, self.book.of(name), key
                )
                if action.verb == "delete":
                    unwanted.append((action, key))
        # Before: what is not deleted now is a seed again after a restart, and no decision.
        self.book.note(dict.fromkeys(action.id for action, _ in unwanted))
        done = self._act("delete", unwanted) if unwanted else set()
        # Or it would become a decision of this master's.
        left = {action.id: key for action, key in unwanted if action.id not in done}
        self.book.note(left)
        self._apply([name for name in names if name not in left])
        if left:
            log.error("Cannot delete %d keys that %s does not have any more", len(left), peer.name)
        else:
            self.seeds.forget()

    def _seen(self, minion_id):
        """Return what is remembered of an id's key; that it was removed here, if that is so."""
        seen = self.book.seen(minion_id)
        if seen is None and minion_id not in self.masters:
            known = self.book.of(minion_id)
            return __utils__["multimaster_ledger.removed_by"](known, __opts__["id"])
        return seen

    def _compare_all(self, entries):
        """Record what was decided here on some ids, (id, whether Salt has told of a deletion)."""
        removed = []
        with self.book.transaction():
            for minion_id, deleted in entries:
                with self._apart(minion_id):
                    removed += self._compare(minion_id, deleted)
            self._weigh(removed)

    def _compare(self, minion_id, deleted):
        """Record what was decided here on one id; return its removal, if that is to be weighed."""
        key, pub = self.store.fetch(minion_id)
        known, seen = self.book.of(minion_id), self._seen(minion_id)
        news = __utils__["multimaster_ledger.noticed"](seen, key, known, deleted)
        if news is None:
            return []
        if len(news) == 1 and news[0][0] != "accepted":
            ((verdict, fingerprint),) = news
            before = known.get(fingerprint)
            # One that was not accepted is nobody's loss.
            if (seen and seen.state == "accepted") or (before and before.verdict in PROPOSED):
                if not (key and key.fingerprint == fingerprint):
                    pub = ""
                text = (before.pub if before else "") or pub
                now = time.monotonic()
                return [_Removal(now, minion_id, fingerprint, verdict, text, seen, key)]
        for verdict, fingerprint in news:
            text = "" if verdict == "deleted" else pub
            self._record(minion_id, fingerprint, verdict, text)
        self._remember(minion_id, seen, key)
        return []

    def _record(self, minion_id, fingerprint, verdict, text):
        if verdict in PROPOSED:
            self.book.propose(minion_id, fingerprint, verdict, __opts__["id"], "here")
        else:
            self.book.decide(minion_id, fingerprint, verdict, __opts__["id"], text, "here")
        log.info("%r: %s on this master", minion_id, verdict)
        self.unsaid = True

    def _remember(self, minion_id, seen, key):
        known = self.book.of(minion_id)
        key = __utils__["multimaster_ledger.remembered"](seen, key, known)
        held = any(one.verdict in PROPOSED for one in known.values())
        # That of a master's host comes back.
        if key != seen and not (held and minion_id in self.masters):
            self.book.note({minion_id: key})

    def _weigh(self, removed):
        """
        Record what becomes of accepted keys that were deleted or rejected here.

        The key of a master's host, and several within a short time, are no single deliberate act:
        what was recorded before of those goes along.
        """
        now = time.monotonic()
        while self.removals and now - self.removals[0].at > self.within:
            self.removals.popleft()
        many = len(self.removals) + len(removed) > self.at_once
        if removed and many:
            if len(self.removals) <= self.at_once:
                log.error("More than %d keys are removed here: only proposed", self.at_once)
            lately, self.decided = self.decided, []
            for one in lately:
                if now - one.at <= self.within:
                    with self._apart(one.id):
                        self._propose_after_all(one)
        for one in removed:
            verdict, text = one.verdict, "" if one.verdict == "deleted" else one.pub
            if many or one.id in self.masters:
                verdict = PROPOSAL[verdict]
            elif verdict == "deleted" and one.id in self.silent:
                verdict = IF_AWAY
            with self._apart(one.id):
                self._record(one.id, one.fingerprint, verdict, text)
                self._remember(one.id, one.seen, one.found)
        self.removals += removed
        if not many:
            self.decided = [*self.decided, *removed][-self.at_once :]

    def _propose_after_all(self, one):
        """Propose what this master has decided a moment ago, if that is still what counts."""
        said = self.book.of(one.id).get(one.fingerprint)
        if said and said.verdict in (*GONE, "rejected") and said.origin == __opts__["id"]:
            arguments = [one.fingerprint, PROPOSAL[one.verdict], __opts__["id"], one.pub, "here"]
            self.book.decide(one.id, *arguments)
            self._remember(one.id, one.seen, one.found)

    def _doubt(self, before, changed):
        """Ask whom this master has heard of whether they are there, before they are deleted."""
        names = [
            one.id
            for one in before
            if one.id in changed and one.id in self.heard and one.id not in self.masters
        ]
        if names:
            self._ask_whether_there([one for one in before if one.id in names])

    def _ask_whether_there(self, doubted, tries=1):
        """
        Ask minions whether they are there; and some that are, to tell by how long that takes here.
        """
        names = {one.id for one in doubted}
        others = (self.heard - self.silent - names) or (self.heard - names)
        with_them = random.sample(sorted(others), min(COMPARED, len(others)))
        jid = self.courier.give(sorted({*names, *with_them}), "test.ping", [])
        self.doubts |= {(jid, one.id): one for one in doubted}
        for old in list(self.doubts)[:-ASKED]:
            del self.doubts[old]
        now = time.monotonic()
        due = now + PATIENCE * 2 ** (tries - 1)
        self.parked |= {one.id: _Doubt(one, jid, now, tries, due, False) for one in doubted}

    def _compare_with(self, jid):
        """Wait for those who were asked as long as follows from how long somebody else took."""
        now = time.monotonic()
        for name, one in self.parked.items():
            if one.job == jid:
                due = max(one.due, one.asked + SLOWER * (now - one.asked))
                self.parked[name] = one._replace(due=due, compared=True)

    def _release(self):
        """Go on with those that have not answered so far."""
        now, ready, again = time.monotonic(), [], {}
        for name, one in list(self.parked.items()):
            if one.due > now:
                continue
            if one.compared:
                del self.parked[name]
                ready.append(name)
            elif one.tries < TRIES:
                again.setdefault(one.tries + 1, []).append(one.before)
            else:
                self.vouched.append((one.before, "nobody answers here"))
        for tries, doubted in again.items():
            self._ask_whether_there(doubted, tries)
        if ready:
            self._apply(ready)

    def _hold(self):
        """Propose what was decided on minions that are there, or of which nothing is known."""
        names, self.vouched = self.vouched, []
        for before, why in names:
            self.parked.pop(before.id, None)
            with self._apart(before.id):
                said = self.book.of(before.id).get(before.fingerprint)
                if said and said.verdict == IF_AWAY:
                    arguments = [before.fingerprint, PROPOSAL["deleted"], said.origin, before.pub]
                    self.book.decide(before.id, *arguments, why)
                    self.unsaid = True
        if names:
            self._apply(before.id for before, _ in names)

    def _obey(self):
        """Confirm what is proposed, or take it back, as root says on this host."""
        settled = set()
        for path in glob.glob(os.path.join(glob.escape(self.directory), "settle-*")):
            with self._apart(path):
                with open(path) as handle:
                    verb, wanted = json.load(handle)
                for minion_id, fingerprint in wanted:
                    said = self.book.of(minion_id).get(fingerprint)
                    if said and said.verdict in PROPOSED:
                        verdict = __utils__["multimaster_ledger.settled"](verb, said)
                        pub = "" if verdict in GONE else said.pub
                        self.book.decide(minion_id, fingerprint, verdict, __opts__["id"], pub, verb)
                        settled.add(minion_id)
            _remove([path])
        if settled:
            # They are no part of what comes next.
            left = [one for one in self.removals if one.id not in settled]
            self.removals = collections.deque(left)
            self.unsaid = True
            self._apply(settled)

    def _word(self):
        """Return the decisions on the keys of the masters' hosts, signed; None without a key."""
        pem = __utils__["multimaster_gather.pair"](__opts__)[0]
        told = [one for name in sorted(self.masters) for one in self.book.of(name).values()]
        told = [one for one in told if one.verdict in ("accepted", *PROPOSED)]
        if not pem or not told:
            return None
        answer = {"decisions": __utils__["multimaster_ledger.pack"](told)}
        signature = __utils__["multimaster_keypair.sign_answer"](answer, WORD, pem)
        return {"answer": answer, "signature": signature}

    def _heed(self, word):
        """
        Take in what another master says of the keys of the masters' hosts, which this may lack.

        It is signed with the masters' key, and not for this one alone: what somebody says again
        is not later than it was.
        """
        try:
            answer = word["answer"]
            __utils__["multimaster_keypair.verify_answer"](
                answer, WORD, word["signature"], self.store.master_pub()
            )
            told = __utils__["multimaster_ledger.unpack"](answer["decisions"])
        except (ValueError, TypeError, KeyError, RecursionError) as err:
            # Anybody can send one.
            log.error("Refused what is said of the masters' hosts: %s", err)
            return
        good = [one for decision in told if (one := self._sound(decision, "a master"))]
        # Nothing that could shut one of them out.
        kept = ("accepted", *PROPOSED)
        good = [one for one in good if one.id in self.masters and one.verdict in kept]
        if changed := self.book.learn(good, "a master"):
            self._apply(changed)

    def _apply(self, ids):
        """Bring the key store in line with the ledger; what was not brought so far, too."""
        ids, now = set(ids), time.monotonic()
        self.undone |= ids
        todo, done = {"accept": [], "reject": [], "delete": []}, set()
        for minion_id in self.undone:
            waits = minion_id in self.aside and self.aside[minion_id].due > now
            if minion_id in self.parked or (minion_id not in ids and waits):
                continue
            with self._apart(minion_id):
                key, _ = self.store.fetch(minion_id)
                seen = self._seen(minion_id)
                action = __utils__["multimaster_ledger.plan"](
                    minion_id, self.book.of(minion_id), key, seen
                )
                if self._is_news(action, seen):
                    # Somebody is at it; what it becomes is for the next look to record.
                    done.add(minion_id)
                elif action.verb in todo:
                    todo[action.verb].append((action, key))
                else:
                    done.add(minion_id)
                self._complain(action)
        for verb, actions in todo.items():
            if actions:
                done |= self._act(verb, actions)
        self.undone -= done
        self.returning &= self.undone
        for minion_id in done & self.aside.keys():
            del self.aside[minion_id]
        self._tidy(done)

    def _is_news(self, action, seen):
        """
        Tell whether all that an action would do is to undo what was done here since it was seen.

        Salt deletes a key before it writes it in its new place.
        """
        makes = {"accept": "accepted", "reject": "rejected"}.get(action.verb)
        if not (makes and seen) or action.id in self.masters or action.id in self.returning:
            return False
        return (seen.state, seen.fingerprint) == (makes, action.decision.fingerprint)

    def _act(self, verb, actions):
        """Do something with keys; return the ids for which it is done."""
        try:
            failed = getattr(self.store, verb)(actions)
        except Exception as err:
            # Nobody can tell how far it came: which of them are done, the next look tells.
            failed = dict.fromkeys((action.id for action, _ in actions), err)
        for minion_id, err in failed.items():
            self._set_aside(minion_id, f"{verb}: {type(err).__name__}: {err}")
        done = [action for action, _ in actions if action.id not in failed]
        if done:
            log.info("%s: %d keys, as decided on other masters", verb, len(done))
            self._applied(verb, done)
        return {action.id for action in done}

    def _applied(self, verb, actions):
        """Remember what was done; but not what somebody has made of it since, which is news."""
        state = {"accept": "accepted", "reject": "rejected", "delete": None}[verb]
        done = {}
        for action in actions:
            with self._apart(action.id):
                key, _ = self.store.fetch(action.id)
                found = key.state if key and key.state != "pending" else None
                if found == state and (
                    state is None or key.fingerprint == action.decision.fingerprint
                ):
                    done[action.id] = key
        self.book.note(done)

    def _tidy(self, ids):
        """
        Clear denied keys that a decision has made moot.

        Those that are accepted or rejected now, and those that differ from a key that was deleted:
        Salt leaves them where the decision was not taken, and deletes the good one with them.
        """
        for minion_id in ids:
            with self._apart(minion_id):
                denied = self.store.denied(minion_id)
                if not denied:
                    continue
                key, _ = self.store.fetch(minion_id)
                if key:
                    moot = {key.fingerprint} if key.state in LIVE else set()
                else:
                    known = self.book.of(minion_id).values()
                    deleted = known and all(one.verdict in GONE for one in known)
                    moot = set(denied) if deleted else set()
                if moot & set(denied):
                    self.store.clear_denied(minion_id, moot)
                    log.info("%r: cleared a denied key, which was decided on since", minion_id)

    def _complain(self, action):
        """Log a conflict once, and not for as long as it lasts."""
        if action.verb != "conflict":
            self.problems.pop(action.id, None)
        elif self.problems.get(action.id) != action.reason:
            self.problems[action.id] = action.reason
            log.error("Conflict over the key of %s: %s", action.id, action.reason)

    def _attend(self, peer):
        """Ask a peer if it is time."""
        silent = peer.silent
        if peer.ready(time.monotonic()):
            if peer.silent and not silent:
                log.warning("%s does not answer; asking again now and then", peer.name)
            self._ask(peer, self.book.place(peer.name), self.book.mark_of(peer.name))

    def _ask(self, peer, place, mark, ahead=False):
        nonce, asked = secrets.token_hex(16), _Asked(tuple(place), mark, self.book.digest, ahead)
        question = [__opts__["id"], nonce, *asked.place, asked.digest]
        jid = self.courier.give([peer.name], "multimaster.ledger_pull", question)
        peer.ask(time.monotonic(), jid, nonce, asked)

    def _wake(self, names, *more):
        if names:
            said = [__opts__["id"], *more]
            return self.courier.give(list(names), "multimaster.ledger_wake", said)
        return None

    def _learn(self, peer, question, reply):
        """Take in a peer's answer, if it is one; however late it comes."""
        if question.jid not in peer.kept:
            # It came twice.
            return
        if not isinstance(reply, dict):
            # An error of Salt's, which says so: there is no such function, say.
            log.info("%s cannot answer: %s", peer.name, reprlib.repr(reply))
            return
        refused = []
        try:
            answer = self._verified(reply, peer.name, question.nonce)
            ready = answer["epoch"] is not None
            decisions = ready and __utils__["multimaster_ledger.unpack"](
                answer["decisions"], refused
            )
        except (ValueError, TypeError, KeyError, RecursionError) as err:
            # Not the peer's, perhaps: its own answer may be on the way.
            log.error("Refused the answer of %s: %s", peer.name, err)
            return
        for reason in refused:
            log.error("%s has what is no decision: %s", peer.name, reason)
        if peer.silent:
            log.warning("%s answers again", peer.name)
        last, overtaken = question is peer.open, peer.overtaken(question)
        peer.answered(question, time.monotonic())
        if not ready:
            peer.later(time.monotonic() + UNREADY)
            return
        more = last and answer["place"] < answer["end"]
        # What another one is telling is the same, or most of it.
        ahead = more and not self._reading()
        if ahead:
            log.info("%s: read %d of %d decisions", peer.name, answer["place"], answer["end"])
            # The next part comes while this one is taken in.
            place = (answer["epoch"], answer["place"])
            self._ask(peer, place, answer.get("mark", ""), ahead)
        elif more:
            peer.woken(time.monotonic())
        try:
            changed, told = self._take_in(peer, question.about, answer, decisions, overtaken)
        except BaseException:
            # This part is lacking then.
            peer.woken(time.monotonic())
            raise
        if changed:
            peer.useful()
        if ahead:
            # What that took is not the peer's delay.
            peer.sent(peer.open.jid, time.monotonic())
        if not told:
            peer.woken(time.monotonic())
        elif (
            last
            and not more
            and peer.due > time.monotonic()
            and answer["digest"] != self.book.digest
        ):
            # It lacks what this master has; perhaps what it would have to ask with.
            word = self._word()
            self._wake([peer.name], *([word] if word else []))
        if told and not overtaken and self.seeds.ended(peer.name, answer):
            self._settle(peer)

    def _take_in(self, peer, asked, answer, decisions, overtaken):
        """Merge a peer's decisions and apply them; return the new ids, and if none is lacking."""
        good = [one for decision in decisions if (one := self._sound(decision, peer.name))]
        # What somebody has just decided here is later than what comes from there.
        named = {decision.id for decision in good}
        early = {entry for entry in self.touched if entry[0] in named}
        self.touched -= early
        self._notice(early)
        before = [
            mine
            for one in good
            if one.verdict == IF_AWAY and (mine := self.book.of(one.id).get(one.fingerprint))
        ]
        changed = self.book.learn(good, peer.name)
        self._doubt([mine for mine in before if mine.verdict == "accepted"], changed)
        self._apply(changed)
        place = __utils__["multimaster_peers.place"]
        known = place(*self.book.place(peer.name))
        told = place(answer["epoch"], answer["place"])
        equal = asked.digest == answer["digest"]
        # An older release says nothing of it.
        rewound = bool(asked.mark) and asked.mark != answer.get("before", asked.mark)
        rewound = rewound and asked.place[0] == answer["epoch"]
        after = __utils__["multimaster_peers.place_after"](
            known, place(*asked.place), told, overtaken, equal, rewound
        )
        if rewound and not overtaken:
            log.warning("The ledger of %s was put back from a copy; reading all of it", peer.name)
        mark = answer.get("mark", "") if after == told else ""
        if after != known or (after == told and mark != self.book.mark_of(peer.name)):
            self.book.set_place(peer.name, *after, mark)
        return changed, overtaken or (after.epoch == told.epoch and after.seq >= told.seq)

    def _verified(self, reply, peer, nonce):
        """Return the answer in a reply; ValueError unless a holder of the shared key gave it."""
        if set(reply) != {"answer", "signature"}:
            raise ValueError(f"it is {reprlib.repr(reply)}")
        answer = reply["answer"]
        __utils__["multimaster_keypair.verify_answer"](
            answer, nonce, reply["signature"], self.store.master_pub()
        )
        if answer["origin"] != peer or answer["asker"] != __opts__["id"]:
            raise ValueError("it comes from another master, or is meant for one")
        if answer["epoch"] is not None:
            places = (answer["place"], answer["end"])
            texts = [answer[name] for name in ("epoch", "digest")]
            # Not of an older release.
            texts += [answer[name] for name in ("before", "mark") if name in answer]
            if not all(isinstance(text, str) and text.isascii() for text in texts) or not all(
                type(place) is int and 0 <= place < FARTHEST for place in places
            ):
                raise ValueError(f"it is {reprlib.repr(answer)}")
        return answer

    def _sound(self, decision, peer):
        """Return a decision as it may be used, or None; one that may not is named in the log."""
        if not self._is_id(decision.id):
            log.error("%s has a decision on %r, which is no minion id", peer, decision.id)
            return None
        if not decision.pub:
            return decision
        key = __utils__["multimaster_pubkey.of"](decision.pub.encode())
        if not key or key.fingerprint != decision.fingerprint:
            log.error("%s has a key of %r that is none, or another one", peer, decision.id)
            return None
        return decision if decision.pub == key.text else dataclasses.replace(decision, pub=key.text)


def _back(tag, minion_id):
    """Return the minion that an event says is there, if it says so."""
    # Some time before it hears anything, Salt's minion signs in; when it does hear, it has started.
    if tag in ("salt/auth", "minion_start"):
        return minion_id
    return tag[len("salt/minion/") : -len("/start")] if STARTED.fullmatch(tag) else None


def _text(data, name):
    """Return a value of an event's data if it is a text, else None."""
    value = data.get(name) if isinstance(data, dict) else None
    return value if isinstance(value, str) else None


class _Seeds:
    """
    The keys that this master was given before its first start: id -> fingerprint.

    They are no decisions of this master's until the ledger has been read of the one that they come
    from: a key may have been deleted there since.  See ``seed_keys`` in
    ``salt/_modules/multimaster.py``.
    """

    def __init__(self, peers):
        self.path = os.path.join(__opts__["cachedir"], "multimaster", "seeds.json")
        self.keys, self.sources, self.orphaned, self.unnoted = {}, (), False, False
        try:
            with open(self.path) as handle:
                told = json.load(handle)
            self.keys, source = dict(told["keys"]), told["source"]
            is_id = __utils__["multimaster_pubkey.is_id"]
            if not all(is_id(name) and isinstance(key, str) for name, key in self.keys.items()):
                raise ValueError(f"{self.path}: there is something else in it")
        except FileNotFoundError:
            return
        except (OSError, RecursionError, ValueError, TypeError, KeyError):
            log.exception("Keys that came from another master are taken for this one's own")
            self.forget()
            return
        # If nobody could tell which one it was, any that is complete will do.
        self.sources = [name for name in peers if source in (name, "")]
        self.orphaned, self.unnoted = not self.sources, True

    def ended(self, peer, answer):
        """Tell whether a peer's answer is the last word on them."""
        read = peer in self.sources and answer["place"] >= answer["end"]
        # An older release does not say so, and has no seeds.
        return read and answer.get("settled", True) and not self.unnoted

    def forget(self):
        """Treat what is left of them like every other key."""
        self.keys, self.sources, self.orphaned, self.unnoted = {}, (), False, False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


STATES = {"minions": "accepted", "minions_rejected": "rejected", "minions_pre": "pending"}
# What a snapshot of any store has of an accepted key.
HELD = ("minions", "accepted")
# A second list beside them: what came under an id that has another key.
DENIED = "minions_denied"
# A key that is being written, in the directory that it is to be in.
SCRATCH = ".multimaster\\new"


class _KeyStore:
    """
    The minions' keys on this master.

    Where they are files, as before Salt 3008 and with the driver ``localfs_key``, they are read and
    written here, because Salt's own way is slow and not safe against a crash.  Other drivers, and
    deletions, which take the minion's cached data along, go through Salt's API.
    """

    def __init__(self):
        self.pki = __opts__["pki_dir"]
        driver = __opts__.get("keys.cache_driver")
        self.cache = salt.cache.Cache(__opts__, driver=driver) if driver else None
        self.on_disk = driver in (None, "localfs_key")
        self.name = f"{'localfs_key' if self.on_disk else driver} in {self.pki}"
        # Accepted ids that begin with a dot, as the last snapshot has found them.
        self.dotted = set()

    def marks(self):
        """Return what differs after keys were added, removed or moved; costs next to nothing."""
        times = []
        for directory in (*STATES, DENIED) if self.on_disk else ():
            with contextlib.suppress(OSError):
                times.append(os.stat(os.path.join(self.pki, directory)).st_mtime_ns)
        return tuple(times)

    def directories(self):
        """Return what tells the directories of decided keys from others, and when they changed."""
        found = {}
        if not self.on_disk:
            return found
        with open("/proc/sys/kernel/random/boot_id") as handle:
            boot = handle.read().strip()
        for name in ("minions", "minions_rejected"):
            found[name] = None
            with contextlib.suppress(OSError):
                status = os.stat(os.path.join(self.pki, name))
                # Devices may have other numbers after a start of the machine.
                found[name] = [status.st_ino, status.st_dev, boot, status.st_mtime_ns]
        return found

    def written(self, minion_id, state):
        """Return when an id's key was written (ms), which copies keep; None if nobody can tell."""
        if not self.on_disk:
            return None
        (directory,) = [name for name, holds in STATES.items() if holds == state]
        status = os.stat(os.path.join(self.pki, directory, minion_id), follow_symlinks=False)
        return status.st_mtime_ns // 1_000_000

    def snapshot(self):
        """Return id -> (whether it is accepted or rejected, a mark that changes with the key)."""
        found, is_id, dotted = {}, __utils__["multimaster_pubkey.is_id"], set()
        if not self.on_disk:
            for name, entry in self.cache.list_all("keys", include_data=True).items():
                if name.startswith(".") and entry["state"] == "accepted":
                    dotted.add(name)
                elif is_id(name):
                    mark = hash(entry["pub"])
                    found[name] = (entry["state"] != "pending", entry["state"], mark)
            self.dotted = dotted
            return found
        # The last one counts where an id has several, as it does for Salt.
        for directory in ("minions", "minions_pre", "minions_rejected"):
            with contextlib.suppress(FileNotFoundError):
                for entry in os.scandir(os.path.join(self.pki, directory)):
                    name = entry.name
                    if name[0] == "." and directory == "minions" and "\\" not in name:
                        dotted.add(name)
                    # Salt's check of each takes longer than all the rest.
                    if "\\" in name or name[0] == "." or not (name.isascii() or is_id(name)):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    except OSError:
                        # It is there; who reads it will tell what is the matter.
                        found[name] = (directory != "minions_pre", directory, None)
                        continue
                    mark = hash((status.st_mtime_ns, status.st_size, status.st_ino))
                    found[name] = (directory != "minions_pre", directory, mark)
        # Some are no keys, but Salt's own, or a file system's.
        self.dotted = {name for name in dotted if self._has_key(name)}
        return found

    def _has_key(self, name):
        with contextlib.suppress(OSError):
            key = self._read(name)[1]
            return bool(key and key.text)
        return False

    def fetch(self, minion_id):
        """Return an id's key and its text, as far as that may travel, or None twice."""
        # Salt's driver looks at every directory on the way to a file, five times for each key.
        state, key = self._read(minion_id) if self.on_disk else self._cached(minion_id)
        if not key:
            return None, None
        return __utils__["multimaster_ledger.key"](state, key.fingerprint), key.text

    def _cached(self, minion_id):
        entry = self.cache.fetch("keys", minion_id) or {}
        return entry.get("state"), _of(entry.get("pub"))

    def _read(self, minion_id):
        for directory in ("minions_rejected", "minions_pre", "minions"):
            path = os.path.join(self.pki, directory, minion_id)
            # A link is a key before Salt 3008 only.
            key = __utils__["multimaster_pubkey.read"](path, not self.cache)
            if key:
                return STATES[directory], key
        return None, None

    def denied(self, minion_id):
        """Return the fingerprints of the keys that were refused in place of an id's own."""
        if self.on_disk:
            path = os.path.join(self.pki, DENIED, minion_id)
            found = [__utils__["multimaster_pubkey.read"](path)]
        else:
            found = [_of(text) for text in self.cache.fetch("denied_keys", minion_id) or []]
        return [key.fingerprint for key in found if key]

    def denied_ids(self):
        """Return the ids of which there are such keys."""
        is_id = __utils__["multimaster_pubkey.is_id"]
        try:
            names = (
                os.listdir(os.path.join(self.pki, DENIED))
                if self.on_disk
                else self.cache.list("denied_keys")
            )
        except (OSError, salt.exceptions.SaltException):
            return []
        return [name for name in names if is_id(name)]

    def clear_denied(self, minion_id, fingerprints):
        """Clear those of them that have certain fingerprints."""
        if self.on_disk:
            _remove([os.path.join(self.pki, DENIED, minion_id)])
            return
        texts = self.cache.fetch("denied_keys", minion_id) or []
        left = [text for text in texts if (key := _of(text)) and key[0] not in fingerprints]
        if left:
            self.cache.store("denied_keys", minion_id, left)
        else:
            self.cache.flush("denied_keys", minion_id)

    def accept(self, actions):
        """Accept keys, which may be unknown here, pending or rejected; return id -> error."""
        failed = self._replace(actions)
        self._write_all(actions, "accepted", failed)
        return failed

    def reject(self, actions):
        """
        Reject keys; who had been accepted can no longer read what this master sends.

        Returns id -> error.
        """
        failed = self._replace(actions)
        with self._shutting_out(actions):
            self._write_all(actions, "rejected", failed)
        return failed

    def delete(self, actions):
        """
        Delete keys; who had been accepted can no longer read what this master sends.

        Returns id -> error.
        """
        with self._shutting_out(actions):
            failed = self._delete(actions)
        # Salt does not say so if it cannot.
        for action, key in actions:
            if action.id not in failed and self.fetch(action.id)[0] == key:
                failed[action.id] = OSError("Salt has not deleted it")
        return failed

    def _delete(self, actions):
        """Delete keys, all at once or, where that fails, fewer; return id -> error."""
        there = {}
        for action, key in actions:
            directory = "minions" if key.state == "accepted" else "minions_rejected"
            there.setdefault(directory, []).append(action.id)
        try:
            salt.key.get_key(__opts__).delete_key(match_dict=there)
        except Exception as err:
            if len(actions) == 1:
                return {actions[0][0].id: err}
            half = len(actions) // 2
            return self._delete(actions[:half]) | self._delete(actions[half:])
        return {}

    def _write_all(self, actions, state, failed):
        for action, key in actions:
            if action.id not in failed:
                try:
                    self._write(action, key, state)
                except Exception as err:
                    failed[action.id] = err

    @contextlib.contextmanager
    def _shutting_out(self, actions):
        """Have this master make a new AES key if a key in the actions is accepted."""
        accepted = any(key and key.state == "accepted" for _, key in actions)
        if not (accepted and __opts__["rotate_aes_key"]):
            yield
            return
        # A request without the master's id is one that it never heeds; Salt 3006 knows none.
        named = "master_id" in inspect.signature(salt.crypt.dropfile).parameters
        request = [__opts__["cachedir"], __opts__["user"], *([__opts__["id"]] if named else [])]
        # Before, too: whoever comes after a crash would not know that it is still to be done.
        salt.crypt.dropfile(*request)
        yield
        salt.crypt.dropfile(*request)

    def _replace(self, actions):
        """Delete those keys that give way to another one of the same minion; return id -> error."""
        old = [
            (action, key)
            for action, key in actions
            if key and key.state in LIVE and key.fingerprint != action.decision.fingerprint
        ]
        return self.delete(old) if old else {}

    def _write(self, action, key, state):
        """Write the key that was decided on; or, if only this master has its text, move it."""
        minion_id, pub = action.id, action.decision.pub
        if pub and _of(pub)[0] != action.decision.fingerprint:
            # What a bad disk has made of it.
            raise ValueError("the ledger has another text than that of this key")
        if not self.on_disk:
            pub = pub or self.cache.fetch("keys", minion_id)["pub"]
            self.cache.store("keys", minion_id, {"state": state, "pub": pub})
            return
        paths = {holds: os.path.join(self.pki, name, minion_id) for name, holds in STATES.items()}
        path = paths.pop(state)
        if not pub:
            os.replace(paths.pop(key.state), path)
            _remove(paths.values())
            return
        # Salt's driver writes under a name that counts as a minion's until it is renamed: what a
        # crash leaves would be a decision.  No minion id has a backslash, and none is in this name,
        # for it may be as long as a name can be.
        scratch = os.path.join(os.path.dirname(path), SCRATCH)
        _remove([scratch])
        with open(scratch, "x") as handle:
            handle.write(pub)
        if state == "rejected":
            # First, for of two files this is the one that counts: a crash would leave the other.
            _remove(paths.values())
        os.replace(scratch, path)
        _remove(paths.values())

    def master_pub(self):
        """Return the public key that all masters share."""
        stem = __opts__["id"].removesuffix("_master") if self.cache else "master"
        if not self.on_disk:
            return self.cache.fetch("master_keys", f"{stem}.pub")
        with open(os.path.join(self.pki, f"{stem}.pub")) as handle:
            return handle.read()


def _remove(paths):
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)


def _of(text):
    """Return the key in a text of a cache driver, or None."""
    text = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    return __utils__["multimaster_pubkey.of"](text) if text else None
