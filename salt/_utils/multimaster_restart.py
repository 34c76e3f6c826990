"""
Restarts a Salt daemon from within one of its own jobs, and after that job: a program, not a part of
the core, and here because it has to be a file on every host.

A daemon that stops takes its job processes with it, children and all, so this runs as a program of
its own, outside the daemon's process tree.  It waits until the job that asked for it, and every
other job of this minion, is over and has been returned, and then restarts the service through
Salt's ``service`` module.
"""

import argparse
import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

POLL = 0.2
# How long a master's job may stay without any new return before it counts as over.
QUIET = 30

log = logging.getLogger("multimaster.restart")


def program() -> str:
    """Return the path of this file, for whoever starts it as a program."""
    return os.path.abspath(__file__)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 when the service runs with a daemon younger than the request."""
    args = _parser().parse_args(argv)
    logging.basicConfig(
        filename=args.log,
        level=logging.INFO,
        format=f"%(asctime)s {args.service} [%(process)d] %(message)s",
    )
    requested = time.time()
    deadline = time.monotonic() + args.timeout
    log.info("restart requested by process %s, job %s", args.pid, args.jid or "none")
    with open(f"{args.log}.{args.service}.lock", "w") as lock:
        # One restart at a time; whoever comes second may find the work done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        import salt.config

        opts = salt.config.minion_config(args.config)
        if not _wait(lambda: not _alive(args.pid) and not _jobs(opts), deadline):
            log.warning("jobs still run after %s s; restarting all the same", args.timeout)
        if args.master_config and args.jid:
            _wait_for_returns(args.master_config, args.jid, deadline)
        if _started(args.pidfile) > requested:
            log.info("restarted meanwhile")
            return 0
        return _restart(opts, args.service, args.pidfile)


def _restart(opts: dict[str, Any], service: str, pidfile: str) -> int:
    """Restart through Salt's service module and wait until a new daemon is there."""
    import salt.client

    before = _started(pidfile)
    opts["file_client"] = "local"
    caller = salt.client.Caller(mopts=opts)
    result = caller.cmd("service.restart", service)
    came = _wait(lambda: _started(pidfile) > before, time.monotonic() + 15)
    if not came and not caller.cmd("service.status", service):
        # A daemon ends at once if its predecessor was killed and init has not reaped it yet.
        log.warning(
            "%s ended again; service.start: %s", service, caller.cmd("service.start", service)
        )
    came = came or _wait(lambda: _started(pidfile) > before, time.monotonic() + 60)
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


def _alive(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _jobs(opts: dict[str, Any]) -> list[Any]:
    import salt.utils.minion

    return list(salt.utils.minion.running(opts))


def _started(pidfile: str) -> float:
    """Return when the daemon of a pid file was started, in seconds since the epoch; else 0."""
    import psutil

    try:
        with open(pidfile) as handle:
            return float(psutil.Process(int(handle.read())).create_time())
    except (OSError, ValueError, psutil.NoSuchProcess):
        return 0.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Restart a Salt daemon after a job.")
    parser.add_argument("--config", required=True, help="the minion's configuration file")
    parser.add_argument("--service", required=True)
    parser.add_argument("--pidfile", required=True)
    parser.add_argument("--pid", type=int, required=True, help="process of the job")
    parser.add_argument("--jid", default="")
    parser.add_argument("--master-config", default="", help="wait for the job's returns there too")
    parser.add_argument("--timeout", type=float, required=True, help="seconds")
    parser.add_argument("--log", required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
