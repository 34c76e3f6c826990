"""The engine that brings a new master the minions' keys, over a real key store."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

# Salt's Key leaves the socket of its event bus, and that socket's loop, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ME, PEERS = "saltm2", ("saltm1", "saltm3")


@pytest.fixture(scope="module")
def engines(loaded_host):
    """The engine in Salt's loader, as the master ``saltm2`` has it."""
    import salt.config
    import salt.loader

    loaded_host.reset()
    modules = [str(loaded_host.extension_modules)]
    settings = {"root_dir": str(loaded_host.root), "id": ME, "module_dirs": modules}
    loaded_host.write("etc/salt/master", settings)
    opts = dict(salt.config.master_config(str(loaded_host.config_dir / "master")))
    opts |= {"__role": "master", "grains": loaded_host.runtime.opts["grains"]}
    opts["multimaster"] = {"masters": [{"id": name} for name in (*PEERS, ME)]}
    return salt.loader.engines(opts, {}, {}, salt.loader.utils(opts))


@pytest.fixture
def master(host, engines, shared, minion_keys, monkeypatch):
    """
    A new master that has the shared pair.

    ``replies`` makes what a peer replies, from its id, the asker and the nonce; ``call`` calls a
    function of the engine; ``answer`` is what an honest peer does.
    """
    import multimaster_keypair

    host.write(f"etc/salt/pki/master/{ME}.pub", shared.pub)
    start = engines["multimaster.start"]

    def answer(origin, asker, nonce, *, complete=True, pem=shared.pem, keys=None):
        keys = {"web1": minion_keys["web1"].pub} if keys is None else keys
        answer = {"origin": origin, "asker": asker, "complete": complete, "keys": keys}
        signature = multimaster_keypair.sign_answer(answer, nonce, pem)
        return {"answer": answer, "signature": signature}

    class Client:
        def cmd(self, peers, function, arguments, **kwargs):
            assert (function, kwargs["tgt_type"]) == ("multimaster.offered_keys", "list")
            replies = {peer: master.replies(peer, *arguments) for peer in peers}
            return {peer: reply for peer, reply in replies.items() if reply is not None}

    # There are no other masters here, and no running one whose bus would carry the question.
    monkeypatch.setattr(
        "salt.client.get_local_client", lambda mopts: contextlib.nullcontext(Client())
    )

    def call(name, *args):
        return engines.run(start.func.__globals__[name], *args)

    master = SimpleNamespace(
        replies=answer,
        answer=answer,
        call=call,
        pull=lambda: call("_pull", list(PEERS)),
        start=start,
        settings=start.func.__globals__,
    )
    return master


def listed(host, where):
    directory = host.pki / where
    return {path.name for path in directory.iterdir()} if directory.is_dir() else set()


# Which keys are accepted


def test_an_unknown_minion_is_accepted(host, master, minion_keys):
    assert master.pull() is True
    assert host.accepted() == {"web1"}
    assert (host.pki / "minions/web1").read_text().strip() == minion_keys["web1"].pub


@pytest.mark.parametrize("end", ["", "\n"], ids=["same", "newline"])
def test_a_pending_minion_with_the_same_key_is_accepted(host, master, minion_keys, end):
    host.accept({"web1": minion_keys["web1"].pub + end}, "minions_pre")
    assert master.pull() is True
    assert host.accepted() == {"web1"}
    assert listed(host, "minions_pre") == set()


def test_a_pending_minion_with_another_key_stays_pending(host, master, other, caplog):
    host.accept({"web1": other.pub}, "minions_pre")
    master.pull()
    assert host.accepted() == set()
    assert (host.pki / "minions_pre/web1").read_text() == other.pub
    assert "differs from the pending one" in caplog.text


@pytest.mark.parametrize("where", ["minions", "minions_rejected", "minions_denied"])
def test_what_this_master_has_decided_stays(host, master, other, where):
    host.accept({"web1": other.pub}, where)
    before = host.files()
    assert master.pull() is True
    assert host.files() == before


@pytest.mark.parametrize("name", ["../web1", "a/b", "", ".."], ids=repr)
def test_what_is_no_minion_id_is_refused_and_the_rest_accepted(
    host, master, minion_keys, name, caplog
):
    pub = minion_keys["web1"].pub
    before = host.files()
    master.call("_accept", "saltm1", {name: pub})
    assert host.files() == before
    assert "is no minion id" in caplog.text
    master.call("_accept", "saltm1", {name: pub, "web1": pub})
    assert host.accepted() == {"web1"}


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PUBLIC KEY-----\n"], ids=repr)
def test_what_is_no_public_key_is_refused(host, master, text, caplog):
    master.call("_accept", "saltm1", {"web1": text})
    assert host.accepted() == set()
    assert "is no public key" in caplog.text


# Which answers are believed


@pytest.mark.parametrize(
    "lie",
    [
        "unsigned",
        "signed with another key",
        "changed afterwards",
        "another origin",
        "for another asker",
        "an old nonce",
        "an error message",
        "more than an answer",
    ],
)
def test_an_answer_is_refused_that_is(host, master, minion_keys, other, lie, caplog):
    def reply(peer, asker, nonce):
        answer = master.answer
        honest = answer(peer, asker, nonce)
        changed = {**honest["answer"], "keys": {"evil": minion_keys["web1"].pub}}
        return {
            "unsigned": {**honest, "signature": ""},
            "signed with another key": answer(peer, asker, nonce, pem=other.pem),
            "changed afterwards": {**honest, "answer": changed},
            "another origin": answer("saltm9", asker, nonce),
            "for another asker": answer(peer, "saltm9", nonce),
            "an old nonce": answer(peer, asker, "0" * 32),
            "an error message": "'multimaster.offered_keys' is not available.",
            "more than an answer": {**honest, "more": 1},
        }[lie]

    master.replies = reply
    assert master.pull() is False
    assert host.accepted() == set()
    for peer in PEERS:
        assert f"Refused the answer of {peer}: " in caplog.text


def test_a_refused_answer_does_not_hold_up_a_good_one(host, master):
    master.replies = lambda peer, *rest: "x" if peer == "saltm1" else master.answer(peer, *rest)
    assert master.pull() is True
    assert host.accepted() == {"web1"}


def test_every_question_has_a_nonce_of_its_own(master):
    asked = []
    master.replies = lambda peer, asker, nonce: asked.append(nonce)
    assert master.pull() is False
    assert master.pull() is False
    assert asked[0] == asked[1] != asked[2] == asked[3]


# Which answers count


@pytest.mark.parametrize(
    ("first", "second", "counts"),
    [
        ("complete", "complete", True),
        ("complete", "incomplete", True),
        ("complete", None, True),
        ("incomplete", None, False),
        ("incomplete", "refused", False),
        # All masters are new.
        ("incomplete", "incomplete", True),
        (None, None, False),
    ],
)
def test_an_incomplete_answer_counts_only_if_no_peer_can_do_better(
    host, master, first, second, counts
):
    def reply(peer, asker, nonce):
        kind = dict(zip(PEERS, (first, second), strict=True))[peer]
        answer = master.answer(peer, asker, nonce, complete=kind == "complete")
        return {None: None, "refused": "x"}.get(kind, answer)

    master.replies = reply
    assert master.pull() is counts
    assert host.accepted() == ({"web1"} if counts else set())


def test_of_a_complete_and_an_incomplete_answer_only_the_first_is_used(host, master, minion_keys):
    master.replies = lambda peer, asker, nonce: master.answer(
        peer,
        asker,
        nonce,
        complete=peer == "saltm1",
        keys={f"of-{peer}": minion_keys["web1"].pub},
    )
    assert master.pull() is True
    assert host.accepted() == {"of-saltm1"}


# How often is asked


def test_asks_until_it_is_answered_and_never_again(host, master, monkeypatch):
    flag = host.write("var/cache/salt/master/multimaster/joining", "")
    monkeypatch.setitem(master.settings, "FIRST_PAUSE", 0.0)
    asked = []

    def reply(peer, *rest):
        asked.append(peer)
        if len(asked) == 1:
            raise OSError("the bus is away")
        return None if len(asked) < 5 else master.answer(peer, *rest)

    master.replies = reply
    master.start()
    assert not flag.exists()
    assert host.accepted() == {"web1"}
    del asked[:]
    master.start()
    assert asked == []
