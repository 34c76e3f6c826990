"""
Seals what masters tell each other, so that only holders of their shared private key read it.

All minions of a master share its AES key, and what passes its bus ends up in caches: a message that
no one else may read or make is encrypted once more, under a key that follows from ``master.pem``
and, for an answer, from the nonce of the question.  Also packs many pieces of files into a message
that Salt's events can hold.

Pure: imports nothing of Salt and touches no file.
"""

import base64
import binascii
import json
import secrets
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

# Bytes of all pieces in a message, compressed and not.  With the largest piece that is still added,
# and in base64, less than 700 KiB; an event of Salt's holds 1 MiB.
PACKED = 440 * 1024
UNPACKED = 16 * 1024 * 1024
_VERSION = b"multimaster sealed 1\0"
_GCM_NONCE = 12


class SealError(ValueError):
    """A message that no holder of the shared key has made for this reader, or no message."""


class Piece(NamedTuple):
    """A part of a file's content: the file's hash, where the part begins, and its bytes."""

    sha256: str
    offset: int
    data: bytes


def seal(plain: bytes, pem: str, nonce: str, *context: str) -> str:
    """
    Encrypt a message; return base64.

    pem
        The masters' shared private key.
    nonce
        What the asker has made up, so that an old answer is worth nothing.
    context
        Purpose, origin and asker: a message opens only where all of them are the expected ones.
    """
    fresh = secrets.token_bytes(_GCM_NONCE)
    associated = _associated(context)
    cipher = AESGCM(_key(pem, nonce, associated))
    return base64.b64encode(fresh + cipher.encrypt(fresh, plain, associated)).decode()


def open_sealed(sealed: Any, pem: str, nonce: str, *context: str) -> bytes:
    """Return the message; :class:`SealError` unless :func:`seal` made it with the same values."""
    try:
        raw = base64.b64decode(sealed, validate=True)
        associated = _associated(context)
        cipher = AESGCM(_key(pem, nonce, associated))
        return cipher.decrypt(raw[:_GCM_NONCE], raw[_GCM_NONCE:], associated)
    except (InvalidTag, TypeError, ValueError, binascii.Error) as err:
        raise SealError("it is not sealed with the masters' key for this question") from err


def pack(head: Mapping[str, Any], pieces: Iterable[tuple[str, int, bytes]]) -> bytes:
    """
    Return a message of a mapping and of as many of the pieces as one may hold.

    A piece is what :class:`Piece` says, and of 64 KiB at most.
    """
    body = zlib.compressobj()
    told: list[tuple[str, int, int]] = []
    packed: list[bytes] = []
    size, total = len(zlib.compress(json.dumps(head).encode())), 0
    for sha256, offset, data in pieces:
        packed.append(body.compress(data) + body.flush(zlib.Z_SYNC_FLUSH))
        told.append((sha256, offset, len(data)))
        size += len(packed[-1])
        total += len(data)
        if size > PACKED or total > UNPACKED:
            break
    packed.append(body.flush())
    front = zlib.compress(json.dumps({"head": head, "pieces": told}).encode())
    return len(front).to_bytes(4, "big") + front + b"".join(packed)


def unpack(message: bytes) -> tuple[dict[str, Any], list[Piece]]:
    """Return what :func:`pack` was given; :class:`SealError` if it is nothing of that kind."""
    try:
        end = 4 + int.from_bytes(message[:4], "big")
        front = json.loads(zlib.decompress(message[4:end]))
        head, told = dict(front["head"]), front["pieces"]
        body = zlib.decompress(message[end:])
        pieces, place = [], 0
        for sha256, offset, length in told:
            pieces.append(Piece(str(sha256), int(offset), body[place : place + int(length)]))
            place += int(length)
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError, zlib.error) as err:
        raise SealError("it holds no message") from err
    if place != len(body):
        raise SealError("its pieces are not all there")
    return head, pieces


def _associated(context: tuple[str, ...]) -> bytes:
    return _VERSION + json.dumps(context).encode()


def _key(pem: str, nonce: str, info: bytes) -> bytes:
    try:
        # Checking a key takes longer than all else, and this one serves Salt all the time.
        private = serialization.load_pem_private_key(
            pem.encode(), password=None, unsafe_skip_rsa_key_validation=True
        )
    except (AttributeError, TypeError, ValueError) as err:
        raise SealError("the masters' private key is not a readable PEM") from err
    # The same bytes, however the file is written.
    secret = private.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    derive = HKDF(algorithm=hashes.SHA256(), length=32, salt=nonce.encode(), info=info)
    return derive.derive(secret)
