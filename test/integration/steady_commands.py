"""
Commands at a steady rate, from masters in turn, and what became of each: a program for a test.

Arguments: seconds between two commands, the minions (joined by commas), and the masters'
configuration files.  A line of input names the file of the master to stay away from from then on.
Where the minions are behind by ``BEHIND`` commands, no more are given until they have caught up, as
a minion that is given ever more than it can do answers none.
Ends when its input does, and prints JSON: how many commands were accepted, and what was lost: job,
master, minions.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import sys
import threading
import time
from typing import Any

import salt.client
import salt.config
import salt.exceptions
import salt.loader

# Commands without all their returns that there are at most, but for those that seem lost.
BEHIND = 3
# Seconds without any return after which one that is not there is lost.
PATIENCE = 60


def give(opts: dict[str, Any], minions: list[str]) -> str | None:
    """Give one command; return its id if the master has accepted it."""
    try:
        with salt.client.get_local_client(mopts=opts) as client:
            job = client.run_job(minions, "test.ping", tgt_type="list", timeout=5, listen=False)
    except (salt.exceptions.SaltException, OSError):
        return None
    return job.get("jid")


def returned(opts: dict[str, Any], jid: str) -> set[str]:
    """Return the minions whose return is in the master's job cache."""
    returners = salt.loader.returners(opts, {})
    return set(returners[f"{opts['master_job_cache']}.get_jid"](jid))


def main() -> None:
    """Give commands until the input ends, then wait for the returns."""
    interval, minions = float(sys.argv[1]), sys.argv[2].split(",")
    masters = {path: salt.config.master_config(path) for path in sys.argv[3:]}
    over = threading.Event()
    away: list[str] = [""]
    given: list[tuple[str, str]] = []

    def listen() -> None:
        for line in sys.stdin:
            away[0] = line.strip()
        over.set()

    def one(path: str) -> None:
        jid = give(masters[path], minions)
        if jid:
            given.append((jid, path))

    left: dict[tuple[str, str], set[str]] = {}
    progress = time.monotonic()

    def look() -> None:
        nonlocal progress
        for job in given:
            left.setdefault(job, set(minions))
        for (jid, path), missing in list(left.items()):
            if missing and (come := missing & returned(masters[path], jid)):
                progress = time.monotonic()
                left[jid, path] = missing - come

    def behind() -> bool:
        look()
        waiting = sum(map(bool, left.values()))
        return waiting >= BEHIND and time.monotonic() - progress < PATIENCE

    threading.Thread(target=listen, daemon=True).start()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for path in itertools.cycle(masters):
            if path == away[0]:
                continue
            if over.wait(interval):
                break
            if not behind():
                pool.submit(one, path)
    progress = time.monotonic()
    look()
    while any(left.values()) and time.monotonic() - progress < PATIENCE:
        time.sleep(0.5)
        look()
    lost = [[*job, sorted(names)] for job, names in left.items() if names]
    print(json.dumps({"accepted": len(given), "lost": lost}))


if __name__ == "__main__":
    main()
