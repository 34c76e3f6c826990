"""
Brings a minion to its new configuration, and back to the old one if no master answers there.

Used by the program ``multimaster_restart``.  Every step is written down before it is taken, so that
whoever finds the journal unfinished, as the minion's engine does, can take the rest.  Restores a
file and looks at the network, and so is not a part of the core.
"""

import contextlib
import fcntl
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# The new drop-in is about to be written, or is there; the daemon is about to be restarted; it is
# being found out whether masters answer; the old drop-in is about to come back; it is there, and
# the daemon is about to be restarted.
STEPS = ("prepared", "restarting", "verifying", "restoring", "returning")
# How it ended.
OUTCOMES = ("kept", "restored")

# Seconds that a master has for an answer, at first and at most; between two questions to it, which
# may be two sign-ins; and between two looks.
PATIENCE, LONGEST = 5.0, 20.0
PAUSE = 1.0
POLL = 0.2
# How many times as long a daemon may take that is slow, and not its masters.
SLOW = 3

log = logging.getLogger("multimaster.restart")


def journal_path(cachedir: str) -> str:
    """Return where a minion keeps the journal of its last cut-over."""
    return os.path.join(cachedir, "multimaster", "cutover.json")


def read(path: str) -> dict[str, Any]:
    """Return the journal; empty if there is none, or none that can be read."""
    try:
        with open(path) as handle:
            journal = json.load(handle)
    except (OSError, ValueError):
        return {}
    return journal if isinstance(journal, dict) else {}


def pending(path: str) -> bool:
    """Tell whether a cut-over was begun and has not ended."""
    return read(path).get("step") in STEPS


def alive(pid: int) -> bool:
    """Tell whether there is a process of that number, and not only what is left of it."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def at_work(path: str) -> bool:
    """Tell whether the job that prepared a cut-over still runs: it asks for the restart itself."""
    import psutil

    journal = read(path)
    if journal.get("step") != "prepared":
        return False
    try:
        # The number may be another process's by now.
        return bool(psutil.Process(journal["pid"]).create_time() <= os.path.getmtime(path))
    except psutil.NoSuchProcess:
        return False


def prepare(path: str, drop_in: str, masters: int, timeout: int) -> None:
    """
    Save the drop-in before a new one is written; what an unfinished cut-over has saved stays.

    masters, timeout
        How many masters have to answer, and within how many seconds.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    old = _saved(path)
    if not pending(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(old)
        if os.path.exists(drop_in):
            _copy(drop_in, old)
    _write(
        path,
        {
            # Whoever still works on an earlier one sees that it has been replaced.
            "serial": os.urandom(8).hex(),
            "step": "prepared",
            # Whoever has the rest of its states to apply before the restart.
            "pid": os.getpid(),
            "drop_in": drop_in,
            "masters": masters,
            "timeout": timeout,
        },
    )


def forget(path: str) -> None:
    """Remove the journal: there is no daemon that could be brought to anything."""
    for name in (path, _saved(path)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


@contextlib.contextmanager
def alone(path: str, wait: bool = True) -> Iterator[bool]:
    """Hold a lock, as of a service's restarts; yield whether it was free, if not waited for."""
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def carry_out(
    path: str,
    opts: Callable[[], dict[str, Any]],
    daemon: Callable[[], int],
    begun: Callable[[], float],
    restart: Callable[[], bool],
) -> dict[str, Any]:
    """
    Take the steps that are left, and return the journal as it is then.

    opts
        Gives the minion's options, from its files as they are.
    daemon
        Gives the process id of the minion's daemon, 0 if there is none.
    begun
        Gives when that daemon was started, in seconds since the epoch.
    restart
        Restarts the daemon; true when there is a new one.
    """
    journal = read(path)
    if journal.get("step") not in STEPS:
        return journal
    started = time.time()

    def go(step: str, **more: Any) -> bool:
        """Write a step down, unless there is a newer cut-over."""
        if read(path).get("serial") != journal["serial"]:
            log.info("a newer configuration came; leaving the rest to its restart")
            return False
        journal.update(step=step, at=time.time(), **more)
        _write(path, journal)
        return True

    if journal["step"] == "prepared" and not go("restarting"):
        return journal
    if journal["step"] == "restarting":
        if not _has_read(journal, begun()):
            restart()
        if not go("verifying"):
            return journal
    if journal["step"] == "verifying":
        heard = _verify(opts, daemon, journal)
        if len(heard) >= journal["masters"]:
            go("kept", heard=heard, seconds=time.time() - started)
            log.info("cut over: %s answer", ", ".join(heard))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_saved(path))
            return journal
        log.warning(
            "only %s of %s masters answer in time; going back", len(heard), journal["masters"],
        )  # fmt: skip
        if not go("restoring", wanted=_masters(opts())):
            return journal
    if journal["step"] == "restoring":
        if os.path.exists(_saved(path)):
            _copy(_saved(path), journal["drop_in"])
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(journal["drop_in"])
        if not go("returning"):
            return journal
    if not _has_read(journal, begun()):
        restart()
    # The old configuration has proved itself before: one master is enough to be commanded.
    heard = _verify(opts, daemon, {**journal, "masters": 1})
    go("restored", heard=heard, seconds=time.time() - started)
    log.warning("the old configuration is back; %s answer", ", ".join(heard) or "no masters")
    return journal


def _has_read(journal: dict[str, Any], begun: float) -> bool:
    """Tell whether a daemon was started with the drop-in, or the lack of it, that there is."""
    try:
        changed = os.path.getmtime(journal["drop_in"])
    except FileNotFoundError:
        changed = journal["at"]
    # Known to a fraction of a second only; to restart once more does no harm.
    return begun > changed + 1


def _verify(
    opts: Callable[[], dict[str, Any]], daemon: Callable[[], int], journal: dict[str, Any]
) -> list[str]:
    """
    Return the masters that answer, as soon as there are enough, or when the time is over.

    A host with too much to do may need longer to start its minion.  If enough masters answer this
    program, and the daemon runs, the list is no reason to go back: it has ``SLOW`` times as long.
    """
    import multimaster_dial as dial

    options = opts()
    addresses = _masters(options)
    answers = {address: threading.Event() for address in addresses}
    over = threading.Event()
    for address, answer in answers.items():
        arguments = (dial.ask, options, address, answer, over)
        # Not waited for when this program ends.
        threading.Thread(target=_ask_on, args=arguments, daemon=True).start()
    hot = options["master_type"] != "failover"
    started, limit = time.monotonic(), journal["timeout"]
    try:
        while True:
            there = [address for address, answer in answers.items() if answer.is_set()]
            enough = len(there) >= journal["masters"]
            late = time.monotonic() - started > limit
            # On a host with many connections it takes long to see which of them are the daemon's.
            if enough or late:
                # They show that a command would reach it, and not just this host.
                linked = dial.connected(daemon(), addresses, options["master_port"])
                heard = [a for a in there if a in linked or (linked and not hot)]
                if len(heard) >= journal["masters"]:
                    return heard
            if late:
                if limit > journal["timeout"] or not (enough and alive(daemon())):
                    return heard
                log.warning("%s answer this host, and not its minion yet", ", ".join(there))
                limit *= SLOW
            time.sleep(POLL)
    finally:
        over.set()


def _ask_on(
    ask: Callable[[dict[str, Any], str, float], bool],
    options: dict[str, Any],
    address: str,
    answer: threading.Event,
    over: threading.Event,
) -> None:
    """Ask a master until it answers or nobody waits; with more patience each time."""
    patience = PATIENCE
    while not over.is_set():
        if ask(options, address, patience):
            answer.set()
            return
        patience = min(2 * patience, LONGEST)
        over.wait(PAUSE)


def _masters(options: dict[str, Any]) -> list[str]:
    masters = options["master"]
    return list(masters) if isinstance(masters, list) else [masters]


def _saved(path: str) -> str:
    return f"{path}.old"


def _copy(source: str, target: str) -> None:
    """Copy a drop-in with mode and owner; the target is never half of one."""
    about = os.stat(source)
    with open(source, "rb") as content:
        _replace(target, content.read(), about.st_mode & 0o777, (about.st_uid, about.st_gid))


def _write(path: str, journal: dict[str, Any]) -> None:
    _replace(path, json.dumps(journal).encode(), 0o600, (-1, -1))


def _replace(path: str, content: bytes, mode: int, owner: tuple[int, int]) -> None:
    # A name that is no drop-in's.
    handle, scratch = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".multimaster-")
    with os.fdopen(handle, "wb") as stream:
        os.fchmod(handle, mode)
        os.fchown(handle, *owner)
        stream.write(content)
        stream.flush()
        os.fsync(handle)
    os.replace(scratch, path)
