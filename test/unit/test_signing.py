"""The signing pair: decided on, made, installed; and minions that follow their masters."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import multimaster_keypair as keypair
import multimaster_signing as signing

GARBAGE = "-----BEGIN {0}-----\nnonsense\n-----END {0}-----\n".format("RSA PRIVATE KEY")
ALGORITHMS = ["PKCS1v15-SHA1", "PKCS1v15-SHA224"]
FILES = ("master_sign.pem", "master_sign.pub", "master_pubkey_signature")


@pytest.fixture(scope="module")
def pair(minion_keys):
    """A signing pair."""
    return minion_keys["web1"]


@pytest.fixture(scope="module")
def offered(shared, pair):
    return keypair.Bundle(shared.pem, shared.pub, pair.pem, pair.pub)


@pytest.fixture(scope="module")
def nothing(shared):
    """What a master has to offer that has no signing pair."""
    return keypair.Bundle(shared.pem, shared.pub)


# The truth table

whoever = pytest.mark.parametrize("creator", [None, "saltm1"])
whatever = pytest.mark.parametrize("replace", [False, True], ids=["", "replace"])


def decide(found, offer, creator=None, replace=False):
    pem, pub = found or (None, None)
    return keypair.decide_signing(pem, pub, offer, creator, replace)


@whoever
@whatever
def test_an_offered_pair_is_written(offered, creator, replace):
    assert decide(None, offered, creator, replace).action == "write"


@whatever
def test_without_any_pair_only_one_master_makes_one(nothing, replace):
    assert decide(None, nothing, None, replace).action == "create"
    waiting = decide(None, nothing, "saltm1", replace)
    assert waiting.action == "wait"
    assert "only saltm1 makes one" in waiting.reason


@whoever
@whatever
@pytest.mark.parametrize("end", ["", "\n", "\n\n"], ids=["bare", "newline", "newlines"])
def test_the_pair_that_is_there_is_used(pair, offered, nothing, creator, replace, end):
    for offer in (offered, nothing):
        found = decide((pair.pem + end, pair.pub + end), offer, creator, replace)
        assert found == keypair.Decision("none", "the signing pair is in place")


@whoever
def test_a_wrong_public_half_is_repaired(pair, other, offered, nothing, creator):
    for offer in (offered, nothing):
        for pub in (None, other.pub, "x"):
            assert decide((pair.pem, pub), offer, creator).action == "repair"


@whoever
def test_another_pair_is_never_replaced_unasked(other, offered, creator):
    found = decide((other.pem, other.pub), offered, creator)
    assert found.action == "refuse"
    assert "another signing pair" in found.reason
    assert "replace_keypair: true" in found.reason
    assert decide((other.pem, other.pub), offered, creator, replace=True).action == "replace"


@whoever
@whatever
def test_a_key_that_cannot_be_read_is_never_replaced_by_a_new_one(nothing, creator, replace):
    assert decide((GARBAGE, None), nothing, creator, replace).action == "refuse"


@whoever
def test_half_a_pair_is_completed_or_refused(pair, other, offered, nothing, creator):
    assert decide((None, pair.pub), offered, creator).action == "write"
    assert decide((None, other.pub), offered, creator).action == "refuse"
    # Somebody has its other half.
    assert decide((None, pair.pub), nothing, creator).action == "refuse"


@whoever
@whatever
def test_an_offer_of_halves_that_differ_is_refused(shared, pair, other, creator, replace):
    for pem, pub in ((pair.pem, other.pub), (GARBAGE, pair.pub)):
        bad = keypair.Bundle(shared.pem, shared.pub, pem, pub)
        assert decide(None, bad, creator, replace).action == "refuse"


def test_no_reason_shows_a_key(pair, other, offered, nothing):
    for found in (None, pair, other, (GARBAGE, None)):
        for offer in (offered, nothing):
            reason = decide(found, offer, "saltm1", True).reason
            assert not pair.shows_in(reason)
            assert not other.shows_in(reason)


# The signature


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("end", ["", "\n", "\n\n"], ids=["bare", "newline", "newlines"])
def test_salt_verifies_our_signature(shared, pair, tmp_path, algorithm, end):
    import binascii

    import salt.crypt

    signature = keypair.sign_pub(shared.pub + end, pair.pem, algorithm)
    path = tmp_path / "master_sign.pub"
    path.write_text(pair.pub)
    # What a master sends of its key, and what a minion makes of the signature.
    sent, raw = salt.crypt.clean_key(shared.pub + end), binascii.a2b_base64(signature)
    assert salt.crypt.verify_signature(str(path), sent, raw, algorithm)
    assert keypair.is_signed(shared.pub, signature, pair.pub, algorithm)


def test_another_key_algorithm_or_text_is_not_what_was_signed(shared, pair, other):
    signature = keypair.sign_pub(shared.pub, pair.pem, "PKCS1v15-SHA1")
    assert keypair.is_signed(shared.pub, signature.encode(), pair.pub, "PKCS1v15-SHA1")
    for pub, text, signer, algorithm in (
        (other.pub, signature, pair.pub, "PKCS1v15-SHA1"),
        (shared.pub, signature, other.pub, "PKCS1v15-SHA1"),
        (shared.pub, signature, pair.pub, "PKCS1v15-SHA224"),
        (shared.pub, signature, pair.pub, "MD5"),
        (shared.pub, "", pair.pub, "PKCS1v15-SHA1"),
        (shared.pub, "?", pair.pub, "PKCS1v15-SHA1"),
        (shared.pub, None, pair.pub, "PKCS1v15-SHA1"),
        (shared.pub, signature, GARBAGE, "PKCS1v15-SHA1"),
    ):
        assert not keypair.is_signed(pub, text, signer, algorithm)


def test_an_unknown_algorithm_is_refused_in_words(shared, pair):
    with pytest.raises(keypair.KeypairError, match="got 'MD5'; supported: PKCS1v15-SHA1, "):
        keypair.sign_pub(shared.pub, pair.pem, "MD5")


def test_a_pair_is_made_whole_and_fresh():
    (pem, pub), again = keypair.make_pair(1024), keypair.make_pair(1024)
    assert keypair.public_of(pem) == pub
    assert again[0] != pem


# The verdict

SIGNS, PLAIN, WRONG = signing.SIGNS, signing.PLAIN, signing.WRONG
UNKNOWN = "unknown: refused"


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        ([SIGNS, SIGNS], True),
        ([SIGNS, UNKNOWN], True),
        ([PLAIN, PLAIN], False),
        ([UNKNOWN, PLAIN], False),
        ([SIGNS, PLAIN], None),
        ([SIGNS, PLAIN, UNKNOWN], None),
        ([SIGNS, WRONG], None),
        ([WRONG, WRONG], None),
        ([WRONG, PLAIN], None),
        ([UNKNOWN, UNKNOWN], None),
        ([], None),
    ],
)
def test_a_minion_follows_its_masters_when_they_are_at_one(seen, wanted):
    assert signing.verdict(seen) is wanted


def test_the_switch_changes_one_word_of_the_drop_in():
    text = "engines: []\nverify_master_pubkey_sign: false\nretry_dns: 5\n"
    on = signing.switched(text, True)
    assert on == text.replace("false", "true")
    assert signing.switched(on, True) == on
    assert signing.switched(on, False) == text


@pytest.mark.parametrize(
    "text", ["", "a: {verify_master_pubkey_sign: true}\n", "verify_master_pubkey_sign: x\n"]
)
def test_the_switch_leaves_a_drop_in_alone_that_it_does_not_know(text):
    with pytest.raises(ValueError, match="0 times"):
        signing.switched(text, True)


# On a host


@pytest.fixture
def give(host, shared, pair):
    """Have the pillar give this host the shared pair, and the signing pair if it is to."""

    def given(signing_pair=pair):
        content = {"pem": shared.pem, "pub": shared.pub}
        if signing_pair:
            content |= {"sign_pem": signing_pair.pem, "sign_pub": signing_pair.pub}
        host.pillar = {"multimaster": {"keypair": content}}

    given()
    return given


def install(host, **kwargs):
    """Install; what a dry run said before must be what is done, and must have changed nothing."""
    before = host.files()
    plan = host.call("install_signing", test=True, **kwargs)
    assert host.files() == before
    done = host.call("install_signing", **kwargs)
    assert (plan["action"], plan["reason"]) == (done["action"], done["reason"])
    return done


def in_place(host, pair, shared):
    for name in FILES:
        path = host.pki / name
        assert stat.S_ISREG(path.lstat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        assert path.stat().st_uid == os.getuid()
    assert (host.pki / FILES[0]).read_text().strip() == pair.pem.strip()
    signature = (host.pki / FILES[2]).read_text()
    assert keypair.is_signed(shared.pub, signature, pair.pub, "PKCS1v15-SHA1")
    assert not list(host.pki.glob(".multimaster-*"))


def test_the_offered_pair_is_installed_with_its_signature_once(host, give, pair, shared):
    assert install(host, creator="saltm1")["action"] == "write"
    in_place(host, pair, shared)
    before = host.files()
    assert install(host, creator="saltm1")["action"] == "none"
    assert host.files() == before


def test_a_pair_is_made_once_by_the_one_that_may(host, give, shared):
    give(None)
    assert install(host, creator="saltm1")["action"] == "wait"
    assert not (host.pki / FILES[0]).exists()
    assert install(host)["action"] == "create"
    made = (host.pki / FILES[0]).read_text()
    signature = (host.pki / FILES[2]).read_text()
    pub = (host.pki / FILES[1]).read_text()
    assert keypair.is_signed(shared.pub, signature, pub, "PKCS1v15-SHA1")
    assert install(host)["action"] == "none"
    assert (host.pki / FILES[0]).read_text() == made


def test_an_administrators_pair_is_used_and_gets_its_signature(host, give, pair, shared):
    give(None)
    for name, text in zip(FILES, pair, strict=False):
        host.write(f"etc/salt/pki/master/{name}", text).chmod(0o400)
    assert install(host)["action"] == "repair"
    in_place(host, pair, shared)


def test_another_masters_pair_is_refused_and_then_replaced_after_a_backup(
    host, give, pair, other, shared
):
    give(other)
    install(host)
    before = host.files()
    give(pair)
    assert install(host)["action"] == "refuse"
    assert host.files() == before
    done = install(host, replace=True)
    in_place(host, pair, shared)
    assert Path(done["backup"], FILES[0]).read_text() == other.pem
    assert stat.S_IMODE(os.stat(done["backup"]).st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644], ids=oct)
def test_a_signing_key_that_others_may_read_is_repaired(host, give, pair, shared, mode):
    install(host)
    (host.pki / FILES[0]).chmod(mode)
    assert "had mode" in install(host)["reason"]
    in_place(host, pair, shared)


def test_a_signature_over_another_key_is_made_again(host, give, pair, shared, other):
    install(host)
    stale = keypair.sign_pub(other.pub, pair.pem, "PKCS1v15-SHA1")
    (host.pki / FILES[2]).chmod(0o600)
    (host.pki / FILES[2]).write_text(stale)
    assert install(host)["action"] == "repair"
    in_place(host, pair, shared)


def test_whoever_leaves_takes_no_signing_pair_along(host, give, pair):
    host.call("install_keypair")
    install(host)
    left = host.call("leave")
    assert {f"{host.pki}/{name}" for name in FILES} <= set(left["removed"])
    assert not any((host.pki / name).exists() for name in FILES)
    assert Path(left["backup"], FILES[0]).read_text() == pair.pem


def test_a_minion_gets_the_public_key_and_a_changed_one(host, pair, other):
    host.pillar = {}
    assert host.call("install_signing_pub") == {"action": "none", "fingerprint": None}
    path = host.config_dir / "pki/minion/master_sign.pub"
    path.parent.mkdir(parents=True)
    for given, action in ((pair, "write"), (pair, "none"), (other, "replace")):
        host.pillar = {"multimaster": {"keypair": {"sign_pub": given.pub}}}
        assert host.call("install_signing_pub", test=True)["action"] == action
        assert host.call("install_signing_pub")["action"] == action
        assert path.read_text() == given.pub


def test_a_public_key_that_is_none_is_refused(host):
    from salt.exceptions import CommandExecutionError

    host.pillar = {"multimaster": {"keypair": {"sign_pub": GARBAGE}}}
    with pytest.raises(CommandExecutionError, match="public signing key"):
        host.call("install_signing_pub")


def test_a_minion_begins_to_verify_if_it_has_met_no_master_and_has_the_key(host, pair):
    given = {"multimaster": {"keypair": {"sign_pub": pair.pub}}}
    assert not host.call("verifies", signing=True)
    host.pillar = given
    assert not host.call("verifies")
    assert host.call("verifies", signing=True)
    host.write("etc/salt/pki/minion/minion_master.pub", "known")
    assert not host.call("verifies", signing=True)


# What a minion believes of an answer to its request to sign in


@pytest.fixture
def see(host, monkeypatch, pair, shared):
    """Return what the minion sees of a master, given what it knows and what the master says."""
    import salt.payload

    def see(known=(), signed_by=shared, **load):
        minion = host.config_dir / "pki/minion"
        minion.mkdir(parents=True, exist_ok=True)
        for name, pub in dict(known).items():
            (minion / name).write_text(pub)
        load = salt.payload.dumps({"nonce": "fresh", "pub_key": shared.pub, **load})
        answer = {"load": load, "sig": signed(signed_by, load)}
        opts = {"pki_dir": str(minion), "signing_algorithm": ALGORITHMS[1]}
        utils = host.modules.pack["__utils__"]
        monkeypatch.setitem(
            utils._dict, "multimaster_dial.knock", lambda *_: (opts, "fresh", answer)
        )
        return host.call("see_masters")["salt"]

    return see


def signed(pair, text):
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding

    key = serialization.load_pem_private_key(pair.pem.encode(), None)
    return key.sign(text, padding.PKCS1v15(), hashes.SHA224())


def test_a_minion_that_has_met_no_master_believes_who_is_signed_by_their_signing_key(
    see, pair, shared, other
):
    signature = keypair.sign_pub(shared.pub, pair.pem, ALGORITHMS[1])
    mine = {"master_sign.pub": pair.pub}
    assert see(mine, pub_sig=signature) == "signs"
    for odd in (
        see(mine),
        see(mine, pub_sig=keypair.sign_pub(shared.pub, other.pem, ALGORITHMS[1])),
        see(mine, pub_sig=signature, signed_by=other),
        see(mine, pub_sig=signature, nonce="stale"),
        see(mine, pub_sig=signature, pub_key=other.pub, signed_by=other),
        see(mine, pub_sig=1, pub_key=["odd"]),
    ):
        assert odd.startswith("unknown: ")
    met = {**mine, "minion_master.pub": shared.pub}
    assert see(met, pub_sig=signature) == "signs"
    assert see(met) == "plain"
    assert see(met, pub_sig=signature, signed_by=other).startswith("unknown: ")


def test_without_a_signing_key_a_minion_believes_nobody_at_first(see, pair, shared):
    signature = keypair.sign_pub(shared.pub, pair.pem, ALGORITHMS[1])
    assert see(pub_sig=signature).startswith("unknown: ")
