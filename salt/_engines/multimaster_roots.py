"""
Keeps file and pillar roots equal on all masters: the source's engine takes snapshots of its
directories, the others' follow.

Runs in every master where ``roots: replicate`` is declared.  Followers pull from the minion on the
source's host; an event only wakes.  Content comes only from an answer that is sealed with the
masters' shared key for a fresh nonce, and is checked against its hash.

See docs/roots-replicate.md.
"""

import logging
import os
import re
import secrets
import time
from typing import NamedTuple

import salt.cache
import salt.exceptions
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
# Seconds of restless directories after which somebody should know.
RESTLESS = 60.0

RETURN = re.compile(r"salt/job/\d+/ret/")
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
            except (OSError, ValueError, salt.exceptions.SaltException) as err:
                # An engine that ends is started again at once, and would fail again.
                log.exception("Cannot replicate the roots; trying again")
                if engine:
                    engine.trouble(str(err))
                time.sleep(UNREADY)


class _Engine:
    """What source and followers have in common: the store, the bus, and what they say of it."""

    role = None

    def __init__(self, store, bus, declared):
        self.store, self.bus, self.declared = store, bus, declared
        store.prepare()
        self.pins = __utils__["multimaster_roots.pins"](store.directory)
        # The returns do not go into the job cache.
        self.courier = __utils__["multimaster_peers.courier"](__opts__, listen=False, nocache=True)
        self.look_due = 0.0
        # Whether somebody has edited what is served.
        self.damaged = False
        # Trees with edits in them that cannot be copied.
        self.held = set()
        self.told = store.read_status()
        self.told.update(role=self.role, source=declared["source"])
        self.told.setdefault("skipped", {})
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
        while event := self.bus.get_event(
            wait=max(0.001, self.due() - time.monotonic()), full=True
        ):
            self.heard(event["tag"], event["data"])
            self._sent()
            if self.due() <= time.monotonic():
                break

    def look(self):
        """Look whether what is served is what was written, and remove what nobody needs."""
        now = time.time()
        for name in self.store.outdated(self.pins.in_use(now), now):
            # Somebody may have been at work in there when it ceased to be the newest.
            self._keep(name)
            if name not in self.held:
                self.store.remove(name)
        name = self.store.current()
        self.damaged = bool(name and self._keep(name))
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
        function = data.get("fun")
        if RETURN.match(tag) and isinstance(function, str) and function.startswith("state."):
            minion_id = tag.split("/", 4)[-1]
            self.pins.release(minion_id)
        elif tag.startswith("multimaster/roots/"):
            self.woken(tag.rpartition("/")[2], data)

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
        # The last look at the live directories, and when it was.
        self.seen, self.seen_at = None, 0.0
        # Since when they have not been the same twice.
        self.restless = None
        # What they were when the snapshot was taken; not known after a start.
        self.published = None
        self.forced = self.unsaid = False

    def look(self):
        super().look()
        roots = {kind: self.declared.get(kind) or {} for kind in ("file_roots", "pillar_roots")}
        try:
            seen = __utils__["multimaster_roots.scan"](roots)
            name = self.store.current()
            if not self.damaged and self.published == seen.entries:
                self.seen, self.restless, self.forced = None, None, False
                self.fine()
                return
            if not self.forced and (emptied := self._emptied(name, seen)):
                self.trouble(
                    f"{emptied} has become empty; nothing is published until it is not, or until "
                    "salt-run multimaster.roots_publish force=True"
                )
                return
            if self.seen is None or seen.entries != self.seen.entries:
                self._unsettled(seen)
                return
            if time.monotonic() - self.seen_at < SETTLED:
                self.look_due = self.seen_at + SETTLED
                return
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
            return
        self.seen, self.restless, self.forced, self.published = None, None, False, seen.entries
        self._noted(seen)
        if made:
            self.switched(made)
            self.unsaid = True
        else:
            self.fine()

    def _unsettled(self, seen):
        """Somebody is at work in the live directories: look again in a moment."""
        now = time.monotonic()
        if self.seen is None or self.restless is None:
            self.restless = self.restless or now
        elif now - self.restless > RESTLESS:
            changed = {
                path for path, _ in set(seen.entries.items()) ^ set(self.seen.entries.items())
            }
            self.trouble(f"changing all the time, and so not taken: {sorted(changed)[:3]}")
        self.seen, self.seen_at = seen, now
        self.look_due = now + SETTLED

    def attend(self):
        if self.unsaid:
            self._wake()
            self.unsaid = False

    def given(self, job):
        self.unsaid = self.unsaid or bool(job.error)

    def woken(self, what, data):
        if what == "publish":
            # Not by the event, which any minion can send.
            self.forced = self.store.demanded() or self.forced
            self.look_due = 0.0

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

    def _noted(self, seen):
        for path, reason in seen.skipped.items():
            if path not in self.told["skipped"]:
                log.warning("%s is not replicated: %s", path, reason)
        self.told["skipped"] = dict(seen.skipped)

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
            self.error = f"{source} cannot answer: {str(reply)[:200]}"
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
        except (KeyError, TypeError, ValueError) as err:
            self._forget()
            self._pause()
            self.trouble(f"the answer of {source}: {err}")

    def _looked(self, asked, head):
        """Take note of what the source has."""
        digest = head["digest"]
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
