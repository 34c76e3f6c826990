"""Who is given the masters' key pair: the real pillar, over a master's directory of keys."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import multimaster_keypair as keypair
from lab import keys

pytestmark = [
    pytest.mark.usefixtures("own_file_server"),
    # Salt's Pillar leaves sockets, and their loops, to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CHECKOUT = Path(__file__).parents[2]
QUESTION = {"after": "", "count": 10, "nonce": "n"}
NO_FINGERPRINT = ":".join(["ab"] * 32)


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[str, str]]:
    """Pairs of the minions and of the masters, of the size that Salt makes."""
    return {name: keys.make_pair() for name in ("saltm1", "saltm2", "master", "sign", "stranger")}


class Master:
    """The master saltm1 before any apply: it has accepted the minions saltm1 and saltm2."""

    def __init__(self, root: Path, pairs: dict[str, tuple[str, str]]) -> None:
        self.root, self.pki = root, root / "pki"
        for name in ("saltm1", "saltm2"):
            self.put(f"pki/minions/{name}", pairs[name][1])
        for name, pair in (("master", "master"), ("saltm1", "master"), ("master_sign", "sign")):
            for suffix, text in zip(("pem", "pub"), pairs[pair], strict=True):
                self.put(f"pki/{name}.{suffix}", text)
        source = CHECKOUT / "pillar/multimaster/keypair.sls"
        self.put("pillar/multimaster/keypair.sls", source.read_text())
        top = {"base": {"*": ["multimaster", "multimaster.keypair", "else"]}}
        self.put("pillar/top.sls", yaml.safe_dump(top))
        self.put("pillar/else.sls", "else: rendered")
        self.declare()
        self.configure()

    def put(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def declare(self, **fingerprints: Any) -> None:
        masters: list[dict[str, Any]] = [
            {"id": f"saltm{number}", "address": f"192.0.2.{number}"} for number in (1, 2)
        ]
        for master in masters:
            if master["id"] in fingerprints:
                master["fingerprint"] = fingerprints[master["id"]]
        declaration = {"multimaster": {"masters": masters, "signing": True}}
        self.put("pillar/multimaster/init.sls", yaml.safe_dump(declaration))

    def configure(self, **options: Any) -> None:
        own = {
            "root_dir": str(self.root),
            "pki_dir": str(self.pki),
            "user": getpass.getuser(),
            "id": "saltm1",
            "pillar_roots": {"base": [str(self.root / "pillar")]},
        }
        self.put("etc/master", yaml.safe_dump({**own, **options}))

    def opts(self) -> dict[str, Any]:
        import salt.config

        return salt.config.master_config(str(self.root / "etc/master"))

    def gives(
        self, minion_id: str = "saltm2", asked: Any = None, running: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return what is given of the key pair; everything else has to be there in any case."""
        import salt.pillar

        opts = {**self.opts(), **(running or {}), "__role": "master"}
        grains = {"id": minion_id} | ({"multimaster_keys": asked} if asked else {})
        found = salt.pillar.Pillar(opts, grains, minion_id, "base").compile_pillar()
        assert "_errors" not in found
        assert (found["else"], found["multimaster"]["minions"]) == ("rendered", 100)
        return found["multimaster"].get("keypair", {})


@pytest.fixture
def master(tmp_path: Path, pairs: dict[str, tuple[str, str]]) -> Master:
    return Master(tmp_path, pairs)


@pytest.fixture
def finger(tmp_path: Path) -> Callable[[str], str]:
    """Return what ``salt-call --local key.finger`` prints of a public key."""
    from salt.utils.crypt import pem_finger

    def finger(pub: str) -> str:
        path = tmp_path / "minion.pub"
        path.write_text(pub)
        return pem_finger(str(path))

    return finger


def given(found: dict[str, Any], pairs: dict[str, tuple[str, str]], minion_id: str) -> bool:
    bundle = keypair.open_bundle(found["sealed"], minion_id, pairs[minion_id][0])
    return (bundle.pem, bundle.sign_pem) == (pairs["master"][0], pairs["sign"][0])


def refused(found: dict[str, Any], pairs: dict[str, tuple[str, str]]) -> str:
    """Nothing but public keys and a reason is given."""
    assert set(found) == {"refused", "pub", "sign_pub"}
    assert (found["pub"], found["sign_pub"]) == (pairs["master"][1], pairs["sign"][1])
    return found["refused"]


def test_a_key_that_somebody_accepted_is_enough_where_none_is_accepted_by_itself(master, pairs):
    master.configure(autosign_file=str(master.put("autosign", "web*\n#saltm2\n")))
    assert given(master.gives(), pairs, "saltm2")


def test_everybody_is_told_that_the_running_master_caches_pillars(master, pairs):
    assert "cached" not in master.gives("web1")
    # Not what its files say, which it may not have read.
    running = {"pillar_cache": True}
    assert master.gives("web1", running=running)["cached"] is True
    found = master.gives(running=running)
    assert found["cached"] is True
    assert given(found, pairs, "saltm2")


WAYS = {
    "auto_accept": lambda master: {"auto_accept": True},
    "open_mode": lambda master: {"open_mode": True},
    "autosign_file": lambda master: {"autosign_file": str(master.put("autosign", "saltm2\n"))},
    "a glob in it": lambda master: {"autosign_file": str(master.put("autosign", "web\nsalt*\n"))},
    "a regular expression": lambda master: {"autosign_file": str(master.put("as", r"s\w+\d"))},
    "minions_autosign": lambda master: master.put("pki/minions_autosign/saltm2", "") and {},
    "autosign_grains_dir": lambda master: {
        "autosign_grains_dir": str(master.put("grains/room", "# Rooms\n\nb12\n").parent)
    },
    "bytes that are no text": lambda master: {
        "autosign_file": str(_put_bytes(master, "autosign", b"\xff\xfe\n"))
    },
}


def _put_bytes(master: Master, path: str, raw: bytes) -> Path:
    target = master.put(path, "")
    target.write_bytes(raw)
    return target


@pytest.mark.parametrize(
    ("minion_id", "way"), [*(("saltm2", way) for way in WAYS), ("saltm1", "auto_accept")]
)
def test_a_key_that_nobody_looked_at_gets_nothing(master, pairs, finger, way, minion_id):
    master.configure(**WAYS[way](master))
    reason = refused(master.gives(minion_id, QUESTION), pairs)
    assert f"the key of {minion_id} on saltm1" in reason
    assert finger(pairs[minion_id][1]) in reason
    # Nor is Salt's own use of it spoilt.
    stub = master.pki / "minions_autosign/saltm2"
    assert stub.exists() == (way == "minions_autosign")
    # Everybody else's pillar is as ever.
    assert master.gives("web1") == {"sign_pub": pairs["sign"][1]}


@pytest.mark.parametrize("way", ["open_mode", "minions_autosign", "autosign_grains_dir"])
def test_a_declared_fingerprint_is_enough(master, pairs, finger, way):
    master.configure(**WAYS[way](master))
    master.declare(saltm2=finger(pairs["saltm2"][1]))
    found = master.gives(asked=QUESTION)
    assert given(found, pairs, "saltm2")
    assert keypair.open_page(found["keys"], "saltm2", pairs["saltm2"][0]).total == 2


def test_what_a_master_runs_with_counts_as_well(master, pairs):
    # Changed in its files, and not restarted since.
    assert "auto_accept" in refused(master.gives(running={"auto_accept": True}), pairs)


def test_grains_that_salt_would_not_heed_accept_nobody(master, pairs):
    directory = master.put("grains/room", "# b12\n").parent
    # Everybody may write to it.
    open_to_all = master.put("grains/rack", "7\n")
    open_to_all.chmod(0o666)
    master.configure(autosign_grains_dir=str(directory))
    assert given(master.gives(), pairs, "saltm2")


def test_a_directory_of_grains_that_is_not_there_accepts_nobody(master, pairs, tmp_path):
    master.configure(autosign_grains_dir=str(tmp_path / "none"))
    assert given(master.gives(), pairs, "saltm2")


@pytest.mark.parametrize("form", ["upper", "lower"])
def test_a_fingerprint_counts_in_upper_and_lower_case(master, pairs, finger, form):
    master.declare(saltm2=getattr(finger(pairs["saltm2"][1]), form)())
    assert given(master.gives(), pairs, "saltm2")


@pytest.mark.parametrize("end", ["", "\n"], ids=["stripped", "with its newline"])
def test_what_salt_key_prints_counts_too(master, pairs, end):
    from salt.key import get_key

    pub = pairs["saltm2"][1].rstrip() + end
    master.put("pki/minions/saltm2", pub)
    printed = get_key(master.opts()).finger("saltm2")["minions"]["saltm2"]
    master.declare(saltm2=printed)
    assert given(master.gives(), pairs, "saltm2")


@pytest.mark.parametrize("declared", [NO_FINGERPRINT, "", None, 5], ids=repr)
def test_another_key_than_the_declared_one_gets_nothing(master, pairs, finger, declared):
    master.declare(saltm2=declared)
    real = finger(pairs["saltm2"][1])
    expected = f"the key of saltm2 on saltm1 has fingerprint {real}, declared is {declared}"
    assert refused(master.gives(asked=QUESTION), pairs) == expected
    assert given(master.gives("saltm1"), pairs, "saltm1")


def test_of_two_lines_for_one_id_both_have_to_be_right(master, pairs, finger):
    right = {"id": "saltm2", "fingerprint": finger(pairs["saltm2"][1])}
    wrong = {"id": "saltm2", "fingerprint": NO_FINGERPRINT}
    for masters in ([right, wrong], [wrong, right], [{"id": "saltm2"}, wrong]):
        declaration = {"multimaster": {"masters": masters, "signing": True}}
        master.put("pillar/multimaster/init.sls", yaml.safe_dump(declaration))
        assert "declared is" in refused(master.gives(), pairs)


def test_the_fingerprint_is_that_of_the_key_that_is_sealed_to(master, pairs, finger):
    # Salt takes a fingerprint of lines, and a key may be on one that has carriage returns.
    first, *body = pairs["saltm2"][1].splitlines(keepends=True)
    strange = pairs["stranger"][1].rstrip().replace("\n", "\r")
    text = f"{strange}\r{first}{''.join(body)}"
    assert finger(text) == finger(pairs["saltm2"][1])
    master.put("pki/minions/saltm2", text)
    master.declare(saltm2=finger(pairs["saltm2"][1]))
    found = master.gives()
    assert "sealed" not in found or given(found, pairs, "saltm2")


def _weak() -> str:
    return keys.make_pair(1024)[1]


def _elliptic() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return public.public_bytes(serialization.Encoding.PEM, form).decode()


@pytest.mark.parametrize("make", [_weak, _elliptic, lambda: "nonsense", lambda: "\xfc"])
def test_nothing_is_sealed_to_a_key_that_is_no_rsa_key_of_2048_bits(master, pairs, finger, make):
    pub = make()
    master.put("pki/minions/saltm2", pub)
    for declared in ({}, {"saltm2": finger(pub)}):
        master.declare(**declared)
        reason = refused(master.gives(asked=QUESTION), pairs)
        assert reason == "the key of saltm2 on saltm1 is no RSA key of 2048 bits or more"


def test_a_key_that_is_not_accepted_gets_nothing_whatever_is_declared(master, pairs, finger):
    master.declare(saltm2=finger(pairs["saltm2"][1]))
    (master.pki / "minions/saltm2").rename(master.put("pki/minions_pre/saltm2", ""))
    assert master.gives() == {"sign_pub": pairs["sign"][1]}
