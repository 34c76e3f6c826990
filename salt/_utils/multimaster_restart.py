"""
Restarts a Salt daemon from within one of its own jobs, and after that job: a program, not a part of
the core, and here because it has to be a file on every host.

A daemon that stops takes its job processes with it, children and all, so this runs as a program of
its own, outside the daemon's process tree.  It waits until the job that asked for it, and every
other job of this minion, is over and has been returned, and then restarts the service through
Salt's ``service`` module.  With a journal of ``multimaster_cutover`` it also sees to it that a
master answers to the minion afterwards.
"""

import argparse
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

POLL = 0.2
# How long a master's job may stay without any new return before it counts as over.
QUIET = 30
# Jobs that nobody misses: who looks so looks again, and on a host with much to do there may always
# be one of them.
LOOKS = {"multimaster_orch.facts", "saltutil.find_job"}
# Seconds between two times that a daemon is started that does not come, and after which it is given
# up.
AGAIN, PERSISTENCE = 15, 150
# Seconds for a master that has just answered to take an event.
TELL = 30

log = logging.getLogger("multimaster.restart")


def program() -> str:
    """Return the path of this file, for whoever starts it as a program."""
    return os.path.abspath(__file__)


def lock_path(log_file: str, service: str) -> str:
    """Return the file that is locked while a service's restart is under way."""
    return f"{log_file}.{service}.lock"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 when the service runs with a daemon younger than the request."""
    args = _parser().parse_args(argv)
    logging.basicConfig(
        filename=args.log,
        level=logging.INFO,
        format=f"%(asctime)s {args.service} [%(process)d] %(message)s",
    )
    # The file beside this one: not to be found while Salt's loader looks at this one.
    import multimaster_cutover as cutover

    requested = time.time()
    deadline = time.monotonic() + args.timeout
    log.info("restart requested by process %s, job %s", args.pid, args.jid or "none")
    # One restart at a time; whoever comes second may find the work done.
    with cutover.alone(lock_path(args.log, args.service)):
        import salt.config

        opts = salt.config.minion_config(args.config)
        if not _wait(lambda: not cutover.alive(args.pid) and not _jobs(opts), deadline):
            log.warning("jobs still run after %s s; restarting all the same", args.timeout)
        if args.master_config and args.jid:
            _wait_for_returns(args.master_config, args.jid, deadline)
        if args.journal and cutover.pending(args.journal):
            return _cut_over(args, opts, deadline)
        if _started(args.pidfile) > requested:
            log.info("restarted meanwhile")
            return 0
        return _restart(opts, args.service, args.pidfile)


def _cut_over(args: argparse.Namespace, opts: dict[str, Any], deadline: float) -> int:
    """Take the minion to its new configuration, or back; tell its masters which."""
    import salt.config

    import multimaster_cutover as cutover

    def restart() -> bool:
        # Jobs may have come since the first restart.
        _wait(lambda: not _jobs(opts), deadline)
        return _restart(opts, args.service, args.pidfile) == 0

    journal = cutover.carry_out(
        args.journal,
        opts=lambda: dict(salt.config.minion_config(args.config)),
        daemon=lambda: _daemon(args.pidfile),
        begun=lambda: _started(args.pidfile),
        restart=restart,
    )
    if journal.get("step") not in cutover.OUTCOMES:
        return 1
    # The options of the configuration that it has come to.
    opts = salt.config.minion_config(args.config)
    _tell(opts, args.pidfile, {name: journal[name] for name in ("step", "heard", "seconds")})
    return 0 if journal["step"] == "kept" else 1


def _tell(opts: dict[str, Any], pidfile: str, data: dict[str, Any]) -> None:
    """Send an event to every master that the minion is connected to, as its own jobs do."""
    import multimaster_dial as dial

    heard = data["heard"]
    tag = f"multimaster/minion/{opts['id']}/cutover"
    taken = []

    def tell(master: str) -> None:
        if dial.tell(opts, master, TELL, tag, data):
            taken.append(master)

    telling = [
        threading.Thread(target=tell, args=(master,), daemon=True)
        for master in dial.connected(_daemon(pidfile), heard, opts["master_port"]) or heard
    ]
    for one in telling:
        one.start()
    # For signing in and for the answer; others may wait for this program's lock.
    deadline = time.monotonic() + 2 * TELL
    for one in telling:
        one.join(max(0.0, deadline - time.monotonic()))
    if not taken:
        log.warning("cut over: no master has taken the event %s", tag)


def _restart(opts: dict[str, Any], service: str, pidfile: str) -> int:
    """Restart through Salt's service module and wait until a new daemon is there."""
    import salt.client

    before = _started(pidfile)
    opts["file_client"] = "local"
    caller = salt.client.Caller(mopts=opts)

    def control(function: str) -> Any:
        try:
            return caller.cmd(function, service)
        # Whatever it is: somebody has to see to it that the daemon comes.
        except Exception as err:
            return err

    result = control("service.restart")
    deadline = time.monotonic() + PERSISTENCE
    while not (came := _wait(lambda: _started(pidfile) > before, time.monotonic() + AGAIN)):
        if time.monotonic() > deadline:
            break
        if control("service.status") is not True:
            # A daemon ends at once if its predecessor was killed and init has not reaped it yet.
            log.warning("%s does not run; service.start: %s", service, control("service.start"))
    log.info("service.restart: %s; new daemon: %s", result, came)
    return 0 if came else 1


def _wait_for_returns(master_config: str, jid: str, deadline: float) -> None:
    """Wait until each minion that got the job from this master has returned, or none does more."""
    import salt.config
    import salt.loader

    opts = salt.config.master_config(master_config)
    returners = salt.loader.returners(opts, {})
    cache = opts["master_job_cache"]
    expected = set(returners[f"{cache}.get_load"](jid).get("Minions") or [])
    if not expected:
        # The job came from another master, whose restart is not asked for here.
        return
    returned: set[str] = set()
    last = time.monotonic()
    while returned < expected and time.monotonic() < min(deadline, last + QUIET):
        now = set(returners[f"{cache}.get_jid"](jid))
        if now != returned:
            returned, last = now, time.monotonic()
        time.sleep(POLL)
    if returned < expected:
        log.warning("no return of job %s from %s", jid, ", ".join(sorted(expected - returned)))


def _wait(condition: Callable[[], bool], deadline: float) -> bool:
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def _jobs(opts: dict[str, Any]) -> list[Any]:
    import salt.utils.minion

    return [job for job in salt.utils.minion.running(opts) if job.get("fun") not in LOOKS]


def _daemon(pidfile: str) -> int:
    """Return the process id in a pid file; else 0."""
    try:
        with open(pidfile) as handle:
            return int(handle.read())
    except (OSError, ValueError):
        return 0


def _started(pidfile: str) -> float:
    """Return when the daemon of a pid file was started, in seconds since the epoch; else 0."""
    import psutil

    try:
        return float(psutil.Process(_daemon(pidfile)).create_time()) if _daemon(pidfile) else 0.0
    except psutil.NoSuchProcess:
        return 0.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Restart a Salt daemon after a job.")
    parser.add_argument("--config", required=True, help="the minion's configuration file")
    parser.add_argument("--service", required=True)
    parser.add_argument("--pidfile", required=True)
    parser.add_argument("--pid", type=int, default=0, help="process of the job")
    parser.add_argument("--jid", default="")
    parser.add_argument("--master-config", default="", help="wait for the job's returns there too")
    parser.add_argument("--journal", default="", help="of the minion's cut-over")
    parser.add_argument("--timeout", type=float, required=True, help="seconds")
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
    leave(main())
