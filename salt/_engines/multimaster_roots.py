"""
Keeps file and pillar roots equal on all masters: the source's engine takes snapshots of its
directories, the others' follow.

Runs in every master where ``roots: replicate`` is declared.  Followers pull from the minion on the
source's host; an event only wakes.  Content comes only from an answer that is sealed with the
masters' shared key for a fresh nonce, and is checked against its hash.

See docs/roots-replicate.md.
"""

import contextlib
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass
from typing import NamedTuple

import salt.cache
import salt.utils.event

log = logging.getLogger(__name__)

__virtualname__ = "multimaster_roots"

# Seconds between two looks at the live directories, or at what is served.
LOOK = 5.0
# Seconds that live directories have to stay as they are before they are taken.
SETTLED = 1.0
# Seconds until something that failed is tried again, and until the next question while there is no
# snapshot, a damaged one, or a part of the next.
UNREADY = 2.0
# Contents that one question may ask for.
WANTED = 1000
# How many times as long as a look took it is until the next one; and at most, in seconds.
SHARE = 20
LONGEST = 30.0
# Looks in a row that find something changed, after which the rest is taken without it.
RESTLESS = 60
# Seconds between two looks that events ask for, twice as long whenever there was nothing new, up to
# LONGEST: anybody can send them.
SHORTEST = 0.2
# Seconds until what could not be read is tried again.
AGAIN = 30.0
# Minions that are asked at a time whether a state run is under way on them; questions without an
# answer after which one counts as gone; and answers that are waited for.
ASKED = 100
UNANSWERED = 8
QUESTIONS = 64
# Seconds until a minion is asked again, twice as long each time, up to RARELY.
ASK_PAUSE = 5.0
RARELY = 600.0

RETURN = re.compile(r"salt/job/[^/]+/ret/(.+)", re.DOTALL)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
DIGEST = re.compile(r"[0-9a-f]{64}")
# What Salt says of a minion that it lets in.
SIGNED_IN = ("accept", "full")


def __virtual__():
    return __virtualname__


def start():
    """Entry point of the engine; runs as long as its master."""
    declared = __opts__["multimaster"]["roots"]["replicate"]
    directory = os.path.join(__opts__["cachedir"], "multimaster", "roots")
    store = __utils__["multimaster_roots.store"](directory)
    with salt.utils.event.get_event("master", opts=__opts__) as bus:
        kind = _Source if declared["source"] == __opts__["id"] else _Follower
        engine = None
        while True:
            try:
                engine = engine or kind(store, bus, declared)
                engine.turn()
            except Exception as err:
                # Any: an engine that ends is started again at once, and would fail again.
                log.exception("Cannot replicate the roots; trying again")
                with contextlib.suppress(OSError):
                    if engine:
                        engine.trouble(str(err))
                time.sleep(UNREADY)


@dataclass
class _Run:
    """What is known of a state run that holds a tree: since when, and how its minion was asked."""

    made: float
    # Whether somebody says that it has returned; anybody can.
    claimed: bool = False
    asked: float = float("-inf")
    pause: float = ASK_PAUSE
    unanswered: int = 0


class _Engine:
    """What source and followers have in common: the store, the bus, and what they say of it."""

    role = None

    def __init__(self, store, bus, declared):
        self.store, self.bus, self.declared = store, bus, declared
        store.prepare()
        self.pins = __utils__["multimaster_roots.pins"](store.directory)
        self.courier = __utils__["multimaster_peers.courier"](__opts__, listen=False)
        self.look_due = 0.0
        # Minion -> _Run, of those whose state run holds a tree; job -> (nonce, minion -> the time
        # that its pin was made).
        self.runs, self.questions = {}, {}
        # Whether somebody has edited what is served.
        self.damaged = False
        # Trees with edits in them that cannot be copied.
        self.held = set()
        self.told = store.read_status()
        self.told.update(role=self.role, source=declared["source"])
        if not isinstance(self.told.get("skipped"), dict):
            self.told["skipped"] = {}
        if not store.current():
            self.told.update(snapshot=None, digest=None, digests={}, since=None)
            self.trouble("there is no snapshot yet")
        self._tell()

    def turn(self):
        """Do what is due; then wait for events, or until the next thing is due."""
        now = time.monotonic()
        if now >= self.look_due:
            self.look_due = later = now + LOOK
            self.look()
            if self.look_due == later:
                spent = time.monotonic() - now
                self.look_due = now + min(max(LOOK, SHARE * spent), LONGEST)
        self._sent()
        self.attend()
        heard = __utils__["multimaster_gather.next_event"]
        while event := heard(self.bus, max(0.001, self.due() - time.monotonic())):
            self._hear(event["tag"], event["data"])
            self._sent()
            if self.due() <= time.monotonic():
                break

    def _hear(self, tag, data):
        """Take note of an event; what is in it, anybody may have made up, stops nothing else."""
        try:
            self.heard(tag, data)
        except OSError:
            # Not the event's fault.
            raise
        except Exception as err:
            log.error("Cannot make use of the event %r: %s: %s", tag[:200], type(err).__name__, err)

    def look(self):
        """Look whether what is served is what was written, and remove what nobody needs."""
        now = time.time()
        for name in self.store.outdated(self.pins.in_use(now), now):
            with contextlib.suppress(FileNotFoundError):
                # Somebody may have been at work in there when it ceased to be the newest.
                if self.store.is_sound(name):
                    self._keep(name)
                if name not in self.held:
                    self.store.remove(name)
        name = self.store.current()
        if name and not self.store.is_sound(name):
            log.error("Not readable any more, and not served: %s", self.store.discard_unsound())
            name = self.store.current()
        self.damaged = bool(name and self._keep(name))
        self._ask_runs()
        kept = sorted(os.listdir(self.store.kept))
        if kept != self.told.get("kept"):
            self.told["kept"] = kept
            self._tell()

    def _keep(self, name):
        """Copy what somebody has edited in a tree aside; tell whether there is anything."""
        damage = self.store.damage(name)
        if damage:
            stamp = __utils__["multimaster_roots.stamp"](time.time())
            try:
                kept = self.store.keep_aside(name, damage, f"{stamp}-{name}")
            except ValueError as err:
                # Then it stays where it is.
                if name not in self.held:
                    log.error("%s", err)
                self.held.add(name)
                return damage
            if kept:
                paths = ", ".join(damage.paths[:5])
                log.error("Edited in the served tree, and kept in %s: %s", kept, paths)
        return damage

    def heard(self, tag, data):
        """Take note of an event; anybody may have made it up."""
        if not isinstance(data, dict):
            return
        back = RETURN.fullmatch(tag)
        if back and tag.split("/", 3)[2] in self.questions:
            self._learn_run(back[1], *self.questions[tag.split("/", 3)[2]], data.get("return"))
        elif back and __utils__["multimaster_roots.runs_states"](data.get("fun")):
            self._claimed(back[1])
        elif tag.startswith("multimaster/roots/"):
            self.woken(tag.rpartition("/")[2], data)

    def _claimed(self, minion_id):
        """A state run has returned, or somebody says so: ask its minion, if that matters."""
        pin = self.pins.get(minion_id)
        if pin and pin.run:
            self._run(minion_id, pin).claimed = True

    def _run(self, minion_id, pin):
        run = self.runs.get(minion_id)
        if run is None or run.made != pin.made:
            run = self.runs[minion_id] = _Run(pin.made)
        return run

    def _ask_runs(self):
        """Ask minions whether a state run is under way that holds another tree than the newest."""
        now, current, pins = time.monotonic(), self.store.current(), self.pins.all(time.time())
        held = {name: pin for name, pin in pins.items() if pin.run}
        self.runs = {name: self._run(name, pin) for name, pin in held.items()}
        due = {}
        for name, pin in held.items():
            run = self.runs[name]
            quiet = __utils__["multimaster_roots.is_quiet"](pin, time.time())
            doubtful = run.claimed or quiet
            if pin.tree == current or not doubtful or now < run.asked + run.pause:
                continue
            if quiet and run.unanswered >= UNANSWERED:
                # It neither answers nor fetches anything.
                self.pins.forget(name)
            elif len(due) < ASKED:
                due[name] = pin.made
                if run.asked > float("-inf"):
                    run.pause = min(run.pause * 2, RARELY)
                run.asked, run.unanswered = now, run.unanswered + 1
        if due:
            nonce = secrets.token_hex(16)
            self.questions[self.give(list(due), "runs", [nonce])] = (nonce, due)
            for old in list(self.questions)[:-QUESTIONS]:
                del self.questions[old]

    def _learn_run(self, minion_id, nonce, made, reply):
        """Take in what a minion says of its state runs, if it is the minion that says so."""
        if minion_id not in made or not isinstance(reply, dict):
            return
        answer = reply.get("answer")
        pub = self._minion_key(minion_id)
        if pub is None or not isinstance(answer, dict) or answer.get("id") != minion_id:
            return
        try:
            __utils__["multimaster_keypair.verify_answer"](
                answer, nonce, reply.get("signature"), pub
            )
        except ValueError as err:
            log.error("Refused what is said to be of %s: %s", minion_id, err)
            return
        run = self.runs.get(minion_id)
        if run and run.made == made[minion_id]:
            run.unanswered = 0
        if answer.get("runs") == []:
            # Otherwise it is asked again: a job is over some time after its return.
            self.pins.release(minion_id, made[minion_id])

    def _minion_key(self, minion_id):
        """Return the public key of a minion that this master has accepted; None if it has not."""
        if not __utils__["multimaster_pubkey.is_id"](minion_id):
            # Before Salt 3008 it would be a path, and perhaps that of a pending key.
            return None
        driver = __opts__.get("keys.cache_driver")
        if driver:
            found = salt.cache.Cache(__opts__, driver=driver).fetch("keys", minion_id) or {}
            return found.get("pub") if found.get("state") == "accepted" else None
        try:
            path = os.path.join(__opts__["pki_dir"], "minions", minion_id)
            with open(path, encoding="ascii") as handle:
                return handle.read()
        except FileNotFoundError:
            return None

    def attend(self):
        """Go on with what is under way."""

    def due(self):
        """Return when there is something to do though no event comes."""
        return self.look_due

    def woken(self, what, data):
        """Somebody has news, or says so."""

    def switched(self, name):
        """A new snapshot is made: serve it."""
        old = self.store.current()
        if old:
            self._keep(old)
        self.store.switch(name)
        manifest = self.store.manifest(name)
        self.damaged = False
        self.told.update(
            snapshot=name,
            digest=manifest.digest,
            digests=manifest.digests(),
            since=time.time(),
            checked=time.time(),
        )
        self.fine()
        log.info("The roots are now %s: %d entries", name, len(manifest.entries))
        self._ask_runs()

    def fine(self):
        """Nothing is wrong, as of now."""
        if self.told.get("problem"):
            log.warning("Replication of the roots is well again")
        self.told.update(problem=None, problem_since=None, checked=time.time())
        self._tell()

    def trouble(self, problem):
        """Remember what is wrong, and log it once; what was served before goes on being served."""
        if self.told.get("problem") == problem:
            return
        log.error("Replication of the roots: %s", problem)
        if not self.told.get("problem"):
            self.told["problem_since"] = time.time()
        self.told["problem"] = problem
        self._tell()

    def _tell(self):
        self.store.write_status(self.told)

    def _sent(self):
        """Take note of what has become of the jobs that were to be given."""
        for job in self.courier.sent():
            if job.error:
                log.error("Cannot give a job; trying again: %s", job.error)
            self.given(job)

    def given(self, job):
        """A job was given, or could not be."""

    def give(self, targets, function, arguments):
        """Have a job given, and return its id."""
        return self.courier.give(targets, f"multimaster_roots.{function}", arguments)


class _Source(_Engine):
    """Takes a snapshot whenever the live directories have changed, and have settled."""

    role = "source"

    def __init__(self, store, bus, declared):
        super().__init__(store, bus, declared)
        # When the last look ended; how long after it events may bring the next one forward; and
        # whether one has.
        self.looked, self.pause, self.called = float("-inf"), SHORTEST, False
        # What is to be taken if it stays as it is, and since when it has been so.
        self.seen, self.seen_at = None, 0.0
        # What the last look found, and path -> number of looks in a row that found it changed.
        self.last, self.counts = None, {}
        # What they were when the snapshot was taken; not known after a start.
        self.published = None
        # What could not be read then, with the reasons for the status, and when to try again.
        self.unread, self.reasons, self.again = set(), {}, 0.0
        self.forced = self.unsaid = False

    def look(self):
        called, self.called = self.called, False
        try:
            news = self._look()
        finally:
            self.looked = time.monotonic()
        self.pause = min(self.pause * 2, LONGEST) if called and not news else SHORTEST

    def _look(self):
        """Look at the live directories, and take them if they have settled; tell if they differ."""
        super().look()
        if __utils__["multimaster_peers.demanded"](self.store.demand):
            self.forced = True
        roots = {kind: self.declared.get(kind) or {} for kind in ("file_roots", "pillar_roots")}
        guarded = [__opts__[name] for name in ("pki_dir", "cluster_pki_dir") if __opts__.get(name)]
        follow = __opts__["fileserver_followsymlinks"]
        try:
            seen = __utils__["multimaster_roots.scan"](roots, guarded, follow)
            restless = self._restless(seen)
            name = self.store.current()
            if not self.damaged and self._is_published(seen, restless):
                self.seen, self.forced = None, False
                self._noted(seen.skipped | self.reasons)
                self.fine()
                return False
            if not self.forced and (emptied := self._emptied(name, seen)):
                self.seen = None
                self.trouble(
                    f"{emptied} has become empty; nothing is published until it is not, or until "
                    "salt-run multimaster.roots_publish force=True"
                )
                return False
            now, before, self.seen = time.monotonic(), self.seen, seen
            if before is None or not self._same(seen, before, restless):
                # Somebody is at work in the live directories: look again in a moment.
                self.seen_at, self.look_due = now, now + SETTLED
                return before is None
            if now - self.seen_at < SETTLED:
                self.look_due = self.seen_at + SETTLED
                return False
            told = set(seen.skipped)
            seen.kept |= restless
            made = self.store.capture(seen)
            # What that took says nothing about a look.
            self.look_due = time.monotonic() + LOOK
        except ValueError as err:
            self.seen = None
            if type(err).__name__ == "Unsettled":
                self.look_due = time.monotonic() + SETTLED
            else:
                # A directory is not there.
                self.trouble(str(err))
            return False
        self.seen, self.forced = None, False
        self.published = __utils__["multimaster_roots.without"](seen.entries, seen.kept)
        self.unread, self.again = seen.kept - restless, time.monotonic() + AGAIN
        self.reasons = {path: why for path, why in seen.skipped.items() if path not in told}
        self._noted(seen.skipped)
        if made:
            self.switched(made)
            self.unsaid = True
        else:
            self.fine()
        return True

    def _is_published(self, seen, restless):
        """Tell whether all that can be taken was taken."""
        if self.published is None:
            return False
        aside = restless | seen.kept
        if time.monotonic() < self.again:
            aside |= self.unread
        without = __utils__["multimaster_roots.without"]
        return without(seen.entries, aside) == without(self.published, aside)

    def _same(self, seen, before, restless):
        without = __utils__["multimaster_roots.without"]
        same = without(seen.entries, restless) == without(before.entries, restless)
        return same and seen.kept == before.kept

    def _restless(self, seen):
        """Return the paths that are never the same twice; they stay what they were in the tree."""
        last, self.last = self.last, seen.entries
        changed = set()
        if last is not None and last != seen.entries:
            changed = {path for path, _ in set(seen.entries.items()) ^ set(last.items())}
        self.counts = __utils__["multimaster_roots.restless"](self.counts, changed)
        found = __utils__["multimaster_roots.never_still"](self.counts, RESTLESS)
        for path in found:
            seen.skipped[path] = "changing all the time"
        return found

    def attend(self):
        if self.unsaid:
            self._wake()
            self.unsaid = False

    def given(self, job):
        self.unsaid = self.unsaid or bool(job.error)

    def woken(self, what, data):
        if what != "publish":
            return
        if __utils__["multimaster_peers.demanded"](self.store.demand):
            # Not by the event, which any minion can send.
            self.forced, self.look_due = True, 0.0
        elif self.seen is None:
            self.look_due, self.called = min(self.look_due, self.looked + self.pause), True

    def _emptied(self, name, seen):
        """Return a directory that has nothing in it any more, or None."""
        if name is None:
            return None
        before = self.store.manifest(name).entries
        for path, entry in before.items():
            # An empty directory is what an absent mount leaves.
            if path.count("/") == 2 and entry is None and path in seen.entries:
                start = f"{path}/"
                had = any(p.startswith(start) and e for p, e in before.items())
                if had and not any(p.startswith(start) and e for p, e in seen.entries.items()):
                    kind, environment, number = path.split("/")
                    return self.declared[kind][environment][int(number)]
        return None

    def _noted(self, skipped):
        for path, reason in skipped.items():
            if path not in self.told["skipped"]:
                log.warning("%s is not replicated: %s", path, reason)
        self.told["skipped"] = dict(skipped)

    def _wake(self):
        others = [m["id"] for m in __opts__["multimaster"]["masters"] if m["id"] != __opts__["id"]]
        if others:
            self.give(others, "wake", [__opts__["id"]])


class _Asked(NamedTuple):
    """What a question is about: of a look what is here, of pieces what they are for."""

    what: str
    digest: str


class _Follower(_Engine):
    """Pulls what the source has."""

    role = "follower"

    def __init__(self, store, bus, declared):
        super().__init__(store, bus, declared)
        self.peer = __utils__["multimaster_peers.peer"](declared["source"], time.monotonic())
        # Why there is no answer to the last question, if that is known.
        self.error = None
        # What is being fetched: the digest of its manifest, that itself once it is here, and the
        # contents that are lacking.
        self.wanted = None
        self.manifest, self.lacking = None, {}

    def look(self):
        super().look()
        # Not of this master's directories; and not left for when it becomes the source.
        __utils__["multimaster_peers.demanded"](self.store.demand)
        if self.damaged and not self.wanted:
            # Perhaps everything is here, under another name.
            self._want(self.store.manifest(self.store.current()))
            if self.wanted:
                self._go_on()

    def due(self):
        return min(self.look_due, self.peer.next())

    def attend(self):
        if self.peer.ready(time.monotonic()):
            if self.peer.silent:
                self.trouble(self.error or f"the source {self.peer.name} does not answer")
            self._ask()

    def given(self, job):
        self.peer.sent(job.jid, job.at)

    def woken(self, what, data):
        if what == "wake" and data.get("origin") == self.peer.name:
            self.peer.woken(time.monotonic())

    def heard(self, tag, data):
        parts = tag.split("/", 4)
        question = self.peer.kept.get(parts[2]) if parts[3:] == ["ret", self.peer.name] else None
        if question:
            self._learn(question, data.get("return") if isinstance(data, dict) else None)
        elif self._back(tag, data) and (self.told.get("problem") or self.peer.open):
            # What it was not there for, it will answer now.
            self.peer.returned(time.monotonic())
        else:
            super().heard(tag, data)

    def _back(self, tag, data):
        """Tell whether an event says that the source's minion is there, or is there again."""
        # Some time before it hears anything, it signs in; when it does hear, it has started.
        if tag == f"salt/minion/{self.peer.name}/start":
            return True
        named = isinstance(data, dict) and data.get("id") == self.peer.name
        return named and (
            tag == "minion_start" or (tag == "salt/auth" and data.get("act") in SIGNED_IN)
        )

    def _pause(self):
        if not self.store.current() or self.damaged or self.wanted:
            self.peer.later(time.monotonic() + UNREADY)

    def _go_on(self):
        """Ask for what is lacking, at once."""
        self.peer.woken(time.monotonic())
        self.peer.useful()

    def _ask(self):
        """Ask for what is lacking, or else whether there is anything new."""
        if self.wanted:
            wanted = self._next()
            question = {"what": "pieces", "digest": self.wanted, "wanted": wanted}
            asked = _Asked("pieces", self.wanted)
        else:
            name = self.store.current()
            have = self.store.manifest(name).digest if name else ""
            question = {"what": "look", "have": have}
            asked = _Asked("look", have)
        nonce, self.error = secrets.token_hex(16), None
        sealed = __utils__["multimaster_seal.seal"](
            __utils__["multimaster_seal.pack"](question, ()),
            self._master_key(),
            nonce,
            "question",
            __opts__["id"],
            self.peer.name,
        )
        jid = self.give([self.peer.name], "pull", [__opts__["id"], nonce, sealed])
        self.peer.ask(time.monotonic(), jid, nonce, asked)

    def _next(self):
        """Return which contents to ask for, each with how much of it is here."""
        received = self.store.received()
        names = list(self.lacking)[:WANTED] if self.manifest else [self.wanted]
        return [[name, received.get(name, 0)] for name in names]

    def _learn(self, question, reply):
        """Take in the source's answer, if it is one; however late it comes."""
        source = self.peer.name
        if not isinstance(reply, str) or " " in reply:
            # An error of Salt's, which says so; it may not be the source's own.
            self.error = f"{source} cannot answer: {CONTROL.sub(' ', str(reply)[:200])}"
            return
        try:
            head, pieces = __utils__["multimaster_seal.unpack"](
                __utils__["multimaster_seal.open_sealed"](
                    reply, self._master_key(), question.nonce, "answer", source, __opts__["id"]
                )
            )
        except ValueError as err:
            # Not the source's, perhaps: its own answer may be on the way.
            log.error("Refused the answer of %s: %s", source, err)
            return
        last, overtaken = question is self.peer.open, self.peer.overtaken(question)
        self.peer.answered(question, time.monotonic())
        try:
            if question.about.what == "look" and not overtaken:
                # What it had before a later look is not new.
                self._looked(question.about, head)
            self._take(question.about, last, head, pieces)
        except OSError:
            # This master's disk; of the answer nothing is wrong.
            raise
        except Exception as err:
            # Any: a disk may have made anything of it.
            self._forget()
            self._pause()
            self.trouble(f"the answer of {source}: {err}")

    def _looked(self, asked, head):
        """Take note of what the source has."""
        digest = head["digest"]
        if digest is not None and not DIGEST.fullmatch(digest):
            raise ValueError(f"no digest: {digest!r}")
        name = self.store.current()
        own = self.store.manifest(name) if name else None
        self._forget()
        if digest is None:
            self.peer.later(time.monotonic() + UNREADY)
            self.trouble(f"the source {self.peer.name} has no snapshot yet")
        elif own and own.digest == digest and not self.damaged:
            self.fine()
        elif own and own.digest == digest:
            self._want(own)
        elif asked.digest != (own.digest if own else ""):
            # That is a change of what was here when it was asked.
            self._go_on()
        elif "delta" in head:
            manifest = __utils__["multimaster_roots.apply"](head["delta"], own)
            if manifest.digest != digest:
                raise ValueError("the change does not lead to the manifest that it is of")
            self._want(manifest)
        else:
            if type(head["size"]) is not int or head["size"] < 1:
                raise ValueError(f"no size of a manifest: {head['size']!r}")
            self.wanted, self.lacking = digest, {digest: head["size"]}

    def _take(self, asked, last, head, pieces):
        """Take in pieces; when all is here, serve it."""
        if head.get("gone"):
            if asked.digest == self.wanted:
                # The source has gone on meanwhile.
                self._forget()
                self.peer.woken(time.monotonic())
            return
        taken, received = False, self.store.received() if pieces else {}
        for sha256, offset, data in pieces:
            size, here = self.lacking.get(sha256), received.get(sha256, 0)
            if size is None or here not in (offset, size):
                # It came before, with the answer to another question.
                continue
            if self.store.receive(sha256, size, offset, data):
                del self.lacking[sha256]
            taken, received[sha256] = True, offset + len(data)
        if self.wanted and not self.lacking and not self.manifest:
            with open(os.path.join(self.store.objects, self.wanted), encoding="ascii") as handle:
                self._want(__utils__["multimaster_roots.parse"](handle.read()))
            if self.wanted:
                self._go_on()
        elif self.manifest and not self.lacking:
            self._serve()
        elif not self.lacking or not last:
            # Nothing is wanted, or the answer to a later question will show what is lacking then.
            return
        elif taken or asked.what == "look":
            self._go_on()
        elif pieces:
            # They had come before; what is lacking now is another question.
            self.peer.woken(time.monotonic())
        elif asked.digest == self.wanted:
            raise ValueError(f"{len(self.lacking)} contents are damaged there, too")

    def _want(self, manifest):
        self.wanted, self.manifest = manifest.digest, manifest
        self.lacking = self.store.missing(manifest)
        if not self.lacking:
            self._serve()

    def _serve(self):
        manifest = self.manifest
        self._forget()
        self.switched(self.store.build(manifest))
        self._pause()

    def _forget(self):
        self.wanted = self.manifest = None
        self.lacking = {}

    def _master_key(self):
        """Return the private key that all masters share."""
        driver = __opts__.get("keys.cache_driver")
        stem = __opts__["id"].removesuffix("_master") if driver else "master"
        if driver not in (None, "localfs_key"):
            return salt.cache.Cache(__opts__, driver=driver).fetch("master_keys", f"{stem}.pem")
        with open(os.path.join(__opts__["pki_dir"], f"{stem}.pem"), encoding="ascii") as handle:
            return handle.read()
