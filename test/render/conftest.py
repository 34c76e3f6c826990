"""Fixtures over Salt's state compiler; it is slow to start, so that a session shares one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest

from render.compiler import SLS, Compiler, Node, States, read_topology


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiler]:
    with pytest.MonkeyPatch.context() as patch:
        # Salt would read its configuration from there instead.
        for name in ("SALT_CONFIG_DIR", "SALT_MASTER_CONFIG", "SALT_MINION_CONFIG"):
            patch.delenv(name, raising=False)
        made = Compiler(tmp_path_factory.mktemp("compiler"))
    with made.exits:
        yield made


@pytest.fixture(scope="session")
def compiled(compiler: Compiler) -> Callable[..., States]:
    """Compile an SLS for a topology, an OS family and a minion id; each once."""

    @functools.cache
    def compiled(topology: str, family: str, minion_id: str) -> dict[str, States]:
        return compiler.compile_all(Node(read_topology(topology), minion_id, family), SLS)

    return lambda *configuration, sls="multimaster": compiled(*configuration)[sls]
