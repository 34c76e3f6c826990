"""Key texts that are not as Salt writes them, of which any may come from a stranger."""

from __future__ import annotations

import base64

RSA = bytes.fromhex("06092a864886f70d010101")
PSS = bytes.fromhex("06092a864886f70d01010a")


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size])
    if size >= 128:
        octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
        length = bytes([0x80 | len(octets)]) + octets
    return bytes([tag]) + length + content


def with_algorithm(pub: str, algorithm: bytes) -> bytes:
    """Return the same key under another AlgorithmIdentifier, in the same kind of PEM."""
    first, *body, last = pub.splitlines()
    der = base64.b64decode("".join(body))
    text = base64.b64encode(_tlv(0x30, _tlv(0x30, algorithm) + der[der.index(b"\x05\x00") + 2 :]))
    lines = [text[i : i + 64].decode() for i in range(0, len(text), 64)]
    return "\n".join([first, *lines, last]).encode()


def odd(pub: str) -> dict[str, bytes]:
    """Return name -> text made of a key: those that are the same key, and those that are none."""
    return same(pub) | {
        "another letter": pub.replace("M", "é", 1).encode(),
        "no text": b"\xff\xfe\x00",
        "1.2 MB of junk": b"x" * 1_200_000 + b"\n" + pub.encode(),
        "no RSA": (
            b"-----BEGIN PUBLIC KEY-----\n"
            b"MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
            b"-----END PUBLIC KEY-----"
        ),
    }


def same(pub: str) -> dict[str, bytes]:
    """Return name -> the same key as another text."""
    return {
        "after END": f"{pub}\nmore".encode(),
        "before BEGIN": f"more\n{pub}".encode(),
        "without NULL": with_algorithm(pub, RSA),
        "PSS": with_algorithm(pub, PSS),
    }


NAMES = tuple(
    odd(
        """ -----BEGIN PUBLIC KEY-----
MAUABQAFAA==
-----END PUBLIC KEY-----""".strip()
    )
)
