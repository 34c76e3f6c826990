"""The shared pair: sealed for one host, decided on by a truth table, the proof of a master."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import multimaster_keypair as keypair

GARBAGE = "-----BEGIN {0}-----\nnonsense\n-----END {0}-----\n".format("RSA PRIVATE KEY")
# A well-formed public key of an algorithm that nobody knows (1.2.3.4).
UNKNOWN_ALGORITHM = (
    "-----BEGIN PUBLIC KEY-----\n"
    + base64.b64encode(bytes.fromhex("300e3007060 32a0304050003030001ff".replace(" ", ""))).decode()
    + "\n-----END PUBLIC KEY-----\n"
)


@pytest.fixture(scope="module")
def offered(shared, minion_keys):
    return keypair.Bundle(shared.pem, shared.pub)


def with_passphrase(pem: str) -> str:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    ).decode()


def as_pkcs8(pem: str) -> str:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def elliptic() -> str:
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


# The truth table.  Each test is a row or several that differ in what must make no difference.

NOBODY: list[str] = []
SOMEBODY = ["web1", "web2"]
everybody = pytest.mark.parametrize("minions", [NOBODY, SOMEBODY], ids=["no minions", "minions"])
whatever = pytest.mark.parametrize("replace", [False, True], ids=["", "replace"])


@everybody
@whatever
def test_no_pair_is_written(offered, minions, replace):
    decision = keypair.decide(None, None, offered, minions, replace)
    assert decision == keypair.Decision("write", "there was no key pair")


@everybody
@whatever
def test_the_same_pair_is_left_alone(shared, offered, minions, replace):
    decision = keypair.decide(shared.pem, shared.pub, offered, minions, replace)
    assert decision == keypair.Decision("none", "the key pair is in place")


@pytest.mark.parametrize(
    "alter",
    [lambda text: text + "\n", lambda text: text + "\n\n", str.rstrip, lambda text: text + " \n"],
    ids=["newline", "two newlines", "no newline", "space"],
)
def test_trailing_white_space_makes_no_difference(shared, offered, alter):
    decision = keypair.decide(alter(shared.pem), alter(shared.pub), offered, NOBODY, False)
    assert decision.action == "none"


def test_the_format_of_the_same_key_makes_no_difference(shared, offered):
    decision = keypair.decide(as_pkcs8(shared.pem), shared.pub, offered, SOMEBODY, False)
    assert decision.action == "none"


def test_a_different_pair_that_no_minion_depends_on_is_replaced(other, offered):
    decision = keypair.decide(other.pem, other.pub, offered, NOBODY, False)
    assert decision.action == "replace"
    assert "different key pair" in decision.reason
    assert "no minion depends on" in decision.reason


def test_a_different_pair_that_minions_know_is_refused_with_the_way_out(other, offered):
    decision = keypair.decide(other.pem, other.pub, offered, SOMEBODY, False)
    assert decision.action == "refuse"
    assert "2 accepted minions (web1, web2)" in decision.reason
    assert "replace_keypair: true" in decision.reason
    assert "minion_master.pub" in decision.reason


def test_a_refusal_names_some_of_many_minions(other, offered):
    many = [f"web{number:03}" for number in range(500)]
    decision = keypair.decide(other.pem, other.pub, offered, many, False)
    assert "500 accepted minions (web000, web001, web002, web003, web004)" in decision.reason


def test_a_different_pair_is_replaced_at_the_operators_word(other, offered):
    decision = keypair.decide(other.pem, other.pub, offered, SOMEBODY, True)
    assert decision.action == "replace"
    assert "as replace_keypair says" in decision.reason


@everybody
@whatever
def test_a_missing_public_key_is_repaired(shared, offered, minions, replace):
    decision = keypair.decide(shared.pem, None, offered, minions, replace)
    assert decision.action == "repair"
    assert "public key" in decision.reason


@everybody
@whatever
@pytest.mark.parametrize("pub", ["other", GARBAGE, "", UNKNOWN_ALGORITHM], ids=len)
def test_a_public_key_that_does_not_match_is_repaired(
    shared, other, offered, minions, replace, pub
):
    found = other.pub if pub == "other" else pub
    decision = keypair.decide(shared.pem, found, offered, minions, replace)
    assert decision.action == "repair"


@everybody
@whatever
def test_a_missing_private_key_is_repaired_beside_the_right_public_key(
    shared, offered, minions, replace
):
    decision = keypair.decide(None, shared.pub, offered, minions, replace)
    assert decision == keypair.Decision("repair", "the private key was missing")


@pytest.mark.parametrize(
    ("minions", "replace", "action"),
    [(NOBODY, False, "replace"), (SOMEBODY, False, "refuse"), (SOMEBODY, True, "replace")],
)
def test_a_lone_different_public_key_is_treated_like_a_different_pair(
    other, offered, minions, replace, action
):
    decision = keypair.decide(None, other.pub, offered, minions, replace)
    assert decision.action == action
    assert "a public key without its private key" in decision.reason


@pytest.mark.parametrize(
    ("minions", "replace", "action"),
    [(NOBODY, False, "replace"), (SOMEBODY, False, "refuse"), (SOMEBODY, True, "replace")],
)
@pytest.mark.parametrize("pub", ["absent", "shared"])
def test_a_different_private_key_decides_whatever_the_public_key_is(
    shared, other, offered, minions, replace, action, pub
):
    found = shared.pub if pub == "shared" else None
    assert keypair.decide(other.pem, found, offered, minions, replace).action == action


UNREADABLE = pytest.mark.parametrize(
    "unreadable",
    [
        lambda pem: GARBAGE,
        lambda pem: "",
        lambda pem: pem[: len(pem) // 2],
        with_passphrase,
        lambda pem: elliptic(),
    ],
    ids=["garbage", "empty", "truncated", "passphrase", "elliptic"],
)


@UNREADABLE
@everybody
@whatever
def test_an_unreadable_private_key_is_repaired_beside_the_right_public_key(
    shared, offered, unreadable, minions, replace
):
    decision = keypair.decide(unreadable(shared.pem), shared.pub, offered, minions, replace)
    assert decision == keypair.Decision("repair", "the private key was not a readable PEM")


@UNREADABLE
@everybody
@pytest.mark.parametrize("pub", ["absent", "other"])
def test_an_unreadable_private_key_of_unknown_worth_is_refused(
    shared, other, offered, unreadable, minions, pub
):
    found = other.pub if pub == "other" else None
    decision = keypair.decide(unreadable(shared.pem), found, offered, minions, False)
    assert decision.action == "refuse"
    assert "not a readable PEM without passphrase" in decision.reason
    assert "replace_keypair: true" in decision.reason


@UNREADABLE
def test_an_unreadable_private_key_is_replaced_at_the_operators_word(other, offered, unreadable):
    decision = keypair.decide(unreadable(other.pem), other.pub, offered, SOMEBODY, True)
    assert decision.action == "replace"


@whatever
def test_an_unreadable_offer_is_refused_whatever_is_there(shared, other, replace):
    offer = keypair.Bundle(GARBAGE, shared.pub)
    for found in (None, None), shared, other:
        decision = keypair.decide(*found, offer, NOBODY, replace)
        assert decision == keypair.Decision(
            "refuse", "the offered private key is not a readable PEM"
        )


@whatever
def test_an_offer_of_two_halves_is_refused_whatever_is_there(shared, other, replace):
    for pub in (other.pub, GARBAGE, ""):
        offer = keypair.Bundle(shared.pem, pub)
        for found in (None, None), shared, other:
            decision = keypair.decide(*found, offer, NOBODY, replace)
            assert decision == keypair.Decision(
                "refuse", "the offered private and public key do not belong together"
            )


def test_no_refusal_shows_a_key(shared, other, offered):
    halves = keypair.Bundle(shared.pem, other.pub)
    refusals = [
        keypair.decide(other.pem, other.pub, offered, SOMEBODY, False),
        keypair.decide(None, other.pub, offered, SOMEBODY, False),
        keypair.decide(other.pem[:300], other.pub, offered, SOMEBODY, False),
        keypair.decide(other.pem, other.pub, halves, SOMEBODY, False),
    ]
    for refusal in refusals:
        assert refusal.action == "refuse"
        assert not shared.shows_in(refusal.reason)
        assert not other.shows_in(refusal.reason)
        assert "BEGIN" not in refusal.reason


def test_a_fingerprint_is_that_of_the_key_and_not_of_its_file(shared, other):
    assert keypair.fingerprint(shared.pub) == keypair.fingerprint(shared.pub + "\n\n")
    assert keypair.fingerprint(shared.pub) != keypair.fingerprint(other.pub)
    assert len(keypair.fingerprint(shared.pub)) == 64


@pytest.mark.parametrize(
    "text", ["", GARBAGE, UNKNOWN_ALGORITHM, "\ud800"], ids=["empty", "garbage", "unknown", "lone"]
)
def test_what_is_no_public_key_has_no_fingerprint(text):
    assert keypair.fingerprint(text) is None


# Pairs given in plain, to masterless hosts


def test_a_plain_pair_is_taken_as_it_is(shared):
    bundle = keypair.plain_bundle({"pem": shared.pem, "pub": shared.pub})
    assert bundle == keypair.Bundle(shared.pem, shared.pub)


@pytest.mark.parametrize(
    "half",
    [
        {"pem": "x"},
        {"pub": "x"},
        {"pem": None, "pub": 5},
        {"a": 1},
        {"pem": "x", "pub": "x", "sign_pem": "x"},
        {"pem": "x", "pub": "x", "sign_pub": "x"},
    ],
)
def test_half_a_plain_pair_is_refused_in_words(half):
    with pytest.raises(keypair.KeypairError) as refusal:
        keypair.plain_bundle(half)
    assert str(refusal.value).startswith(
        f"multimaster:keypair: got {sorted(half)}; supported: sealed, or pem and pub"
    )


@pytest.mark.parametrize(("given", "kind"), [("x", "str"), (["x"], "list"), (5, "int")])
def test_what_is_no_pair_at_all_is_refused_without_quoting_it(given, kind):
    with pytest.raises(keypair.KeypairError) as refusal:
        keypair.plain_bundle(given)
    assert str(refusal.value).startswith(
        f"multimaster:keypair: got {kind}; supported: sealed, or pem and pub"
    )


# Sealing


@pytest.fixture(scope="module")
def seal(pillar_file, offered, minion_keys):
    """Seal the offer, or something else, to saltm2, or to another."""

    def sealed(minion_id="saltm2", content=None, recipient="saltm2"):
        content = content or {"pem": offered.pem, "pub": offered.pub}
        return pillar_file.seal(content, minion_id, minion_keys[recipient].pub)

    return sealed


def refusal_of(sealed, minion_id, pem) -> str:
    with pytest.raises(keypair.KeypairError) as refusal:
        keypair.open_bundle(sealed, minion_id, pem)
    return str(refusal.value)


def test_what_was_sealed_for_a_host_opens_there(seal, offered, minion_keys):
    assert keypair.open_bundle(seal(), "saltm2", minion_keys["saltm2"].pem) == offered


def test_nothing_secret_shows_in_what_is_sealed(seal, shared):
    sealed = seal()
    plain = "".join(
        base64.b64decode(part).decode("latin-1")
        for part in json.loads(sealed).values()
        if isinstance(part, str)
    )
    assert not shared.shows_in(sealed + plain)
    assert "PRIVATE KEY" not in sealed + plain


def test_sealing_twice_gives_two_texts(seal):
    first, second = json.loads(seal()), json.loads(seal())
    assert all(first[name] != second[name] for name in ("key", "nonce", "data"))


def test_what_was_sealed_for_one_host_does_not_open_with_anothers_key(seal, minion_keys):
    message = refusal_of(seal(), "saltm2", minion_keys["web1"].pem)
    assert "does not open with the minion key of saltm2" in message


def test_what_was_sealed_for_one_id_does_not_open_under_another(seal, minion_keys):
    message = refusal_of(seal(), "web1", minion_keys["saltm2"].pem)
    assert "does not open with the minion key of web1" in message


@pytest.mark.parametrize("field", ["key", "nonce", "data"])
@pytest.mark.parametrize("place", [0, 5, -1], ids=["first", "middle", "last"])
def test_a_changed_byte_is_noticed(seal, minion_keys, field, place):
    envelope = json.loads(seal())
    content = bytearray(base64.b64decode(envelope[field]))
    content[place] ^= 1
    envelope[field] = base64.b64encode(content).decode()
    message = refusal_of(json.dumps(envelope), "saltm2", minion_keys["saltm2"].pem)
    assert "was changed on its way" in message


@pytest.mark.parametrize("field", ["key", "nonce", "data"])
def test_a_shortened_field_is_noticed(seal, minion_keys, field):
    envelope = json.loads(seal())
    envelope[field] = base64.b64encode(base64.b64decode(envelope[field])[:-1]).decode()
    refusal_of(json.dumps(envelope), "saltm2", minion_keys["saltm2"].pem)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused_in_words(seal, minion_keys, version):
    envelope = json.loads(seal()) | {"version": version}
    message = refusal_of(json.dumps(envelope), "saltm2", minion_keys["saltm2"].pem)
    assert message == f"sealed key pair: got version {version!r}; supported: 1"


@pytest.mark.parametrize("field", ["version", "key", "nonce", "data"])
def test_a_missing_field_is_noticed(seal, minion_keys, field):
    envelope = json.loads(seal())
    del envelope[field]
    message = refusal_of(json.dumps(envelope), "saltm2", minion_keys["saltm2"].pem)
    assert message == "the sealed key pair is malformed"


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "5", "null", None, {"version": 1}, b"\xff"])
def test_what_is_no_bundle_is_refused(minion_keys, text):
    message = refusal_of(text, "saltm2", minion_keys["saltm2"].pem)
    assert message == "the sealed key pair is malformed"


@pytest.mark.parametrize("field", ["key", "nonce", "data"])
@pytest.mark.parametrize("bad", [5, None, ["x"], "not base64!", "ü"], ids=repr)
def test_a_field_that_is_no_base64_is_refused(seal, minion_keys, field, bad):
    envelope = json.loads(seal()) | {field: bad}
    message = refusal_of(json.dumps(envelope), "saltm2", minion_keys["saltm2"].pem)
    assert message == "the sealed key pair is malformed"


@pytest.mark.parametrize(
    "content",
    [
        ["pem", "pub"],
        {"pem": "x"},
        {"pub": "x"},
        {"pem": 5, "pub": "x"},
        {"pem": "x", "pub": None},
        {"pem": "x", "pub": "x", "sign_pem": "x"},
    ],
    ids=json.dumps,
)
def test_a_bundle_with_the_wrong_content_is_refused(seal, minion_keys, content):
    refusal_of(seal(content=content), "saltm2", minion_keys["saltm2"].pem)


@pytest.mark.parametrize("key", ["garbage", "passphrase", "elliptic"])
def test_a_minion_key_of_no_use_is_named(seal, minion_keys, key):
    pem = {
        "garbage": GARBAGE,
        "passphrase": with_passphrase(minion_keys["saltm2"].pem),
        "elliptic": elliptic(),
    }[key]
    assert "the minion's private key is not" in refusal_of(seal(), "saltm2", pem)


def test_no_refusal_of_a_bundle_shows_a_key(seal, shared, minion_keys):
    envelope = json.loads(seal())
    attempts = [
        (seal(), "saltm2", minion_keys["web1"].pem),
        (seal(), "saltm2", minion_keys["saltm2"].pem[:300]),
        (json.dumps(envelope | {"version": 2}), "saltm2", minion_keys["saltm2"].pem),
        (json.dumps(envelope | {"data": shared.pem}), "saltm2", minion_keys["saltm2"].pem),
        (shared.pem, "saltm2", minion_keys["saltm2"].pem),
    ]
    for attempt in attempts:
        message = refusal_of(*attempt)
        for pair in (shared, *minion_keys.values()):
            assert not pair.shows_in(message)


def test_a_bundle_needs_no_more_than_the_described_cryptography(minion_keys):
    # RSA-OAEP-SHA256 around an AES-256-GCM key, the id as associated data: written out once more,
    # so that neither side can change without the other.
    public = serialization.load_pem_public_key(minion_keys["saltm2"].pub.encode())
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    content = json.dumps({"pem": "a", "pub": "b"}).encode()
    data = AESGCM(b"k" * 32).encrypt(b"n" * 12, content, b"multimaster keypair 1\0saltm2")
    parts = {"key": public.encrypt(b"k" * 32, oaep), "nonce": b"n" * 12, "data": data}
    envelope = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    sealed = json.dumps({"version": 1, **envelope})
    opened = keypair.open_bundle(sealed, "saltm2", minion_keys["saltm2"].pem)
    assert opened == keypair.Bundle("a", "b")


# Signed answers

ANSWER = {"origin": "saltm1", "asker": "saltm2", "complete": True, "keys": {"web1": "PEM"}}


@pytest.fixture
def signature(shared):
    return keypair.sign_answer(ANSWER, "nonce", shared.pem)


def unsigned(answer, nonce, signature, pub) -> None:
    with pytest.raises(keypair.KeypairError, match="is not signed with the masters' key"):
        keypair.verify_answer(answer, nonce, signature, pub)


def test_an_answer_of_a_holder_of_the_shared_key_is_believed(shared, signature):
    keypair.verify_answer(ANSWER, "nonce", signature, shared.pub)


def test_the_order_of_an_answers_parts_makes_no_difference(shared, signature):
    keypair.verify_answer(dict(reversed(ANSWER.items())), "nonce", signature, shared.pub)


@pytest.mark.parametrize(
    "change",
    [
        {"origin": "web1"},
        {"asker": "saltm3"},
        {"complete": False},
        {"keys": {}},
        {"keys": {"web1": "PEM", "web2": "PEM"}},
        {"more": 1},
        {"keys": b"bytes"},
    ],
    ids=repr,
)
def test_a_changed_answer_is_refused(shared, signature, change):
    unsigned(ANSWER | change, "nonce", signature, shared.pub)


@pytest.mark.parametrize("answer", [None, [], "x", {}], ids=repr)
def test_another_answer_is_refused(shared, signature, answer):
    unsigned(answer, "nonce", signature, shared.pub)


@pytest.mark.parametrize("nonce", ["", "Nonce", "nonce ", None], ids=repr)
def test_an_answer_to_another_question_is_refused(shared, signature, nonce):
    unsigned(ANSWER, nonce, signature, shared.pub)


def test_an_answer_signed_with_another_key_is_refused(shared, other):
    unsigned(ANSWER, "nonce", keypair.sign_answer(ANSWER, "nonce", other.pem), shared.pub)


@pytest.mark.parametrize("bad", ["", "x", "AAAA", "not base64!", "ü", None, 5, b"", []], ids=repr)
def test_a_garbage_signature_is_refused(shared, bad):
    unsigned(ANSWER, "nonce", bad, shared.pub)


@pytest.mark.parametrize("pub", ["", GARBAGE, UNKNOWN_ALGORITHM], ids=len)
def test_nothing_is_believed_without_the_masters_public_key(signature, pub):
    with pytest.raises(keypair.KeypairError):
        keypair.verify_answer(ANSWER, "nonce", signature, pub)


@pytest.mark.parametrize("pem", ["", GARBAGE], ids=len)
def test_nothing_is_signed_without_the_masters_private_key(pem):
    with pytest.raises(keypair.KeypairError, match="the master's private key"):
        keypair.sign_answer(ANSWER, "nonce", pem)


# What a master's host has proved

TOLD = {"running": True, "accepted": ["web1"], "at": 1.5, "nothing": None}
QUESTION = ("multimaster.report", "saltm2", "nonce")
NOT_SIGNED = "the answer is not signed"
NOT_WITH_KEY = "the answer is not signed with the masters' key"


@pytest.fixture
def proof(shared):
    return keypair.prove({"told": TOLD}, *QUESTION, shared.pem)


def test_what_a_masters_host_proves_is_believed(shared, proof):
    assert keypair.proved(proof, *QUESTION, shared.pub) == (TOLD, None)
    # As it arrives.
    assert keypair.proved(json.loads(json.dumps(proof)), *QUESTION, shared.pub) == (TOLD, None)


def test_an_error_is_proved_too_and_nothing_of_it_is_for_a_terminal(shared):
    proof = keypair.prove({"error": "no\x1b[2J"}, *QUESTION, shared.pem)
    assert keypair.proved(proof, *QUESTION, shared.pub) == (None, r"no\x1b[2J")


@pytest.mark.parametrize(
    ("function", "host", "nonce"),
    [
        ("multimaster.masters", "saltm2", "nonce"),
        ("multimaster.report", "saltm1", "nonce"),
        ("multimaster.report", "saltm2", "another"),
    ],
)
def test_a_proof_is_for_one_question_to_one_host(shared, proof, function, host, nonce):
    told, why = keypair.proved(proof, function, host, nonce, shared.pub)
    assert (told, bool(why)) == (None, True)


def test_what_one_master_tells_another_of_its_ledger_proves_nothing_else(shared):
    answer = {"origin": "saltm2", "asker": "saltm1", "epoch": None}
    signature = keypair.sign_answer(answer, "nonce", shared.pem)
    reply = {"answer": answer, "signature": signature}
    assert keypair.proved(reply, *QUESTION, shared.pub)[0] is None


def test_nothing_is_proved_with_another_key_or_without_one(shared, other):
    proof = keypair.prove({"told": TOLD}, *QUESTION, other.pem)
    assert keypair.proved(proof, *QUESTION, shared.pub) == (None, NOT_WITH_KEY)
    proof = keypair.prove({"told": TOLD}, *QUESTION, None)
    assert keypair.proved(proof, *QUESTION, shared.pub) == (None, NOT_SIGNED)
    assert keypair.proved(proof, *QUESTION, None) == (None, NOT_SIGNED)


def test_nothing_is_proved_to_one_who_has_no_public_key(proof):
    assert keypair.proved(proof, *QUESTION, None)[0] is None


deep: list = []
for _ in range(5000):
    deep = [deep]


@pytest.mark.parametrize(
    "signature",
    [5, 10**400, 1.5, True, b"x", b"x" * 1_000_000, "x" * 1_000_000, [], {}, "\udc80", deep],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    "answer", [None, 5, "x" * 1_000_000, [], {}, deep, {1: 2, "x": 3}], ids=range(7)
)
def test_whatever_is_said_instead_proves_nothing(shared, answer, signature):
    reply = {"answer": answer, "signature": signature}
    assert keypair.proved(reply, *QUESTION, shared.pub) == (None, NOT_WITH_KEY)
    keypair.claimed(reply)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (None, NOT_SIGNED),
        (True, NOT_SIGNED),
        ([], NOT_SIGNED),
        ({}, NOT_SIGNED),
        (TOLD, NOT_SIGNED),
        (deep, NOT_SIGNED),
        ("'x' is not available.", f"{NOT_SIGNED}: 'x' is not available."),
        ("\x1b[2J\udc80", rf"{NOT_SIGNED}: \x1b[2J\udc80"),
        ("x" * 1_000_000, f"{NOT_SIGNED}: {'x' * 500}"),
    ],
    ids=["nothing", "true", "list", "empty", "plain", "deep", "text", "terminal", "long"],
)
def test_what_is_no_proof_is_not_signed(shared, reply, why):
    assert keypair.proved(reply, *QUESTION, shared.pub) == (None, why)
    assert keypair.claimed(reply) is None


def test_a_host_without_a_pair_claims_what_it_says(proof):
    unsigned = {**proof, "signature": None}
    assert keypair.claimed(unsigned) == TOLD
