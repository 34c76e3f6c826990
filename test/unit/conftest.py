"""
What unit tests share: key pairs made for this run, and a Salt host in a directory.

Salt is imported by fixtures only: with its import hook in place pytest cannot collect any more.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from lab import keys

if TYPE_CHECKING:
    from unit.salt_host import Host

CHECKOUT = Path(__file__).parents[2]
SERVER = re.compile(r"salt\.loaded\..*\bfileserver\b")


class Pair(NamedTuple):
    """A key pair as Salt writes it."""

    pem: str
    pub: str

    def __repr__(self) -> str:
        return f"<pair of {self.pub[60:70]}>"

    def shows_in(self, text: str) -> bool:
        """Tell whether a line of the private key's body is in a text."""
        return any(line in text for line in self.pem.splitlines()[1:-1])


def make_pair(bits: int = 1024) -> Pair:
    # Half of Salt's size: each reading checks a private key, at an eighth of the cost.
    pem, pub = keys.make_pair(bits)
    return Pair(pem, pub.rstrip())


@pytest.fixture(scope="session")
def shared() -> Pair:
    """The masters' shared pair."""
    return make_pair()


@pytest.fixture(scope="session")
def other() -> Pair:
    """A pair that a master made for itself."""
    return make_pair()


@pytest.fixture(scope="session")
def minion_keys() -> dict[str, Pair]:
    """The minions' own pairs, by id."""
    pairs = {name: make_pair() for name in ("saltm1", "web1")}
    # The pillar gives the masters' pair to no shorter one.
    return pairs | {"saltm2": make_pair(2048)}


def load_by_path(path: str) -> ModuleType:
    """Load a file of the formula as Python does, without Salt's loader."""
    name = "by_path_" + "".join(c if c.isalnum() else "_" for c in path)
    loader = SourceFileLoader(name, str(CHECKOUT / path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def by_path() -> Callable[[str], ModuleType]:
    """Load a file of the formula for what Salt's loader does not show."""
    return load_by_path


@pytest.fixture(scope="session")
def pillar_file() -> ModuleType:
    """``pillar/multimaster/keypair.sls``, which seals what the core opens."""
    return load_by_path("pillar/multimaster/keypair.sls")


@pytest.fixture(scope="session")
def loaded_host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    from unit.salt_host import Host

    with no_name_service():
        return Host(tmp_path_factory.mktemp("host"))


@pytest.fixture
def own_file_server() -> Iterator[None]:
    """Leave Salt's file server as it was: its modules have the options of whoever loaded last."""
    there = {n: vars(m).get("__opts__") for n, m in sys.modules.items() if SERVER.match(n)}
    yield
    for name in [name for name in sys.modules if SERVER.match(name)]:
        if name in there:
            vars(sys.modules[name])["__opts__"] = there[name]
        else:
            del sys.modules[name]


@pytest.fixture
def host(loaded_host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A Salt host that is a minion and has no master yet."""
    # Salt would read its configuration from there instead.
    for name in ("SALT_CONFIG_DIR", "SALT_MASTER_CONFIG", "SALT_MINION_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    loaded_host.reset()
    with no_name_service():
        yield loaded_host


@pytest.fixture
def offer(host: Host, shared: Pair, minion_keys: dict[str, Pair], pillar_file: ModuleType) -> None:
    """The pillar gives saltm2 both pairs, sealed."""
    host.write("etc/salt/pki/minion/minion.pem", minion_keys["saltm2"].pem)
    content = {"pem": shared.pem, "pub": shared.pub}
    signing = minion_keys["web1"]
    content |= {"sign_pem": signing.pem, "sign_pub": signing.pub}
    sealed = pillar_file.seal(content, "saltm2", minion_keys["saltm2"].pub)
    host.pillar = {"multimaster": {"keypair": {"sealed": sealed, "sign_pub": signing.pub}}}


class Source:
    """The master that gives saltm2 its pillar: a key store, and the real pillar over it."""

    def __init__(self, pki: Path, pillar_file: ModuleType, recipient: str) -> None:
        self.pki, self.pillar_file, self.recipient = pki, pillar_file, recipient
        self.opts = {"id": "oldmaster_master", "pki_dir": str(pki)}
        # What it was asked, as (after, count), None for a plain question; and seconds it was given.
        self.asked: list[tuple[str, int] | None] = []
        self.patience: list[float] = []
        # Called with the question before an answer; may raise, or return another answer.
        self.before: Callable[[Any], Any] = lambda asked: None

    def put(self, name: str, pub: str, where: str = "minions") -> None:
        (self.pki / where).mkdir(parents=True, exist_ok=True)
        (self.pki / where / name).write_text(pub)

    def page(self, asked: Any) -> dict[str, Any] | None:
        return self.pillar_file.keys_after(self.opts, asked)

    def sealed(self, page: Any) -> dict[str, Any]:
        sealed = self.pillar_file.seal_page(page, "saltm2", self.recipient)
        return {"multimaster": {"keypair": {"keys": sealed}}}

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def crypted_transfer_decode_dictentry(
        self, load: dict[str, Any], *, dictkey: str, tries: int, timeout: float
    ) -> Any:
        """Answer as a channel does that Salt has opened to a master."""
        assert (load["cmd"], load["id"], load["clean_cache"]) == ("_pillar", "saltm2", True)
        assert (dictkey, tries) == ("pillar", 1)
        asked = load["grains"].get("multimaster_keys")
        self.asked.append(asked and (asked["after"], asked["count"]))
        self.patience.append(timeout)
        given = self.before(asked)
        if given is not None:
            return given
        return self.sealed(self.page(asked)) if asked else {"multimaster": {}}


@pytest.fixture
def source(
    offer: None,
    tmp_path: Path,
    pillar_file: ModuleType,
    minion_keys: dict[str, Pair],
    monkeypatch: pytest.MonkeyPatch,
) -> Source:
    """The master that saltm2 gets its pillar from, with four keys."""
    import salt.channel.client

    made = Source(tmp_path / "pki", pillar_file, minion_keys["saltm2"].pub)
    for name in ("saltm1", "saltm2", "web1"):
        made.put(name, minion_keys[name].pub)
    made.put("web2", minion_keys["web1"].pub, "minions_rejected")
    made.put("web3", minion_keys["web1"].pub, "minions_pre")
    monkeypatch.setattr(salt.channel.client.ReqChannel, "factory", lambda opts: made)
    return made


@contextlib.contextmanager
def no_name_service() -> Iterator[None]:
    """Let a master without an id be named as on every machine, without asking a name server."""
    from unit.salt_host import HOSTNAME

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("salt.utils.network.generate_minion_id", lambda: HOSTNAME)
        yield
