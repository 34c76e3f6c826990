"""
A disk of a master that is full or read-only is named by the status, and what was missed comes.

Real file systems, mounted where the master has its keys or its ledger.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from lab.decisions import MASTERS, decide, until_all_say, wait_for_key
from lab.keys import make_pair
from lab.laboratory import Laboratory, applied

pytestmark = [pytest.mark.long, pytest.mark.root]

NET = "127.0.103"
OTHERS = ("saltm1", "saltm3")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three masters and a minion, with the formula applied."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with applied(directory, "process", masters=3, minions=1, net=NET) as made:
        yield made


def must(lab: Laboratory, host: str, script: str, *arguments: str) -> None:
    done = lab.run(host, "sh", "-euc", script, "sh", *arguments)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def disk(lab: Laboratory, master: str, directory: str) -> Iterator[Callable[[str], None]]:
    """Put a directory of a master on a disk of its own; yield what breaks it, by what it is."""
    small = 'mv "$1" "$1.real"; mkdir "$1"; mount -t tmpfs -o size=8m,mode=700 tmpfs "$1"'
    with lab.stopped(master, "salt-master"):
        must(lab, master, f'{small}; cp -a "$1.real/." "$1/"', directory)

    def breaks(how: str) -> None:
        if how == "full":
            # To the last byte, of which the file system keeps none for root.
            must(lab, master, 'cat /dev/zero > "$1/filler" 2> /dev/null || true', directory)
            return
        with lab.stopped(master, "salt-master"):
            must(lab, master, 'mount -o remount,ro "$1"', directory)

    try:
        lab.until_connected()
        yield breaks
    finally:
        back = 'cp -a "$1" "$1.copy"; umount "$1"; rmdir "$1"; mv "$1.copy" "$1"'
        with lab.stopped(master, "salt-master"):
            must(lab, master, f'rm -rf "$1.real"; {back}; rm -f "$1/filler"', directory)


@pytest.mark.parametrize("how", ["full", "read-only"])
@pytest.mark.parametrize("store", ["keys", "ledger"])
def test_what_a_master_could_not_write_is_named_and_comes_when_it_can(
    lab: Laboratory, store: str, how: str
) -> None:
    host = lab.host("saltm2")
    directory = {"keys": host.master_pki_dir, "ledger": f"{host.master_cache_dir}/multimaster"}
    name = f"{store}-{how}"
    with disk(lab, "saltm2", str(directory[store])) as breaks:
        wait_for_key(lab, name, make_pair()[1], MASTERS)
        breaks(how)
        decide(lab, "saltm1", "accept", name)
        until_all_say(lab, name, "accepted", *OTHERS)
        named: list[str] = []

        def said() -> list[str]:
            named[:] = [line for line in lab.status()[1]["problems"] if "saltm2" in line]
            return [line for line in named if "pending keys" not in line]

        lab.until(said, "the status to name saltm2 for it", lambda: named)
        print(named)
    until_all_say(lab, name, "accepted")
    decide(lab, "saltm3", "delete", name)
    until_all_say(lab, name, None)
    lab.until_connected()
