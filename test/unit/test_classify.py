"""
What a master says to a minion that wants to sign in, and what is believed of it.

Salt's own code makes and checks the messages; the socket between them is made up.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

import multimaster_cutover as cutover
import multimaster_dial as dial

ADDRESS = "127.0.0.1"


@pytest.fixture
def keys(tmp_path, minion_keys, shared):
    """A minion's directory of keys; it knows its masters."""
    (tmp_path / "minion.pem").write_text(minion_keys["web1"].pem)
    (tmp_path / "minion.pub").write_text(minion_keys["web1"].pub)
    (tmp_path / "minion_master.pub").write_text(shared.pub)
    return tmp_path


@pytest.fixture
def say(keys, shared, monkeypatch):
    """Let a master say something, signed with a key; return how that is classified."""
    import salt.channel.client
    import salt.config
    import salt.crypt
    import salt.payload

    opts = dict(salt.config.DEFAULT_MINION_OPTS)
    opts |= {"id": "web1", "pki_dir": str(keys), "grains": {}, "keys.cache_driver": "localfs_key"}
    opts |= {"cachedir": str(keys / "cache"), "__role": "minion"}
    monkeypatch.setattr(dial.socket, "create_connection", lambda *_: SimpleNamespace(close=list))

    def classify(load, pem=shared.pem, nonce=None, lets_in=False, signed=True, way="classify"):
        class Channel:
            def send(self, request, tries, timeout):
                told = {**load, "nonce": nonce or request["nonce"]}
                if not signed:
                    return {"enc": "clear", "load": told}
                text = salt.payload.dumps(told)
                (keys / "theirs.pem").write_text(pem)
                key = salt.crypt.PrivateKey.from_file(str(keys / "theirs.pem"))
                signature = key.sign(text, algorithm=opts["signing_algorithm"])
                return {"enc": "clear", "load": text, "sig": signature}

            def close(self):
                pass

        channels = SimpleNamespace(factory=lambda *_, **__: Channel())
        monkeypatch.setattr(salt.channel.client, "ReqChannel", channels)
        monkeypatch.setattr(dial, "ask_afresh", lambda *_: lets_in)
        return getattr(dial, way)(opts, ADDRESS, 5)

    return classify


@pytest.mark.parametrize(
    ("load", "word"),
    [
        ({"ret": True}, cutover.PENDING),
        ({"ret": False}, cutover.REJECTED),
        ({"ret": "full"}, cutover.REFUSED),
    ],
)
def test_what_a_master_of_ours_says_is_believed(say, load, word):
    assert say(load) == word


@pytest.mark.parametrize("load", [{"ret": True}, {"ret": False}, {"pub_key": "a"}], ids=repr)
def test_who_has_another_key_is_a_stranger_whatever_it_says(say, minion_keys, load):
    assert say(load, pem=minion_keys["saltm1"].pem) == cutover.FOREIGN


@pytest.mark.parametrize("load", [{"ret": True}, {"ret": False}], ids=repr)
def test_an_old_answer_is_a_strangers(say, load):
    assert say(load, nonce="of another time") == cutover.FOREIGN


def test_a_master_lets_a_minion_in_only_by_an_answer_that_proves_it(say):
    assert say({"pub_key": "theirs"}, lets_in=True) == cutover.ACCEPTED
    assert say({"pub_key": "theirs"}, lets_in=False) == cutover.SILENT


@pytest.mark.parametrize("trusted", [True, False])
def test_a_master_that_signs_unexpectedly_lets_a_minion_in_all_the_same(say, minion_keys, trusted):
    # Salt will not use its answer; a master that waits for its turn to restart may go by it.
    pem = {} if trusted else {"pem": minion_keys["saltm1"].pem}
    assert say({"pub_key": "theirs", "pub_sig": "x"}, way="lets_in", **pem) is trusted


def test_a_new_key_that_is_well_signed_is_as_good(say, minion_keys):
    # Which Salt decides, with the minion's options for signing.
    assert say({"pub_key": "new"}, minion_keys["saltm1"].pem, lets_in=True) == cutover.ACCEPTED


def test_nobody_makes_a_key_pair_for_a_minion_that_has_none(say, keys):
    (keys / "minion.pem").unlink()
    before = sorted(os.listdir(keys))
    assert say({"ret": True}) == cutover.SILENT
    assert sorted(os.listdir(keys)) == before


@pytest.mark.parametrize("rubbish", [{}, {"ret": []}, {"ret": None}, {"pub": 1}], ids=repr)
def test_rubbish_lets_nobody_in(say, rubbish):
    assert say(rubbish, lets_in=True) in (cutover.SILENT, cutover.REFUSED)
    assert say(rubbish, signed=False, lets_in=True) == cutover.REFUSED


@pytest.mark.parametrize("load", [{"ret": True}, {"pub_key": "theirs"}], ids=repr)
def test_what_is_not_signed_is_nobodys_word(say, load):
    assert say(load, signed=False, lets_in=True) == cutover.REFUSED


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (ConnectionRefusedError(), cutover.REFUSED),
        (OSError("no route"), cutover.REFUSED),
        (TimeoutError(), cutover.SILENT),
    ],
    ids=repr,
)
def test_who_cannot_be_connected_to_says_nothing(say, monkeypatch, error, word):
    def fail(*_):
        raise error

    monkeypatch.setattr(dial.socket, "create_connection", fail)
    assert say({"ret": True}) == word


@pytest.mark.parametrize("address", ["2001:db8::1", "192.0.2.1"])
def test_an_address_of_either_kind_is_dialled(say, monkeypatch, address):
    import salt.utils.network

    # Salt tries to connect before that.
    monkeypatch.setattr(salt.utils.network, "_test_addrs", lambda found, _: [found[0][4][0]])
    dialled = []

    def dial_it(place, timeout):
        dialled.append(place[0])
        return SimpleNamespace(close=list)

    monkeypatch.setattr(dial.socket, "create_connection", dial_it)
    monkeypatch.setitem(globals(), "ADDRESS", address)
    assert say({"ret": True}) == cutover.PENDING
    # Without the brackets that Salt puts around it.
    assert dialled == [address]
