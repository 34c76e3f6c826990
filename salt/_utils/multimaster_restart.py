"""
Restarts a Salt daemon from within one of its own jobs, and after that job: a program, not a part of
the core, and here because it has to be a file on every host.

A daemon that stops takes its job processes with it, children and all, so this runs as a program of
its own, outside the daemon's process tree.  A request is a file; it is served when the daemon has
been started after it.  The program waits until the jobs that asked are over and have been returned,
as every other job of this minion, and then restarts the service through Salt's ``service`` module:
a master only while another one lets this host's minion in, and in its turn.  With a journal of
``multimaster_cutover`` it takes a minion to its new list of masters.  It waits for as long as it
takes, and says what for.
"""

import argparse
import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Seconds between two looks.
POLL = 0.2
# Jobs that nobody misses: who looks so looks again, and on a host with much to do there may always
# be one of them.
LOOKS = {
    "multimaster.ledger_pull",
    "multimaster.ledger_wake",
    "multimaster.masters",
    "multimaster.outstanding",
    "multimaster.report",
    "multimaster_drift.report",
    "multimaster_orch.facts",
    "saltutil.find_job",
}
# Times that a daemon is seen to end at its start before somebody should decide.
FAILED = 5
# Rounds in which the minion on this host answered and another one did not, after which nothing is
# to be expected of that.
SEVERAL = 4
# Seconds that minions have for their answer, at first and at most; between two questions, and
# between two starts of a daemon, at first and at most.
PATIENCE, LONGEST = 5.0, 60.0
PAUSE, LONGEST_PAUSE = 1.0, 30.0
# Seconds for a master that has just answered to take an event.
TELL = 30

log = logging.getLogger("multimaster.restart")


def program() -> str:
    """Return the path of this file, for whoever starts it as a program."""
    return os.path.abspath(__file__)


def requests_path(cachedir: str, service: str) -> str:
    """
    Return the directory of the requests for a service's restart, below a minion's cache.

    Raises ValueError for what is no name of a service, and would lead elsewhere.
    """
    return os.path.join(cachedir, "multimaster", "restarts", _named("service", service))


def _named(what: str, name: Any) -> str:
    """Return a name if it is one of a file that may be there; they come from other hosts."""
    if not isinstance(name, str) or not name or name[0] == "." or set(name) & set("/\0"):
        raise ValueError(f"{what}: got {name!r}; supported: the name of a {what}")
    return name


def process(pid: int) -> list[Any] | None:
    """
    Return what names a process and no later one of that number; None if it is gone.

    Its id, its start in clock ticks, and the boot that these are counted from: a start in seconds
    since the epoch is another one after the clock was set.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Its name, in brackets, may hold anything.
        about = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        if about[0] not in ("Z", "X"):
            return [pid, int(about[19]), boot]
    return None


def request(directory: str, jid: str, pid: int, timeout: float, daemon: int) -> None:
    """
    Ask for a restart.

    jid, pid
        The job that asks, which is waited for, and its process; empty and 0 if none does.
    timeout
        Seconds after which somebody should know that it is still to come.
    daemon
        Process id of the daemon, 0 if there is none: the request is served when it is another one.
    """
    name = _named("jid", jid) if jid else f"pid-{os.getpid()}"
    os.makedirs(directory, mode=0o700, exist_ok=True)
    scratch = os.path.join(directory, f".{name}")
    told = {"jid": jid, "job": pid and process(pid), "timeout": timeout, "daemon": process(daemon)}
    Path(scratch).write_text(json.dumps(told))
    os.replace(scratch, os.path.join(directory, name))


def outstanding(directory: str, daemon: int) -> dict[str, Any]:
    """
    Return what is to be said of the restarts that a daemon has before it.

    Returns ``since``, ``timeout`` and ``waiting``, in words, what is waited for; empty if there is
    none.
    """
    found = _requests(directory, daemon)
    if not found:
        return {}
    waiting = None
    with contextlib.suppress(OSError, RecursionError, ValueError):
        waiting = json.loads(Path(directory, ".waiting").read_text())
    return {
        "since": min(one["at"] for one in found.values()),
        "timeout": max(one["timeout"] for one in found.values()),
        "waiting": waiting if isinstance(waiting, str) else "nobody yet",
    }


def settle(directory: str, daemon: int) -> None:
    """Remove the requests that have been served; one that comes meanwhile stays."""
    there = _files(directory)
    left = _requests(directory, daemon)
    for path in there:
        if path.name not in left:
            path.unlink(missing_ok=True)
    if not left:
        Path(directory, ".waiting").unlink(missing_ok=True)


def withdraw(directory: str) -> None:
    """Remove all requests; whoever waits to serve them ends."""
    for path in _files(directory):
        path.unlink(missing_ok=True)


def _files(directory: str) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return [path for path in Path(directory).iterdir() if path.name[0] != "."]
    return []


def _requests(directory: str, daemon: int) -> dict[str, dict[str, Any]]:
    """Return the requests that no later daemon has served, by the names of their files."""
    found = {}
    now = process(daemon)
    for path in _files(directory):
        # One that has just been served, or is none.
        with contextlib.suppress(
            OSError, OverflowError, RecursionError, ValueError, KeyError, TypeError
        ):
            told = json.loads(path.read_text())
            if now is None or told["daemon"] == now:
                one = {"jid": str(told["jid"]), "job": told["job"]}
                one["timeout"] = float(told["timeout"])
                if not math.isfinite(one["timeout"]) or (
                    one["job"] and not isinstance(one["job"][0], int)
                ):
                    raise ValueError(f"{path}: no request")
                found[path.name] = {**one, "at": path.stat().st_mtime}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 when what was asked for is done, or somebody is at it."""
    args = _parser().parse_args(argv)
    # The file beside this one: not to be found while Salt's loader looks at this one.
    import multimaster_files as files

    with open(files.open_log(args.log), "a") as stream:
        logging.basicConfig(
            stream=stream,
            level=logging.INFO,
            format=f"%(asctime)s {args.service} [%(process)d] %(message)s",
        )
        return _do(args)


def _do(args: argparse.Namespace) -> int:
    """Do what is asked for, unless somebody is at it."""
    import multimaster_cutover as cutover

    host = _Host(args)
    if args.journal and cutover.pending(args.journal):
        with cutover.taken_up(args.journal) as mine:
            if mine:
                return host.cut_over()
        if not cutover.resting(args.journal):
            return 0
    with cutover.alone(host.lock, wait=False) as free:
        # Who has it looks for new requests until it restarts the daemon.
        return host.serve() if free else 0


class _Host:
    """The daemon that is to be restarted, its minion, and their files."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.requests = requests_path(self.options()["cachedir"], args.service)
        os.makedirs(self.requests, mode=0o700, exist_ok=True)
        self.lock = os.path.join(self.requests, ".lock")
        # What is waited for, how patiently other masters are asked, and whether the daemon was
        # stopped and has not come back.
        self.said, self.patience, self.tried = "", PATIENCE, False

    # What multimaster_cutover.Minion asks for.

    def options(self) -> dict[str, Any]:
        """Return the minion's options, from its files as they are."""
        import salt.config

        return dict(salt.config.minion_config(self.args.config))

    def begun(self) -> float:
        """Return when the daemon was started, in seconds since the epoch; 0 if there is none."""
        import psutil

        pid = _daemon(self.args.pidfile)
        with contextlib.suppress(psutil.NoSuchProcess):
            return float(psutil.Process(pid).create_time()) if process(pid) else 0.0
        return 0.0

    def daemon(self) -> list[Any] | None:
        """Return what names the daemon's process and no other one; None if there is none."""
        return process(_daemon(self.args.pidfile))

    def busy(self) -> bool:
        """Tell whether the minion still has jobs."""
        import salt.utils.minion

        import multimaster_said as said

        jobs = salt.utils.minion.running(self.options())
        return any(said.function(job) not in LOOKS for job in jobs)

    def ask(self, options: Mapping[str, Any], address: str, patience: float) -> str:
        """Return what a master says to this minion."""
        import multimaster_dial as dial

        return dial.classify(options, address, patience)

    def linked(self, options: Mapping[str, Any], addresses: Iterable[str]) -> list[str]:
        """Return those of some masters that the daemon is connected to."""
        import multimaster_dial as dial

        return dial.connected(_daemon(self.args.pidfile), addresses, options)

    def same(self, one: str, other: str) -> bool:
        """Tell whether two addresses lead to the same place."""
        import multimaster_dial as dial

        return one == other or bool(dial.resolve(one) & dial.resolve(other))

    def restart(self) -> bool:
        """Restart through Salt's service module; false when the new daemon was seen to end."""
        before, ended, pause = self.daemon(), 0, PAUSE
        result = self._control("service.restart")
        due = time.monotonic() + pause
        # One that is there may have been killed, and be on its way out.
        while (now := self.daemon()) in (None, before):
            if time.monotonic() >= due:
                if self.start():
                    ended += 1
                elif now and result is not True:
                    # Refused: the old one runs on.
                    log.warning("service.restart: %s; asking again", result)
                    result = self._control("service.restart")
                pause = min(2 * pause, LONGEST_PAUSE)
                due = time.monotonic() + pause
            if ended >= FAILED:
                break
            time.sleep(POLL)
        came = ended < FAILED
        log.info("service.restart: %s; new daemon: %s", result, came)
        return came

    def start(self) -> bool:
        """Start the daemon unless init says that it runs; tell whether it had ended."""
        if self._control("service.status") is not False:
            return False
        # A daemon ends at once if its predecessor was killed and init has not reaped it yet.
        log.warning("it does not run; service.start: %s", self._control("service.start"))
        return True

    def _control(self, function: str) -> Any:
        import salt.client

        try:
            caller = salt.client.Caller(mopts={**self.options(), "file_client": "local"})
            return caller.cmd(function, self.args.service)
        # Whatever it is: somebody has to see to it that the daemon comes.
        except Exception as err:
            return err

    # The two things that this program does.

    def cut_over(self) -> int:
        """Take the minion to its new configuration; tell its masters when it is there, or back."""
        import multimaster_cutover as cutover

        def moved(journal: Mapping[str, Any]) -> None:
            self._settle()
            back = journal["step"] != cutover.KEPT
            heard = journal["old"] if back else journal["heard"]
            data = {"step": "back" if back else "kept", "heard": heard}
            data |= {name: journal[name] for name in ("why", "seconds", "seen") if name in journal}
            _tell(self.options(), self.args.pidfile, data)

        journal = cutover.carry_out(self.args.journal, self, moved)
        return 0 if journal.get("step") == cutover.KEPT else 1

    def serve(self) -> int:
        """Restart the daemon once for all requests that there are."""
        while wanted := self._wanted():
            self._say("running jobs")
            _until(lambda: not (self.busy() or _at_work(self._wanted().values())))
            if self.args.master_config and not self.tried:
                self._until_returned(one["jid"] for one in wanted.values() if one["jid"])
                self._until_turn()
            if self._overtaken():
                # It sees to the requests, too.
                return 0
            if set(self._wanted()) != set(wanted) or self.busy():
                # Somebody has come meanwhile, or has restarted it.
                continue
            self._say("the new daemon")
            self.tried = True
            if not self.restart():
                log.error("the daemon ends at its start; see its log")
                time.sleep(LONGEST_PAUSE)
        self._settle()
        return 0

    def _wanted(self) -> dict[str, dict[str, Any]]:
        return _requests(self.requests, _daemon(self.args.pidfile))

    def _settle(self) -> None:
        settle(self.requests, _daemon(self.args.pidfile))

    def _overtaken(self) -> bool:
        """Tell whether a cut-over has begun: its new list is to be proved before any restart."""
        import multimaster_cutover as cutover

        journal = self.args.journal
        return bool(journal) and cutover.pending(journal) and not cutover.resting(journal)

    def _say(self, what: str) -> None:
        if what != self.said:
            log.info("waiting for %s", what)
            # A full disk is no reason not to restart.
            with contextlib.suppress(OSError):
                Path(self.requests, ".waiting").write_text(json.dumps(what))
        self.said = what

    # What a master waits for.

    def _until_returned(self, jids: Iterable[str]) -> None:
        """Wait until each minion that got one of these jobs from this master is done with it."""
        import salt.loader

        opts = self._master_options()
        returners, cache = salt.loader.returners(opts, {}), opts["master_job_cache"]
        for jid in jids:
            # None if it came from another master, whose restart is not asked for here.
            load = returners[f"{cache}.get_load"](jid) or {}
            expected = set(load.get("Minions") or [])

            def left(jid: str = jid, expected: set[str] = expected) -> set[str]:
                if not self._wanted():
                    return set()
                return expected - set(returners[f"{cache}.get_jid"](jid))

            def ask(ids: set[str], patience: float, jid: str = jid) -> Mapping[str, Any]:
                return self._command(ids, "saltutil.find_job", [jid], patience)

            self._say(f"the returns of job {jid}")
            # Twice: a return may be on its way.
            _ask_for(ask, left, lambda told: told == {}, opts["id"], 2)
            if missing := left():
                log.warning("no return of job %s from %s", jid, ", ".join(sorted(missing)))

    def _until_turn(self) -> None:
        """Wait until another master is there, and none that is declared earlier is to restart."""
        own, addresses, others, earlier = self._declared()

        def ask(ids: set[str], patience: float) -> Mapping[str, Any]:
            nonlocal addresses, others, earlier
            answers = self._proved(ids, own, "multimaster.outstanding", patience)
            # Somebody may have taken one out meanwhile.
            _, addresses, others, earlier = self._declared()
            if own not in answers and self._is_foreign(addresses.get(own)):
                earlier = set()
            return answers

        def left() -> set[str]:
            return earlier if self._wanted() else set()

        while self._wanted() and others:
            if earlier:
                self._say(f"the restarts of {', '.join(sorted(earlier))}")
                _ask_for(ask, left, lambda told: told is not True, own, 1)
            self._say(f"another master: {', '.join(others)}")
            if self._another(others):
                return
            _, addresses, others, earlier = self._declared()

    def _declared(self) -> tuple[str, dict[str, str], list[str], set[str]]:
        """
        Return what the master's files declare now.

        Its id; id -> address of all masters; the addresses of the others; and the ids of those
        before it.
        """
        opts = self._master_options()
        masters = (opts.get("multimaster") or {}).get("masters") or []
        addresses = {master["id"]: master["address"] for master in masters}
        own, ids = opts["id"], list(addresses)
        others = [address for name, address in addresses.items() if name != own]
        return own, addresses, others, set(ids[: ids.index(own)]) if own in ids else set()

    def _is_foreign(self, address: str | None) -> bool:
        """
        Tell whether this host's daemon still has a key pair that is not the masters'.

        No minion of theirs is with it, its own neither, so that it would ask for ever; and those
        before it may be waiting for it.
        """
        import multimaster_cutover as cutover

        return bool(address) and self.ask(self.options(), str(address), PATIENCE) == cutover.FOREIGN

    def _another(self, addresses: Sequence[str]) -> bool:
        """Ask other masters once; tell whether one lets this host's minion in."""
        import multimaster_dial as dial

        options, answers = self.options(), []
        patience, self.patience = self.patience, min(2 * self.patience, LONGEST)

        def ask(address: str) -> None:
            # While signing begins or ends, a master that was restarted does what this minion does
            # not expect yet.
            answers.append(dial.lets_in(options, address, patience))

        for address in addresses:
            threading.Thread(target=ask, args=(address,), daemon=True).start()
        _until(lambda: any(answers) or len(answers) == len(addresses))
        if any(answers):
            self.patience = PATIENCE
            return True
        time.sleep(PAUSE)
        return False

    def _master_options(self) -> dict[str, Any]:
        import salt.config

        return dict(salt.config.master_config(self.args.master_config))

    def _proved(
        self, ids: Iterable[str], own: str, function: str, patience: float
    ) -> dict[str, Any]:
        """
        Ask hosts of masters about this service; return what they prove with the masters' key.

        Whoever proves nothing, as one does not with an older version of the formula or before it
        has a pair, has not answered: it is not waited for for ever, and lets nobody restart.

        own
            The minion on this host.  That it answers is all that is heard of it.
        """
        import multimaster_gather as gather
        import multimaster_keypair as keypair
        import multimaster_said as said

        opts, asked = self._master_options(), gather.signed(function, [self.args.service])
        tools: dict[str, Callable[..., Any]] = {
            "multimaster_keypair.proved": keypair.proved,
            "multimaster_said.check": said.check,
        }
        found = {}
        for name, reply in self._command(ids, "multimaster.signed", asked, patience).items():
            told, why = gather.proved(opts, tools, asked, name, reply)
            if why is None or name == own:
                found[name] = told
            else:
                log.warning("%s: %s: %s", function, name, said.plain(why))
        return found

    def _command(
        self, ids: Iterable[str], function: str, arguments: list[Any], patience: float
    ) -> dict[str, Any]:
        """Give a command on this host's master; return what was answered."""
        import salt.client
        from salt.exceptions import SaltException

        import multimaster_said as said
        from multimaster_gather import hardened, whole

        try:
            with salt.client.get_local_client(mopts=self._master_options()) as client:
                parts = hardened(client).cmd_iter(
                    sorted(ids),
                    function,
                    arguments,
                    tgt_type="list",
                    timeout=whole(patience),
                    gather_job_timeout=whole(patience),
                )
                return {
                    name: said.told(function, row["ret"])
                    for part in parts
                    for name, row in part.items()
                    if "ret" in row
                }
        except (SaltException, OSError) as err:
            log.info("%s: %s", function, err)
            return {}


def _ask_for(
    ask: Callable[[set[str], float], Mapping[str, Any]],
    left: Callable[[], set[str]],
    over: Callable[[Any], bool],
    own: str,
    times: int,
) -> None:
    """
    Ask minions until nothing is to be expected of any.

    left
        Gives who is waited for.
    over, times
        Tells whether an answer says that the minion need not be waited for; believed when it was
        heard so often.
    own
        The minion on this host.  One that is silent in several rounds in which this one answers is
        gone.
    """
    heard: dict[str, int] = {}
    silent: dict[str, int] = {}
    patience, pause = PATIENCE, PAUSE

    def waited_for() -> set[str]:
        return {
            name for name in left() if heard.get(name, 0) < times and silent.get(name, 0) < SEVERAL
        }

    while True:
        # Most are done while nobody asks.
        due = time.monotonic() + pause
        while (waiting := waited_for()) and time.monotonic() < due:
            time.sleep(POLL)
        if not waiting:
            return
        pause = min(2 * pause, LONGEST_PAUSE)
        answers = ask({*waiting, own}, patience)
        for name in waiting & set(answers):
            heard[name] = heard.get(name, 0) + 1 if over(answers[name]) else 0
        if own in answers:
            for name in waiting:
                silent[name] = 0 if name in answers else silent.get(name, 0) + 1
        if not waiting <= set(answers):
            patience = min(2 * patience, LONGEST)


def _at_work(requests: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether a job that has asked is still there."""
    return any(one["job"] and process(one["job"][0]) == one["job"] for one in requests)


def _tell(opts: dict[str, Any], pidfile: str, data: dict[str, Any]) -> None:
    """Send an event to every master that the minion is connected to, as its own jobs do."""
    import multimaster_dial as dial

    heard = data["heard"]
    tag = f"multimaster/minion/{opts['id']}/cutover"
    masters = dial.connected(_daemon(pidfile), heard, opts) or heard
    # Others may wait for this program's lock.
    taken = dial.tell_each(opts, masters, TELL, tag, data)
    if not taken:
        log.warning("cut over: no master has taken the event %s", tag)


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(POLL)


def _daemon(pidfile: str) -> int:
    """Return the process id in a pid file; else 0."""
    try:
        with open(pidfile) as handle:
            return int(handle.read())
    except (OSError, ValueError):
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Restart a Salt daemon after a job.")
    parser.add_argument("--config", required=True, help="the minion's configuration file")
    parser.add_argument("--service", required=True)
    parser.add_argument("--pidfile", required=True)
    parser.add_argument("--master-config", default="", help="wait for the jobs' returns there too")
    parser.add_argument("--journal", default="", help="of the minion's cut-over")
    parser.add_argument("--log", required=True)
    return parser


def leave(code: int) -> None:
    """
    End this process at once.

    A question to a master that does not answer is left to its thread, and Python would wait for
    what ZeroMQ still has open there: for ever.
    """
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    # Behind the libraries: a site may have a custom module of any name beside this file.
    sys.path.append(sys.path.pop(0))
    leave(main())
