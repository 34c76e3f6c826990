"""Runs on a host: prints every file that holds one of the needles which come in on stdin.

The needles are pieces of private keys, so they must not be arguments.
"""

import json
import os
import sys

CHUNK = 1 << 20


def holds(path: str, needles: list[bytes], longest: int) -> bool:
    """Tell whether a file holds a needle, also across the border of two chunks."""
    with open(path, "rb") as handle:
        tail = b""
        while chunk := handle.read(CHUNK):
            if any(needle in tail + chunk for needle in needles):
                return True
            tail = chunk[-longest:]
    return False


def main() -> None:
    """Read ``{needles, roots, allowed}`` and print the paths found as JSON."""
    job = json.load(sys.stdin)
    needles = [needle.encode() for needle in job["needles"]]
    longest = max(map(len, needles))
    found = []
    for root in job["roots"]:
        for directory, _, names in os.walk(root):
            for name in names:
                path = os.path.join(directory, name)
                if path.startswith(tuple(job["allowed"])) or not os.path.isfile(path):
                    continue
                try:
                    if holds(path, needles, longest):
                        found.append(path)
                except FileNotFoundError:
                    # Gone meanwhile, as files of running daemons are.
                    continue
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
