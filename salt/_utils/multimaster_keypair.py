"""
The masters' shared key pair: how it travels, what is done with the pair that a host already has,
and how a master proves that it holds it.

Pure: bytes and strings in, bytes and strings out; imports nothing of Salt and touches no file.
The counterpart of :func:`open_bundle` is ``seal`` in ``pillar/multimaster/keypair.sls``, which has
to stand alone, because a pillar tree cannot import from a state tree.
"""

# Annotations stay evaluated: Salt's loader keeps a module out of sys.modules while it runs, where
# dataclasses would look postponed ones up.
import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION = 1
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


class KeypairError(ValueError):
    """A bundle, key or signature that must not be used; the message never quotes a secret."""


@dataclass(frozen=True)
class Bundle:
    """What a master-to-be receives: the shared pair and the public keys of the masters' minions."""

    pem: str
    pub: str
    minions: Mapping[str, str]


@dataclass(frozen=True)
class Decision:
    """What to do with the pair on a host.  action: none, write, repair, replace or refuse."""

    action: str
    reason: str


def open_bundle(sealed: str, minion_id: str, minion_pem: str) -> Bundle:
    """
    Open what was sealed to this host's minion key.

    sealed
        JSON text: version, wrapped key, nonce and ciphertext.
    minion_id
        Bound in as associated data: a bundle made for another id does not open.
    minion_pem
        The private key of the minion on this host.

    Raises :class:`KeypairError` for anything that is not exactly such a bundle.
    """
    try:
        envelope = json.loads(sealed)
        version = envelope["version"]
        wrapped, nonce, data = (
            base64.b64decode(envelope[name], validate=True) for name in ("key", "nonce", "data")
        )
    except (ValueError, KeyError, TypeError, binascii.Error) as err:
        raise KeypairError("the sealed key pair is malformed") from err
    if version != VERSION:
        raise KeypairError(f"sealed key pair: got version {version!r}; supported: {VERSION}")
    private = _private(minion_pem, "the minion's private key")
    try:
        key = private.decrypt(wrapped, _OAEP)
        content = json.loads(AESGCM(key).decrypt(nonce, data, _associated(minion_id)))
    except (ValueError, InvalidTag) as err:
        raise KeypairError(
            f"the sealed key pair does not open with the minion key of {minion_id}: it was made "
            "for another host or key, or was changed on its way"
        ) from err
    try:
        bundle = Bundle(pem=content["pem"], pub=content["pub"], minions=dict(content["minions"]))
    except (KeyError, TypeError, ValueError) as err:
        raise KeypairError("the sealed key pair is incomplete") from err
    if not all(
        isinstance(text, str) for text in (bundle.pem, bundle.pub, *bundle.minions.values())
    ):
        raise KeypairError("the sealed key pair is incomplete")
    return bundle


def plain_bundle(pair: Any) -> Bundle:
    """Return the pair that a masterless pillar gives; :class:`KeypairError` if it is half."""
    given = pair if isinstance(pair, Mapping) else {}
    pem, pub = given.get("pem"), given.get("pub")
    if not isinstance(pem, str) or not isinstance(pub, str):
        # Its keys only: a value may be half of a secret.
        got = sorted(map(str, pair)) if isinstance(pair, Mapping) else type(pair).__name__
        raise KeypairError(f"multimaster:keypair: got {got}; supported: sealed, or pem and pub")
    return Bundle(pem=pem, pub=pub, minions={})


def decide(
    pem: str | None,
    pub: str | None,
    offered: Bundle,
    minions: Sequence[str],
    replace: bool,
) -> Decision:
    """
    The truth table: what to do with the pair found on a host.

    pem, pub
        The pair that the master on this host would use; None where the file is absent.
    offered
        The shared pair.
    minions
        Accepted minions on this host's master, beyond those of the masters themselves: whoever
        has them would lose them by a change of the key.
    replace
        The operator's word that a different pair may be replaced all the same.
    """
    wanted = _fingerprint_of_private(offered.pem)
    if wanted is None:
        return Decision("refuse", "the offered private key is not a readable PEM")
    if fingerprint(offered.pub) != wanted:
        return Decision("refuse", "the offered private and public key do not belong together")

    if pem is None and pub is None:
        return Decision("write", "there was no key pair")
    found_pub = None if pub is None else fingerprint(pub)
    if pem is None:
        if found_pub == wanted:
            return Decision("repair", "the private key was missing")
        return _replace_if("a public key without its private key", minions, replace)
    found_pem = _fingerprint_of_private(pem)
    if found_pem is None:
        if found_pub == wanted:
            return Decision("repair", "the private key was not a readable PEM")
        if replace:
            return Decision("replace", "the private key was not a readable PEM")
        return Decision(
            "refuse",
            "the private key is not a readable PEM without passphrase; "
            "set replace_keypair: true to replace it",
        )
    if found_pem != wanted:
        return _replace_if("a different key pair", minions, replace)
    if found_pub != wanted:
        return Decision("repair", "the public key did not belong to the private key")
    return Decision("none", "the key pair is in place")


def fingerprint(pub: str) -> str | None:
    """Return the SHA-256 of a public key in DER, in hexadecimal; None if it is not one."""
    try:
        return hashlib.sha256(_der(_public(pub))).hexdigest()
    except KeypairError:
        return None


def quick_fingerprint(pub: str) -> str | None:
    """
    Return what :func:`fingerprint` returns for a key that Salt has stored, in a tenth of the time.

    Takes the key's own encoding for granted and does not check it: not for what a peer sends.
    """
    lines = pub.split()
    if lines[:3] != ["-----BEGIN", "PUBLIC", "KEY-----"]:
        return fingerprint(pub)
    try:
        return hashlib.sha256(base64.b64decode("".join(lines[3:-3]), validate=True)).hexdigest()
    except binascii.Error:
        return None


def sign_answer(answer: Mapping[str, Any], nonce: str, pem: str) -> str:
    """
    Sign an answer to another master with the shared private key; return base64.

    The asker's nonce is signed too, so that an old answer is worth nothing.
    """
    # Checking a key takes longer than signing with it, and this one serves Salt all the time.
    signature = _private(pem, "the master's private key", unsafe_skip_rsa_key_validation=True).sign(
        _canonical(answer, nonce), _PSS, hashes.SHA256()
    )
    return base64.b64encode(signature).decode()


def verify_answer(answer: Mapping[str, Any], nonce: str, signature: str, pub: str) -> None:
    """Raise :class:`KeypairError` unless the holder of the shared key gave this answer."""
    key = _public(pub)
    try:
        raw = base64.b64decode(signature, validate=True)
        key.verify(raw, _canonical(answer, nonce), _PSS, hashes.SHA256())
    except (InvalidSignature, TypeError, ValueError) as err:
        raise KeypairError("the answer is not signed with the masters' key") from err


def _replace_if(found: str, minions: Sequence[str], replace: bool) -> Decision:
    if replace:
        return Decision("replace", f"replaced {found}, as replace_keypair says")
    if not minions:
        return Decision("replace", f"replaced {found}, which no minion depends on")
    some = ", ".join(sorted(minions)[:5])
    return Decision(
        "refuse",
        f"this master has {found} and {len(minions)} accepted minions ({some}) that know it; "
        "set replace_keypair: true to replace it, then remove minion_master.pub on those minions",
    )


def _private(pem: str, what: str, **options: bool) -> rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None, **options)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise KeypairError(f"{what} is not a readable PEM without passphrase") from err
    if not isinstance(key, rsa.RSAPrivateKey):
        raise KeypairError(f"{what} is not an RSA key")
    return key


def _public(pub: str) -> rsa.RSAPublicKey:
    try:
        key = serialization.load_pem_public_key(pub.encode())
    except (AttributeError, ValueError, TypeError, UnsupportedAlgorithm) as err:
        # Also what is no text at all: it may come out of another master's answer.
        raise KeypairError("a public key is not a readable PEM") from err
    if not isinstance(key, rsa.RSAPublicKey):
        raise KeypairError("a public key is not an RSA key")
    return key


def _fingerprint_of_private(pem: str) -> str | None:
    try:
        key = _private(pem, "the key")
    except KeypairError:
        return None
    return hashlib.sha256(_der(key.public_key())).hexdigest()


def _der(key: rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _associated(minion_id: str) -> bytes:
    return b"multimaster keypair %d\0" % VERSION + minion_id.encode()


def _canonical(answer: Mapping[str, Any], nonce: str) -> bytes:
    text = json.dumps(
        {"nonce": nonce, "answer": answer}, sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
    return b"multimaster answer 1\0" + text.encode()
