"""Gives jobs at a steady rate, or tells which returned: a program for a master's host.

Takes the path of the master's configuration, what to do, and for that:

``give INTERVAL DURATION MINIONS...``
    Until its input ends: one job each INTERVAL seconds, which lasts DURATION seconds, for the
    minions of one list after the other.  A line of JSON for each: ``asked`` and ``at``, when the
    master was asked and when its answer was there (epoch), and ``jid`` and ``minions`` of a job
    that it has taken, else ``refused`` with the reason.
``returned``
    Reads ids of jobs, and prints one line of JSON: each id with the minions whose return is in the
    master's job cache.

One process for all jobs, as a start of ``salt`` costs a second of processor time.
"""

import itertools
import json
import select
import sys
import time
from typing import Any

import salt.client
import salt.config
import salt.exceptions

# Seconds until a master that does not answer has refused a job.
PATIENCE = 2


def give(opts: dict[str, Any], interval: float, duration: float, targets: list[str]) -> None:
    """Give a job now and then, whether the master is there, gone or back."""
    client, due, turns = None, time.monotonic(), itertools.cycle(targets)
    while not select.select([sys.stdin], [], [], max(0, due - time.monotonic()))[0]:
        said: dict[str, Any] = {}
        asked = time.time()
        try:
            client = client or salt.client.LocalClient(mopts=opts)
            argv = [next(turns), "lab_evidence.note", [duration]]
            said = client.pub(*argv, tgt_type="list", timeout=PATIENCE) or {"refused": "no answer"}
        except (salt.exceptions.SaltException, OSError) as err:
            said["refused"] = str(err)[:80] or type(err).__name__
        print(json.dumps({**said, "asked": asked, "at": time.time()}), flush=True)
        # What was missed while the master did not answer is not made up for.
        due = due + interval if due + interval > time.monotonic() else time.monotonic() + interval


def returned(opts: dict[str, Any]) -> None:
    """Look up jobs in the job cache."""
    client = salt.client.LocalClient(mopts=opts)
    jids = sys.stdin.read().split()
    print(json.dumps({jid: sorted(client.get_cache_returns(jid)) for jid in jids}))


def main() -> None:
    """Do what the arguments say."""
    opts = salt.config.master_config(sys.argv[1])
    if sys.argv[2] == "give":
        give(opts, float(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
    else:
        returned(opts)


if __name__ == "__main__":
    main()
