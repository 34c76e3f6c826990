"""Public keys as a key store has them: whatever is in a file, and whatever the file is."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

import multimaster_pubkey as pubkey
from lab.keys import make_pair
from unit.odd_keys import NAMES, odd, same

PUB = make_pair(bits=1024)[1].strip()
KEY = pubkey.of(PUB.encode())


@pytest.mark.parametrize("text", [PUB, f"{PUB}\n", f"\n {PUB}\r\n", PUB.replace("\n", "\r\n")])
def test_a_key_travels_as_it_would_be_written(text):
    assert pubkey.of(text.encode()) == KEY
    assert KEY.text == PUB


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_text_has_a_fingerprint_and_does_not_travel(name, tmp_path):
    text = odd(PUB)[name]
    found = pubkey.of(text)
    assert (len(found.fingerprint), found.text) == (64, "")
    # That of the key, if there is one.
    assert (found.fingerprint == KEY.fingerprint) == (name in same(PUB))
    path = tmp_path / "web1"
    path.write_bytes(text)
    assert pubkey.read(str(path)) == found


def test_of_two_texts_that_are_too_long_each_has_its_own_fingerprint(tmp_path):
    found = set()
    for end in (b"a", b"b"):
        path = tmp_path / "web1"
        path.write_bytes(b"x" * 3_000_000 + end)
        found.add(pubkey.read(str(path)).fingerprint)
    assert len(found) == 2


def test_no_text_has_the_fingerprint_of_a_key():
    from cryptography.hazmat.primitives import serialization

    public = serialization.load_pem_public_key(PUB.encode())
    der = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert pubkey.of(der).fingerprint != KEY.fingerprint


@given(st.binary(max_size=200) | st.text().map(lambda text: text.encode(errors="replace")))
def test_whatever_is_in_a_text_is_a_key_or_nothing(text):
    found = pubkey.of(text)
    assert (found is None) == (not text.strip())
    assert found is None or (len(found.fingerprint), found.text) == (64, "")


@given(st.integers(0, len(PUB) - 1), st.binary(max_size=4))
def test_a_key_with_an_error_in_it_is_another_one_or_does_not_travel(place, junk):
    text = PUB.encode()[:place] + junk + PUB.encode()[place + 1 :]
    found = pubkey.of(text)
    assert found == KEY or found.fingerprint != KEY.fingerprint or not found.text
    assert not found.text or pubkey.of(found.text.encode()) == found


# Files


def test_what_is_no_file_is_no_key(tmp_path):
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_text(PUB)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        names = ["nothing", "directory", "fifo", "empty", "socket", "file/below"]
        for name in [*names, "x" * 300, "a\0b", "\ud800"]:
            assert pubkey.read(f"{tmp_path}/{name}") is None


def test_a_link_is_a_key_only_where_salt_takes_it_for_one(tmp_path):
    (tmp_path / "file").write_text(PUB)
    (tmp_path / "link").symlink_to("file")
    assert pubkey.read(str(tmp_path / "link")) is None
    assert pubkey.read(str(tmp_path / "link"), links=True) == KEY


@pytest.mark.parametrize("name", ["web1", "x" * 255, "é" * 127, "a b", "line\nbreak"])
def test_the_name_of_a_file_can_be_an_id(name):
    assert pubkey.is_id(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0", "x" * 256, "é" * 128, "\udcff", None, 5, b"a"],
    ids=repr,
)
def test_anything_else_can_not(name):
    assert not pubkey.is_id(name)


@given(st.text(st.characters(), max_size=300))
def test_any_text_can_be_asked_about(name):
    if pubkey.is_id(name):
        assert os.path.basename(os.fsencode(name)) == name.encode()
