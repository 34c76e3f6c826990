"""Faults of a laboratory: each is a context manager that undoes itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.keys import make_pair
from lab.laboratory import Laboratory

MASTER = "salt-master"
# How each fault of a daemon ends.
UNDO = {"kill": "start", "stop": "start", "freeze": "thaw"}
# What a starved master gets of one processor.
SHARE = "1/5"


@contextlib.contextmanager
def down(lab: Laboratory, verb: str, *masters: str) -> Iterator[None]:
    """Kill (SIGKILL), stop or freeze (SIGSTOP) the daemons of masters at once; bring them back."""

    def control(master: str, what: str) -> None:
        lab.driver.control(lab.lab, lab.host(master), what, MASTER)

    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        for master in masters:
            stack.callback(control, master, UNDO[verb])
        for done in [pool.submit(control, master, verb) for master in masters]:
            done.result()
        yield


@contextlib.contextmanager
def cut_off(lab: Laboratory, host_id: str, *others: str) -> Iterator[None]:
    """Drop every packet between a host and others, all unless named (docker driver)."""
    try:
        cut_from = [lab.host(other) for other in others or sorted(lab.ids - {host_id})]
        lab.driver.cut(lab.lab, lab.host(host_id), *cut_from)
        yield
    finally:
        lab.driver.heal(lab.lab)


@contextlib.contextmanager
def gone(lab: Laboratory, host_id: str) -> Iterator[None]:
    """Take a host away without a word: no packet passes, and it does nothing (docker driver)."""
    # The kernel would answer for a host that is only paused.
    with cut_off(lab, host_id):
        lab.driver.pause(lab.lab, lab.host(host_id))
        try:
            yield
        finally:
            lab.driver.resume(lab.lab, lab.host(host_id))


@contextlib.contextmanager
def starved(lab: Laboratory, master: str) -> Iterator[None]:
    """Leave the host of a master a small share of its speed."""
    with lab.slowed(SHARE, master):
        yield


@contextlib.contextmanager
def own_disk(lab: Laboratory, master: str, directory: str, size: str) -> Iterator[None]:
    """Give a directory of a master a small disk of its own, with what is in it (docker driver)."""
    with lab.stopped(master, MASTER):
        script = (
            'cp -a "$1" "$1.kept" && mount -t tmpfs -o size="$2",mode=0750 tmpfs "$1" &&'
            ' chown --reference="$1.kept" "$1" && cp -a "$1.kept"/. "$1"'
        )
        _must(lab, master, "sh", "-c", script, "sh", directory, size)
    try:
        yield
    finally:
        with lab.stopped(master, MASTER):
            # What has been written meanwhile is kept, as it would be on a disk.
            script = (
                'rm -rf "$1.kept" && cp -a "$1" "$1.kept" && umount "$1" && rm -r "$1" &&'
                ' mv "$1.kept" "$1"'
            )
            _must(lab, master, "sh", "-c", script, "sh", directory)


@contextlib.contextmanager
def full(lab: Laboratory, host_id: str, directory: str) -> Iterator[None]:
    """Fill the disk that a directory is on; it has to be a small one (:func:`own_disk`)."""
    filler = f"{directory}/filler"
    try:
        fill = lab.run(host_id, "sh", "-c", 'cat /dev/zero > "$1"', "sh", filler)
        assert "No space left" in fill.stderr, fill.stderr
        yield
    finally:
        _must(lab, host_id, "rm", "-f", filler)


def foreign_pair(lab: Laboratory, master: str) -> contextlib.AbstractContextManager[None]:
    """Give a master another key pair, as from an old backup; it is made before the fault."""
    pki = Path(lab.host(master).master_pki_dir)
    paths = {suffix: f"{pki}/{master}.{suffix}" for suffix in ("pem", "pub")}
    own = {suffix: lab.read(master, path) for suffix, path in paths.items()}
    other = dict(zip(paths, make_pair(), strict=True))

    def install(pair: dict[str, str]) -> None:
        with lab.stopped(master, MASTER):
            for suffix, path in paths.items():
                # The file stays, and with it owner and mode.
                _must(lab, master, "sh", "-c", 'cat > "$1"', "sh", path, text=pair[suffix])

    @contextlib.contextmanager
    def fault() -> Iterator[None]:
        install(other)
        try:
            yield
        finally:
            install(own)

    return fault()


@contextlib.contextmanager
def alias(lab: Laboratory, host_id: str, name: str, number: int) -> Iterator[None]:
    """Give a host one more address, and a name that says so on every host (docker driver)."""
    address = f"{lab.lab.net}.{number}"
    _must(lab, host_id, "ip", "address", "add", f"{address}/24", "dev", "eth0")
    lab.driver.aliases[address] = host_id
    _resolve(lab, name, address)
    try:
        yield
    finally:
        _must(lab, host_id, "ip", "address", "delete", f"{address}/24", "dev", "eth0")


@contextlib.contextmanager
def moved(lab: Laboratory, host_id: str, name: str, numbers: tuple[int, int]) -> Iterator[None]:
    """Have an :func:`alias` of a host leave its address for another one; undone in the end."""

    def move(old: int, new: int) -> None:
        device = ["dev", "eth0"]
        _must(lab, host_id, "ip", "address", "delete", f"{lab.lab.net}.{old}/24", *device)
        _must(lab, host_id, "ip", "address", "add", f"{lab.lab.net}.{new}/24", *device)
        lab.driver.aliases[f"{lab.lab.net}.{new}"] = host_id
        _resolve(lab, name, f"{lab.lab.net}.{new}")

    move(*numbers)
    try:
        yield
    finally:
        move(numbers[1], numbers[0])


@contextlib.contextmanager
def misled(lab: Laboratory, host_id: str, name: str, numbers: tuple[int, int]) -> Iterator[None]:
    """Have an :func:`alias` lead one host to another address, where nobody is."""
    _resolve(lab, name, f"{lab.lab.net}.{numbers[1]}", host_id)
    try:
        yield
    finally:
        _resolve(lab, name, f"{lab.lab.net}.{numbers[0]}", host_id)


def _resolve(lab: Laboratory, name: str, address: str, *host_ids: str) -> None:
    # The engine mounts that file, so that it can be written and not replaced.
    script = 'kept=$(grep -v " $1$" /etc/hosts); printf "%s\\n" "$kept" "$2 $1" > /etc/hosts'
    for host_id in host_ids or lab.ids:
        _must(lab, host_id, "sh", "-c", script, "sh", name, address)


def _must(lab: Laboratory, host_id: str, *argv: str, text: str | None = None) -> None:
    done = lab.run(host_id, *argv, input=text)
    assert done.returncode == 0, f"{host_id}: {' '.join(argv)}: {done.stderr}"
