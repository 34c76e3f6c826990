"""
One state run after the other on a minion: a program for a test.

Arguments: the master's configuration file, the minion and the state.  Prints a line of JSON for
each run, the ids of its states or an error, and ends when its input does.
"""

from __future__ import annotations

import json
import sys
import threading

import salt.client
import salt.config


def main() -> None:
    """Run until the input ends."""
    path, minion, state = sys.argv[1:]
    client = salt.client.get_local_client(mopts=salt.config.master_config(path))
    over = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    while not over.is_set():
        found = client.cmd(minion, "state.apply", [state], timeout=60).get(minion)
        if isinstance(found, dict):
            found = {"ids": sorted(one["__id__"] for one in found.values())}
        else:
            found = {"error": str(found)}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
