"""The formula and its pillar, included from a git remote instead of copied."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.laboratory import PATIENCE, Laboratory, changed, failures, laboratory
from lab.model import REPOSITORY
from lab.wait import until

NET = "127.0.63"
MASTERS = [
    {"id": "saltm1", "address": f"{NET}.10"},
    {"id": "saltm2", "address": f"{NET}.100"},
]


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository with the trees of this working copy, and a pillar for two masters."""
    directory = tmp_path_factory.mktemp("git")
    work, bare = directory / "work", directory / "formula.git"
    for tree in ("salt", "pillar"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / tree, work / tree, ignore=ignored)
    declaration = {
        "masters": MASTERS,
        "install": {"method": "none"},
        "master": {"config": served_from(bare)},
    }
    pillar = work / "pillar/multimaster/init.sls"
    pillar.write_text(yaml.safe_dump({"multimaster": declaration}))
    _git("init", "--bare", "--initial-branch=main", str(bare))
    at = [f"--git-dir={bare}", f"--work-tree={work}"]
    _git(*at, "add", "--all")
    _git(*at, "commit", "--message=The formula and a pillar")
    return bare


@pytest.fixture(scope="module")
def lab(remote: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """One master of two, which has states and pillar from the remote and from nowhere else."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    options = served_from(remote)
    with laboratory(
        directory, "process", masters=2, minions=1, net=NET, initial_master=options
    ) as made:
        yield made


def served_from(remote: Path) -> dict[str, Any]:
    """Return the options of a master that serves a git remote, as README.md has them."""
    url = f"file://{remote}"
    return {
        "fileserver_backend": ["gitfs"],
        "gitfs_remotes": [{url: [{"root": "salt"}, {"base": "main"}]}],
        "ext_pillar": [{"git": [{f"main {url}": [{"root": "pillar"}, {"env": "base"}]}]}],
        "file_roots": {"base": []},
        "pillar_roots": {"base": []},
    }


def test_one_master_becomes_two_from_a_git_remote(lab: Laboratory) -> None:
    _until_served(lab, "saltm1")
    result = lab.apply()
    assert not failures(result)
    assert "saltm2:multimaster-keypair" in changed(result)
    lab.until_connected()


@pytest.mark.parametrize("master", [pytest.param("saltm1", marks=pytest.mark.long), "saltm2"])
def test_every_master_applies_it_from_there_and_changes_nothing(
    lab: Laboratory, master: str
) -> None:
    _until_served(lab, master)
    result = lab.apply("*", master)
    assert set(result) == lab.ids
    assert not failures(result)
    assert changed(result) == []


def _until_served(lab: Laboratory, master: str) -> None:
    """Wait until a master that has just started has fetched the remote."""

    def served() -> bool:
        shown = lab.salt(master, "*", "state.sls_exists", "multimaster")
        return all(shown.get(minion) is True for minion in lab.ids)

    until(served, PATIENCE, f"{master} to serve multimaster", interval=1)


def _git(*argv: str) -> None:
    identity = ["-c", "user.name=lab", "-c", "user.email=lab@example.com"]
    # A person's own configuration may ask for signatures or hooks.
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", *identity, *argv], check=True, capture_output=True, env=environment)
