"""
Brings a minion to its new list of masters once that has proved itself, and never gives up.

Used by the program ``multimaster_restart``.  Every step is written down before it is taken, so that
whoever finds the journal unfinished, as the minion's engine does, can take the rest.

While the list is proved, the daemon works on with what it has read.  What is decided follows from
answers and from their number, never from a time: :class:`Course` has no clock.  Times say only how
often somebody is asked.  Restores files, and so is not a part of the core; the class is.
"""

import contextlib
import fcntl
import json
import logging
import os
import queue
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

# The new drop-in is about to be written, or is there; its masters are asked; the daemon is about to
# be restarted; it is there, and looks for its masters; the old drop-in is about to come back; it is
# there, and the daemon, which had read the new one, is about to be restarted.  With ``back`` in the
# journal the old drop-in is the one that is there, and the new one is proved on.
STEPS = ("prepared", "proving", "restarting", "connecting", "restoring", "returning")
# How it ended.
KEPT = "kept"


def _is_number(value: Any) -> bool:
    # Nor is anything of it beyond all times and counts, as a bad disk may make it.
    return type(value) in (int, float) and -LARGEST < value < LARGEST


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_process(value: Any) -> bool:
    return value is None or (isinstance(value, list) and [type(one) for one in value[:1]] == [int])


def _are_classes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) and _is_number(one[1])
        for one in value.values()
    )


LARGEST = 1 << 53
# What is in a journal, and how each of it is told from what a bad disk has made of it.
KINDS: Mapping[str, Callable[[Any], bool]] = {
    "serial": lambda value: isinstance(value, str),
    "step": lambda value: isinstance(value, str),
    "since": _is_number,
    "job": _is_process,
    "daemon": _is_process,
    "drop_in": lambda value: isinstance(value, str) and "\0" not in value,
    "masters": lambda value: type(value) is int,
    "timeout": _is_number,
    "old": _are_texts,
    "wanted": _are_texts,
    "heard": _are_texts,
    "seen": _are_classes,
    "at": _is_number,
    "back": lambda value: isinstance(value, bool),
    "read": lambda value: isinstance(value, bool),
    "tries": lambda value: type(value) is int,
    "returned": _is_number,
    "why": lambda value: isinstance(value, str),
    "seconds": _is_number,
}
# What every journal has that has not ended.
NEEDED = ("serial", "since", "drop_in", "masters", "old")

# What a master may say to this minion.  Who has the masters' key and does not let it in yet, or not
# any more, is one of them; who has another key, says nothing, or cannot be connected to at all, is
# none.
ACCEPTED, PENDING, REJECTED = "accepted", "pending", "rejected"
FOREIGN, REFUSED, SILENT = "foreign key", "refused", "silent"
OURS = (ACCEPTED, PENDING, REJECTED)

# Rounds in which an old master let this minion in and no new one said anything, after which the
# minion goes back; and in which new ones let this program in and the daemon had no connection.
SEVERAL, MANY = 4, 10
# How many times as long as an old master took a new one has to be silent for that to count: where
# everything is slow, so is it.
# And how many times as long the daemon has to have run without a connection.
SLOWER, STARTING = 10, 200
# Times that the daemon was seen to end at its start, after which the minion goes back.
FAILED = 5

# Seconds that a question waits for its answer, at first and at most: each time without one, twice
# as long; between two questions, in the same way; between two looks at the daemon.
PATIENCE, LONGEST = 5.0, 600.0
PAUSE, LONGEST_PAUSE = 1.0, 30.0
POLL = 0.2
# Seconds until a list is tried again that the daemon itself could not use; each time twice as long.
AGAIN, LONGEST_AGAIN = 60.0, 3600.0

log = logging.getLogger("multimaster.restart")


class Minion(Protocol):
    """What a cut-over needs of the host."""

    def options(self) -> dict[str, Any]:
        """Return the minion's options, from its files as they are."""

    def begun(self) -> float:
        """Return when the daemon was started, in seconds since the epoch; 0 if there is none."""

    def daemon(self) -> list[Any] | None:
        """Return what names the daemon's process and no other one; None if there is none."""

    def restart(self) -> bool:
        """Restart the daemon; true when there is a new one, false when it was seen to end."""

    def start(self) -> bool:
        """Start the daemon unless init says that it runs; tell whether it had ended."""

    def busy(self) -> bool:
        """Tell whether the minion still has jobs."""

    def ask(self, options: Mapping[str, Any], address: str, patience: float) -> str:
        """Return what a master says to this minion."""

    def linked(self, options: Mapping[str, Any], addresses: Iterable[str]) -> list[str]:
        """Return those of some masters that the daemon is connected to."""

    def same(self, one: str, other: str) -> bool:
        """Tell whether two addresses lead to the same place."""


class Course:
    """
    What was seen of a new list, and what follows from it.

    step
        ``proving`` or ``connecting``.
    wanted
        The new masters.
    control
        Old masters that are not among them; without any there is no way back.
    needed
        How many of the new masters have to let the minion in.
    back
        Whether the minion has gone back already, and only the way forth is left.
    hot
        Whether the daemon has to be connected to as many, and not to one of them.
    """

    def __init__(
        self,
        step: str,
        wanted: Iterable[str],
        control: Iterable[str] = (),
        needed: int = 1,
        back: bool = False,
        hot: bool = True,
    ) -> None:
        self.step, self.needed, self.back, self.hot = step, needed, back, hot
        self.wanted, self.control = tuple(wanted), frozenset(control)
        self.classes: dict[str, str] = {}
        # New masters whose question has ended since the last round.
        self.told: set[str] = set()
        self.silent = self.deaf = self.failed = 0
        # Seconds that the slowest answer of an old master took.
        self.slowest = 0.0
        self.alive, self.linked = True, frozenset[str]()
        # Seconds that the daemon has run.
        self.age = 0.0

    def answer(self, address: str, said: str, took: float = 0.0) -> None:
        """Take note of the end of a question to a new master, or to an old one, and of its time."""
        if address in self.control:
            if said == ACCEPTED:
                self.slowest = max(self.slowest, took)
                if self.told.issuperset(self.wanted):
                    self._round()
            return
        self.classes[address] = said
        if said != SILENT or took >= SLOWER * self.slowest:
            self.told.add(address)
        if said in OURS:
            self.silent = 0

    def look(self, alive: bool, linked: Iterable[str], age: float = 0.0) -> None:
        """Take note of a look at the daemon, and for how long it has run."""
        self.alive, self.linked, self.age = alive, frozenset(linked), age
        if self.linked:
            self.deaf = self.silent = 0

    def ended(self) -> None:
        """Take note that the daemon was seen to have ended by itself."""
        self.failed += 1

    def _round(self) -> None:
        """Count a round: an old master lets the minion in, and each new one had its question."""
        self.told.clear()
        said = set(self.classes.values())
        if ACCEPTED in said:
            self.silent = 0
            late = self.age >= STARTING * self.slowest
            if self.step == "connecting" and self.alive and late and not self.linked:
                self.deaf += 1
        elif not said & set(OURS):
            self.silent += 1

    @property
    def accepted(self) -> list[str]:
        """The new masters that let the minion in."""
        return [address for address in self.wanted if self.classes.get(address) == ACCEPTED]

    @property
    def heard(self) -> list[str]:
        """Those of them that a command would reach the daemon from."""
        return [a for a in self.accepted if a in self.linked or (self.linked and not self.hot)]

    def verdict(self) -> str:
        """Return ``wait``, ``restart``, ``keep``, or why to go back: ``silent``, ``deaf`` …."""
        if self.step == "proving":
            if len(self.accepted) >= self.needed:
                return "restart"
        elif len(self.heard) >= self.needed:
            return "keep"
        elif self.failed >= FAILED:
            return "failed"
        if self.back or not self.control:
            return "wait"
        if self.silent >= SEVERAL:
            return "silent"
        return "deaf" if self.deaf >= MANY else "wait"


class Pace:
    """How patiently a master is asked, and how often."""

    def __init__(self) -> None:
        self.patience, self.pause = PATIENCE, PAUSE
        self.last = ""

    def learn(self, said: str) -> None:
        """Take note of an answer: what is new makes curious, silence patient."""
        if said == SILENT:
            self.patience = min(2 * self.patience, LONGEST)
        fresh = self.last and said != self.last
        self.pause = PAUSE if fresh else min(2 * self.pause, LONGEST_PAUSE)
        self.last = said


def journal_path(cachedir: str) -> str:
    """Return where a minion keeps the journal of its last cut-over."""
    return os.path.join(cachedir, "multimaster", "cutover.json")


def read(path: str) -> dict[str, Any]:
    """Return what there is of the journal; empty if there is none, or none that can be read."""
    try:
        with open(path) as handle:
            journal = json.load(handle)
    except (OSError, RecursionError, ValueError):
        return {}
    if not isinstance(journal, dict):
        return {}
    return {name: value for name, value in journal.items() if name in KINDS and KINDS[name](value)}


def pending(path: str) -> bool:
    """Tell whether a cut-over was begun and has not ended."""
    return _is_open(read(path))


def _is_open(journal: Mapping[str, Any]) -> bool:
    # One that lacks something, as an older release's might, leads nowhere.
    return journal.get("step") in STEPS and all(name in journal for name in NEEDED)


def resting(path: str) -> bool:
    """Tell whether the minion has gone back and runs on, so that a restart changes nothing."""
    journal = read(path)
    return _is_open(journal) and journal["step"] == "proving" and bool(journal.get("back"))


def at_work(path: str, process: Callable[[int], Any]) -> bool:
    """
    Tell whether the job that prepared a cut-over still runs: it asks for the restart itself.

    process
        Returns what names a process and no later one of that number, as that of
        ``multimaster_restart`` does.
    """
    journal = read(path)
    job = journal.get("job")
    return bool(journal.get("step") == "prepared" and job and process(job[0]) == job)


def prepare(
    path: str,
    drop_in: str,
    masters: int,
    old: list[str],
    fallback: str,
    timeout: float,
    again: bool = False,
    job: list[Any] | None = None,
    daemon: list[Any] | None = None,
) -> None:
    """
    Save the drop-in before a new one is written; what an unfinished cut-over has saved stays.

    masters
        How many masters have to let the minion in.
    old
        The addresses of the masters that it has so far.
    fallback
        What is written where there was no drop-in, should the minion go back.
    timeout
        Seconds after which somebody should know that it has not ended.
    again
        Whether the minion has gone back from the very same.
    job
        What names the process that has the rest of its states to apply before the restart.
    daemon
        What names the daemon's process: it has not read what comes now, whatever a clock says.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with alone(f"{path}.write"):
        before = read(path) if pending(path) else {}
        if not before:
            _remove(path)
            if os.path.exists(drop_in):
                _copy(drop_in, _saved(path), dated=True)
            else:
                _replace(_saved(path), fallback.encode(), 0o640, (-1, -1))
        _write(
            path,
            {
                # Whoever still works on an earlier one sees that it has been replaced.
                "serial": os.urandom(8).hex(),
                "step": "prepared",
                "since": time.time(),
                "job": job,
                "daemon": daemon,
                "drop_in": drop_in,
                "masters": masters,
                "timeout": timeout,
                "old": before.get("old", old),
                # Or each apply would have the daemon try once more what it could not use.
                **(
                    {
                        name: before[name]
                        for name in ("tries", "returned")
                        if name in before and again
                    }
                ),
            },
        )


def forget(path: str) -> None:
    """Remove the journal: there is nothing that a daemon could be brought to."""
    if os.path.isdir(os.path.dirname(path)):
        with alone(f"{path}.write"):
            _remove(path)


def _remove(path: str) -> None:
    for name in (path, _saved(path), _goal(path)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


@contextlib.contextmanager
def alone(path: str, wait: bool = True) -> Iterator[bool]:
    """Hold a lock, as of a service's restarts; yield whether it was free, if not waited for."""
    with open(path, "a", opener=private) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def taken_up(path: str) -> Iterator[bool]:
    """
    Be the only one that works on a journal; yield False if somebody does already.

    Who works on one that was replaced meanwhile leaves it soon, and is waited for.
    """
    with open(lock_path(path), "a+", opener=private) as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                if lock.read() == str(read(path).get("serial")):
                    yield False
                    return
                time.sleep(POLL)
        lock.truncate(0)
        lock.write(str(read(path).get("serial")))
        lock.flush()
        yield True


def private(path: str, flags: int) -> int:
    """Open a lock: who can read it can hold it."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def lock_path(path: str) -> str:
    """Return the file that is locked by whoever works on a journal."""
    return f"{path}.lock"


class _Replaced(Exception):
    """There is a newer cut-over."""


def carry_out(path: str, minion: Minion, moved: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """
    Take the steps that are left, for as long as it takes; return the journal as it is then.

    moved
        Is told the journal when the minion has come to a configuration: the new one, or the old.
    """
    way = _Way(path, minion, moved)
    try:
        while _is_open(way.journal):
            getattr(way, way.journal["step"])()
    except _Replaced:
        log.info("a newer configuration came; leaving the rest to its restart")
    return way.journal


class _Way:
    """The steps of a cut-over; each leaves the journal at the next one."""

    def __init__(self, path: str, minion: Minion, moved: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.minion, self.moved = path, minion, moved
        self.journal = read(path)

    def _check(self) -> None:
        if read(self.path).get("serial") != self.journal["serial"]:
            raise _Replaced

    @contextlib.contextmanager
    def _noted(self, **more: Any) -> Iterator[None]:
        """Change files and then write down what is new, unless there is a newer cut-over."""
        # Which waits meanwhile, and has the last word on the drop-in.
        with alone(f"{self.path}.write"):
            self._check()
            yield
            self.journal.update(more, at=time.time())
            _write(self.path, self.journal)

    def _note(self, **more: Any) -> None:
        with self._noted(**more):
            pass

    def prepared(self) -> None:
        """Find out which masters are wanted."""
        self._note(step="proving", wanted=_masters(self._options()))

    def proving(self) -> None:
        """Ask the new masters until enough of them let this minion in."""
        back = bool(self.journal.get("back"))
        if not back and self._has_read():
            # A reboot, or somebody else's restart.
            self._note(step="connecting")
            return
        verdict, course = self._follow("proving")
        if verdict != "restart":
            self._give_way(verdict, course)
            return
        self._rest()
        fresh = {"daemon": self.minion.daemon()} if back else {}
        with self._noted(step="restarting", back=False, heard=course.accepted, **fresh):
            if back:
                _copy(_goal(self.path), self.journal["drop_in"])

    def restarting(self) -> None:
        """Restart the daemon when its jobs are over."""
        while self.minion.busy():
            self._check()
            time.sleep(POLL)
        if not self._has_read() and not self.minion.restart():
            self._give_way("failed")
            return
        self._note(step="connecting")

    def connecting(self) -> None:
        """Wait until the daemon has found its masters."""
        verdict, course = self._follow("connecting")
        if verdict != "keep":
            self._give_way(verdict, course)
            return
        seconds = round(time.time() - self.journal["since"], 1)
        self._note(step=KEPT, heard=course.heard, seconds=seconds, seen={})
        log.info("cut over: %s let this minion in", ", ".join(course.heard))
        with contextlib.suppress(_Replaced), alone(f"{self.path}.write"):
            self._check()
            for name in (_saved(self.path), _goal(self.path)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        self.moved(self.journal)

    def restoring(self) -> None:
        """Put the old drop-in back."""
        was_read = self.journal.get("read", True)
        daemon = self.minion.daemon()
        with self._noted(step="returning" if was_read else "proving", daemon=daemon):
            # With its time, where the daemon has not read the other one: it is not behind.
            _copy(_saved(self.path), self.journal["drop_in"], dated=not was_read)
        if not was_read:
            self.moved(self.journal)

    def returning(self) -> None:
        """Have the daemon run with the old drop-in again; it has done so before."""
        pause = PAUSE
        while not (self._has_read() or self.minion.restart()):
            self._check()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self._note(step="proving")
        self.moved(self.journal)

    def _give_way(self, why: str, course: Course | None = None) -> None:
        """Go back, and keep what is aimed at."""
        log.warning("going back to the old masters, and proving the new ones on: %s", why)
        daemon = self.minion.daemon()
        with self._noted(
            step="restoring",
            back=True,
            why=why,
            # Whether the daemon is to be told.
            read=daemon is None or daemon != self.journal.get("daemon"),
            # The old masters are known to be there, so that only these two speak for a pause.
            tries=self.journal.get("tries", 0) + (why in ("deaf", "failed")),
            returned=time.time(),
            seen=self._seen(course) if course else self.journal.get("seen", {}),
        ):
            _copy(self.journal["drop_in"], _goal(self.path))

    def _has_read(self) -> bool:
        """Tell whether the daemon was started with the drop-in that there is."""
        same = self.journal.get("daemon") == self.minion.daemon()
        return not same and _has_read(self.journal, self.minion.begun())

    def _rest(self) -> None:
        """Wait before a list is tried again that the daemon could not use."""
        tries = self.journal.get("tries", 0)
        if not tries:
            return
        pause = AGAIN
        # No power of ever more tries, which is no number of seconds in the end.
        while (tries := tries - 1) > 0 and pause < LONGEST_AGAIN:
            pause = min(2 * pause, LONGEST_AGAIN)
        # No longer than that though the clock was set back.
        rested = max(0.0, time.time() - self.journal.get("returned", 0.0))
        due = time.monotonic() + pause - rested
        while time.monotonic() < due:
            self._check()
            time.sleep(POLL)

    def _options(self) -> dict[str, Any]:
        """Return the minion's options as they are with the new drop-in."""
        import yaml

        options = self.minion.options()
        if self.journal.get("back"):
            with open(_goal(self.path)) as handle:
                options.update(yaml.safe_load(handle) or {})
        return options

    def _follow(self, step: str) -> tuple[str, Course]:
        """Ask and look until there is a verdict; return it and what was seen."""
        options = self._options()
        wanted = _masters(options)
        hot = options.get("master_type") != "failover"
        gone = [
            address
            for address in self.journal.get("old", [])
            if not any(self.minion.same(address, other) for other in wanted)
        ]
        back = bool(self.journal.get("back"))
        control = [] if back else gone
        # As many as there are, at most.
        needed = min(self.journal["masters"], len(wanted))
        course = Course(step, wanted, control, needed, back, hot)
        if step == "connecting":
            # They have let this program in; the daemon's connection will tell whether it, too.
            course.classes = dict.fromkeys(self.journal.get("heard", ()), ACCEPTED)
        answers: queue.Queue[tuple[str, str, float]] = queue.Queue()
        over = threading.Event()
        for address in {*wanted, *control}:
            arguments = (self.minion, options, address, answers, over)
            # Not waited for when this program ends.
            threading.Thread(target=_ask_on, args=arguments, daemon=True).start()
        pause, due = PAUSE, 0.0
        try:
            while (verdict := course.verdict()) == "wait":
                with contextlib.suppress(queue.Empty):
                    course.answer(*answers.get(timeout=POLL))
                    while True:
                        course.answer(*answers.get_nowait())
                self._check()
                if (seen := self._seen(course)) != self.journal.get("seen"):
                    self._note(seen=seen)
                if step == "proving" and not back and self._has_read():
                    # Somebody else has restarted it.
                    return "restart", course
                if step == "connecting":
                    begun = self.minion.begun()
                    linked = self.minion.linked(options, wanted) if course.accepted else []
                    course.look(begun > 0, linked, time.time() - begun)
                    if not begun and time.monotonic() >= due:
                        if self.minion.start():
                            course.ended()
                        due = time.monotonic() + pause
                        pause = min(2 * pause, LONGEST_PAUSE)
            return verdict, course
        finally:
            over.set()

    def _seen(self, course: Course) -> dict[str, Any]:
        """Return address -> class and since when, in seconds since the epoch."""
        before = self.journal.get("seen", {})
        return {
            address: before[address]
            if before.get(address, [None])[0] == said
            else [said, time.time()]
            for address, said in course.classes.items()
        }


def _ask_on(
    minion: Minion,
    options: Mapping[str, Any],
    address: str,
    answers: "queue.Queue[tuple[str, str, float]]",
    over: threading.Event,
) -> None:
    """Ask a master until nobody wants to know; with more patience each time that it is silent."""
    pace = Pace()
    while not over.is_set():
        asked = time.monotonic()
        said = minion.ask(options, address, pace.patience)
        pace.learn(said)
        answers.put((address, said, time.monotonic() - asked))
        # Others ask as well.
        over.wait(random.uniform(0.5, 1) * pace.pause)


def _has_read(journal: Mapping[str, Any], begun: float) -> bool:
    """Tell whether a daemon was started with the drop-in, or the lack of it, that there is."""
    try:
        changed = os.path.getmtime(journal["drop_in"])
    except FileNotFoundError:
        changed = journal.get("at", float("inf"))
    # Known to a fraction of a second only; to restart once more does no harm.
    return begun > changed + 1


def _masters(options: Mapping[str, Any]) -> list[str]:
    masters = options["master"]
    return list(masters) if isinstance(masters, list) else [masters]


def _saved(path: str) -> str:
    return f"{path}.old"


def _goal(path: str) -> str:
    return f"{path}.goal"


def _copy(source: str, target: str, dated: bool = False) -> None:
    """Copy a drop-in with mode and owner, and its time; the target is never half of one."""
    about = os.stat(source)
    with open(source, "rb") as content:
        _replace(target, content.read(), about.st_mode & 0o777, (about.st_uid, about.st_gid))
    if dated:
        os.utime(target, (about.st_atime, about.st_mtime))


def _write(path: str, journal: Mapping[str, Any]) -> None:
    _replace(path, json.dumps(journal).encode(), 0o600, (-1, -1))


def _replace(path: str, content: bytes, mode: int, owner: tuple[int, int]) -> None:
    # A name that is no drop-in's.
    handle, scratch = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".multimaster-")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(handle, mode)
            os.fchown(handle, *owner)
            stream.write(content)
            stream.flush()
            os.fsync(handle)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
