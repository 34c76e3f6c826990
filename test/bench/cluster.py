"""
What Salt's own cluster does with keys: three masters without a shared file system, on loopback.

Salt 3008 (``cluster_isolated_filesystem``).  Started one after the other, as three empty ones that
start together form no cluster.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from lab.keys import make_pair
from lab.model import LabError
from lab.wait import until

# Interface, id and peers have to be addresses; the lowest one has to be the first to start.
ADDRESSES = ("127.0.73.10", "127.0.73.11", "127.0.73.12")
KEYS = 10
# Seconds for a decision to reach the other masters.
ENOUGH = 10


def native_cluster(scratch: Path) -> dict[str, float]:
    """
    Decide on keys on one master of a cluster.

    Returns ``decided``, of how many keys a decision with salt-key reached another master, of
    ``expected`` ones; and ``automatic``, the seconds until a minion that one master lets in by
    itself is let in by all.
    """
    roots = {address: scratch / address for address in ADDRESSES}
    with contextlib.ExitStack() as stack:
        for address, root in roots.items():
            stack.enter_context(_master(address, root))
            joined = functools.partial(_joined, address, root)
            until(joined, 60, f"{address} to join the cluster")
        for root in roots.values():
            ready = root / "var/cache/salt/master/health/ready"
            until(ready.exists, 60, f"a ready cluster, {ready}")
        first, *others = (root / "pki/minions" for root in roots.values())
        for root in roots.values():
            for number in range(KEYS):
                path = root / f"pki/minions_pre/web{number}"
                path.parent.mkdir(exist_ok=True)
                path.write_text(make_pair()[1])
        _run("salt-key", f"--config-dir={first.parents[1]}", "--yes", "--accept-all")
        wanted = KEYS * len(others)
        with contextlib.suppress(LabError):
            until(lambda: _names(*others) == wanted, ENOUGH, "the keys on the other masters")
        decided = _names(*others)
        return {"decided": decided, "expected": wanted, "automatic": _automatic(scratch, roots)}


def _automatic(scratch: Path, roots: dict[str, Path]) -> float:
    """Return how long the key of a minion that signs in takes from one master to the others."""
    minion, (here, *others) = scratch / "minion", [root / "pki/minions" for root in roots.values()]
    minion.mkdir()
    options = {"root_dir": str(minion), "id": "signs-in", "master": ADDRESSES[0]}
    (minion / "minion").write_text(yaml.safe_dump(options | {"user": _user()}))
    argv = [_program("salt-call"), f"--config-dir={minion}", "test.ping"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        until((here / "signs-in").exists, 60, "the minion to sign in", interval=0.002)
        started = time.monotonic()
        for directory in others:
            path = directory / "signs-in"
            until(path.exists, 60, f"its key in {directory}", interval=0.002)
        return time.monotonic() - started


@contextlib.contextmanager
def _master(address: str, root: Path) -> Iterator[None]:
    root.mkdir()
    options = {
        "root_dir": str(root),
        "user": _user(),
        "interface": address,
        "id": address,
        "worker_threads": 2,
        "auto_accept": True,
        "pki_dir": str(root / "pki"),
        "cluster_id": "bench",
        "cluster_peers": [other for other in ADDRESSES if other != address],
        "cluster_pki_dir": str(root / "pki"),
        "cluster_secret": "of the benchmark",
        "cluster_isolated_filesystem": True,
    }
    (root / "master").write_text(yaml.safe_dump(options))
    argv = [_program("salt-master"), f"--config-dir={root}"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        try:
            yield
        finally:
            daemon.terminate()
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _joined(address: str, root: Path) -> bool:
    """Tell whether a master has joined; the first one has nobody to join, and listens."""
    if address != ADDRESSES[0]:
        return (root / f"var/cache/salt/master/.cluster_joined.{address}").exists()
    with contextlib.suppress(OSError), socket.create_connection((address, 4520), timeout=1):
        return True
    return False


def _names(*directories: Path) -> int:
    return sum(len(list(directory.glob("web*"))) for directory in directories)


def _run(name: str, *argv: str) -> None:
    done = subprocess.run([_program(name), *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} {' '.join(argv)}: {done.stderr}")


def _program(name: str) -> str:
    return str(Path(sys.prefix, "bin", name))


def _user() -> str:
    return psutil.Process().username()
