"""
Snapshots of file and pillar roots: what they are, how one follows from another, where they lie.

A snapshot is a tree that no longer changes, and its manifest: path -> hash, size and mode.  The
first half is pure.  The second, :class:`Store`, keeps snapshots in a directory, makes new ones
beside the old, and switches with one rename; killed anywhere it leaves the old or the new.  See
docs/roots-replicate.md.
"""

# Annotations stay evaluated: Salt's loader keeps a module out of sys.modules while it runs, where
# dataclasses would look postponed ones up.
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple

KINDS = ("file_roots", "pillar_roots")
# Of version control: nobody's states, and changed by merely looking at it.
LEFT_OUT = (".git", ".hg", ".svn")
EMPTY = hashlib.sha256(b"").hexdigest()

# Seconds that a tree stays after it was current; the present one and the one before stay longer.
KEPT = 600
# Seconds without a request after which a minion is asked whether its state run goes on, and those
# of who was in none are forgotten; and after which who is in none begins anew, or in any case.
RUN_IDLE = 3600
IDLE = 10
LONGEST = 60
# Seconds without a request, in the beginning of a highstate: it lists everything again and again.
OPENING = 30
# Seconds between the first requests of a run; and within which another listing is no new run.
SOON = 3
AT_ONCE = 0.5
LISTED = 5

# Bytes of a file that travel together.
PIECE = 64 * 1024

_CHUNK = 1 << 20
# Snapshots that are searched for a content, and that are kept in memory.
_LOOKED_THROUGH = 3
_REMEMBERED = 4
# New files in one tree from which on all of the disk's are written at once.
_MANY = 32
_HASH = re.compile(r"[0-9a-f]{64}")
_ENVIRONMENT = re.compile(r"(?!\.)[\w.-]+")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
_SNAPSHOT = re.compile(r"[0-9]{8,}-[0-9a-f]{16}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Bytes of a path below the roots, and directories above a file in it: what every system can hold.
_LONGEST_PATH = 2048
_DEEPEST = 128
# Of a directory that is not there, or is none any more.
_GONE = (errno.ENOENT, errno.ENOTDIR)


class RootsError(ValueError):
    """A tree that cannot be taken or made; the message is meant for a person."""


class Unsettled(RootsError):
    """Somebody is changing the tree while it is read."""


class Unreadable(RootsError):
    """A file that cannot be taken as it is; all others can."""


class File(NamedTuple):
    """A file in a manifest: SHA-256 of its content in hexadecimal, bytes, permission bits."""

    sha256: str
    size: int
    mode: int


@dataclass(frozen=True)
class Manifest:
    """What is in a tree: path -> :class:`File`, or None for a directory."""

    entries: Mapping[str, File | None] = field(default_factory=dict)

    @cached_property
    def text(self) -> str:
        """The one spelling of this manifest, which its digest is of."""
        return json.dumps(
            {"version": 1, "entries": self.entries}, sort_keys=True, separators=(",", ":")
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def contents(self) -> dict[str, int]:
        """SHA-256 -> size of every content in the tree that has any."""
        return {entry.sha256: entry.size for entry in self.entries.values() if entry and entry.size}

    def below(self, prefix: str) -> "Manifest":
        """Return the part below a directory, with paths relative to it."""
        start = f"{prefix}/"
        return Manifest(
            {
                path[len(start) :]: entry
                for path, entry in self.entries.items()
                if path.startswith(start)
            }
        )

    def environments(self, kind: str) -> dict[str, int]:
        """Return environment -> number of directories that make it up, for a kind of roots."""
        found: dict[str, int] = {}
        for path in self.entries:
            parts = path.split("/")
            if parts[0] == kind and len(parts) == 3:
                found[parts[1]] = found.get(parts[1], 0) + 1
        return found

    def digests(self) -> dict[str, dict[str, str]]:
        """Return kind -> environment -> digest of its content."""
        return {
            kind: {name: self.below(f"{kind}/{name}").digest for name in self.environments(kind)}
            for kind in KINDS
        }


def parse(text: str) -> Manifest:
    """Return the manifest in a text; :class:`RootsError` if it is none that a tree can have."""
    try:
        told = json.loads(text)
        if told["version"] != 1:
            raise RootsError(f"manifest version: got {told['version']!r}; supported: 1")
        entries = {str(path): _entry(value) for path, value in told["entries"].items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as err:
        raise RootsError(f"no manifest: {err}") from err
    return _checked(Manifest(entries))


def delta(old: Manifest, new: Manifest) -> dict[str, Any]:
    """Return what turns one manifest into another one, as plain data."""
    return {
        "gone": sorted(set(old.entries) - set(new.entries)),
        "set": {
            path: entry
            for path, entry in new.entries.items()
            if path not in old.entries or old.entries[path] != entry
        },
    }


def apply(change: Mapping[str, Any], old: Manifest) -> Manifest:
    """Return the manifest that :func:`delta` was given as new; :class:`RootsError` if none."""
    try:
        gone = set(change["gone"])
        entries = {path: entry for path, entry in old.entries.items() if path not in gone}
        entries.update({str(path): _entry(value) for path, value in change["set"].items()})
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as err:
        raise RootsError(f"no change of a manifest: {err}") from err
    return _checked(Manifest(entries))


def _entry(value: Any) -> File | None:
    if value is None:
        return None
    sha256, size, mode = value
    # Nor is a truth value a number.
    if not (
        _HASH.fullmatch(sha256)
        and type(size) is type(mode) is int
        and 0 <= size < 1 << 63
        and 0 <= mode <= 0o777
    ):
        raise RootsError(f"no entry of a manifest: {value!r}")
    return File(sha256, size, mode)


def _checked(manifest: Manifest) -> Manifest:
    """Return the manifest if each path is one below the roots, and in a directory of the tree."""
    for path, entry in manifest.entries.items():
        parts = path.split("/")
        if (
            parts[0] not in KINDS
            or len(parts) < 3
            or not _ENVIRONMENT.fullmatch(parts[1])
            or not _NUMBER.fullmatch(parts[2])
            or any(part in ("", ".", "..") for part in parts)
            or "\0" in path
            or not _is_path(path)
        ):
            raise RootsError(f"no path below the roots: {path!r}")
        parent = path.rpartition("/")[0]
        if len(parts) > 3 and manifest.entries.get(parent, "absent") is not None:
            raise RootsError(f"{path!r} is in no directory")
        if len(parts) == 3 and entry is not None:
            raise RootsError(f"{path!r} is no directory")
    return manifest


def _is_path(path: str) -> bool:
    """Tell whether every system can have such a path."""
    try:
        return len(path.encode()) <= _LONGEST_PATH and path.count("/") <= _DEEPEST
    except UnicodeEncodeError:
        return False


# Pins: which tree a minion gets


@dataclass(frozen=True)
class Pin:
    """
    The tree that one minion is served from.

    run
        A state run has begun; it keeps its tree until the next one begins, or the minion has said
        that none is under way.
    returned
        That was said, so that what comes next may begin anew.
    marks
        The beginnings that were seen: ``top:ENV`` for the top file, ``list:ENV`` for a listing.
    other
        Whether anything else was asked for.
    made, used
        When, in seconds since the epoch.
    """

    tree: str
    made: float
    used: float
    run: bool = False
    returned: bool = False
    marks: tuple[str, ...] = ()
    other: bool = False


def pinned(pin: Pin | None, kind: str, environment: str, current: str, now: float) -> Pin:
    """
    Return the pin that holds after a request, which is served from its tree.

    kind
        ``top``, the top file; ``list``, all files of an environment; ``sls``, another SLS file;
        ``more``, the content of a file whose hash was asked for; or ``other``.
    environment
        That the request is for.
    current
        The newest tree.

    A request does not say which job it belongs to.  A state run begins with its top file or with a
    listing, in an order that depends on Salt's version; a highstate lists everything once more for
    each kind of module that it syncs; after that come SLS files.
    """
    mark = f"{kind}:{environment}"
    starts = kind in ("top", "list")
    fresh = Pin(current, now, now, marks=(mark,) if starts else (), other=not starts)
    if pin is None or _is_over(pin, kind, now):
        return fresh
    if starts and _begins_anew(pin, kind, mark, abs(now - pin.used)):
        return fresh
    kept = replace(pin, used=now)
    if starts:
        return kept if mark in pin.marks else replace(kept, marks=(*pin.marks, mark))
    if kind == "sls" and pin.marks:
        return replace(kept, run=True, returned=False, other=True)
    return kept if kind == "more" else replace(kept, other=True)


def released(pin: Pin) -> Pin:
    """Return the pin after a state run is over: what it was for is over in a moment."""
    return replace(pin, run=False, returned=True)


def holds(pin: Pin, now: float) -> bool:
    """Tell whether the tree of a pin may still be asked for."""
    return pin.run or not is_quiet(pin, now)


def runs_states(function: Any) -> bool:
    """Tell whether a job is a state run by its function, or functions."""
    several = function if isinstance(function, list) else [function]
    return any(isinstance(one, str) and one.startswith("state.") for one in several)


def is_quiet(pin: Pin, now: float) -> bool:
    """Tell whether nothing was asked for under a pin for long."""
    return abs(now - pin.used) >= RUN_IDLE


def _is_over(pin: Pin, kind: str, now: float) -> bool:
    idle = abs(now - pin.used)
    if pin.run:
        # However long it takes: whether it goes on is known by its minion only.
        return False
    if kind == "more":
        return is_quiet(pin, now)
    if _highstate(pin):
        return idle > OPENING
    return idle > IDLE or abs(now - pin.made) > LONGEST


def _highstate(pin: Pin) -> bool:
    return any(mark.startswith("top:") for mark in pin.marks) and not pin.returned


def _begins_anew(pin: Pin, kind: str, mark: str, idle: float) -> bool:
    """Tell whether the beginning of a run is that of another one than the pin is for."""
    if idle < AT_ONCE and (pin.run or pin.other):
        # Within a template, say; and no minion gets a new job that far in that time.
        return False
    if pin.run:
        return not (kind == "list" and mark not in pin.marks and idle < LISTED)
    if kind == "list" and _highstate(pin):
        return False
    return pin.other or mark in pin.marks or not pin.marks or idle > SOON


# The live directories of the source


class Seen(NamedTuple):
    """A live file: where it is, what changes with its content, and its permission bits."""

    source: str
    mark: tuple[int, ...]
    mode: int


class _Guard:
    """Directories of which nothing may be taken, and what is in them under any name."""

    def __init__(self, directories: Iterable[str]) -> None:
        self.paths = [os.path.realpath(directory) for directory in directories]
        # A mount has no path that would tell.
        self.directories = {
            place
            for path in self.paths
            for directory, _, _ in os.walk(path)
            for place in _places([directory])
        }

    @cached_property
    def files(self) -> set[tuple[int, int]]:
        """The files, which may have second names elsewhere."""
        return {
            place
            for path in self.paths
            for directory, _, names in os.walk(path)
            for place in _places(os.path.join(directory, name) for name in names)
        }

    def has(self, path: str, status: os.stat_result, linked: bool) -> bool:
        """Tell whether something is, or leads to, what is guarded."""
        place = (status.st_dev, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            known = place in self.directories
        else:
            known = status.st_nlink > 1 and place in self.files
        if known or not linked:
            return known
        real = os.path.realpath(path)
        return any(_is_within(real, directory) for directory in self.paths)


def _places(paths: Iterable[str]) -> Iterator[tuple[int, int]]:
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            yield status.st_dev, status.st_ino


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")


@dataclass
class Scan:
    """
    A look at the live directories.

    entries
        Path -> what is there, None for a directory.
    skipped
        What cannot be served, and why; by where it is.
    kept
        Paths that cannot be read, which says nothing of what is there: they stay, with all that is
        below them, what they were.
    guard
        Tells what must not be taken, though it was another thing when it was looked at.
    """

    entries: Mapping[str, Seen | None]
    skipped: dict[str, str]
    kept: set[str] = field(default_factory=set)
    guard: _Guard | None = None


def scan(
    roots: Mapping[str, Mapping[str, list[str]]],
    guarded: Iterable[str] = (),
    follow: bool = True,
) -> Scan:
    """
    Look at live directories: kind -> environment -> directories, as Salt's options have them.

    guarded
        Directories of which nothing is taken, by whatever path or link it is reached.
    follow
        ``fileserver_followsymlinks``: whether links may lead out of the root that they are in.

    Links become what they lead to; what cannot be served is skipped and named.  Raises
    :class:`RootsError` if a directory is not there: an absent mount must not count as a deletion.
    """
    guard = _Guard(guarded)
    entries: dict[str, Seen | None] = {}
    skipped: dict[str, str] = {}
    kept: set[str] = set()
    for kind in KINDS:
        for environment, directories in roots.get(kind, {}).items():
            for number, directory in enumerate(directories):
                prefix = f"{kind}/{environment}/{number}"
                try:
                    walk = _Walk(directory, guard, follow, entries, skipped, kept)
                    walk.root(prefix)
                except OSError as err:
                    raise RootsError(f"{directory}: {err.strerror}") from err
    return Scan(entries, skipped, kept, guard)


def without(entries: Mapping[str, Any], aside: Iterable[str]) -> Mapping[str, Any]:
    """Return the entries that are neither one of some paths nor below one."""
    aside = set(aside)
    if not aside:
        return entries
    return {path: entry for path, entry in entries.items() if aside.isdisjoint(_upwards(path))}


def restless(counts: Mapping[str, int], changed: Iterable[str]) -> dict[str, int]:
    """
    Return path -> number of looks in a row that found it, or what is below it, changed.

    counts
        What this returned after the look before.
    changed
        What the present one has found.
    """
    paths = {above for path in changed for above in _upwards(path)}
    return {path: counts.get(path, 0) + 1 for path in paths}


def never_still(counts: Mapping[str, int], looks: int) -> set[str]:
    """Return the paths that were changed in so many looks; of those in each other the innermost."""
    found = {path for path, count in counts.items() if count >= looks}
    return found - {above for path in found for above in list(_upwards(path))[1:]}


def _upwards(path: str) -> Iterator[str]:
    """Yield a path, and the directories that it is in, up to that of an environment."""
    while path.count("/") >= 2:
        yield path
        path = path.rpartition("/")[0]


class _Walk:
    """A look at one live directory, which adds to what the looks at the others have found."""

    def __init__(
        self,
        directory: str,
        guard: _Guard,
        follow: bool,
        entries: dict[str, Seen | None],
        skipped: dict[str, str],
        kept: set[str],
    ) -> None:
        self.directory, self.guard, self.follow = directory, guard, follow
        self.entries, self.skipped, self.kept = entries, skipped, kept
        self.real = os.path.realpath(directory)

    def root(self, prefix: str) -> None:
        status = os.stat(self.directory)
        self.entries[prefix] = None
        if self.guard.has(self.directory, status, linked=True):
            self._skip(self.directory, "it is where keys are")
            return
        self._below(self.directory, prefix, {(status.st_dev, status.st_ino)})

    def _below(self, directory: str, prefix: str, above: set[tuple[int, int]]) -> None:
        with os.scandir(directory) as listing:
            items = list(listing)
        for item in items:
            if item.name not in LEFT_OUT:
                self._item(item, f"{prefix}/{item.name}", above)

    def _item(self, item: "os.DirEntry[str]", path: str, above: set[tuple[int, int]]) -> None:
        """Note one item; whatever is wrong with it, the others are noted as well."""
        try:
            item.name.encode()
        except UnicodeEncodeError:
            self._skip(item.path, "its name is not UTF-8")
            return
        if _CONTROL.search(item.name):
            self._skip(item.path, "its name has control characters")
            return
        if not _is_path(path):
            self._skip(item.path, "its path is too long")
            return
        try:
            self._taken(item, path, above)
        except OSError as err:
            self._skip(item.path, err.strerror or str(err))
            self.entries.pop(path, None)
            if err.errno not in (*_GONE, errno.EACCES, errno.EPERM, errno.ELOOP):
                # A disk that fails, say: what was there is not gone.
                self.kept.add(path)

    def _taken(self, item: "os.DirEntry[str]", path: str, above: set[tuple[int, int]]) -> None:
        status, linked = item.stat(), item.is_symlink()
        if self.guard.has(item.path, status, linked):
            self._skip(item.path, "it is where keys are")
            return
        if linked and not self.follow and not _is_within(os.path.realpath(item.path), self.real):
            self._skip(item.path, "a link out of its root; fileserver_followsymlinks is off")
            return
        if stat.S_ISDIR(status.st_mode):
            place = (status.st_dev, status.st_ino)
            if place in above:
                self._skip(item.path, "a link to a directory that it is in")
                return
            self.entries[path] = None
            self._below(item.path, path, above | {place})
        elif not stat.S_ISREG(status.st_mode):
            self._skip(item.path, "neither a file nor a directory")
        elif not os.access(item.path, os.R_OK):
            self._skip(item.path, "Permission denied")
        else:
            self.entries[path] = Seen(item.path, _mark(status), status.st_mode & 0o777)

    def _skip(self, path: str, reason: str) -> None:
        self.skipped[path if path.isprintable() else ascii(path)] = reason


def _mark(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


# Where snapshots lie


@dataclass(frozen=True)
class Damage:
    """What somebody has done to a tree that was not to change: paths relative to it."""

    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.missing or self.extra)

    @property
    def paths(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.changed, *self.missing, *self.extra)


class Store:
    """
    Snapshots below a directory, which belongs to the master's user and to nobody else.

    ``current`` is a link to the newest; ``trees/NAME`` has its ``manifest``, its ``index`` (what
    its files looked like when they were written) and the ``tree`` itself.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.trees = os.path.join(directory, "trees")
        self.incoming = os.path.join(directory, "incoming")
        self.objects = os.path.join(self.incoming, "objects")
        self.kept = os.path.join(directory, "kept")
        self.status_file = os.path.join(directory, "status.json")
        self._link = os.path.join(directory, "current")
        # Where root says on this host that an emptied directory is meant.
        self.demand = os.path.join(directory, "demand")
        # Snapshots do not change, and to read one takes longer than all that is asked of it.
        self._read: dict[str, tuple[Manifest, dict[str, list[int]]]] = {}
        # Edits in trees that were kept.
        self._aside: set[tuple[Any, ...]] = set()

    def prepare(self) -> None:
        """Make the directories, and remove what a predecessor that was killed has left."""
        shutil.rmtree(self.incoming, ignore_errors=True)
        for path in (self.directory, self.trees, self.incoming, self.objects, self.kept):
            os.makedirs(path, mode=0o700, exist_ok=True)
        os.chmod(self.directory, 0o700)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._link}.new")
        name = self.current()
        for other in self.names():
            # Made and never switched to.
            if name is None or other > name:
                self.remove(other)
        self.discard_unsound()

    def discard_unsound(self) -> list[str]:
        """
        Remove snapshots that do not say any more what is in them; return their names.

        If one was the newest, the one before is.
        """
        names = self.names()
        lost = [name for name in names if not self.is_sound(name)]
        left = [name for name in names if name not in lost]
        if left and self.current() not in (None, *left):
            self._point(left[-1])
        elif not left:
            _remove(self._link)
        for name in lost:
            self.remove(name)
        return lost

    def is_sound(self, name: str) -> bool:
        """Tell whether a snapshot's manifest can be read."""
        try:
            self.manifest(name)
        except (OSError, RootsError):
            return False
        return True

    def current(self) -> str | None:
        """Return the name of the newest snapshot, or None."""
        try:
            name = os.path.basename(os.readlink(self._link))
        except OSError as err:
            if err.errno in (*_GONE, errno.EINVAL):
                # Also what is no link.
                return None
            raise
        return name if _SNAPSHOT.fullmatch(name) else None

    def names(self) -> list[str]:
        """Return the names of all snapshots, in their order."""
        try:
            return sorted(filter(_SNAPSHOT.fullmatch, os.listdir(self.trees)))
        except FileNotFoundError:
            return []

    def tree(self, name: str, path: str = "") -> str:
        """Return where a snapshot's tree is, or a path in it."""
        return os.path.join(self.trees, name, "tree", path)

    def manifest(self, name: str) -> Manifest:
        """Return the manifest of a snapshot."""
        return self._known(name)[0]

    def index(self, name: str) -> dict[str, list[int]]:
        """Return path -> what the file looked like when it was written."""
        return self._known(name)[1]

    def live(self, name: str) -> dict[str, list[int]]:
        """Return path -> what the live file looked like that it was taken from; of the source."""
        return self._marks(name, "live")

    def find(self, digest: str) -> str | None:
        """Return the name of the newest snapshot with that digest, or None."""
        if not _HASH.fullmatch(digest):
            raise RootsError(f"no digest: {digest!r}")
        for name in reversed(self.names()):
            if (
                name.endswith(digest[:16])
                and self.is_sound(name)
                and self.manifest(name).digest == digest
            ):
                return name
        return None

    def open_file(self, name: str, path: str, looks: list[int] | None) -> BinaryIO | None:
        """Open a file of a snapshot for reading; None unless it is what was written there."""
        try:
            handle = open(self.tree(name, path), "rb")  # noqa: SIM115
        except OSError:
            return None
        if _look(os.fstat(handle.fileno())) != looks:
            handle.close()
            return None
        return handle

    def damage(self, name: str, prefix: str = "") -> Damage:
        """Compare a tree, or the part below a directory, with what was written there."""
        entries, index = self.manifest(name).entries, self.index(name)
        start = f"{prefix}/" if prefix else ""
        expected = {path for path in entries if path.startswith(start)}
        changed, extra = [], []
        for path, status in _everything(self.tree(name, prefix), prefix):
            if path.count("/") < 2:
                continue
            if path not in expected:
                extra.append(path)
                continue
            expected.discard(path)
            if entries[path] is None:
                if not stat.S_ISDIR(status.st_mode):
                    changed.append(path)
            elif not stat.S_ISREG(status.st_mode) or _look(status) != index.get(path):
                changed.append(path)
        return Damage(tuple(sorted(changed)), tuple(sorted(expected)), tuple(sorted(extra)))

    def keep_aside(self, name: str, damage: Damage, stamp: str) -> str | None:
        """
        Copy what was put into a tree, and what was made of its files; return where to.

        None if all of it was copied before: one file may be in several trees.  Raises
        :class:`RootsError` if something cannot be copied, after all that can.
        """
        target = os.path.join(self.kept, stamp)
        failed = []
        for path in (*damage.changed, *damage.extra):
            try:
                self._keep_one(path, self.tree(name, path), os.path.join(target, path))
            except OSError as err:
                failed.append(f"{self.tree(name, path)!a}: {err.strerror}")
        gone = [path for path in damage.missing if (name, path) not in self._aside]
        if gone:
            os.makedirs(target, mode=0o700, exist_ok=True)
            with open(os.path.join(target, "deleted"), "a", encoding="utf-8") as handle:
                handle.writelines(f"{path}\n" for path in gone)
            self._aside.update((name, path) for path in gone)
        if failed:
            raise RootsError(f"cannot keep aside {'; '.join(failed[:5])}")
        return target if os.path.isdir(target) else None

    def _keep_one(self, path: str, source: str, copy: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(source)
            edit = (path, *_look(status))
            if edit in self._aside:
                return
            os.makedirs(os.path.dirname(copy), mode=0o700, exist_ok=True)
            if stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(source), copy)
            elif stat.S_ISDIR(status.st_mode):
                os.makedirs(copy, mode=0o700, exist_ok=True)
            elif stat.S_ISREG(status.st_mode):
                _copy_or_move(source, copy)
            self._aside.add(edit)

    def have(self, wanted: Mapping[str, int]) -> dict[str, tuple[str, str]]:
        """Return SHA-256 -> snapshot and path of a file with that content, which is intact."""
        found: dict[str, tuple[str, str]] = {}
        for name in self.names()[: -_LOOKED_THROUGH - 1 : -1]:
            if len(found) == len(wanted):
                break
            if not self.is_sound(name):
                continue
            entries, index = self.manifest(name).entries, self.index(name)
            for path, entry in entries.items():
                if (
                    entry
                    and entry.sha256 in wanted
                    and entry.sha256 not in found
                    and self._intact(name, path, index)
                ):
                    found[entry.sha256] = (name, path)
        return found

    def intact(self, name: str) -> dict[str, File]:
        """Return path -> file of what is as it was written."""
        entries, index = self.manifest(name).entries, self.index(name)
        return {p: e for p, e in entries.items() if e and self._intact(name, p, index)}

    def received(self) -> dict[str, int]:
        """Return SHA-256 -> bytes of what has come so far; what is complete was verified."""
        found = {}
        for name in os.listdir(self.objects):
            status = os.lstat(os.path.join(self.objects, name))
            if _HASH.fullmatch(name.removesuffix(".part")) and stat.S_ISREG(status.st_mode):
                found[name.removesuffix(".part")] = status.st_size
        return found

    def receive(self, sha256: str, size: int, offset: int, data: bytes) -> bool:
        """
        Take a piece of a content; tell whether it is complete.

        Raises :class:`RootsError` if it is not what follows, or not what the hash says in the end.
        """
        if not _HASH.fullmatch(sha256):
            raise RootsError(f"no hash: {sha256!r}")
        whole = os.path.join(self.objects, sha256)
        if os.path.exists(whole):
            return True
        part = f"{whole}.part"
        with open(part, "ab") as handle:
            os.chmod(part, 0o600)
            if handle.tell() != offset or offset + len(data) > size:
                raise RootsError(f"a piece at {offset} where {handle.tell()} of {size} are there")
            handle.write(data)
        if offset + len(data) < size:
            return False
        with open(part, "rb") as handle:
            if _hashed(handle) != sha256:
                os.unlink(part)
                raise RootsError("a content is not what its hash says")
        os.rename(part, whole)
        return True

    def capture(self, looked: Scan) -> str | None:
        """
        Make a snapshot of live directories as a scan has seen them; return its name.

        None if the current one is the same, and intact.  Raises :class:`Unsettled` if they were
        changed meanwhile.  A file that cannot be read stays what it was, if it was there; it is
        added to ``skipped`` and ``kept`` of the scan.
        """
        old = self.current()
        before = self.intact(old) if old else {}
        live = self.live(old) if old else {}
        entries: dict[str, File | None] = {}
        kept = looked.kept
        with self._draft() as draft:
            for path, seen in sorted(without(looked.entries, kept).items()):
                if seen is None:
                    draft.directory(path)
                    entries[path] = None
                    continue
                known = before.get(path)
                if known and live.get(path) == list(seen.mark) and known.mode == seen.mode:
                    draft.link(path, self.tree(str(old), path), known.mode)
                    entries[path] = known
                    continue
                try:
                    sha256 = draft.take(path, seen, looked.guard)
                    entries[path] = File(sha256, seen.mark[2], seen.mode)
                except Unreadable as err:
                    looked.skipped[seen.source] = str(err)
                    kept.add(path)
            for path, entry in sorted(self.manifest(old).entries.items()) if old and kept else ():
                parent = path.rpartition("/")[0]
                if kept.isdisjoint(_upwards(path)):
                    continue
                if path.count("/") > 2 and entries.get(parent, "") is not None:
                    # Without the directory that it was in.
                    continue
                if entry is None:
                    draft.directory(path)
                    entries[path] = None
                elif path in before:
                    draft.link(path, self.tree(str(old), path), entry.mode)
                    entries[path] = entry
            manifest = Manifest(entries)
            marks = {
                path: list(seen.mark)
                for path, seen in without(looked.entries, kept).items()
                if seen
            }
            if old and self.manifest(old).digest == manifest.digest and not self.damage(old):
                self._write_meta(os.path.join(self.trees, old), "live", marks)
                return None
            return draft.finish(manifest, marks)

    def build(self, manifest: Manifest) -> str:
        """
        Make a snapshot from what there is and what was received; return its name.

        Raises :class:`RootsError` if a content is missing.
        """
        there = self.received()
        have = self.have({s: n for s, n in manifest.contents.items() if there.get(s) != n})
        with self._draft() as draft:
            for path, entry in sorted(manifest.entries.items()):
                if entry is None:
                    draft.directory(path)
                elif not entry.size:
                    draft.put(path, entry.mode)
                elif entry.sha256 in have:
                    name, other = have[entry.sha256]
                    draft.link(path, self.tree(name, other), entry.mode)
                else:
                    draft.move(path, os.path.join(self.objects, entry.sha256), entry.mode)
                    have[entry.sha256] = (draft.name, path)
            return draft.finish(manifest, {})

    def missing(self, manifest: Manifest) -> dict[str, int]:
        """Return SHA-256 -> size of each content of a manifest that is not here yet."""
        known, there = self.have(manifest.contents), self.received()
        lacking = {
            sha256: size
            for sha256, size in manifest.contents.items()
            if sha256 not in known and not self._is_whole(sha256, size)
        }
        for sha256, size in lacking.items():
            if there.get(sha256, -1) >= size:
                # It is not what it should be, and nothing follows it.
                for name in (sha256, f"{sha256}.part"):
                    _remove(os.path.join(self.objects, name))
        return lacking

    def _is_whole(self, sha256: str, size: int) -> bool:
        try:
            status = os.lstat(os.path.join(self.objects, sha256))
        except FileNotFoundError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == size

    def switch(self, name: str) -> None:
        """Make a snapshot the current one; from then on all are that ask for the newest."""
        old = self.current()
        if old:
            # When it ceased to be the current one.
            os.utime(os.path.join(self.trees, old))
        self._point(name)
        for leftover in os.listdir(self.objects):
            _remove(os.path.join(self.objects, leftover))

    def _point(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._link}.new")
        os.symlink(os.path.join("trees", name), f"{self._link}.new")
        if os.path.isdir(self._link) and not os.path.islink(self._link):
            _remove(self._link)
        os.replace(f"{self._link}.new", self._link)
        _sync_directory(self.directory)

    def outdated(self, in_use: set[str], now: float) -> list[str]:
        """Return the snapshots that nobody needs: not pinned, not young, not the last two."""
        name = self.current()
        names = [other for other in self.names() if name and other <= name]
        return [
            other
            for other in names[:-2]
            if other not in in_use
            and abs(now - os.stat(os.path.join(self.trees, other)).st_mtime) > KEPT
        ]

    def remove(self, name: str) -> None:
        """Remove a snapshot."""
        # What is half removed is no snapshot any more.
        gone = os.path.join(self.incoming, f"gone-{name}")
        _remove(gone)
        os.rename(os.path.join(self.trees, name), gone)
        _remove(gone)

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Write down how things are, for whoever asks."""
        scratch = f"{self.status_file}.new"
        with open(scratch, "w", encoding="utf-8") as handle:
            os.chmod(scratch, 0o600)
            json.dump(status, handle, indent=1)
        os.replace(scratch, self.status_file)

    def read_status(self) -> dict[str, Any]:
        """Return what :meth:`write_status` was given; nothing if that is not there, or damaged."""
        found = _read_json(self.status_file)
        return found if isinstance(found, dict) else {}

    def _intact(self, name: str, path: str, index: Mapping[str, list[int]]) -> bool:
        try:
            return _look(os.lstat(self.tree(name, path))) == index.get(path)
        except OSError:
            return False

    @contextlib.contextmanager
    def _draft(self) -> Iterator["_Draft"]:
        last = max((int(name.partition("-")[0]) for name in self.names()), default=0)
        draft = _Draft(self, f"{last + 1:08d}")
        try:
            yield draft
        finally:
            shutil.rmtree(draft.path, ignore_errors=True)

    def _known(self, name: str) -> tuple[Manifest, dict[str, list[int]]]:
        found = self._read.get(name)
        if found is None:
            path = os.path.join(self.trees, name, "manifest")
            with open(path, "rb") as handle:
                # What is no text is no manifest either.
                text = handle.read().decode("ascii", errors="replace")
            manifest = parse(text)
            if not name.endswith(manifest.digest[:16]):
                raise RootsError(f"the manifest of {name} is another one's")
            found = manifest, self._marks(name, "index")
            # A new one each time: a worker of the master has several threads.
            recent = list(self._read.items())[1 - _REMEMBERED :]
            self._read = {**dict(recent), name: found}
        return found

    def _marks(self, name: str, what: str) -> dict[str, list[int]]:
        """Return what is remembered of files; of what is not, nothing is taken for unchanged."""
        found = _read_json(os.path.join(self.trees, name, what))
        return found if isinstance(found, dict) else {}

    def _write_meta(self, directory: str, what: str, content: Any) -> None:
        path = os.path.join(directory, what)
        with open(f"{path}.new", "w", encoding="ascii") as handle:
            handle.write(content if isinstance(content, str) else json.dumps(content))
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(f"{path}.new", path)


class _Draft:
    """A snapshot that is being made, beside the others."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self.path = os.path.join(store.incoming, f"draft-{name}")
        shutil.rmtree(self.path, ignore_errors=True)
        os.makedirs(os.path.join(self.path, "tree"), mode=0o700)
        self.fresh: list[str] = []

    def directory(self, path: str) -> None:
        os.makedirs(self._at(path), mode=0o700, exist_ok=True)

    def link(self, path: str, source: str, mode: int) -> None:
        """Give a file the content of another one, which is the same file if it may be."""
        source = self._at(path, source)
        try:
            if os.stat(source).st_mode & 0o777 == mode | 0o400:
                os.link(source, self._at(path))
                return
        except OSError as err:
            if err.errno not in (errno.EMLINK, errno.EPERM, errno.EXDEV):
                raise RootsError(f"{path}: {err.strerror}") from err
        with open(source, "rb") as handle, self._new(path, mode) as copy:
            shutil.copyfileobj(handle, copy, _CHUNK)

    def take(self, path: str, seen: Seen, guard: _Guard | None = None) -> str:
        """Copy a live file; return the hash of what was copied."""
        digest, size = hashlib.sha256(), seen.mark[2]
        try:
            # A named pipe would have the reader wait.
            number = os.open(seen.source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as err:
            if err.errno in _GONE:
                raise Unsettled(f"{seen.source}: {err.strerror}") from err
            raise Unreadable(err.strerror or str(err)) from err
        try:
            with open(number, "rb") as handle, self._new(path, seen.mode) as copy:
                status = os.fstat(number)
                if guard and (status.st_dev, status.st_ino) in guard.files:
                    # Somebody may have put a link in its way just in time.
                    raise Unreadable("it is where keys are")
                if _mark(status) != seen.mark:
                    raise Unsettled(f"{seen.source} is being changed")
                # Not beyond what it says: some files never end.
                while chunk := _read(handle, min(_CHUNK, size - copy.tell() + 1)):
                    digest.update(chunk)
                    copy.write(chunk)
                    if copy.tell() > size:
                        break
                if _mark(os.fstat(number)) != seen.mark:
                    raise Unsettled(f"{seen.source} is being changed")
                if copy.tell() != size:
                    raise Unreadable("it does not have the size that it says")
        except Unreadable:
            os.unlink(self._at(path))
            self.fresh.remove(path)
            raise
        return digest.hexdigest()

    def put(self, path: str, mode: int) -> None:
        """Make an empty file."""
        with self._new(path, mode):
            pass

    def move(self, path: str, source: str, mode: int) -> None:
        """Take a file that was received."""
        try:
            os.chmod(source, mode | 0o400)
            os.rename(source, self._at(path))
        except FileNotFoundError as err:
            raise RootsError(f"the content of {path} is not here") from err
        self.fresh.append(path)

    def finish(self, manifest: Manifest, live: Mapping[str, list[int]]) -> str:
        """Have everything on disk, then the snapshot in its place; return its name."""
        index = {path: _look(os.lstat(self._at(path))) for path, e in manifest.entries.items() if e}
        write = self.store._write_meta
        write(self.path, "manifest", manifest.text)
        write(self.path, "index", index)
        write(self.path, "live", live)
        if len(self.fresh) > _MANY:
            os.sync()
        else:
            for path in self.fresh:
                with open(self._at(path), "rb") as handle:
                    os.fsync(handle.fileno())
        name = f"{self.name}-{manifest.digest[:16]}"
        os.rename(self.path, os.path.join(self.store.trees, name))
        _sync_directory(self.store.trees)
        return name

    def _at(self, path: str, other: str | None = None) -> str:
        """Return where a path is in this draft; or another file, which may be in it, too."""
        mine = os.path.join(self.path, "tree", path)
        if other is None:
            return mine
        inside = self.store.tree(self.name, "")
        if other.startswith(inside):
            return os.path.join(self.path, "tree", other[len(inside) :])
        return other

    @contextlib.contextmanager
    def _new(self, path: str, mode: int) -> Iterator[BinaryIO]:
        self.fresh.append(path)
        with open(self._at(path), "xb") as handle:
            yield handle
            os.fchmod(handle.fileno(), mode | 0o400)


class Pins:
    """The pins of all minions, as small files that the processes of a master share."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.join(directory, "pins")

    def get(self, minion_id: str) -> Pin | None:
        """Return the pin of a minion, or None."""
        told = self._read(self._path(minion_id))
        return told[1] if told else None

    def put(self, minion_id: str, pin: Pin) -> None:
        """Remember the pin of a minion."""
        path = self._path(minion_id)
        if (old := self.get(minion_id)) and replace(old, used=pin.used) == pin:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, (pin.used, pin.used))
                return
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        scratch = f"{path}.{os.getpid()}-{threading.get_ident()}"
        told = {name: value for name, value in vars(pin).items() if name != "used"}
        with open(scratch, "w", encoding="ascii") as handle:
            json.dump({"minion": minion_id, **told}, handle)
        os.utime(scratch, (pin.used, pin.used))
        os.replace(scratch, path)

    def release(self, minion_id: str, made: float) -> None:
        """No state run of a minion is under way that has the pin which was made then."""
        if (pin := self.get(minion_id)) and pin.run and pin.made == made:
            self.put(minion_id, released(pin))

    def forget(self, minion_id: str) -> None:
        """A minion is not there any more."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(minion_id))

    def all(self, now: float) -> dict[str, Pin]:
        """Return the pins by minion; forget those that are not used any more."""
        found = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(self.directory):
                path = os.path.join(self.directory, name)
                # The others are half written.
                told = None if "." in name else self._read(path)
                if told and holds(told[1], now):
                    found[told[0]] = told[1]
                    continue
                with contextlib.suppress(OSError):
                    if abs(now - os.stat(path).st_mtime) > RUN_IDLE:
                        os.unlink(path)
        return found

    def in_use(self, now: float) -> set[str]:
        """Return the names of the trees that are pinned."""
        return {pin.tree for pin in self.all(now).values()}

    def _path(self, minion_id: str) -> str:
        # Whatever an id has in it.
        name = hashlib.sha256(minion_id.encode(errors="surrogateescape")).hexdigest()[:32]
        return os.path.join(self.directory, name)

    def _read(self, path: str) -> tuple[str, Pin] | None:
        """Return the minion's id and the pin in a file; None if there is none, or a damaged one."""
        told = _read_json(path)
        try:
            used = os.stat(path).st_mtime
            marks, minion_id = tuple(told.pop("marks")), told.pop("minion")
            pin = Pin(**told, used=used, marks=marks)
        except (AttributeError, KeyError, OSError, TypeError):
            return None
        right = (
            all(isinstance(text, str) for text in (minion_id, pin.tree, *marks))
            and all(type(flag) is bool for flag in (pin.run, pin.returned, pin.other))
            and isinstance(pin.made, (int, float))
            and _SNAPSHOT.fullmatch(pin.tree)
        )
        return (minion_id, pin) if right else None


def store(directory: str) -> Store:
    """Return the store in a directory: for who reaches this module through Salt's loader."""
    return Store(directory)


def pins(directory: str) -> Pins:
    """Return the pins in a store's directory."""
    return Pins(directory)


def stamp(moment: float) -> str:
    """Return a moment, in seconds since the epoch, as text that sorts."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment))


def contents(
    store: Store, name: str, wanted: Iterable[tuple[str, int]]
) -> Iterator[tuple[str, int, bytes]]:
    """
    Yield pieces of the contents of a snapshot: hash, place and bytes.

    wanted
        Hashes, each with the place to begin at.  The hash of the manifest's text is one, too.

    A content that is no longer what was written there is left out.
    """
    manifest, index = store.manifest(name), store.index(name)
    paths = {entry.sha256: path for path, entry in manifest.entries.items() if entry}
    for sha256, offset in wanted:
        handle: BinaryIO | None = None
        if sha256 == manifest.digest:
            handle = io.BytesIO(manifest.text.encode())
        elif sha256 in paths:
            handle = store.open_file(name, paths[sha256], index.get(paths[sha256]))
        if handle is not None:
            # What the disk does not give is left out, too.
            with handle, contextlib.suppress(OSError):
                handle.seek(offset)
                while data := handle.read(PIECE):
                    yield sha256, offset, data
                    offset += len(data)


def _look(status: os.stat_result) -> list[int]:
    """Return what a file looks like: different after any edit, and the same under all its names."""
    return [status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode & 0o777]


def _everything(directory: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and status of all that is below a directory; links are not followed."""
    try:
        with os.scandir(directory) as found:
            listing = list(found)
    except OSError:
        # What is not yielded is missing there.
        return
    for item in listing:
        path = f"{prefix}/{item.name}" if prefix else item.name
        try:
            status = item.stat(follow_symlinks=False)
        except OSError:
            continue
        yield path, status
        if stat.S_ISDIR(status.st_mode) and _is_path(path):
            yield from _everything(item.path, path)


def _copy_or_move(source: str, target: str) -> None:
    try:
        shutil.copyfile(source, target)
    except PermissionError:
        # It belongs to somebody else, and its directory does not.
        os.rename(source, target)


def _read(handle: BinaryIO, size: int) -> bytes:
    """Return what comes next of a live file."""
    try:
        # Nothing yet, from what would have the reader wait, is nothing.
        return handle.read(size) or b""
    except OSError as err:
        raise Unreadable(err.strerror or str(err)) from err


def _read_json(path: str) -> Any:
    """Return what is in a file; None if it cannot be read, whatever a disk has made of it."""
    try:
        with open(path, "rb") as handle:
            return json.loads(handle.read())
    except (OSError, RecursionError, ValueError):
        return None


def _remove(path: str) -> None:
    """Remove whatever there is of a name; what cannot be removed stays."""
    try:
        os.unlink(path)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


def _hashed(handle: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := handle.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _sync_directory(path: str) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
