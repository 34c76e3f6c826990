"""
What unit tests share: key pairs made for this run, and a Salt host in a directory.

Salt is imported by fixtures only: with its import hook in place pytest cannot collect any more.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import pytest

from lab import keys

if TYPE_CHECKING:
    from unit.salt_host import Host

CHECKOUT = Path(__file__).parents[2]


class Pair(NamedTuple):
    """A key pair as Salt writes it."""

    pem: str
    pub: str

    def __repr__(self) -> str:
        return f"<pair of {self.pub[60:70]}>"

    def shows_in(self, text: str) -> bool:
        """Tell whether a line of the private key's body is in a text."""
        return any(line in text for line in self.pem.splitlines()[1:-1])


def make_pair() -> Pair:
    # Half of Salt's size: each reading checks a private key, at an eighth of the cost.
    pem, pub = keys.make_pair(bits=1024)
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
    return {name: make_pair() for name in ("saltm1", "saltm2", "web1")}


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
    """The pillar gives saltm2 both pairs and the masters' minions, sealed."""
    host.write("etc/salt/pki/minion/minion.pem", minion_keys["saltm2"].pem)
    minions = {name: minion_keys[name].pub for name in ("saltm1", "saltm2")}
    content = {"pem": shared.pem, "pub": shared.pub, "minions": minions}
    signing = minion_keys["web1"]
    content |= {"sign_pem": signing.pem, "sign_pub": signing.pub}
    sealed = pillar_file.seal(content, "saltm2", minion_keys["saltm2"].pub)
    host.pillar = {"multimaster": {"keypair": {"sealed": sealed, "sign_pub": signing.pub}}}


@contextlib.contextmanager
def no_name_service() -> Iterator[None]:
    """Let a master without an id be named as on every machine, without asking a name server."""
    from unit.salt_host import HOSTNAME

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("salt.utils.network.generate_minion_id", lambda: HOSTNAME)
        yield
