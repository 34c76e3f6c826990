"""
Files that root writes where somebody else may write, too, as the user that a master runs as.

There a name may be a link from one moment to the next.  So a directory is opened once, and must be
one in which nothing can be done that its user could not do without root; all else goes by that
descriptor and by those of the files themselves, never by a path again.

Not a part of the core, since it writes files.  Imports nothing of Salt.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator

# What else there is under a file's name is removed so many times: somebody puts it there.
TRIES = 3
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PRIVATE = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def opened(path: str, user: int) -> Iterator[int]:
    """
    Open a directory to write files of a user's there; yield its descriptor.

    user
        Whose the files are to be, as a number; this process' own user may have its own anywhere.

    Raises PermissionError for a directory that is somebody else's, unless nobody but root and this
    process' user can have made the path lead there.
    """
    place = os.open(path, _DIRECTORY)
    try:
        strange = user not in (os.geteuid(), os.fstat(place).st_uid)
        if strange and not _is_fixed(path):
            raise PermissionError(errno.EPERM, "it belongs to another user than its files", path)
        yield place
    finally:
        os.close(place)


def _is_fixed(path: str) -> bool:
    """Tell whether every part of a path, and of where its links lead, is root's, or this user's."""
    for way in (os.path.abspath(path), os.path.realpath(path)):
        while True:
            if os.lstat(way).st_uid not in (0, os.geteuid()):
                return False
            if way == os.path.dirname(way):
                break
            way = os.path.dirname(way)
    return True


def write(path: str, text: str | bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """
    Write a file at once: nobody sees half of it, and whatever there was under its name is replaced.

    mode
        Permission bits.
    owner
        User and group as numbers; those of this process if None.
    """
    directory, name = os.path.split(path)
    with opened(directory or ".", owner[0] if owner else os.geteuid()) as place:
        write_at(place, name, text, mode, owner)


def write_at(
    place: int, name: str, text: str | bytes, mode: int, owner: tuple[int, int] | None = None
) -> None:
    """Write a file as :func:`write` does, in a directory that is open."""
    scratch = f".multimaster-{secrets.token_hex(8)}"
    handle = os.open(scratch, os.O_WRONLY | os.O_EXCL | _PRIVATE, 0o600, dir_fd=place)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text.encode() if isinstance(text, str) else text)
            stream.flush()
            if owner:
                os.fchown(handle, *owner)
            os.fchmod(handle, mode)
            os.fsync(handle)
        os.replace(scratch, name, src_dir_fd=place, dst_dir_fd=place)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch, dir_fd=place)
        raise


def make_directory(path: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Make a directory, and those above it, if it is not there; only it is the owner's."""
    if os.path.isdir(path):
        return
    parent, name = os.path.split(path)
    if not os.path.isdir(parent):
        os.makedirs(parent)
    user = owner[0] if owner else os.geteuid()
    with opened(parent, user) as above, made_at(above, name, mode) as place:
        if owner:
            os.fchown(place, *owner)


@contextlib.contextmanager
def made_at(above: int, name: str, mode: int) -> Iterator[int]:
    """
    Make a directory in one that is open; yield its descriptor.

    Raises OSError if it is not the new one that is there then: whoever owns the one above may have
    put another one in its place.
    """
    os.mkdir(name, mode, dir_fd=above)
    place = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    try:
        if os.fstat(place).st_uid != os.geteuid() or os.listdir(place):
            raise PermissionError(errno.EPERM, "somebody else has put it there", name)
        yield place
    finally:
        os.close(place)


def open_log(path: str) -> int:
    """
    Open a log of this process' user's to add to it, for nobody else to read; return a descriptor.

    Whatever else is under its name, a link or somebody else's file, is removed.
    """
    for _ in range(TRIES):
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_EXCL | _PRIVATE, 0o600)
        with contextlib.suppress(OSError):
            # Not to wait for whoever reads from a pipe.
            flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(path, flags)
            about = os.fstat(handle)
            ours = about.st_uid == os.geteuid() and about.st_nlink == 1
            if ours and stat.S_ISREG(about.st_mode):
                os.fchmod(handle, 0o600)
                return handle
            os.close(handle)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    raise FileExistsError(errno.EEXIST, "somebody else puts a file there again and again", path)
