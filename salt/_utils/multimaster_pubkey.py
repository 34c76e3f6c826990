"""
A minion's public key as a key store has it, where whoever may knock at a master has put the text.

The fingerprint is that of the key and not of a text, so that a key is the same one however it is
written.  What Salt has and this cannot read as a key has a fingerprint all the same, of its text:
it can be decided on like any other.  Only a key's own text travels from master to master.
"""

import contextlib
import errno
import functools
import hashlib
import os
import stat
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

# Bytes; a key of 16,384 bits has not 3,000.
LONGEST = 16 * 1024
# Bytes that are read at once.
CHUNK = 1 << 20
# What a path is that is no key: nothing, a directory, a link, a socket, or too long to be a file.
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.EISDIR)
# No text has the fingerprint of a key.
_ODD = b"multimaster: no readable key\0"


class PublicKey(NamedTuple):
    """
    A key: its SHA-256 in hexadecimal, and its text in PEM.

    The text is empty where what is there is not exactly that, and so must not travel.
    """

    fingerprint: str
    text: str


def of(text: bytes) -> PublicKey | None:
    """Return the key that is in a text, whatever is in it; None if there is nothing in it."""
    if len(text) > LONGEST:
        return PublicKey(_odd(text), "")
    return _of(text)


# Who compares with a key store asks for the same few keys again.
@functools.lru_cache(maxsize=1024)
def _of(text: bytes) -> PublicKey | None:
    if not text.strip():
        return None
    try:
        key = load_pem_public_key(text)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return PublicKey(_odd(text), "")
    if not isinstance(key, rsa.RSAPublicKey):
        return PublicKey(_odd(text), "")
    # Encoded anew: the same key may come with other parameters, or in another form.
    pem, der = (key.public_bytes(e, PublicFormat.SubjectPublicKeyInfo) for e in _ENCODINGS)
    # As Salt compares what a minion brings with what it has.
    same = b"\n".join(text.strip().splitlines()) == pem.strip()
    return PublicKey(hashlib.sha256(der).hexdigest(), pem.strip().decode() if same else "")


_ENCODINGS = (Encoding.PEM, Encoding.DER)


def read(path: str, links: bool = False) -> PublicKey | None:
    """
    Return the key that is in a file; None if there is no file, or nothing in it.

    links
        Whether a symbolic link is a key, as for Salt before 3008.

    Raises :class:`OSError` if there is a file and nobody can tell what is in it.
    """
    try:
        # Not to wait for whoever writes into a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW))
    except ValueError:
        # No path has a null in it, or half of a letter.
        return None
    except OSError as err:
        if err.errno in ABSENT:
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        with open(handle, "rb", closefd=False) as stream:
            text = stream.read(LONGEST + 1)
            if len(text) <= LONGEST:
                return of(text)
            digest = hashlib.sha256(_ODD + text)
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
            return PublicKey(digest.hexdigest(), "")
    finally:
        os.close(handle)


def is_id(name: object) -> bool:
    """Tell whether something can be the name of a key file, and so the id of a minion."""
    with contextlib.suppress(UnicodeError):
        return (
            isinstance(name, str)
            and 0 < len(name.encode()) <= NAME_MAX
            and not name.startswith(".")
            and not set(name) & set("/\\\0")
        )
    return False


# Bytes in the name of a file, everywhere.
NAME_MAX = 255


def _odd(text: bytes) -> str:
    return hashlib.sha256(_ODD + text).hexdigest()
