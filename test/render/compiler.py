"""
Render the formula with Salt's own compiler, for any node, without a daemon.

Salt is imported by functions only: with its import hook in place pytest cannot collect any more.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

if TYPE_CHECKING:
    import salt.state

CHECKOUT = Path(__file__).parents[2]
TOPOLOGIES = Path(__file__).parent / "topologies"
# Every state file of the formula, by the name that it is applied with.
SLS = [
    f"multimaster.{path.stem}".removesuffix(".init")
    for path in sorted((CHECKOUT / "salt/multimaster").glob("*.sls"))
]
# What a masterless pillar holds beside the declaration, and no rendered state may show.
SECRET = {"pem": "PRIVATE-KEY-MATERIAL", "pub": "PUBLIC-KEY-MATERIAL"}
# Each variable that ``map.jinja`` sets for the state files.
EXPORTS = (
    "multimaster",
    "install",
    "master",
    "minion",
    "repository",
    "git",
    "mounts",
    "config_dir",
    "extension_dir",
    "replace_keypair",
    "restart_timeout",
    "master_ids",
)
MAP = f"""\
{{%- from 'multimaster/map.jinja' import {", ".join(EXPORTS)} with context %}}
{{{{ dict({", ".join(f"{name}={name}" for name in EXPORTS)}) | json }}}}
"""


class Node(NamedTuple):
    """What a node is made of, as far as rendering goes."""

    pillar: dict[str, Any]
    id: str = "saltm1"
    family: str = "Debian"
    test: bool = False
    synced: bool = True


class States(NamedTuple):
    """Compiled states, in the order in which they would run, or why they do not compile."""

    chunks: list[dict[str, Any]]
    errors: list[str]

    def ids(self) -> list[str]:
        return [chunk["__id__"] for chunk in self.chunks]

    def get(self, state_id: str) -> dict[str, Any]:
        """The one chunk of an id."""
        (chunk,) = (chunk for chunk in self.chunks if chunk["__id__"] == state_id)
        return chunk

    def required(self, state_id: str) -> set[str]:
        """Ids of the states that have to succeed before one is applied, directly or not."""
        found: set[str] = set()
        todo = [state_id]
        while todo:
            wanted = todo.pop()
            # An id with several names is several chunks.
            for chunk in (chunk for chunk in self.chunks if chunk["__id__"] == wanted):
                fresh = self._direct(chunk) - found
                found |= fresh
                todo += fresh
        return found

    def _direct(self, chunk: dict[str, Any]) -> set[str]:
        found = set()
        for requisite in ("require", "watch", "onchanges"):
            for entry in chunk.get(requisite, []):
                ((kind, name),) = entry.items()
                if kind == "sls":
                    found |= {c["__id__"] for c in self.chunks if c["__sls__"] == name}
                else:
                    found.add(name)
        return found


class Compiler:
    """Salt's state compiler on a host of its own; the master's files are given by each test."""

    def __init__(self, root: Path) -> None:
        import salt.config

        self.root = root
        self.config_dir = root / "etc/salt"
        self.config_dir.mkdir(parents=True)
        extensions = root / "ext"
        extensions.mkdir()
        for kind in ("engines", "modules", "states", "utils"):
            (extensions / kind).symlink_to(CHECKOUT / "salt" / f"_{kind}")
        (root / "tree").mkdir()
        (root / "tree/map.sls").write_text(MAP)
        config = {
            "root_dir": str(root),
            "id": "anybody",
            "file_client": "local",
            "file_roots": {"base": [str(CHECKOUT / "salt"), str(root / "tree")]},
            "extension_modules": str(extensions),
        }
        (self.config_dir / "minion").write_text(yaml.safe_dump(config))
        (self.config_dir / "master").write_text(yaml.safe_dump({"root_dir": str(root), "id": "m"}))
        path = str(self.config_dir / "minion")
        self.opts = dict(salt.config.minion_config(path, cache_minion_id=False))
        self.made: tuple[tuple[str, bool, bool], salt.state.HighState] | None = None
        self.exits = contextlib.ExitStack()

    def runtime(self, node: Node) -> salt.state.HighState:
        """
        Salt's state runtime as it is on a node.

        To load Salt's modules is what takes the time: nodes in a row for which the same ones are
        loaded share a runtime, which becomes one after the other.
        """
        import salt.state

        key = (node.family, node.test, node.synced)
        if self.made is None or self.made[0] != key:
            # One at a time: Salt's modules find their loader in variables of the process.
            self.exits.close()
            grains = {"id": node.id, "os_family": node.family, "os": node.family, "kernel": "Linux"}
            opts = self.opts | {"id": node.id, "grains": grains, "test": node.test}
            if not node.synced:
                opts["extension_modules"] = str(self.root / "unsynced")
            made = salt.state.HighState(opts, initial_pillar=node.pillar)
            self.made = (key, self.exits.enter_context(made))
        runtime = self.made[1]
        become(runtime, node)
        return runtime

    def forget(self) -> None:
        """Load Salt's modules again for the next node, as somebody else's loader is about to."""
        self.exits.close()
        self.made = None

    def compile(self, node: Node, sls: str) -> States:
        """Go the way of ``state.apply`` up to the first state."""
        return self.compile_all(node, [sls])[sls]

    def compile_all(self, node: Node, names: list[str]) -> dict[str, States]:
        """Compile several SLS files, each for itself; Salt's loader is what takes the time."""
        runtime = self.runtime(node)
        return {sls: compile_in(runtime, sls) for sls in names}

    def map(self, node: Node) -> dict[str, Any]:
        """What ``map.jinja`` gives, with paths below the root as they are on a real host."""
        render = self.runtime(node).state.functions["slsutil.renderer"]
        rendered = render("salt://map.sls", default_renderer="jinja|json")
        return yaml.safe_load(yaml.safe_dump(rendered).replace(str(self.root), ""))

    @contextlib.contextmanager
    def files(self, *paths: str) -> Iterator[None]:
        """Let some empty files be there for a while."""
        for path in paths:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).touch()
        try:
            yield
        finally:
            for path in paths:
                shutil.rmtree((self.root / path).parent)


def become(runtime: salt.state.HighState, node: Node) -> None:
    """Give a runtime the id and the pillar of a node, in every copy that Salt makes of them."""
    state = runtime.state
    loaders = [state.utils, state.functions, state.states, state.rend._dict]
    for opts in (runtime.opts, state.opts, *(loader.opts for loader in loaders)):
        opts["id"] = opts["grains"]["id"] = node.id
        opts["pillar"] = node.pillar
    for loader in loaders:
        pack = loader.pack
        for opts in (pack.get("__opts__"), pack.get("__grains__")):
            if opts is not None:
                opts["id"] = node.id
        if "__opts__" in pack:
            pack["__opts__"]["grains"]["id"] = node.id
            pack["__opts__"]["pillar"] = node.pillar
        if "__pillar__" in pack:
            pack["__pillar__"] = node.pillar


def compile_in(runtime: salt.state.HighState, sls: str) -> States:
    """Compile an SLS in a runtime, as if it were the first."""
    state = runtime.state
    # Forget the SLS before.
    runtime.building_highstate = type(runtime.building_highstate)()
    state._processed_sls_files.clear()
    high, errors = runtime.render_highstate({"base": [sls]})
    high, more = state.reconcile_extend(high)
    errors += more + state.verify_high(high)
    if errors:
        return States([], errors)
    high, errors = state.requisite_in(high)
    chunks, more = state.compile_high_data(state.apply_exclude(high))
    return States(chunks, errors + more)


def read_topology(name: str) -> dict[str, Any]:
    """The pillar of a topology, with a key pair as in a masterless run."""
    pillar = yaml.safe_load((TOPOLOGIES / f"{name}.yaml").read_text())
    return {"multimaster": pillar["multimaster"] | {"keypair": dict(SECRET)}}
