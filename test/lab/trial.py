"""One chaos test: a laboratory under load, a fault, and the account at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from lab.laboratory import Laboratory
from lab.load import Account, Given, Load

# Of minions in failover mode, in the laboratory (seconds).
ALIVE_INTERVAL = 1
# The promises, in seconds.
AT_ONCE = 1
NOTICED = 2
UNNOTICED = ALIVE_INTERVAL * 3 + 2
RECOVERY = 60
# A job that a master takes less than a second before it fails may not get out any more, nor its
# return; one that it takes while its minions are coming back does not reach them.
LAST_WORDS = 1
RECONNECTION = 2
# Seconds that returns may take: a request that got no answer is tried again after 5 to 10.
RETURNS = 30


@dataclass
class Trial:
    """One test: its laboratory, declaration and load, and what it has found out."""

    lab: Laboratory
    # What is declared beyond the laboratory's own: the mode, and its options.
    declared: dict[str, Any]
    load: Load
    # The master that is to fail: in failover mode the one that the minions are on.
    victim: str
    # When the fault began, and when its end began (epoch).
    began: float = 0
    ended: float = 0
    victims: tuple[str, ...] = ()
    # Seconds from the fault to an answer of every minion, and from its end to full recovery.
    answer: float | None = None
    recovery: float | None = None
    account: Account = field(default_factory=Account)
    # Whether a job could not be saved for a reason that only this fault has.
    excuse: Callable[[Given], bool] = lambda _: False

    @property
    def masters(self) -> list[str]:
        """All masters."""
        return [host.id for host in self.lab.lab.masters]

    @property
    def others(self) -> list[str]:
        """The masters that do not fail."""
        return [name for name in self.masters if name not in (self.victims or (self.victim,))]

    @property
    def hot(self) -> bool:
        """Whether the minions are connected to all masters."""
        return bool(self.declared["mode"] == "hot")

    @contextlib.contextmanager
    def fault(self, context: AbstractContextManager[None], *victims: str) -> Iterator[None]:
        """Let a fault happen to some masters, by default the one that is to fail."""
        self.victims = victims or (self.victim,)
        self.began = time.time()
        with context:
            yield
            self.ended = time.time()

    def answered_within(self, promise: float, *masters: str) -> None:
        """
        Assert that every minion answers within so many seconds of the fault.

        Through one of these masters, by default those that have not failed; in hot mode through
        each of them.
        """
        masters = masters or tuple(self.others)
        # A job is given only now and then.
        limit = promise + self.load.interval
        ways = [(master,) for master in masters] if self.hot else [masters]
        took = [self.load.until_answered(self.began, 60, *way) for way in ways]
        self.answer = max(took)
        assert self.answer <= limit, f"answered after {took} s; promised: {promise} s"

    def recovered(self) -> None:
        """Assert that everything is as before, and that no job is lost but what cannot be saved."""
        self.lab.until_connected(self.others[0] if self.others else self.masters[0])
        self.recovery = time.time() - self.ended
        assert self.recovery <= RECOVERY
        if self.hot:
            for master in self.victims:
                self.load.until_answered(self.ended, RECOVERY, master)
        self.load.stop()
        self.account = self.load.account(RETURNS)
        for what in ("lost", "silent"):
            found = [job for job in getattr(self.account, what) if not self._excused(job)]
            assert not found, f"{what}: {found} of {self.account}"

    def _excused(self, given: Given) -> bool:
        if self.excuse(given):
            return True
        if given.master not in self.victims:
            return False
        back = self.load.taken(given.master, self.ended) or self.ended
        return self.began - LAST_WORDS <= given.at <= back + RECONNECTION
