"""Files that a master serves, what it has fetched from git, and who is connected to it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import multimaster_trees as trees


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "salt"
    for name, text in {"top.sls": "a", "web/init.sls": "b", "_modules/x.py": "c"}.items():
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_text(text)
    return found


def look(tmp_path: Path, *roots: Path, **flags: object) -> dict[str, str]:
    known = trees.hashes(str(tmp_path / "cache/hashes.json"))
    found = trees.tree([str(each) for each in roots], known, **flags)  # type: ignore[arg-type]
    known.save()
    return found


def test_a_tree_is_its_paths_and_their_content(tmp_path, root):
    found = look(tmp_path, root)
    assert set(found) == {"top.sls", "web/init.sls", "_modules/x.py"}
    (root / "top.sls").write_text("A")
    assert {n for n, v in look(tmp_path, root).items() if v != found[n]} == {"top.sls"}


def test_the_first_root_that_has_a_path_counts(tmp_path, root):
    other = tmp_path / "other"
    other.mkdir()
    (other / "top.sls").write_text("z")
    (other / "more.sls").write_text("y")
    both = look(tmp_path, root, other)
    assert both["top.sls"] == look(tmp_path, root)["top.sls"]
    assert "more.sls" in both
    assert look(tmp_path, other, root)["top.sls"] != both["top.sls"]


def test_what_python_makes_and_what_the_file_server_ignores_is_left_out(tmp_path, root):
    (root / "_modules/__pycache__").mkdir()
    (root / "_modules/__pycache__/x.pyc").write_text("")
    found = look(tmp_path, root, ignored=lambda path: path.startswith("web/"))
    assert set(found) == {"top.sls", "_modules/x.py"}


def test_links_are_followed_if_the_file_server_does_and_never_in_a_circle(tmp_path, root):
    (root / "web/up").symlink_to(root)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.sls").write_text("far")
    (root / "linked").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere)
    found = set(look(tmp_path, root))
    assert {"linked/far.sls", "again/far.sls", "top.sls"} <= found
    assert not any(name.startswith("web/up/") for name in found)
    assert "linked/far.sls" not in look(tmp_path, root, follow=False)


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path, root, monkeypatch):
    monkeypatch.setattr(trees, "_FRESH", -1)
    first = look(tmp_path, root)
    monkeypatch.setattr("builtins.open", _no_reading(root, open))
    assert look(tmp_path, root) == first


def _no_reading(root, real):
    def opened(path, *args, **kwargs):
        assert not str(path).startswith(str(root)), f"{path} was read again"
        return real(path, *args, **kwargs)

    return opened


def test_a_file_that_has_just_changed_is_read_again(tmp_path, root, monkeypatch):
    # It might change once more within one tick of the clock, and keep size and times.
    look(tmp_path, root)
    cache = tmp_path / "cache/hashes.json"
    assert not cache.exists()
    monkeypatch.setattr(trees, "_FRESH", -1)
    look(tmp_path, root)
    assert str(root / "top.sls") in cache.read_text()


def test_a_file_that_was_replaced_under_its_old_time_is_read_again(tmp_path, root, monkeypatch):
    monkeypatch.setattr(trees, "_FRESH", -1)
    path = root / "top.sls"
    first, status = look(tmp_path, root), path.stat()
    path.unlink()
    path.write_text("A")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert look(tmp_path, root)["top.sls"] != first["top.sls"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_a_damaged_cache_is_none(tmp_path, root, content):
    cache = tmp_path / "cache/hashes.json"
    cache.parent.mkdir()
    cache.write_text(content)
    assert len(look(tmp_path, root)) == 3


def test_a_file_that_cannot_be_read_is_told(tmp_path, root, monkeypatch):
    monkeypatch.setattr(trees.Hashes, "of", lambda self, path: None)
    assert look(tmp_path, root)["top.sls"] == "unreadable"


# Git


def git(*argv: str) -> str:
    identity = ["-c", "user.name=lab", "-c", "user.email=lab@example.com"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        ["git", *identity, *argv], check=True, capture_output=True, text=True, env=environment
    )
    return done.stdout.strip()


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_commits_are_those_that_were_fetched(tmp_path, bare, packed):
    work, clone = tmp_path / "work", tmp_path / "cache/gitfs/a1b2/_"
    git("init", "--initial-branch=main", str(work))
    git("-C", str(work), "commit", "--allow-empty", "--message=one")
    git("-C", str(work), "tag", "v1")
    git("init", *["--bare"] * bare, str(clone))
    url = "https://bob:word@git.example.com/a.git"
    git("-C", str(clone), "remote", "add", "origin", str(work))
    git("-C", str(clone), "fetch", "--tags", "origin")
    git("-C", str(clone), "remote", "set-url", "origin", url)
    if packed:
        git("-C", str(clone), "pack-refs", "--all")
    commit = git("-C", str(work), "rev-parse", "HEAD")
    ((remote, directory),) = trees.repositories(str(tmp_path / "cache/gitfs"))
    assert remote == url
    assert trees.commits(directory) == {
        "refs/remotes/origin/main": commit,
        "refs/tags/v1": commit,
    }


def test_nothing_was_fetched_where_there_is_nothing(tmp_path):
    assert list(trees.repositories(str(tmp_path / "none"))) == []


# Connections


def line(local: str, state: str = "01") -> str:
    return f"   0: {local} 0100007F:8235 {state} 00000000:00000000 00:00000000 00000000 0 0 1\n"


TABLES = {
    "tcp": "  sl  local_address\n"
    + line("010200C0:1199") * 2
    + line("010200C0:1199", "06")
    + line("020200C0:1199")
    + line("010200C0:119A"),
    "tcp6": "  sl  local_address\n" + line("0000000000000000FFFF0000010200C0:1199"),
}


@pytest.mark.parametrize(
    ("interface", "count"), [("192.0.2.1", 3), ("0.0.0.0", 4), ("::", 4), ("192.0.2.9", 0)]
)
def test_connections_to_the_publisher_are_counted(interface, count):
    opts = {"interface": interface, "publish_port": 4505}
    assert trees.subscribed(opts, TABLES) == count
    assert trees.subscribed(opts, {}) == 0
