"""
The masters' shared key pair: how it travels, what is done with the pair that a host already has,
and how a master proves that it holds it.

Pure: bytes and strings in, bytes and strings out; imports nothing of Salt and touches no file.
The counterparts of :func:`open_bundle` and :func:`open_page` are ``seal`` and ``seal_page`` in
``pillar/multimaster/keypair.sls``, which has to stand alone, because a pillar tree cannot import
from a state tree.
"""

# Annotations stay evaluated: Salt's loader keeps a module out of sys.modules while it runs, where
# dataclasses would look postponed ones up.
import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION = 1
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
# Salt's names for the ways of signing.
_HASHES: dict[str, hashes.HashAlgorithm] = {
    # Salt's default; the signature is over a public key, which nobody but its owner can choose.
    "PKCS1v15-SHA1": hashes.SHA1(),  # noqa: S303
    "PKCS1v15-SHA224": hashes.SHA224(),
}
# Characters of a signature, at most: more than a key of 16384 bits makes.
SIGNATURE = 4_096
# Characters of a text in place of a signed answer that are shown.
SHOWN = 500
UNSIGNED = "the answer is not signed"
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


class KeypairError(ValueError):
    """A bundle, key or signature that must not be used; the message never quotes a secret."""


@dataclass(frozen=True)
class Bundle:
    """
    What a master-to-be receives: the shared pair, and with signing the pair that signs the shared
    public key.
    """

    pem: str
    pub: str
    sign_pem: str | None = None
    sign_pub: str | None = None


@dataclass(frozen=True)
class Page:
    """
    Some of the minions' keys that a master has accepted or rejected, in the order of ids.

    ``keys`` are (id, state, PEM or None where that master found none); ``total`` and ``digest`` are
    of all keys that it had at this moment.
    """

    origin: str
    nonce: str
    keys: Sequence[tuple[str, str, str | None]]
    last: bool
    total: int
    digest: str


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
    what = "the sealed key pair"
    plain = _opened(sealed, "keypair", minion_id, minion_pem, what)
    try:
        content = json.loads(plain)
        bundle = Bundle(
            pem=content["pem"],
            pub=content["pub"],
            sign_pem=content.get("sign_pem"),
            sign_pub=content.get("sign_pub"),
        )
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as err:
        raise KeypairError(f"{what} is incomplete") from err
    texts: list[Any] = [bundle.pem, bundle.pub]
    if bundle.sign_pem is not None or bundle.sign_pub is not None:
        texts += [bundle.sign_pem, bundle.sign_pub]
    if not all(isinstance(text, str) for text in texts):
        raise KeypairError(f"{what} is incomplete")
    return bundle


def open_page(sealed: str, minion_id: str, minion_pem: str) -> Page:
    """Open a page of keys that was sealed to this host's minion key, as :func:`open_bundle`."""
    what = "the sealed page of keys"
    plain = _opened(sealed, "keys", minion_id, minion_pem, what)
    try:
        content = json.loads(zlib.decompress(plain))
        keys = [(str(name), str(state), pub) for name, state, pub in content["keys"]]
        page = Page(
            origin=str(content["origin"]),
            nonce=str(content["nonce"]),
            keys=keys,
            last=bool(content["last"]),
            total=int(content["total"]),
            digest=str(content["digest"]),
        )
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError, zlib.error) as err:
        raise KeypairError(f"{what} is incomplete") from err
    if not all(pub is None or isinstance(pub, str) for _, _, pub in keys):
        raise KeypairError(f"{what} is incomplete")
    return page


def digest_of(states: Mapping[str, str]) -> str:
    """Return what a page has as the digest of all keys; ``states`` is id -> state."""
    listing = "".join(f"{name}\0{states[name]}\n" for name in sorted(states))
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()


def _opened(sealed: str, purpose: str, minion_id: str, minion_pem: str, what: str) -> bytes:
    """Return what was sealed to a minion's key for one purpose."""
    try:
        envelope = json.loads(sealed)
        version = envelope["version"]
        wrapped, nonce, data = (
            base64.b64decode(envelope[name], validate=True) for name in ("key", "nonce", "data")
        )
    except (ValueError, KeyError, RecursionError, TypeError, binascii.Error) as err:
        raise KeypairError(f"{what} is malformed") from err
    if version != VERSION:
        noun = what.removeprefix("the ")
        raise KeypairError(f"{noun}: got version {version!r}; supported: {VERSION}")
    private = _private(minion_pem, "the minion's private key")
    associated = f"multimaster {purpose} {VERSION}\0{minion_id}".encode()
    try:
        key = private.decrypt(wrapped, _OAEP)
        return AESGCM(key).decrypt(nonce, data, associated)
    except (ValueError, InvalidTag) as err:
        raise KeypairError(
            f"{what} does not open with the minion key of {minion_id}: it was made "
            "for another host or key, or was changed on its way"
        ) from err


def plain_bundle(pair: Any) -> Bundle:
    """Return the pair that a masterless pillar gives; :class:`KeypairError` if it is half."""
    given: Mapping[str, Any] = pair if isinstance(pair, Mapping) else {}
    required, signing = ("pem", "pub"), ("sign_pem", "sign_pub")
    names = required + (signing if set(signing) & set(given) else ())
    if not all(isinstance(given.get(name), str) for name in names):
        # Its keys only: a value may be half of a secret.
        got = sorted(map(str, pair)) if isinstance(pair, Mapping) else type(pair).__name__
        raise KeypairError(
            f"multimaster:keypair: got {got}; supported: sealed, or pem and pub, and with signing "
            "sign_pem and sign_pub"
        )
    return Bundle(**{name: given[name] for name in names})


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


def decide_signing(
    pem: str | None,
    pub: str | None,
    offered: Bundle,
    creator: str | None,
    replace: bool,
) -> Decision:
    """
    What to do with the signing pair on a host; there must never be two different ones.

    pem, pub
        The signing pair found on the host; None where the file is absent.
    offered
        With the signing pair of the master that renders the pillar, if that has one.
    creator
        None if this host may make the pair; else the id of the one master that may.
    replace
        The operator's word that a different pair may be replaced.

    The action is ``create`` where the pair is to be made, and ``wait`` where it has to come from
    another master, which does not offer it yet; else as in :func:`decide`.
    """
    found = None if pem is None else _fingerprint_of_private(pem)
    found_pub = None if pub is None else fingerprint(pub)
    wanted = None
    if offered.sign_pem is not None and offered.sign_pub is not None:
        wanted = _fingerprint_of_private(offered.sign_pem)
        if wanted is None or fingerprint(offered.sign_pub) != wanted:
            return Decision("refuse", "the offered signing pair is no readable pair")
    if pem is not None and found is None:
        what = "an unreadable signing key (or one with a passphrase)"
    elif pem is None and pub is not None and found_pub != wanted:
        what = "the public half of a signing pair that is not the offered one"
    elif found is not None and wanted is not None and found != wanted:
        what = "another signing pair than the master that renders the pillar"
    elif found is not None:
        if found_pub != found:
            return Decision("repair", "the public signing key did not belong to the private one")
        return Decision("none", "the signing pair is in place")
    elif wanted is not None:
        return Decision("write", "there was no signing pair")
    elif creator is None:
        return Decision("create", "no master has a signing pair yet")
    else:
        return Decision(
            "wait",
            f"there is no signing pair here, and only {creator} makes one; the pillar brings it "
            f"from {creator}, or from another master that has it",
        )
    if replace and wanted is not None:
        return Decision("replace", f"replaced {what}, as replace_keypair says")
    return Decision(
        "refuse",
        f"this master has {what}; minions may depend on it. Remove the wrong one of the two, or "
        "set replace_keypair: true to have this master's replaced by the offered one",
    )


def make_pair(bits: int) -> tuple[str, str]:
    """Return a fresh RSA pair as PEM text: private, public."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    return pem.decode(), public_of(pem.decode())


def public_of(pem: str) -> str:
    """Return the public half of a private key, both PEM."""
    public = _private(pem, "the signing key").public_key()
    return public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def sign_pub(pub: str, sign_pem: str, algorithm: str) -> str:
    """
    Sign a master's public key as ``salt-key --gen-signature`` does, for every Salt series.

    algorithm
        Salt's name for it, ``PKCS1v15-SHA1`` or ``PKCS1v15-SHA224``: minions are to verify with
        the same.

    Returns base64 with the newline that Salt's own files have.
    """
    key = _private(sign_pem, "the signing key")
    signature = key.sign(_as_sent(pub), padding.PKCS1v15(), _hash(algorithm))
    return base64.b64encode(signature).decode() + "\n"


def is_signed(pub: str, signature: str, signing_pub: str, algorithm: str) -> bool:
    """Tell whether a text is the signature over a master's public key, as a minion verifies it."""
    try:
        raw = base64.b64decode(signature)
        _public(signing_pub).verify(raw, _as_sent(pub), padding.PKCS1v15(), _hash(algorithm))
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def _as_sent(pub: str) -> bytes:
    """Return what a master sends of its public key: without a newline at the end."""
    return "\n".join(pub.strip().splitlines()).encode()


def _hash(algorithm: str) -> hashes.HashAlgorithm:
    if algorithm not in _HASHES:
        raise KeypairError(f"signing algorithm: got {algorithm!r}; supported: {', '.join(_HASHES)}")
    return _HASHES[algorithm]


def fingerprint(pub: str) -> str | None:
    """Return the SHA-256 of a public key in DER, in hexadecimal; None if it is not one."""
    try:
        return hashlib.sha256(_der(_public(pub))).hexdigest()
    except KeypairError:
        return None


def is_pair(pem: str | None, pub: str | None) -> bool:
    """Tell whether a private and a public key, both PEM or None, belong together."""
    found = None if pem is None else _fingerprint_of_private(pem)
    return found is not None and pub is not None and found == fingerprint(pub)


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


def verify_answer(answer: Any, nonce: str, signature: Any, pub: str) -> None:
    """Raise :class:`KeypairError` unless the holder of the shared key gave this answer."""
    key = _public(pub)
    try:
        if not isinstance(signature, str) or len(signature) > SIGNATURE:
            raise ValueError("no signature")
        raw = base64.b64decode(signature, validate=True)
        key.verify(raw, _canonical(answer, nonce), _PSS, hashes.SHA256())
    except (InvalidSignature, RecursionError, TypeError, ValueError) as err:
        raise KeypairError("the answer is not signed with the masters' key") from err


def prove(answer: Mapping[str, Any], function: str, host: str, nonce: str, pem: str | None) -> Any:
    """
    Return what a master's host says to a question, so that :func:`proved` can tell that it did.

    answer
        With ``told``, what the function has returned, or ``error``, why it has not.
    pem
        The masters' private key; a master-to-be has none, and proves nothing.
    """
    answer = {**answer, "function": function, "id": host}
    signature = None if pem is None else sign_answer(answer, nonce, pem)
    return {"answer": answer, "signature": signature}


def proved(
    reply: Any, function: str, host: str, nonce: str, pub: str | None
) -> tuple[Any, str | None]:
    """
    Return what a master's host has answered, and None; or None, and why that is not known.

    The arguments are those of :func:`unproved`.
    """
    if why := unproved(reply, function, host, nonce, pub):
        return None, why
    answer = reply["answer"]
    return (None, _cut(str(answer["error"]))) if "error" in answer else (answer.get("told"), None)


def unproved(reply: Any, function: str, host: str, nonce: str, pub: str | None) -> str | None:
    """
    Return why an answer is not one of a master's host; None if it is.

    Anybody may answer in the name of any host, and whoever gets the question knows its nonce; only
    the masters' key is out of their reach.

    pub
        The masters' public key.
    """
    reply = reply if isinstance(reply, Mapping) else {"answer": reply}
    answer, signature = reply.get("answer"), reply.get("signature")
    if signature is None:
        # How Salt answers when something is wrong, or where the formula is an older one.
        said = _cut(answer) if isinstance(answer, str) else ""
        return f"{UNSIGNED}: {said}" if said else UNSIGNED
    try:
        verify_answer(answer, nonce, signature, pub or "")
    except KeypairError as err:
        # Worth nothing as a proof, and perhaps the reason.
        why = answer.get("error") if isinstance(answer, Mapping) else None
        return f"{err}: {_cut(why)}" if isinstance(why, str) and why else str(err)
    if (answer.get("function"), answer.get("id")) != (function, host):
        return "the answer is one to another question, or of another host"
    return None


def claimed(reply: Any) -> Any:
    """Return what an answer says without a proof; None if it is no such answer."""
    answer = reply.get("answer") if isinstance(reply, Mapping) else None
    return answer.get("told") if isinstance(answer, Mapping) else None


def _cut(text: str) -> str:
    text = text[:SHOWN]
    return text if text.isprintable() else ascii(text)[1:-1]


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


def _canonical(answer: Mapping[str, Any], nonce: str) -> bytes:
    text = json.dumps(
        {"nonce": nonce, "answer": answer}, sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
    return b"multimaster answer 1\0" + text.encode()
