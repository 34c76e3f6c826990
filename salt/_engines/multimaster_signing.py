"""
Has a minion verify the signature over its masters' public key as soon as they all sign, and stop as
soon as none does: Salt lets it sign in to no master that does the other thing.

Runs in the minion, also in one that no master lets in.  A master begins or ends to sign by a
restart only, which ends its minions' connections; so there is nothing to ask while these stay.
"""

import fcntl
import logging
import math
import os
import random
import time

import psutil

log = logging.getLogger(__name__)

__virtualname__ = "multimaster_signing"

# Seconds between two looks at the minion's own connections.
POLL = 1
# Seconds between two questions to the masters, while nothing or too little is known of them.
SHORTEST, LONGEST = 1, 8
# The same, when all is well: a minion that a master does not let in makes connections all the time.
GAP = 5
# Seconds after which a restart of the minion that was asked for has failed.
RESTARTED = 180


def __virtual__():
    return __virtualname__


def start(service="salt-minion", restart_timeout=600):
    """
    Follow the masters for as long as the minion runs.

    service, restart_timeout
        As for the execution function ``multimaster.follow_masters``.

    CLI Example:

    .. code-block:: yaml

        engines:
          - multimaster_signing: {service: salt-minion, restart_timeout: 600}
    """
    minion = Minion(os.getppid())
    os.makedirs(os.path.join(__opts__["cachedir"], "multimaster"), mode=0o700, exist_ok=True)
    path = os.path.join(__opts__["cachedir"], "multimaster", "signing.lock")
    with open(path, "w") as lock:
        # A hot minion starts every engine once for each master; one of them is enough.
        while not _locked(lock):
            if not minion.runs():
                return
            time.sleep(POLL)
        _follow(minion, service, restart_timeout)


def _follow(minion, service, timeout):
    asked_about, asked, wait, due = None, -math.inf, SHORTEST, math.inf
    while minion.runs():
        connections = minion.connections()
        if due == math.inf and connections != asked_about:
            # A master's other minions ask as well.
            wait, due = SHORTEST, max(time.monotonic() + random.uniform(0, POLL), asked + GAP)
        if time.monotonic() >= due:
            asked_about = connections
            wanted, verifies = _ask(service, timeout)
            asked = time.monotonic()
            if wanted is None:
                due = asked + wait * random.uniform(0.75, 1)
                wait = min(2 * wait, LONGEST)
            else:
                due = math.inf if wanted == verifies else asked + timeout + RESTARTED
        time.sleep(POLL)


def _ask(service, timeout):
    """Look at the masters, and act; return what is wanted of the minion and what it does."""
    try:
        found = __salt__["multimaster.follow_masters"](service, timeout)
    except Exception:  # An engine that ends leaves a minion behind for good.
        log.exception("Cannot follow the masters in their signing")
        return None, None
    log.info("Masters: %s; verify: %s", found["seen"], found["wanted"])
    return found["wanted"], found["verifies"]


class Minion:
    """The minion's daemon, seen from outside, as an engine is a process of its own."""

    def __init__(self, pid):
        self._process = psutil.Process(pid)
        self._bus = self._sockets()[1]

    def runs(self):
        """
        Tell whether the minion is there and not about to end.

        Salt does not tell the engines of a minion that no master has let in, and then waits for
        their end.  But it has left its event bus by then.
        """
        try:
            return self._bus <= self._sockets()[1]
        except psutil.Error:
            return False

    def connections(self):
        """Return its connections, each with its own port: a new one has another."""
        return self._sockets()[0]

    def _sockets(self):
        sockets = self._process.net_connections("all")
        connections = {
            (socket.raddr.ip, socket.raddr.port, socket.laddr.port)
            for socket in sockets
            if socket.status == psutil.CONN_ESTABLISHED
        }
        return connections, {s.laddr for s in sockets if s.laddr and isinstance(s.laddr, str)}


def _locked(lock):
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
