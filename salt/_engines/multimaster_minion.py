"""
Notices a master that is there and does not answer, as a frozen one, or one behind a silent network.

Runs in every minion.  Asks the master that the minion is connected to for a real answer now and
then; Salt itself only looks whether the connection is open.  With ``master_type: failover`` a
master that gave no answer three times in a row is left, by the event that Salt's own check fires,
but only when another one answers.  Otherwise, and in hot mode, it is reported.  A hot minion has
such an engine for each of its masters.  See docs/failover.md.
"""

import hashlib
import logging
import os
import pathlib
import random
import socket
import threading
import time

import salt.minion
import salt.utils.event
from salt.exceptions import CommandExecutionError

log = logging.getLogger(__name__)

__virtualname__ = "multimaster_minion"

# Seconds between two looks whether the minion has moved on, and whether it still runs.
POLL = 0.1
SLICE = 1.0
# Seconds that the return of a job is kept for another master.
KEPT = 120
# Events on the minion's bus, each with the id of a request: for the master at the end of the tag;
# its answer.
PAYLOAD = "__master_req_channel_payload/"
TAKEN = "__master_req_channel_return/"


def __virtual__():
    return __virtualname__


def start(masters, act, interval):
    """
    Watch the minion's master for as long as the minion runs.

    masters
        The addresses of all masters.
    act
        Leave a silent master for another one; else only report it.
    interval
        Seconds between two questions.  A silent master is found out after at most three times
        that long.
    """
    watch = _Watch(masters, act, interval)
    while watch.minion_runs():
        try:
            # Broken off by the end of the host, or of the program that it is the work of.
            __salt__["multimaster.finish_cut_over"]()
            watch.turn()
        except (OSError, CommandExecutionError):
            # Salt would start this again at once, and again.
            log.exception("Trying again in %s seconds", interval)
            time.sleep(interval)


class _Watch:
    def __init__(self, masters, act, interval):
        self.masters = masters
        self.act = act
        self.interval = interval
        # An answer may take half an interval before the next question is asked.
        self.patience = interval / 2
        # The minion's daemon, which this engine ends with.
        self.daemon = os.getppid()
        self.reported = set()
        self.silent = pathlib.Path(__opts__["cachedir"], "multimaster", "silent")
        # Id of the request -> tag, load, and when: returns of jobs that no master has taken yet.
        self.returns = {}
        # Before the first event that must not be missed.
        self.bus = salt.utils.event.get_event("minion", opts=__opts__, listen=act)

    def minion_runs(self):
        """
        Tell whether the minion's daemon is at work.

        One that is told to end before it has found a master waits for this engine, and does not
        tell it; but its event bus is gone by then.
        """
        if os.getppid() != self.daemon:
            return False
        tcp = __opts__["ipc_mode"] == "tcp"
        address = ("127.0.0.1", int(__opts__["tcp_pub_port"])) if tcp else _bus_path()
        with socket.socket(socket.AF_INET if tcp else socket.AF_UNIX) as probe:
            return not probe.connect_ex(address)

    def turn(self):
        """Wait, and ask the present master; each minion has its own rhythm."""
        due = time.monotonic() + random.uniform(0.8, 1.0) * self.interval
        while (left := due - time.monotonic()) > 0:
            if not self.minion_runs():
                return
            if self.act:
                self._follow(min(left, SLICE))
            else:
                time.sleep(min(left, SLICE))
        master = self._present()
        # Salt looks for one already where there is none.
        if master is not None:
            self._judge(master)

    def _follow(self, wait):
        """
        Send the returns of jobs to the new master that the minion's old one has not taken.

        Salt drops them: it sends a return only to the master that the job came from.
        """
        event = self.bus.get_event(wait=wait, full=True)
        tag, data = (event["tag"], event["data"]) if event else ("", {})
        if tag.startswith(PAYLOAD) and data.get("cmd") == "_return":
            self.returns[tag.rsplit("/", 2)[1]] = (tag, data, time.monotonic())
        elif tag.startswith(TAKEN) and not data.get("error"):
            self.returns.pop(tag.rpartition("/")[2], None)
        if not self.returns:
            return
        master = self._present()
        for number, (tag, data, since) in list(self.returns.items()):
            if time.monotonic() - since > KEPT:
                del self.returns[number]
            elif master and tag != f"{PAYLOAD}{number}/{master}":
                log.info("The return of job %s goes to %s", data.get("jid"), master)
                tag = f"{PAYLOAD}{number}/{master}"
                self.returns[number] = (tag, data, since)
                # That master does not know the job: with its target, jobs.lookup_jid shows it.
                self._fire({"tgt": [__opts__["id"]], "tgt_type": "list", **data}, tag)

    def _judge(self, master):
        # An answer to any of the questions counts, so that who is merely slow is not silent.
        heard = self._ask(master)
        if heard.wait(self.patience):
            self._heard(master)
            return
        others = [a for a in self.masters if a != master] if self.act else []
        better = {address: self._ask(address) for address in others}
        # A master with too much to do is not left by all at once, but relieved.
        to_spare = random.uniform(0, self.patience) if self.act else 0
        for patience in (self.patience + to_spare, self.patience):
            self._ask(master, heard)
            if heard.wait(patience):
                self._heard(master)
                return
        better = [address for address, answer in better.items() if answer.is_set()]
        if better and self.minion_runs():
            self._leave(master, better)
        else:
            self._silence(master)

    def _present(self):
        """Return the address of the master to watch, or None while there is none."""
        if not self.act:
            # There is an engine for each master, whether the minion is connected to it or not.
            return __opts__["master"]
        found = __utils__["multimaster_dial.connected"](
            self.daemon, self.masters, __opts__["master_port"]
        )
        return found[0] if found else None

    def _ask(self, address, heard=None):
        heard = heard or threading.Event()
        # For as long as that master may be in doubt.
        __utils__["multimaster_dial.put"](dict(__opts__), address, 2 * self.interval, heard)
        return heard

    def _leave(self, master, better):
        """Have the minion do what it does when a connection ends: try the other masters."""
        log.warning("%s gives no answer, and %s does; moving on", master, ", ".join(better))
        self._fire({"master": master}, salt.minion.master_event(type="disconnected"))
        deadline = time.monotonic() + 2 * self.interval
        while self._present() in (None, master) and time.monotonic() < deadline:
            time.sleep(POLL)
        self._tell("moved", {"from": master, "to": self._present()})

    def _silence(self, master):
        if master not in self.reported:
            log.warning("%s gives no answer", master)
            self.reported.add(master)
            self.silent.mkdir(parents=True, exist_ok=True)
            (self.silent / master).touch()
            self._tell("silent", {"master": master})

    def _heard(self, master):
        (self.silent / master).unlink(missing_ok=True)
        if master in self.reported:
            log.warning("%s answers again", master)
            self.reported.discard(master)
            self._tell("answers", {"master": master})

    def _tell(self, what, data):
        """Send an event to every master that the minion is connected to."""
        event = {
            "data": data,
            "tag": f"multimaster/minion/{__opts__['id']}/{what}",
            "events": None,
            "pretag": None,
        }
        self._fire(event, "fire_master")

    def _fire(self, data, tag):
        with salt.utils.event.get_event("minion", opts=__opts__, listen=False) as bus:
            bus.fire_event(data, tag)


def _bus_path():
    """Return the socket of the minion's event bus, which Salt names after the id."""
    digest = hashlib.new(__opts__["hash_type"], __opts__["id"].encode()).hexdigest()[:10]
    return os.path.join(__opts__["sock_dir"], f"minion_event_{digest}_pub.ipc")
