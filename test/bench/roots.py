"""
How soon replicated roots are on the other masters, and what travels: a table, and JSON in .bench/.

Three masters on this machine, 5,000 files.  Beside each figure stands rsync, with the same tree, in
the same run; it copies within the machine, and neither encrypts nor switches.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import Row, report, save

from lab.decisions import MASTERS
from lab.laboratory import Laboratory, failures, laboratory
from lab.model import REPOSITORY
from lab.wait import until

NET = "127.0.104"
FILES = 5_000
ROUNDS = 10
PATIENCE = 600
SOURCE, FOLLOWERS = MASTERS[0], MASTERS[1:]
STORE = "var/cache/salt/master/multimaster/roots"
ANSWER = re.compile(r"'return': '([A-Za-z0-9+/=]+)'")


class Bench:
    """The laboratory, the tree that is changed, and a copy of it by rsync."""

    def __init__(self, lab: Laboratory, scratch: Path) -> None:
        self.lab = lab
        self.tree = lab.lab.directory / "srv/salt/many"
        self.copy = scratch / "copy"
        self.random = random.Random(1)
        self.links = {m: Path(lab.host(m).root, STORE, "current") for m in MASTERS}

    def text(self) -> str:
        """About a kilobyte of what configuration files look like to a compressor."""
        return "".join(f"option{self.random.randrange(10**6)}: {n}\n" for n in range(60))

    def fill(self) -> None:
        """Write all files."""
        scratch = self.tree.with_name("many.new")
        for number in range(FILES):
            path = scratch / f"{number % 100}/{number}.conf"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.text())
        scratch.rename(self.tree)

    def round(self, change: Any) -> dict[str, float]:
        """Make a change; return how long it took to reach the others, and what rsync took."""
        before = {master: os.readlink(link) for master, link in self.links.items()}
        seen = self.answers()
        started = time.time()
        change()
        until(
            lambda: all(os.readlink(self.links[m]) != before[m] for m in MASTERS),
            PATIENCE,
            "a switch on every master",
            interval=0.01,
        )
        # When the link was made, and not when it was noticed here.
        at = {master: os.lstat(link).st_mtime for master, link in self.links.items()}

        def settled() -> list[int]:
            answers = self.answers()[len(seen) :]
            return answers if len(answers) >= len(FOLLOWERS) else []

        answers = until(settled, PATIENCE, "the answers of the source among the events")
        found = {
            "noticed": at[SOURCE] - started,
            "followed": max(at[master] for master in FOLLOWERS) - at[SOURCE],
            "bytes": sum(answers) / len(FOLLOWERS),
        }
        return found | self.rsync()

    def answers(self) -> list[int]:
        """Return the length of each sealed answer so far, as it is in Salt's event."""
        found = []
        for master in FOLLOWERS:
            for line in self.lab.events(master).splitlines():
                if f"/ret/{SOURCE}'" in line and "'multimaster_roots.pull'" in line:
                    found += [len(text) for text in ANSWER.findall(line)]
        return found

    def rsync(self) -> dict[str, float]:
        """Bring the copy up to date."""
        argv = ["rsync", "-a", "--delete", "--stats", f"{self.tree}/", str(self.copy)]
        started = time.monotonic()
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        elapsed = time.monotonic() - started
        sent, received = (
            int(re.search(rf"Total bytes {what}: ([\d,]+)", done.stdout)[1].replace(",", ""))
            for what in ("sent", "received")
        )
        return {"rsync": elapsed, "rsync_bytes": float(sent + received)}


def measure(bench: Bench) -> dict[str, Any]:
    """Take all figures."""
    data: dict[str, Any] = {"all": bench.round(bench.fill)}
    print(f"  {FILES} files: {data['all']}", flush=True)
    data["one"] = []
    for number in range(ROUNDS):
        path = bench.tree / f"{number}/{number}.conf"
        scratch = path.with_suffix(".new")

        def change(path: Path = path, scratch: Path = scratch) -> None:
            scratch.write_text(bench.text())
            scratch.rename(path)

        data["one"].append(bench.round(change))
        print(f"  one of them: {data['one'][-1]}", flush=True)
    return data


def rows(data: dict[str, Any]) -> list[Row]:
    """Return the comparisons."""

    def median(name: str) -> float:
        return statistics.median(entry[name] for entry in data["one"])

    def slowest(name: str) -> float:
        return max(entry[name] for entry in data["one"])

    whole, work = data["all"], f"one of {FILES} files changed"
    return [
        Row(f"{work}: published until served, median", median("followed"), "3 seconds", 3.0, 1.0),
        Row(f"{work}: published until served, slowest", slowest("followed"), "3 seconds", 3.0),
        Row(f"{work}: published until served", median("followed"), "rsync", median("rsync")),
        Row(f"{work}: saved until published", slowest("noticed"), "10 seconds", 10.0, 1.0),
        Row(
            f"{work}: KiB to one master",
            median("bytes") / 1024,
            "rsync",
            median("rsync_bytes") / 1024,
            1.0,
        ),
        Row(
            f"{FILES} new files: published until served", whole["followed"], "rsync", whole["rsync"]
        ),
        Row(
            f"{FILES} new files: KiB to one master",
            whole["bytes"] / 1024,
            "rsync",
            whole["rsync_bytes"] / 1024,
            1.0,
        ),
    ]


def main() -> int:
    """Measure, print the table, write JSON; returns 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    if not shutil.which("rsync"):
        parser.error("rsync is not there, which is measured for comparison; Debian: rsync")
    with tempfile.TemporaryDirectory(prefix="multimaster-bench-") as directory:
        scratch = Path(directory)
        live = scratch / "lab/srv"
        replicate = {
            "source": SOURCE,
            "file_roots": {"base": [str(REPOSITORY / "salt"), str(live / "salt")]},
            "pillar_roots": {"base": [str(live / "pillar")]},
        }
        pillar = {"multimaster": {"roots": {"replicate": replicate}}}
        with laboratory(
            scratch / "lab", "process", masters=3, minions=0, net=NET, pillar=pillar
        ) as lab:
            result = lab.apply()
            if failures(result):
                raise SystemExit(f"the apply failed: {failures(result)}")
            lab.until_connected()
            bench = Bench(lab, scratch)
            until(
                lambda: all(link.exists() for link in bench.links.values()),
                PATIENCE,
                "roots on every master",
            )
            data = measure(bench)
    missed = report(rows(data))
    save("roots", data)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
