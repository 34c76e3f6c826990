"""What masters tell each other, and nobody else."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import multimaster_seal as seal

CONTEXT = ("answer", "saltm1", "saltm2")
PIECES = [seal.Piece("a" * 64, 0, b"one"), seal.Piece("b" * 64, 65536, b"\x00\xff" * 40_000)]


def test_a_message_opens_for_whom_it_is_meant_and_shows_nothing_on_the_way(shared):
    plain = b"the password of the database"
    sealed = seal.seal(plain, shared.pem, "nonce", *CONTEXT)
    assert seal.open_sealed(sealed, shared.pem, "nonce", *CONTEXT) == plain
    assert seal.seal(plain, shared.pem, "nonce", *CONTEXT) != sealed
    assert b"password" not in base64.b64decode(sealed)


def test_another_spelling_of_the_same_key_opens_it(shared):
    sealed = seal.seal(b"x", shared.pem, "nonce", *CONTEXT)
    assert seal.open_sealed(sealed, f"\n{shared.pem}\n\n", "nonce", *CONTEXT) == b"x"


@pytest.mark.parametrize(
    "change",
    [
        "another key",
        "another nonce",
        "another purpose",
        "another origin",
        "another asker",
        "changed",
        "cut off",
        "not base64",
        "no text",
        "empty",
        "no key",
    ],
)
def test_a_message_does_not_open_with(shared, other, change):
    sealed = seal.seal(b"content", shared.pem, "nonce", *CONTEXT)
    pem = {"another key": other.pem, "no key": "rubbish"}.get(change, shared.pem)
    nonce = "old" if change == "another nonce" else "nonce"
    context = {
        "another purpose": ("question", "saltm1", "saltm2"),
        "another origin": ("answer", "saltm3", "saltm2"),
        "another asker": ("answer", "saltm1", "saltm3"),
    }.get(change, CONTEXT)
    told = {
        "changed": sealed[:-8] + ("A" if sealed[-8] != "A" else "B") + sealed[-7:],
        "cut off": sealed[:-4],
        "not base64": "The minion function caused an exception",
        "no text": {"ret": 1},
        "empty": "",
    }.get(change, sealed)
    with pytest.raises(seal.SealError):
        seal.open_sealed(told, pem, nonce, *context)


def test_pieces_arrive_as_they_were_sent():
    head = {"digest": "d", "delta": {"gone": ["a"], "set": {}}}
    assert seal.unpack(seal.pack(head, PIECES)) == (head, PIECES)
    assert seal.unpack(seal.pack({}, ())) == ({}, [])


@pytest.mark.parametrize("message", [b"", b"\0\0\0\5rubbish", b"\xff" * 9])
def test_what_is_no_message_is_refused(message):
    with pytest.raises(seal.SealError):
        seal.unpack(message)


def test_a_message_fits_into_an_event_whatever_is_asked_for(shared):
    content = secrets.token_bytes(3_000_000)
    message = seal.pack({"delta": secrets.token_hex(256 * 1024)}, every_from(content, 0))
    assert len(seal.seal(message, shared.pem, "nonce", *CONTEXT)) < 800 * 1024
    _, pieces = seal.unpack(seal.pack({}, every_from(content, 0)))
    assert 400_000 < sum(len(piece.data) for piece in pieces) < 600_000
    assert len(seal.seal(seal.pack({}, every_from(content, 0)), shared.pem, "n")) < 700 * 1024


def every_from(content, offset):
    for place in range(offset, len(content), 65536):
        yield "c" * 64, place, content[place : place + 65536]


@given(content=st.binary(max_size=200_000))
def test_a_file_is_put_together_from_its_pieces(content):
    got = b""
    while len(got) < len(content):
        _, pieces = seal.unpack(seal.pack({}, every_from(content, len(got))))
        assert pieces[0].offset == len(got)
        got += b"".join(piece.data for piece in pieces)
    assert got == content


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ).map(json.dumps)
    | st.tuples(st.floats() | st.integers() | st.text(), st.floats() | st.integers()).map(
        lambda piece: json.dumps({"head": {}, "pieces": [["a" * 64, *piece]]})
    )
    | st.integers(900, 100_000).map(lambda depth: "[" * depth)
)
def test_any_bytes_are_a_message_or_refused(front):
    packed = zlib.compress(front.encode() if isinstance(front, str) else front)
    for message in (
        len(packed).to_bytes(4, "big") + packed + zlib.compress(b"x"),
        packed,
    ):
        with contextlib.suppress(seal.SealError):
            head, pieces = seal.unpack(message)
            assert isinstance(head, dict)
            assert all(isinstance(piece.data, bytes) for piece in pieces)
