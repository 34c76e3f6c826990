"""
When a master asks another one, what it may still hear of, and who carries the question.

:class:`Peer` is pure: it is given events and a clock's reading, and says when to ask.  A clock only
paces here.  An answer counts whenever it comes, as long as its question is among the last ones, and
whatever happened, there is a next question.

:class:`Courier` gives jobs in a thread of its own, since Salt may take seconds for one and the
engine has to go on reading the event bus.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

# Seconds between two questions to a peer that nobody wakes.
INTERVAL = 60.0
# Seconds that a peer has for an answer until it is asked again; twice as long each time, up to
# LONGEST, and twice what its last answer took.
PATIENCE = 5.0
LONGEST = 120.0
# Seconds between two questions, whatever wakes the asker; twice as long, up to SPARSE, whenever it
# was woken for nothing, as by events that somebody made up.
SHORTEST = 0.2
SPARSE = 5.0
# Seconds that Salt tries to give a job.
GIVEN = 5
# Questions without an answer after which somebody should know.
SILENT = 2
# Questions that may still be answered: more than two hours of LONGEST.
KEPT = 64


@dataclass(frozen=True)
class Question:
    """What a peer was asked: in which job, with which nonce, and ``about`` what (the asker's)."""

    number: int
    jid: str
    nonce: str
    about: Any
    asked: float


class Peer:
    """
    Another master: when to ask it, and the questions that it has not answered yet.

    All times are seconds of one monotonic clock.
    """

    def __init__(self, name: str, due: float) -> None:
        self.name = name
        # When to ask next, unless a question is open.
        self.due = due
        self.patience = PATIENCE
        self.shortest = SHORTEST
        # Of the last ones, by job; the last of them is open as long as its answer is waited for.
        self.kept: dict[str, Question] = {}
        self.open: Question | None = None
        # Until when; far away as long as it has not been said that the question is under way.
        self.until = 0.0
        self._sent = False
        # Seconds that its last answer took while it was answering.  A host that is that busy has to
        # have as long for everything else.  And since when the open question has been under way.
        self.took = self._since = 0.0
        # Whether the open question was lost, perhaps, whether somebody has called, and whether all
        # before it had been answered.
        self._lost = self._called = self._answering = False
        self._asked = float("-inf")
        self._number = self._heard = self._unanswered = 0

    @property
    def silent(self) -> bool:
        """Whether it has left so many questions without an answer that somebody should know."""
        return self._unanswered >= SILENT

    def next(self) -> float:
        """Return when :meth:`ready` is to be called though nothing happens."""
        earliest = self._asked + max(self.shortest, 2 * self.took)
        if self.open is None:
            return max(self.due, earliest)
        if self._lost and self._sent:
            return min(self.until, earliest)
        return self.until

    def ready(self, now: float) -> bool:
        """Tell whether to ask; who has not answered for long is not waited for any more."""
        if now < self.next():
            return False
        if self.open and now >= self.until:
            self._unanswered += 1
            self.patience = min(self.patience * 2, LONGEST)
        self.open = None
        return True

    def ask(self, now: float, jid: str, nonce: str, about: Any) -> Question:
        """Note a question, which is about to be sent."""
        if self._called:
            self.shortest = min(self.shortest * 2, SPARSE)
        self._lost = self._called = self._sent = False
        self._answering = not self._unanswered
        self._number += 1
        self.open = self.kept[jid] = Question(self._number, jid, nonce, about, now)
        for old in list(self.kept)[:-KEPT]:
            del self.kept[old]
        self._asked, self._since, self.due = now, now, now + INTERVAL
        self.until = now + LONGEST + self.patience
        return self.open

    def sent(self, jid: str, now: float) -> None:
        """The question is under way, or could not be sent: patience begins."""
        if self.open and self.open.jid == jid:
            self._sent, self._since, self.until = True, now, now + self.patience

    def woken(self, now: float) -> None:
        """It has news: ask it, if a question is open, then after the answer or without it."""
        self.due, self._called = min(self.due, now), True

    def returned(self, now: float) -> None:
        """It is there again, or for the first time; what it was asked before may be lost."""
        self.woken(now)
        self._lost = True

    def later(self, due: float) -> None:
        """It has nothing to say yet, or more than it said: ask then, if not before."""
        self.due = min(self.due, due)

    def answered(self, question: Question, now: float) -> None:
        """It has answered, however late; no question is answered twice."""
        del self.kept[question.jid]
        self._unanswered = 0
        self.patience = min(max(PATIENCE, 2 * (now - question.asked)), LONGEST)
        self._heard = max(self._heard, question.number)
        if question is self.open:
            self.open = None
            # One that was frozen, or cut off, tells nothing about now.
            took = max(now - self._since, 0.0)
            self.took = min(took, LONGEST) if self._answering else 0.0

    def overtaken(self, question: Question) -> bool:
        """Tell whether a later question was answered before this one."""
        return question.number < self._heard

    def useful(self) -> None:
        """It had news: whoever wakes for it, does so for something."""
        self.shortest = SHORTEST


class Place(NamedTuple):
    """How far a ledger was read: the name of its database, and the number of a decision in it."""

    epoch: str
    seq: int


def place_after(
    known: Place,
    asked: Place,
    told: Place,
    overtaken: bool,
    equal: bool = False,
    rewound: bool = False,
) -> Place:
    """
    Return how far a peer's ledger is read after an answer, so that nothing is passed over.

    known
        How far it was read before.
    asked, told
        After which place it was asked, and up to where the answer tells; from the beginning on if
        the answer is of another ledger than was asked for.
    overtaken
        Whether a later question was answered before.
    equal
        Whether the asker's ledger was the same then, and so read from the beginning on.
    rewound
        Whether the ledger has another past than the one that was read, up to the place asked for.
    """
    same = asked.epoch == told.epoch
    # Put back from a copy, whether or not it ends earlier than it did: nobody can tell how much of
    # what it has by now was numbered anew.
    rewound = rewound or (same and asked.seq > told.seq)
    if rewound and told.epoch == known.epoch and not overtaken:
        return told if equal else Place(known.epoch, 0)
    first = asked.seq if same and not equal else 0
    if told.epoch != known.epoch:
        return told if first == 0 and not overtaken else known
    if first > known.seq:
        # What is between was not taken in.
        return known
    return Place(known.epoch, max(known.seq, told.seq))


class Sent(NamedTuple):
    """A job that was given, or not; ``error`` says why, and is empty if it was."""

    jid: str
    at: float
    error: str


class Courier:
    """
    Gives jobs, one after the other, in a thread that ends with its process.

    opts
        The master's options.
    settings
        More of what ``LocalClient.run_job`` takes.
    """

    def __init__(self, opts: Mapping[str, Any], **settings: Any) -> None:
        # Read here, for Salt's loader gives them to the engine's thread only.  Nobody looks the
        # answers up later: the job cache does not keep them.
        self.opts = dict(opts)
        self.settings = {"timeout": GIVEN, "nocache": True, **settings}
        self._jobs: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._sent: queue.SimpleQueue[Sent] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last = ""

    def give(self, targets: Sequence[str], function: str, arguments: Sequence[Any]) -> str:
        """Have a job given; return its id at once, as its answer may come before it is given."""
        import salt.utils.jid

        jid = self._last
        while jid == self._last:
            jid = salt.utils.jid.gen_jid(self.opts)
        self._last = jid
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="multimaster", daemon=True)
            self._thread.start()
        self._jobs.put((jid, list(targets), function, list(arguments)))
        return jid

    def sent(self) -> list[Sent]:
        """Return what has become of jobs since this was called last."""
        found = []
        while not self._sent.empty():
            found.append(self._sent.get())
        return found

    def _run(self) -> None:
        client = None
        while True:
            jid, targets, function, arguments = self._jobs.get()
            error = ""
            try:
                # Kept, for to make one takes longer than to give a job.
                client = client or self._client()
                client.run_job(
                    targets, function, arguments, tgt_type="list", jid=jid, **self.settings
                )
            except BaseException as err:
                # All of them, since Salt's client also exits.
                error = f"{type(err).__name__}: {err}"
                _close(client)
                client = None
            self._sent.put(Sent(jid, time.monotonic(), error))

    def _client(self) -> Any:
        import salt.client

        return salt.client.get_local_client(mopts=self.opts)


def _close(client: Any) -> None:
    try:
        if client:
            client.destroy()
    except Exception:
        log.debug("A client that had failed could not be closed", exc_info=True)


def demand(path: str) -> None:
    """Leave a word for the engine of a master on this host, once: said by who can write there."""
    # Written by root, where the master's user may have put a link.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    os.close(os.open(path, flags, 0o600))


def demanded(path: str) -> bool:
    """Tell whether that has been said since this was asked last."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def peer(name: str, due: float) -> Peer:
    """Return a peer; a function, since Salt's loader shows no classes."""
    return Peer(name, due)


def place(epoch: str, seq: int) -> Place:
    """Return a place."""
    return Place(epoch, seq)


def courier(opts: Mapping[str, Any], **settings: Any) -> Courier:
    """Return a courier."""
    return Courier(opts, **settings)
