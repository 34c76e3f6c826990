"""
Digests of files: trees that a master serves, and what it has fetched from git.

Not a part of the core, since it reads files.  Imports nothing of Salt.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# Made by Python beside its sources, and nobody's states.
_MADE = "__pycache__"
# A file that changed so many nanoseconds ago may change again within one tick of its clock.
_FRESH = 2_000_000_000
# What has more than that is read piece by piece.
_PIECE = 1 << 20


class Hashes:
    """
    SHA-256 of files; one whose size, times and inode are what they were is not read again.

    path
        The file that they are kept in.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._known: dict[str, list[Any]] = {}
        self._used: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, RecursionError, ValueError):
            known = json.loads(pathlib.Path(path).read_text())
            if isinstance(known, dict):
                self._known = {name: one for name, one in known.items() if isinstance(one, list)}

    def of(self, path: str) -> str | None:
        """Return the hash of a file; None if it cannot be read."""
        try:
            status = os.stat(path)
            mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            known = self._known.get(path)
            if known and known[:-1] == mark:
                self._used[path] = known
                return str(known[-1])
            found = hashlib.sha256()
            with open(path, "rb") as handle:
                while piece := handle.read(_PIECE):
                    found.update(piece)
        except OSError:
            return None
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _FRESH:
            self._used[path] = [*mark, found.hexdigest()]
        return found.hexdigest()

    def save(self) -> None:
        """Keep what was used, if that is news; where that is not possible, it costs time."""
        if self._used == self._known:
            return
        scratch = f"{self.path}.{os.getpid()}"
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            with open(scratch, "w", opener=_private) as handle:
                json.dump(self._used, handle)
            os.replace(scratch, self.path)


def hashes(path: str) -> Hashes:
    """Return :class:`Hashes`; a function, since Salt's loader shows no classes."""
    return Hashes(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def tree(
    roots: Sequence[str],
    known: Hashes,
    ignored: Callable[[str], bool] = lambda path: False,
    follow: bool = True,
) -> dict[str, str]:
    """
    Return path -> hash of what some directories hold together; the first that has a path counts.

    ignored
        Tells whether the file server leaves a path out.
    follow
        Whether links to directories are followed.
    """
    found: dict[str, str] = {}
    for root in roots:
        for path in _files(root, follow):
            name = os.path.relpath(path, root)
            if name not in found and not ignored(name):
                found[name] = (known.of(path) or "unreadable")[:16]
    return found


def _files(root: str, follow: bool) -> Iterator[str]:
    for directory, names, files in os.walk(root, followlinks=follow):
        if os.path.islink(directory) and directory != root and _is_above(directory):
            # It would lead round and round.
            names.clear()
            continue
        if _MADE in names:
            names.remove(_MADE)
        names.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)
            if os.path.isfile(path):
                yield path


def _is_above(link: str) -> bool:
    """Tell whether a link leads to one of the directories that it is in."""
    target = pathlib.Path(os.path.realpath(link))
    return target in pathlib.Path(os.path.realpath(os.path.dirname(link)), "x").parents


def repositories(root: str) -> Iterator[tuple[str, str]]:
    """Yield the remote and the git directory of every repository below a directory."""
    for directory, names, files in os.walk(root):
        if "HEAD" in files and "objects" in names and "config" in files:
            names.clear()
            with contextlib.suppress(OSError):
                text = pathlib.Path(directory, "config").read_text(errors="replace")
                if url := re.search(r"^\s*url\s*=\s*(.+?)\s*$", text, re.MULTILINE):
                    yield url[1], directory
        elif ".git" in names:
            names[:] = [".git"]


def commits(directory: str) -> dict[str, str]:
    """
    Return branch or tag -> commit, as a repository has fetched them.

    Read without git, which would run what the repository's configuration says, and as root.
    """
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in pathlib.Path(directory, "packed-refs").read_text().splitlines():
            commit, _, name = line.partition(" ")
            if name.startswith("refs/"):
                found[name] = commit
    for path in pathlib.Path(directory, "refs").rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.name.endswith(".lock"):
                found[str(path.relative_to(directory))] = path.read_text().strip()
    wanted = ("refs/remotes/origin/", "refs/tags/")
    return {
        name: commit
        for name, commit in found.items()
        # A symbolic one follows another.
        if name.startswith(wanted) and not commit.startswith("ref:")
    }


def subscribed(opts: Mapping[str, Any], tables: Mapping[str, str]) -> int:
    """Return how many connections the publisher of this host's master has; ``opts`` are its."""
    address = opts["interface"]
    own = re.fullmatch(r"\d+(\.\d+){3}", address) and address != "0.0.0.0"  # noqa: S104
    return established(tables, opts["publish_port"], address if own else None)


def established(tables: Mapping[str, str], port: int, address: str | None) -> int:
    """
    Return how many connections to a port there are.

    tables
        Texts of ``/proc/net/tcp`` and ``/proc/net/tcp6``, by the name of the file.
    address
        The IPv4 address at this end that counts; None: all.
    """
    wanted = None
    if address:
        wanted = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    count = 0
    for text in tables.values():
        for line in text.splitlines()[1:]:
            fields = line.split()
            here, _, number = fields[1].partition(":")
            # 01: established.
            if int(number, 16) == port and fields[3] == "01":
                count += wanted is None or here[-8:] == wanted
    return count
