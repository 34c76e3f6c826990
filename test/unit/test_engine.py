"""The engine: which answers it believes, and what it does with the keys in them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

import multimaster_keypair as keypair

ID = "saltm2"
PEERS = ["saltm1", "saltm3"]


@pytest.fixture
def engine(by_path, host, shared, monkeypatch):
    """The engine of the master on this host, over its real key store."""
    import salt.config
    import salt.key

    host.write("etc/salt/master.d/multimaster.conf", {"id": ID})
    for suffix, text in zip(("pem", "pub"), shared, strict=True):
        host.write(f"etc/salt/pki/master/{ID}.{suffix}", text)
    for name in ("minions", "minions_pre", "minions_rejected", "minions_denied"):
        (host.pki / name).mkdir()
    opts = dict(salt.config.master_config(str(host.config_dir / "master")))
    opts["multimaster"] = {"masters": [{"id": name} for name in (*PEERS, ID)]}
    module = by_path("salt/_engines/multimaster.py")
    functions = {
        f"multimaster_keypair.{name}": getattr(keypair, name)
        for name in ("fingerprint", "verify_answer")
    }
    for name, value in {"__opts__": opts, "__utils__": functions}.items():
        monkeypatch.setattr(module, name, value, raising=False)
    # Accepting fires an event, on the bus of a master that does not run here.
    monkeypatch.setattr("salt.utils.event.SaltEvent.fire_event", lambda *args, **kwargs: True)
    return module


@pytest.fixture
def pub(minion_keys):
    return minion_keys["web1"].pub


# Which keys are accepted


class TestAccept:
    def test_takes_an_unknown_id(self, engine, host, pub):
        engine._accept("saltm1", {"web1": pub})
        assert host.accepted() == {"web1"}
        assert (host.pki / "minions/web1").read_text() == pub

    def test_takes_a_pending_id_with_the_same_key(self, engine, host, pub):
        host.accept({"web1": pub + "\n"}, "minions_pre")
        engine._accept("saltm1", {"web1": pub})
        assert host.accepted() == {"web1"}
        assert not (host.pki / "minions_pre/web1").exists()

    def test_leaves_a_pending_id_with_another_key(self, engine, host, pub, other, caplog):
        host.accept({"web1": other.pub}, "minions_pre")
        before = host.files()
        engine._accept("saltm1", {"web1": pub})
        assert host.files() == before
        assert "differs from the pending one" in caplog.text

    @pytest.mark.parametrize("where", ["minions", "minions_rejected", "minions_denied"])
    @pytest.mark.parametrize("key", ["same", "other"])
    def test_leaves_what_was_decided_here(self, engine, host, pub, other, where, key):
        host.accept({"web1": pub if key == "same" else other.pub}, where)
        before = host.files()
        engine._accept("saltm1", {"web1": pub})
        assert host.files() == before

    @pytest.mark.parametrize(
        "name", ["../web1", "a/b", "a\\b", "a\0b", "..", "", 5, None], ids=repr
    )
    def test_refuses_what_is_no_minion_id(self, engine, host, pub, name, caplog):
        before = host.files()
        engine._accept("saltm1", {name: pub})
        assert host.files() == before
        assert "which is no minion id" in caplog.text

    @pytest.mark.parametrize("key", ["", "nonsense", None, 5, ["x"], b"x"], ids=repr)
    def test_refuses_what_is_no_public_key(self, engine, host, key, caplog):
        before = host.files()
        engine._accept("saltm1", {"web1": key})
        assert host.files() == before
        assert "that is no public key" in caplog.text

    def test_refuses_a_private_key(self, engine, host, shared):
        before = host.files()
        engine._accept("saltm1", {"web1": shared.pem})
        assert host.files() == before

    def test_takes_the_good_ones_out_of_bad_ones(self, engine, host, pub):
        engine._accept("saltm1", {"../x": pub, "web1": pub, "web2": "nonsense", "web3": pub})
        assert host.accepted() == {"web1", "web3"}


# Which answers are believed


class Peers:
    """
    What the peers' minions would return.

    In place of the client and the network: each reply is made from the nonce that was asked with.
    """

    def __init__(self, **replies):
        self.replies = replies
        self.nonces = []

    def cmd(self, target, function, arg, **kwargs):
        assert function == "multimaster.offered_keys"
        assert set(target) == set(PEERS)
        asker, nonce = arg
        assert asker == ID
        self.nonces.append(nonce)
        return {peer: reply(nonce) for peer, reply in self.replies.items()}


@pytest.fixture
def pull(engine, monkeypatch):
    def pull(**replies):
        peers = Peers(**replies)
        monkeypatch.setattr(
            "salt.client.get_local_client", lambda **kwargs: contextlib.nullcontext(peers)
        )
        return engine._pull(PEERS)

    return pull


@pytest.fixture
def answer(shared, pub):
    """Make a reply; by default what a complete saltm1 says."""

    def answer(keys=None, *, pem=shared.pem, nonce=None, after=None, **changes):
        content = {"origin": "saltm1", "asker": ID, "complete": True}
        content |= {"keys": {"web1": pub} if keys is None else keys} | changes

        def reply(asked):
            signature = keypair.sign_answer(content, nonce or asked, pem)
            return {"answer": content | (after or {}), "signature": signature}

        return reply

    return answer


# What arrives, given a way to make an answer and somebody else's pair.
REFUSED = {
    "signed with another key": lambda answer, other: answer(pem=other.pem),
    "answering an earlier question": lambda answer, other: answer(nonce="earlier"),
    "changed on its way": lambda answer, other: answer(after={"keys": {"evil": other.pub}}),
    "made complete on its way": lambda answer, other: answer(
        complete=False, after={"complete": True}
    ),
    "of another master": lambda answer, other: answer(origin="saltm3"),
    "of a minion": lambda answer, other: answer(origin="web1"),
    "for another master": lambda answer, other: answer(asker="saltm3"),
    "without a signature": lambda answer, other: lambda asked: {"answer": answer()(asked)},
    "with an empty signature": lambda answer, other: (
        lambda asked: answer()(asked) | {"signature": ""}
    ),
    "with more than there should be": lambda answer, other: (
        lambda asked: answer()(asked) | {"more": 1}
    ),
    "without content": lambda answer, other: lambda asked: {"answer": None, "signature": "x"},
    "that is an error message": lambda answer, other: lambda asked: "Passed invalid arguments",
    "that is nothing": lambda answer, other: lambda asked: None,
    "that is False": lambda answer, other: lambda asked: False,
}


class TestPull:
    def test_takes_a_signed_answer(self, host, pull, answer):
        assert pull(saltm1=answer()) is True
        assert host.accepted() == {"web1"}

    def test_takes_the_keys_of_all_peers_together(self, host, pull, answer, pub):
        third = answer({"web2": pub}, origin="saltm3")
        assert pull(saltm1=answer(), saltm3=third) is True
        assert host.accepted() == {"web1", "web2"}

    def test_asks_with_another_nonce_every_time(self, engine, monkeypatch, answer):
        peers = Peers(saltm1=answer())
        monkeypatch.setattr(
            "salt.client.get_local_client", lambda **kwargs: contextlib.nullcontext(peers)
        )
        engine._pull(PEERS)
        engine._pull(PEERS)
        first, second = peers.nonces
        assert first != second
        assert min(len(first), len(second)) >= 32

    def test_is_done_when_one_good_answer_is_among_bad_ones(self, host, pull, answer, other):
        forged = answer({"evil": other.pub}, origin="saltm3", pem=other.pem)
        assert pull(saltm1=answer(), saltm3=forged) is True
        assert host.accepted() == {"web1"}

    def test_waits_while_nobody_answers(self, host, pull):
        assert pull() is False
        assert host.accepted() == set()

    def test_waits_for_a_peer_that_waits_itself(self, host, pull, answer):
        assert pull(saltm1=answer(complete=False)) is False
        assert host.accepted() == set()

    def test_ends_the_wait_of_masters_that_all_wait_for_each_other(self, host, pull, answer, pub):
        first = answer(complete=False)
        third = answer({"web2": pub}, origin="saltm3", complete=False)
        assert pull(saltm1=first, saltm3=third) is True
        assert host.accepted() == {"web1", "web2"}

    @pytest.mark.parametrize("reply", REFUSED.values(), ids=REFUSED.keys())
    def test_refuses_an_answer(self, host, pull, answer, other, reply, caplog):
        before = host.files()
        assert pull(saltm1=reply(answer, other)) is False
        assert host.files() == before
        assert "Refused the answer of saltm1" in caplog.text

    def test_refusals_count_for_nothing_when_all_wait(self, host, pull, answer, other):
        first = answer(complete=False)
        forged = answer({"evil": other.pub}, origin="saltm3", complete=False, pem=other.pem)
        assert pull(saltm1=first, saltm3=forged) is False
        assert host.accepted() == set()


# Its life


class TestStart:
    @pytest.fixture
    def mark(self, host):
        return Path(host.write("var/cache/salt/master/multimaster/joining", ""))

    @pytest.fixture
    def no_pause(self, engine, monkeypatch):
        monkeypatch.setattr(engine, "FIRST_PAUSE", 0)

    def test_asks_nobody_on_a_master_that_does_not_join(self, engine, monkeypatch):
        monkeypatch.setattr(engine, "_pull", lambda peers: pytest.fail("asked"))
        engine.start()

    def test_asks_until_it_has_the_keys_and_never_again(self, engine, mark, no_pause, monkeypatch):
        outcomes = [False, OSError("no bus yet"), True]

        def pull(peers):
            assert peers == PEERS
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(engine, "_pull", pull)
        engine.start()
        assert not outcomes
        assert not mark.exists()
        engine.start()

    def test_keeps_the_mark_while_it_asks(self, engine, mark, no_pause, monkeypatch):
        seen = []
        monkeypatch.setattr(engine, "_pull", lambda peers: seen.append(mark.exists()) or True)
        engine.start()
        assert seen == [True]
