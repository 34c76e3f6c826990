"""
Looks now and then whether the masters still agree, and fires an event when that changes.

Runs in every master, and works in one: each look leaves a note on every master's host, and a master
further down in the list waits longer for the next one.  In every master it also leaves a note of
what that has read from its files, since these may say something else by now.  See docs/status.md.
"""

import contextlib
import json
import logging
import os
import pathlib
import time

import salt.config
import salt.exceptions
import salt.utils.event

log = logging.getLogger(__name__)

__virtualname__ = "multimaster_drift"

TAG = "multimaster/drift"
# Read by the execution module of the same name.
RUNNING = "running.json"
# What a utility module cannot get from Salt's loader by itself.
TOOLS = (
    "multimaster_drift.differing",
    "multimaster_drift.sample_grains",
    "multimaster_drift.samples",
    "multimaster_keypair.proved",
    "multimaster_keypair.unproved",
    "multimaster_ledger.unsqueeze",
    "multimaster_said.check",
    "multimaster_trees.subscribed",
)
# Seconds after the master's start: its minions are to be back.
GRACE = 15
# Seconds until a second look that has to find the same: a change that is on its way to all masters
# is no difference.
CONFIRM = 5
# Seconds that a master has for its report; twice as long after each look that lacked one, so that a
# slow one takes part in the end.
PATIENCE, LONGEST = 5, 600
# Seconds between two looks at whether it is time.
TICK = 1


def __virtual__():
    return __virtualname__


def start():
    """Entry point of the engine; runs as long as its master."""
    watcher, master, noted = _Watcher(), os.getppid(), False
    # A master that was killed takes nobody with it.
    while os.getppid() == master:
        if not noted:
            try:
                noted = _note(master)
            except (OSError, ValueError, salt.exceptions.SaltException):
                log.exception("Cannot note what this master has read; trying again")
        if watcher.due():
            try:
                watcher.turn()
            except (OSError, ValueError, salt.exceptions.SaltException):
                log.exception("Cannot compare the masters; trying again")
        time.sleep(TICK)


def _note(master):
    """Note what this master's daemon has read; return whether its key was there for the hashes."""
    pem, _ = __utils__["multimaster_gather.pair"](__opts__)
    if pem is None:
        return False
    key = __utils__["multimaster_options.hash_key"](pem)
    # The engine's options are those of the daemon.  The files may be newer by now: only the names
    # of the options come from them.
    names = salt.config.master_config(__opts__["conf_file"])
    options = __utils__["multimaster_drift.read_from_files"](__opts__, names)
    leaves = __utils__["multimaster_options.leaves"](options)
    show = __utils__["multimaster_options.shown"]
    shown = {path: show(path, value, key) for path, value in leaves.items()}
    process = __utils__["multimaster_gather.process"](master)
    note = __utils__["multimaster_drift.note_of"](process, key, shown)
    directory = os.path.join(__opts__["cachedir"], "multimaster")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, RUNNING)
    scratch = f"{path}.{os.getpid()}"
    pathlib.Path(scratch).touch(mode=0o600)
    pathlib.Path(scratch).write_text(json.dumps(note, default=str))
    os.replace(scratch, path)
    return True


class _Watcher:
    def __init__(self):
        topology = __opts__["multimaster"]
        ids = [master["id"] for master in topology["masters"]]
        settings = topology.get("drift") or {}
        self.interval = settings.get("interval", 60)
        self.clocks = settings.get("clocks", 5)
        self.place = ids.index(__opts__["id"])
        self.path = os.path.join(__opts__["cachedir"], "multimaster", "watch.json")
        self.started = time.time()
        self.looked = float("-inf")
        self.patience = PATIENCE

    def due(self):
        """Tell whether it is this master's turn: nobody who is before it in the list has looked."""
        if not self.interval:
            return False
        now, wait = time.time(), self.interval * (1 + self.place / 2)
        # A look of its own that has left no note counts, too: who has too much to do to answer is
        # not asked more often for it.
        if now < self.started + GRACE or time.monotonic() < self.looked + wait:
            return False
        last = self.started if self.place else 0
        with contextlib.suppress(FileNotFoundError):
            last = os.path.getmtime(self.path)
        # In the future: the clock was set.
        return now >= last + wait or last > now + self.interval

    def turn(self):
        """Look, and tell what has changed, if the next look finds the same."""
        self.looked = time.monotonic()
        known = self._known()
        found, complete = self._look(known)
        change = self._change(known, found, complete)
        if change is None:
            return
        time.sleep(CONFIRM)
        again, complete = self._look(known)
        names = {one.name for one in again}
        found = [one for one in found if one.name in names]
        change = self._change(known, found, complete)
        if change is None:
            return
        if found:
            log.warning("The masters differ: %s", "; ".join(self._problems(found)))
        else:
            log.warning("The masters agree again")
        with salt.utils.event.get_event("master", opts=__opts__, listen=False) as bus:
            bus.fire_event(change, TAG)
        new = {one.name for one in found}
        self._look(sorted(new if complete else new | set(known)))

    def _problems(self, found):
        return __utils__["multimaster_drift.problems"](found)

    def _change(self, known, found, complete):
        if not complete:
            # What a master that is away differs in is not over.
            kept = set(known) - {one.name for one in found}
            if kept or not found:
                known = [name for name in known if name not in kept]
        return __utils__["multimaster_drift.change"](known, found)

    def _look(self, known):
        """Return the differences, and whether all masters took part; leave a note everywhere."""
        look = __utils__["multimaster_gather.look"](
            __opts__,
            {name: __utils__[name] for name in TOOLS},
            self.patience,
            detail=True,
            watch={"by": __opts__["id"], "at": time.time(), "known": known},
        )
        found = __utils__["multimaster_drift.differences"](
            {name: report for name, report in look.reports.items() if report}, self.clocks
        )
        complete = all(look.reports.values())
        # Who was slow is not quick the next time.
        longer = self.patience / 2 if complete else self.patience * 2
        self.patience = min(max(longer, PATIENCE), LONGEST)
        return found, complete

    def _known(self):
        """Return the names of the differences that were told last, by whichever master."""
        try:
            known = json.loads(pathlib.Path(self.path).read_text())["known"]
            return [name for name in known if isinstance(name, str)]
        except (OSError, RecursionError, ValueError, KeyError, TypeError):
            return []
