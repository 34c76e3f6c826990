"""The formula and its pillar, included from a git remote instead of copied."""

from __future__ import annotations

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


def git(directory: Path, *argv: str) -> None:
    identity = ["-c", "user.name=lab", "-c", "user.email=lab@example.com"]
    subprocess.run(["git", "-C", str(directory), *identity, *argv], check=True, capture_output=True)


def roots_at(remote: Path) -> dict[str, Any]:
    """Return master options that take states and pillar from a git remote and nowhere else."""
    return {
        "fileserver_backend": ["git"],
        "gitfs_provider": "gitcli",
        "gitfs_base": "main",
        "gitfs_remotes": [{f"file://{remote}": [{"root": "salt"}]}],
        "git_pillar_provider": "gitcli",
        "ext_pillar": [{"git": [{f"main file://{remote}": [{"root": "pillar"}, {"env": "base"}]}]}],
        "file_roots": {"base": []},
        "pillar_roots": {"base": []},
    }


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository with this working tree's states and a pillar for the laboratory."""
    work = tmp_path_factory.mktemp("work")
    git(work, "init", "--initial-branch=main")
    for tree in ("salt", "pillar"):
        subprocess.run(["cp", "-r", str(REPOSITORY / tree), str(work)], check=True)
    masters = [
        {"id": "saltm1", "address": f"{NET}.10"},
        {"id": "saltm2", "address": f"{NET}.100"},
    ]
    bare = tmp_path_factory.mktemp("remote") / "formula.git"
    declaration = {
        "masters": masters,
        "install": {"method": "none"},
        "master": {"config": roots_at(bare)},
    }
    path = work / "pillar/multimaster/init.sls"
    path.write_text(yaml.safe_dump({"multimaster": declaration}))
    git(work, "add", "--all")
    git(work, "commit", "--message", "The formula")
    subprocess.run(["git", "clone", "--bare", "-q", str(work), str(bare)], check=True)
    return bare


@pytest.fixture(scope="module")
def lab(remote: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """One master that has the formula and the pillar from the remote only."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with laboratory(
        directory, "process", masters=2, minions=1, net=NET, initial_master=roots_at(remote)
    ) as made:
        yield made


def test_the_formula_applies_from_a_git_remote(lab: Laboratory) -> None:
    # Each worker of a master that has just started clones the remote by itself.
    until(lambda: _served(lab), PATIENCE, "the states to be served to all", interval=1)
    result = lab.apply()
    assert not failures(result)
    assert "saltm2:multimaster-keypair" in changed(result)
    lab.until_connected()


def _served(lab: Laboratory) -> bool:
    shown = lab.salt("saltm1", "*", "state.sls_exists", "multimaster")
    return all(shown.get(minion) is True for minion in lab.ids)


def test_the_new_master_serves_the_same_from_the_remote(lab: Laboratory) -> None:
    result = lab.salt("saltm2", "*", "state.apply", "multimaster")
    assert not failures(result)
    assert changed(result) == []
    lab.assert_no_key_outside_pki()
