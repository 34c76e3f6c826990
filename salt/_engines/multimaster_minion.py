"""
Looks after a minion's masters, from within the minion; see docs/failover.md and docs/signing.md.

- Notices a master that is there and does not answer, as a frozen one, or one behind a silent
  network: Salt itself only looks whether the connection is open.  With ``master_type: failover`` a
  master that gave no answer three times in a row is left, by the event that Salt's own check fires,
  but only when another one answers.  Otherwise, and in hot mode, it is reported.
- Sends the returns of jobs again that their master has not taken: to it when it is back, or to the
  master that the minion has moved to.
- Has a minion in failover mode move when the connection to its master has ended, as Salt's check
  does once every ``master_alive_interval``; and after a move bring its grains along.
- Keeps a hot minion dialling a master that it has lost, so that it is there when that is back;
  restarts it if the master's name leads elsewhere now, since Salt looks that up at its start only.
- Restarts a minion whose channel to a master hangs, or that has not found a master since its start,
  though that master answers.
- Has the minion verify the signature over its masters' key as soon as they all sign, and stop as
  soon as none does: Salt lets it sign in to no master that does the other thing.
- Has a change of the minion's configuration, or a restart, finished that was broken off.
"""

import contextvars
import fcntl
import logging
import os
import pathlib
import random
import sys
import threading
import time
import uuid

import salt.minion
import salt.utils.event

log = logging.getLogger(__name__)

__virtualname__ = "multimaster_minion"

# Seconds between two looks whether the minion has moved on, and whether it still runs.
POLL = 0.1
SLICE = 1.0
# Seconds that an answer may take less than half an interval.  A minion that leaves first tries for
# 2 s to connect to the master that it leaves (dns_check in Salt 3008.3), if that drops packets.
SPARE = 0.2
# How many times as long as the interval a hot minion waits, at most, before it asks a master again
# that is connected and has not answered in time: it may have too much to do already.
SLOWEST = 4
# Seconds between two looks whether something that was broken off has to be taken up again.
FINISH = 5
# Returns of jobs that are kept at most for their masters, or for others; seconds between two times
# that one is sent to the same master; and how many at most are on their way at once.
MOST = 1000
AGAIN = 5
AT_ONCE = 10
# Seconds between two looks at the minion's bus without an event.
QUIET = 10
# Seconds between two looks whether a minion in failover mode has a connection.
CUT = 0.2
# Seconds after a move until the minion brings its grains: it loads its modules for that and answers
# nobody meanwhile, when somebody has waited for it already.
BRING = 5
# Seconds between two looks whether a master is lost, and two questions through the channel to one
# that is; after some time they become fewer, since Salt logs each that gets no answer.
AWAY = 1.0
SOME_TIME, SELDOM = 120, 60
# Seconds for which a master is lost that answers at another address than before, until the minion
# is restarted; some more with many minions, as each is away from all its masters meanwhile.
ASTRAY = 5
# Seconds for which connections are taken to be as they were while the sockets are the same ones.
SAME = 30
# Seconds that no return gets through to a master that is there and answers, or that there is no
# connection to it at all, after which the minion is restarted; and between two such restarts.
STUCK = 45
CALM_DOWN = 3600
# Tries of the daemon with one return that ended without an answer, after which the engine brings it
# itself, as the master may take longer for an answer than a try lasts.
LATE = 2
# Events on the minion's bus, each with the id of a request: for the master at the end of the tag;
# its answer.
PAYLOAD = "__master_req_channel_payload/"
TAKEN = "__master_req_channel_return/"

# Seconds between two times that the masters are asked whether they sign: twice as many each time
# that it has not helped, and the first of them again after a while without doubt.  And that each
# has for its answer, at least: as many as that.
SHORTEST, LONGEST = 2, 300
LEAST = 5
CALM = 60
# What an engine turns into that has nothing to do: small, and gone when the minion is.
IDLE = """
import os, sys, time
minion, pidfile = sys.argv[1:]
def named():
    try:
        return open(pidfile).read().strip() == minion
    except OSError:
        return False
while os.getppid() == int(minion) and (not pidfile or named()):
    time.sleep(1)
"""


def __virtual__():
    return __virtualname__


def start(masters=(), act=False, interval=10, service="salt-minion", restart_timeout=600):
    """
    Look after the minion's masters for as long as the minion runs.

    masters
        The addresses of all masters; the minion's own unless given.
    act
        Leave a silent master for another one; else only report it.
    interval
        Seconds between two questions.  A silent master is found out after at most three times
        that long.
    service, restart_timeout
        Of the minion, as for the execution function ``multimaster.restart``.

    CLI Example:

    .. code-block:: yaml

        engines:
          - multimaster_minion: {masters: [192.0.2.1, 192.0.2.2], act: true, interval: 10}
    """
    if not masters:
        masters = (
            __opts__["master"] if isinstance(__opts__["master"], list) else [__opts__["master"]]
        )
    minion = _Minion(masters, 1 if act else len(masters))
    directory = pathlib.Path(__opts__["cachedir"], "multimaster")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = __utils__["multimaster_cutover.private"]
    with open(directory / "engine.lock", "w", opener=private) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A hot minion starts every engine once for each master; Salt would start again what
            # ends.
            code = [IDLE, str(minion.pid), minion.pidfile]
            os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", *code])
        # Set when a master is there that does not let this minion in.
        doubt = threading.Event()
        # When each master has answered last.
        heard = {}
        # In failover mode there is one master at a time, whichever that is.
        for master in [None] if act else masters:
            _in_thread(_Watch(minion, master, interval, doubt, heard).run)
        _in_thread(lambda: _follow_signing(minion, doubt, service, restart_timeout))
        lost = None if act else _Lost(minion, heard)
        look = lost.look if lost else _Cut(minion).look
        _in_thread(lambda: _repeat(look, AWAY if lost else CUT))
        returns = _Returns(minion, act, heard, interval)
        _in_thread(returns.run)
        looked = 0.0
        while minion.runs():
            time.sleep(SLICE)
            if time.monotonic() - looked > FINISH:
                looked = time.monotonic()
                _finish(returns, lost, directory, service, restart_timeout)


def _finish(returns, lost, directory, service, timeout):
    """Have what was broken off go on, and a minion restarted that nothing else helps."""
    try:
        # To ask costs a look at the configuration.
        restarts = (directory / "restarts").glob("*/[!.]*")
        path = __utils__["multimaster_cutover.journal_path"](__opts__["cachedir"])
        if any(restarts) or __utils__["multimaster_cutover.pending"](path):
            __salt__["multimaster.resume"](service, timeout)
        stuck = returns.stuck() + (lost.unseen() if lost else [])
        _get_unstuck(stuck, directory / "stuck", service, timeout)
        if lost and (astray := lost.astray()):
            log.warning("Found at another address, restarting: %s", ", ".join(astray))
            try:
                __salt__["multimaster.restart"](service, timeout, job=False)
            except Exception:
                lost.known.update(astray)
                raise
    except Exception:  # With this thread all the others would end.
        log.exception("Cannot have a restart finished; trying again")


def _in_thread(function):
    # With Salt's dunders, which belong to the context.
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(function,), daemon=True).start()


def _get_unstuck(masters, mark, service, timeout):
    """
    Restart a minion whose channel to a master hangs, or leads nowhere: nothing else ends that.

    Seen with Salt 3008.3 after a restart of master and minion at the same time: commands come, and
    no return leaves.  Its channel (``_crypted_transfer``) may wait for a sign-in without an end.
    And seen as a master's name changed back just after the minion had looked it up.
    """
    if not masters or (mark.exists() and abs(time.time() - mark.stat().st_mtime) < CALM_DOWN):
        return
    log.error("Nothing gets through to %s, which answers; restarting", ", ".join(masters))
    mark.touch()
    _tell("stuck", {"masters": masters})
    __salt__["multimaster.restart"](service, timeout, job=False)


class _Minion:
    """
    The minion's daemon, seen from outside, as an engine is a process of its own.

    masters, enough
        Their addresses, and how many of them it is connected to if all is well.
    """

    def __init__(self, masters, enough):
        self.masters = masters
        self.enough = enough
        # Sockets, the connections that they were found to be, the masters that these lead to with
        # the places of each, and until when that is believed.
        self.before = frozenset(), set(), {}, 0.0
        self.pid = os.getppid()
        self.pidfile = __opts__["pidfile"]
        if not self._named():
            # One that Salt could not write tells nothing.
            self.pidfile = ""

    def _named(self):
        try:
            return pathlib.Path(self.pidfile).read_text().strip() == str(self.pid)
        except OSError:
            return False

    def runs(self):
        """
        Tell whether the minion is there and not about to end.

        Salt does not tell the engines of a minion that no master has let in, and then waits for
        their end.  But it has removed its pid file by then.  (Its event bus may still be there.)
        """
        return os.getppid() == self.pid and (not self.pidfile or self._named())

    def _look(self):
        """Return its connections, and the masters whose publishers they lead to."""
        # To see which sockets there are costs little; where they lead, a look at the whole host's.
        sockets = __utils__["multimaster_dial.sockets"](self.pid)
        same, links, found, until = self.before
        if sockets and sockets == same and time.monotonic() < until:
            return links, found
        links = __utils__["multimaster_dial.links"](self.pid)
        found = __utils__["multimaster_dial.among"](links, self.masters, __opts__)
        # One that is on its way has a socket already.  What was believed before goes in any case:
        # a name may lead elsewhere by now.
        believed = len(found) >= self.enough
        self.before = sockets, links, found, time.monotonic() + SAME if believed else 0.0
        return links, found

    def connected(self):
        """Return the masters that the minion is connected to, and where each is."""
        _, found = self._look()
        return found

    def master(self):
        """Return the address of the first of them, or None."""
        return next(iter(self.connected()), None)

    def places(self):
        """Return the addresses whose publishers it is connected to."""
        links, _ = self._look()
        return __utils__["multimaster_dial.publishers"](links, self.masters, __opts__)

    def links(self, master):
        """
        Return its connections to a master's publisher; a new one has another port of its own.

        Those for requests are others after each that gets no answer.
        """
        links, _ = self._look()
        return __utils__["multimaster_dial.subscriptions"](links, master, __opts__)


def _fire(data, tag):
    with salt.utils.event.get_event("minion", opts=__opts__, listen=False) as bus:
        bus.fire_event(data, tag)


def _tell(what, data):
    """Send an event to every master that the minion is connected to."""
    tag = f"multimaster/minion/{__opts__['id']}/{what}"
    _fire({"data": data, "tag": tag, "events": None, "pretag": None}, "fire_master")


class _Watch:
    """Asks one master, or whichever the minion is connected to, for real answers."""

    def __init__(self, minion, master, interval, doubt, heard):
        self.minion = minion
        self.doubt = doubt
        self.heard = heard
        # The connections at the time of the last answer.
        self.links = None
        # Master -> the channel of the last question, for the next one: to make another takes
        # thirty times as long as to ask, since Salt reads the minion's key again.
        self.kept = {}
        self.master = master
        self.interval = interval
        # An answer may take almost half an interval before the next question is asked.
        self.patience = max(interval / 2 - SPARE, interval / 3)
        # The one that the minion was seen with last.
        self.last = None
        self.reported = set()
        # How many times in a row a master that is connected has not answered in time.
        self.late = 0
        self.silent = pathlib.Path(__opts__["cachedir"], "multimaster", "silent")

    def run(self):
        """Ask for as long as there is an engine; each minion has its own rhythm."""
        while True:
            time.sleep(random.uniform(0.8, 1.0) * self.interval * self.slowness())
            try:
                master = self.master or self.minion.master()
                if master is not None:
                    self.stay_with(master)
                    self.judge(master)
                else:
                    # Salt looks for one already; this is whether any would let the minion in.
                    self.doubt.set()
            except Exception:  # A watch that ends is missed by nobody until it is needed.
                log.exception("Cannot watch the master")

    def slowness(self):
        """Return how many times as long as the interval to wait; only who acts is in a hurry."""
        hurry = self.master is None or self.late < 2
        return 1 if hurry else min(2 ** (self.late - 1), SLOWEST)

    def stay_with(self, master):
        """
        Have Salt look only at the connection to this master.

        After a move Salt 3008.3 goes on looking at those to all that it was with before, too, a job
        for each in every interval.
        """
        if self.master is None and master != self.last:
            __utils__["multimaster_dial.forget"](self.kept.pop(self.last, []))
            for other in self.minion.masters:
                if other != master:
                    name = salt.minion.master_event(type="alive", master=other)
                    _fire({"func": "delete", "name": name, "persist": False}, "manage_schedule")
                    # Nobody asks it any more, so nobody would find out that it answers.
                    self.reported.discard(other)
                    (self.silent / other).unlink(missing_ok=True)
        self.last = master

    def judge(self, master):
        """Ask a master; leave or report it if no question gets an answer."""
        links = self.minion.links(master)
        kept = self.kept.setdefault(master, [])
        first = self._ask(master, None, "ask" if links == self.links else "afresh", kept)
        more = threading.Event()

        def heard(patience):
            # An answer to any question counts, so that who is merely slow is not silent.
            deadline = time.monotonic() + patience
            while not (first.is_set() or more.is_set()):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                first.wait(min(POLL, left))
            if first.is_set():
                # Whoever lets this minion in once lets it in until it is restarted.
                self.links = links
            self._heard(master)
            return True

        if heard(self.patience):
            self.late = 0
            return
        self.late = self.late + 1 if links else 0
        # A restart ends the connection: on the same one nobody begins or ends to sign, and no
        # question is lost.
        same = links and self.links == links == self.minion.links(master)
        if not same:
            self._put(master, self.interval, self.doubt, "there")
        act = self.master is None
        others = [a for a in self.minion.masters if a != master] if act else []
        asked = time.monotonic()
        better = {address: self._ask(address) for address in others}
        # A master with too much to do is not left by all at once, but relieved.
        to_spare = random.uniform(0, self.patience)
        # In hot mode nothing hangs on it, and each question that waits is work for both.
        for patience in (self.patience + to_spare, self.patience) if act else (2 * self.patience,):
            if act or not same:
                self._ask(master, more, "ask", kept)
            if heard(patience):
                return
        # Where everything is slow the others are, too: not a reason to begin all over.
        deadline = asked + 2 * self.interval
        while better and not any(answer.is_set() for answer in better.values()):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL)
        if heard(0):
            return
        better = [address for address, answer in better.items() if answer.is_set()]
        if act and master not in self.minion.connected():
            # It is on its way already, or there: its connection has ended.
            return
        if better and self.minion.runs():
            self._leave(master, better)
        else:
            self._silence(master)

    def _ask(self, address, heard=None, way="ask", kept=None):
        heard = heard or threading.Event()
        # For as long as that master may be in doubt.
        self._put(address, 2 * self.interval, heard, way, kept)
        return heard

    def _put(self, *arguments):
        __utils__["multimaster_dial.put"](dict(__opts__), *arguments)

    def _leave(self, master, better):
        """Have the minion do what it does when a connection ends: try the other masters."""
        log.warning("No answer from %s, but from %s; moving on", master, ", ".join(better))
        _fire({"master": master}, salt.minion.master_event(type="disconnected"))
        # Nobody is to be asked on the way.
        deadline = time.monotonic() + 2 * self.interval
        while self.minion.master() in (None, master):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL)

    def _silence(self, master):
        if master not in self.reported:
            log.warning("No answer from %s", master)
            self.reported.add(master)
            self.silent.mkdir(parents=True, exist_ok=True)
            (self.silent / master).touch()
            _tell("silent", {"master": master})

    def _heard(self, master):
        self.heard[master] = time.monotonic()
        (self.silent / master).unlink(missing_ok=True)
        if master in self.reported:
            log.warning("%s answers again", master)
            self.reported.discard(master)
            _tell("answers", {"master": master})


def _spread():
    """Return the seconds in which the minions of a master come back to it."""
    return (__opts__["recon_default"] + __opts__["recon_max"]) / 1000


def _repeat(look, pause):
    """Look at the minion's connections again and again for as long as there is an engine."""
    took = 0.0
    while True:
        # On a host with very many connections a look takes long: no more than 1 % of its time.
        time.sleep(max(pause, 100 * took))
        started = time.thread_time()
        try:
            look(time.monotonic())
        except Exception:  # Missed by nobody until a master is lost.
            log.exception("Cannot look for lost masters")
        took = time.thread_time() - started


class _Cut:
    """
    Has a minion in failover mode try the next master when the connection to its own has ended.

    Salt's own check looks every ``master_alive_interval`` seconds, which is 10 or more, by a job.
    Tells of every move, whatever it was for; then the new master is given the minion's grains, as
    Salt does at a start only, and the minion that master's pillar.
    """

    def __init__(self, minion):
        self.minion = minion
        # The master that it was connected to, and when it is to leave it.
        self.master, self.due = None, None
        # The one that it was with last, also when it has left it; and when to fetch its pillar.
        self.last = self.fetch = None

    def look(self, now):
        """Look for a connection; fire the event of Salt's check if there is none any more."""
        master = self.minion.master()
        if master is not None:
            if self.last not in (None, master):
                _tell("moved", {"from": self.last, "to": master})
                # Each is work for that master.
                self.fetch = now + BRING + random.uniform(0, _spread())
            elif self.fetch is not None and now >= self.fetch:
                self.fetch = None
                _fire({}, "pillar_refresh")
            self.master, self.due, self.last = master, None, master
        elif self.master is None:
            # It is on its way, or was never anywhere.
            return
        elif self.due is None:
            # Not for one that is back at once; and with many others, not all at the same time.
            self.due = now + random.uniform(0, _spread())
        elif now >= self.due and self.minion.runs():
            log.warning("The connection to %s has ended; moving on", self.master)
            _fire({"master": self.master}, salt.minion.master_event(type="disconnected"))
            self.master = self.due = None


class _Lost:
    """
    Asks masters that the minion has lost for something, through the minion's own channel.

    ZeroMQ dials a lost master after ever longer pauses, of up to 5 seconds (RECONNECT_IVL_MAX in
    Salt 3008.3).  A question that gets no answer makes Salt dial anew, without a pause.
    """

    def __init__(self, minion, heard):
        self.minion = minion
        self.heard = heard
        # Master -> where the minion was connected to it last.
        self.places = {}
        # As many minions come back at a time as to the masters' publishers.
        self.pace = max(AWAY, _spread())
        self.spread = random.uniform(0, _spread())
        # When each master answered first that the minion has not found yet.
        self.answered = {}
        # Masters that the minion has been connected to; since when each is lost, and when it is
        # asked next.
        self.known, self.lost, self.due = set(), {}, {}
        # Where masters are named that the minion was not connected to since its start, while it is
        # to others; each of them, or None for what is left there of the minion before.
        self.marks = pathlib.Path(__opts__["cachedir"], "multimaster", "unmet")
        self.marked = None

    def look(self, now):
        """Ask those that are lost, and those that are back after some time."""
        there = self.minion.connected()
        self.places.update(there)
        self._mark()
        for master in there:
            if now - self.lost.pop(master, now) > SOME_TIME:
                self._ask(master)
        self.known.update(there)
        for master in self.known.difference(there):
            since = self.lost.setdefault(master, now)
            if since == now or now >= self.due[master]:
                self.due[master] = now + (self.pace if now - since < SOME_TIME else SELDOM)
                self._ask(master)

    def astray(self):
        """Return, once, the lost masters that answer, but not where the minion looks for them."""
        found = []
        for master, since in list(self.lost.items()):
            if self.heard.get(master, 0) > since + ASTRAY + self.spread:
                now = __utils__["multimaster_dial.resolve"](master)
                # A name may lead to several places in turn, and the minion be at another of them.
                if not self.places[master] & (now | self.minion.places()):
                    found.append(master)
                    self.known.discard(master)
                    self.lost.pop(master, None)
        return found

    def unseen(self):
        """Return the masters that go on answering, but that the minion was never connected to."""
        # They answer whom they have accepted only.  With many minions, each takes its time to come.
        wait = STUCK + _spread() + self.spread
        found = []
        for master in self.minion.masters:
            if master in self.heard and master not in self.places:
                since = self.answered.setdefault(master, self.heard[master])
                if self.heard[master] > since + wait:
                    found.append(master)
        return found

    def _mark(self):
        unmet = set(self.minion.masters).difference(self.places) if self.places else set()
        if unmet == self.marked:
            return
        self.marks.mkdir(parents=True, exist_ok=True)
        for path in self.marks.iterdir():
            if path.name not in unmet:
                path.unlink()
        for master in unmet:
            (self.marks / master).touch()
        self.marked = unmet

    def _ask(self, master):
        _fire({"cmd": "_file_envs"}, f"{PAYLOAD}{uuid.uuid4()}/{master}")


class _Returns:
    """
    Sends the returns of jobs again that no master has taken.

    Salt sends a return only to the master that the job came from, and takes any answer to it for a
    good one; a master in which something failed answers ``""`` or False, else None (Salt 3008.3).
    Each try occupies the minion: the job has a process meanwhile, and the daemon looks at each of
    those for 10 ms five times a second, so that some twenty keep it from all else.  Here a return
    costs nothing.
    """

    def __init__(self, minion, act, heard, interval):
        self.minion = minion
        self.heard = heard
        self.interval = interval
        # Since when the minion has been connected to each master, without a gap; and when each has
        # answered to a return last.
        self.since, self.answered = {}, {}
        # When a try to reach each has ended last, without an answer in its time; and those that the
        # engine brings a return to.
        self.ended, self.brought = {}, set()
        # Whether the minion moves from one master to the next.
        self.act = act
        # Not while Salt tries by itself.
        salts = __opts__["return_retry_tries"] * __opts__["return_retry_timer_max"]
        self.again = max(AGAIN, salts)
        # Id of the request -> _Return, of those that no master has taken yet; when to look at them.
        self.waiting, self.due = {}, 0.0
        # Id -> when it was sent again, of those on their way; and how many these may be.  Half as
        # many when none arrives, or a minion that is short of time would be given more to do.
        self.flight, self.window = {}, AT_ONCE
        self.bus = salt.utils.event.get_event("minion", opts=__opts__, listen=True)

    def run(self):
        """Follow while there is an engine; Salt may wait for ever for a bus that is gone."""
        while True:
            try:
                # With nothing to send there is nothing to do but for an event.
                self.follow(SLICE if self.waiting else QUIET)
            except Exception:  # An event may be anybody's, and of any shape.
                log.exception("Cannot follow the returns of jobs")

    def follow(self, wait):
        """Look at one event, or wait for so many seconds; then send what has to be sent."""
        event = __utils__["multimaster_gather.next_event"](self.bus, wait)
        tag, data = (event["tag"], event["data"]) if event else ("", {})
        if not isinstance(data, dict):
            tag = ""
        now = time.monotonic()
        if tag.startswith(PAYLOAD) and data.get("cmd") == "_return":
            number, _, master = tag[len(PAYLOAD) :].partition("/")
            self.waiting.setdefault(number, _Return(data, now)).tried(master, now)
        elif tag.startswith(TAKEN):
            self._take(tag[len(TAKEN) :], data, now)
        if not self.waiting or now < self.due:
            return
        # Most are taken before that.
        self.due = now + SLICE / 2
        for number in list(self.waiting)[:-MOST]:
            one = self.waiting.pop(number)
            log.error("Too many returns wait; that of %s is given up", one.data.get("jid"))
        there = self._there()
        self.since = {master: self.since.get(master, now) for master in there}
        if any(now - at > self.again for at in self.flight.values()):
            self.window = max(self.window // 2, 1)
        self.flight = {
            number: at
            for number, at in self.flight.items()
            if number in self.waiting and now - at <= self.again
        }
        # One that is never taken does not keep back the others.
        for number, one in sorted(self.waiting.items(), key=lambda item: item[1].at):
            master = next(iter(there), None) if self.act else one.master
            moved = master != one.master
            if len(self.flight) >= self.window:
                break
            if master in there and (moved or now - one.at > self.again):
                if moved:
                    # That master does not know the job: with its target, jobs.lookup_jid shows it.
                    one.data = {"tgt": [__opts__["id"]], "tgt_type": "list", **one.data}
                    one.late = 0
                elif one.late >= LATE and master in self.brought:
                    continue
                log.info("The return of job %s is sent again, to %s", one.data.get("jid"), master)
                one.tried(master, now)
                if one.late >= LATE:
                    self._bring(number, one)
                else:
                    self.flight[number] = now
                    _fire(one.data, f"{PAYLOAD}{number}/{master}")

    def _bring(self, number, one):
        """Send a return through a channel of the engine's own, with more patience each time."""
        master, load = one.master, one.data
        patience = min(self.again * 2 ** (one.late - LATE + 1), LONGEST)
        self.brought.add(master)

        def bring():
            try:
                answers = __utils__["multimaster_dial.give"](__opts__, master, patience, load)
            finally:
                self.brought.discard(master)
            _fire({"ret": answers[0]} if answers else {"error": "timeout"}, f"{TAKEN}{number}")

        _in_thread(bring)

    def _take(self, number, data, now):
        """Note how a try to send a return has ended."""
        one = self.waiting.get(number)
        if data.get("error"):
            if one:
                self.ended[one.master] = now
                one.late += 1
            return
        if one:
            self.answered[one.master] = now
            # Else something failed within that master, as when its event bus is gone.
            if data.get("ret") is None:
                del self.waiting[number]
        if self.flight.pop(number, None):
            self.window = min(self.window + 1, AT_ONCE)

    def stuck(self):
        """Return the masters that have been there and answered, and that take nothing."""
        now = time.monotonic()
        found = set()
        for one in list(self.waiting.values()):
            since = max(one.since, self.since.get(one.master, now))
            answers = now - self.heard.get(one.master, 0) < 3 * self.interval
            # Where tries end the channel does not hang; and others may have got through since.
            ends = now - self.ended.get(one.master, -STUCK) < STUCK
            taken = self.answered.get(one.master, 0) >= one.since
            if answers and now - since > STUCK and not ends and not taken:
                found.add(one.master)
        return sorted(found)

    def _there(self):
        """Return the masters that the minion is connected to."""
        if self.act:
            master = self.minion.master()
            return [master] if master else []
        return self.minion.connected()


class _Return:
    """A return: its content, since when there is one, to whom it was sent last; tries in vain."""

    def __init__(self, data, since):
        self.data = data
        self.since = self.at = since
        self.master, self.late = "", 0

    def tried(self, master, at):
        """Note that it was sent, by whomever."""
        self.master, self.at = master, at


def _follow_signing(minion, doubt, service, timeout):
    """
    Find out whether the masters sign when one is there that does not let this minion in.

    Not at other times, since each answer is a sign-in, which a master has to work for.
    """
    wait = SHORTEST
    while True:
        if not doubt.wait(CALM):
            wait = SHORTEST
            continue
        # A master's other minions ask as well.
        time.sleep(random.uniform(0.5, 1) * wait)
        doubt.clear()
        if not minion.runs():
            continue
        # With more patience each time: who is slow is not silent.
        _ask_signing(service, timeout, wait)
        # Also when a restart has been asked for: this engine ends with it.
        wait = min(2 * wait, LONGEST)


def _ask_signing(service, timeout, patience):
    """Look at the masters, and act."""
    try:
        patience = max(patience, LEAST)
        found = __salt__["multimaster.follow_masters"](service, timeout, within=patience)
    except Exception:  # An engine that ends leaves a minion behind for good.
        log.exception("Cannot follow the masters in their signing")
    else:
        log.info("Masters: %s; verify: %s", found["seen"], found["wanted"])
