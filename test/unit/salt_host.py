"""A Salt host in a directory: configuration and key stores, and the formula in Salt's loader."""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import salt.config
import salt.state
import yaml

CHECKOUT = Path(__file__).parents[2]
# Enough for Salt's virtual modules; to ask the machine would take seconds and differ everywhere.
GRAINS = {"kernel": "Linux", "os": "Debian", "os_family": "Debian", "saltversion": "3008.3"}
ID = "saltm2"
# What Salt makes a master's id from when its configuration names none.
HOSTNAME = "oldhost"


class State(NamedTuple):
    """The outcome of a state."""

    result: bool | None
    changes: dict[str, Any]
    comment: str
    warnings: list[str]


class Host:
    """
    The host ``saltm2``.

    Salt's loader takes a second, so that one object serves a whole session; :meth:`reset` makes
    the host a new one.
    """

    checkout = CHECKOUT

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config_dir = root / "etc/salt"
        self.pki = self.config_dir / "pki/master"
        self.extension_modules = root / "ext"
        link_extensions(self.extension_modules)
        self.reset()
        opts = dict(
            salt.config.minion_config(str(self.config_dir / "minion"), cache_minion_id=False)
        )
        opts |= {"grains": {"id": ID, **GRAINS}, "pillar": {}, "test": False}
        # Salt's own state runtime, since some of Salt's states need what it gives them.
        self.runtime = salt.state.State(opts, initial_pillar={"multimaster": {}})
        self.states = self.runtime.states
        self.modules = self.states.pack["__salt__"]

    def reset(self) -> None:
        """Back to a minion without a master, a pillar and keys."""
        for name in ("etc", "var"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        self.config_dir.mkdir(parents=True)
        common = {"root_dir": str(self.root), "user": getpass.getuser()}
        self.write(
            "etc/salt/minion",
            common
            | {
                "id": ID,
                "file_client": "local",
                "file_roots": {"base": [str(CHECKOUT / "salt")]},
                "extension_modules": str(self.extension_modules),
            },
        )
        self.write("etc/salt/master", common)
        if hasattr(self, "modules"):
            self.pillar = {}
            self.test = False

    @property
    def pillar(self) -> dict[str, Any]:
        """What the master gives this host."""
        return self.modules.pack["__pillar__"]

    @pillar.setter
    def pillar(self, value: dict[str, Any]) -> None:
        for loader in (self.modules, self.states):
            loader.pack["__pillar__"] = value

    @property
    def test(self) -> bool:
        """Whether states only tell what they would do."""
        return self.states.pack["__opts__"]["test"]

    @test.setter
    def test(self, value: bool) -> None:
        for loader in (self.modules, self.states, self.runtime.functions):
            # A loader and what it loads have separate copies.
            loader.opts["test"] = loader.pack["__opts__"]["test"] = value

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the execution module."""
        return self.modules[f"multimaster.{function}"](*args, **kwargs)

    def state(
        self,
        function: str,
        name: str,
        *,
        test: bool = False,
        running: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> State:
        """Apply one state, after those in ``running``; an exception in a comment fails the test."""
        low = {"state": "multimaster", "fun": function, "name": name, "__id__": name, **kwargs}
        self.test = test
        try:
            ret = self.runtime.call(low, running=running)
        finally:
            self.test = False
        assert "Traceback" not in ret["comment"], ret["comment"]
        return State(ret["result"], ret["changes"], ret["comment"], ret.get("warnings", []))

    def write(self, path: str, content: Any) -> Path:
        """Write a text, or anything else as YAML, to a path below the root."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return target

    def accept(self, keys: Mapping[str, str], where: str = "minions") -> None:
        """Have the master of this host accept keys, or store them as pending or rejected."""
        for name, pub in keys.items():
            self.write(f"etc/salt/pki/master/{where}/{name}", pub)

    def accepted(self) -> set[str]:
        """Ids of the minions that the master of this host has accepted."""
        directory = self.pki / "minions"
        return {path.name for path in directory.iterdir()} if directory.is_dir() else set()

    def files(self) -> dict[str, str]:
        """Everything on this host but the minion's own cache: kind, mode, content, by path."""
        found = {}
        cache = self.root / "var/cache/salt/minion"
        for place in ("etc", "var"):
            for path in (self.root / place).rglob("*"):
                if path.is_relative_to(cache) or cache.is_relative_to(path):
                    continue
                if path.is_symlink():
                    description = f"-> {os.readlink(path)}"
                elif path.is_dir():
                    description = "directory"
                else:
                    description = hashlib.sha256(path.read_bytes()).hexdigest()
                    description += f" {path.stat().st_mode:o} {path.stat().st_mtime_ns}"
                found[str(path.relative_to(self.root))] = description
        return found


def link_extensions(directory: Path) -> None:
    """Make a directory of the formula's modules as a minion and a master have it, with links."""
    directory.mkdir()
    kinds = ("engines", "fileserver", "modules", "output", "pillar", "runners", "states", "utils")
    for kind in kinds:
        (directory / kind).symlink_to(CHECKOUT / "salt" / f"_{kind}")
