"""
Has a minion verify the signature over its masters' public key as soon as they all sign, and stop as
soon as none does: Salt lets it sign in to no master that does the other thing.

Runs in the minion, also in one that no master lets in.  A master begins or ends to sign by a
restart only, which ends its minions' connections; so there is nothing to ask while these stay.
"""

import contextlib
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
    daemon = os.getppid()
    os.makedirs(os.path.join(__opts__["cachedir"], "multimaster"), mode=0o700, exist_ok=True)
    path = os.path.join(__opts__["cachedir"], "multimaster", "signing.lock")
    with open(path, "w") as lock:
        # A hot minion starts every engine once for each master; one of them is enough.
        while not _locked(lock):
            if os.getppid() != daemon:
                return
            time.sleep(POLL)
        _follow(daemon, service, restart_timeout)


def _follow(daemon, service, timeout):
    asked_about, asked, wait, due = None, -math.inf, SHORTEST, math.inf
    while os.getppid() == daemon:
        connections = _connections(daemon)
        if due == math.inf and connections != asked_about:
            # A master's other minions ask as well.
            wait, due = SHORTEST, max(time.monotonic() + random.uniform(0, POLL), asked + GAP)
        if time.monotonic() >= due:
            asked_about = connections
            done = _ask(service, timeout)
            asked = time.monotonic()
            due = math.inf if done else asked + wait * random.uniform(0.75, 1)
            wait = min(2 * wait, LONGEST)
        time.sleep(POLL)


def _ask(service, timeout):
    """Look at the masters, and act; tell whether there is no more to ask for the time being."""
    try:
        found = __salt__["multimaster.follow_masters"](service, timeout)
    except Exception:  # An engine that ends leaves a minion behind for good.
        log.exception("Cannot follow the masters in their signing")
        return False
    log.info("Masters: %s; verify: %s", found["seen"], found["wanted"])
    return found["wanted"] is not None and found["wanted"] == found["verifies"]


def _connections(daemon):
    """Return the minion's connections, each with its own port: a new one has another."""
    with contextlib.suppress(psutil.Error):
        return {
            (connection.raddr.ip, connection.raddr.port, connection.laddr.port)
            for connection in psutil.Process(daemon).net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED and connection.raddr
        }
    return set()


def _locked(lock):
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
