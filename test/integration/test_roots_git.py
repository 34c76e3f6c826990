"""States and pillars of three masters from a git remote, over HTTP."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import cli
from lab.laboratory import PATIENCE, Laboratory, applied, changed, failures
from lab.model import LabError
from lab.wait import until

NET = "127.0.57"
HOST, PORT = f"{NET}.1", 8418
BRANCH = "main"
# Seconds between two fetches of a master; it looks as often as `loop_interval` says.
UPDATE = 3


class Remote:
    """A bare repository, the server in front of it, and a working copy to push from."""

    def __init__(self, directory: Path) -> None:
        self.bare, self.work = directory / "site.git", directory / "work"
        self.url = f"http://{HOST}:{PORT}/{self.bare.name}"
        _git("init", "--bare", f"--initial-branch={BRANCH}", str(self.bare))
        _git("clone", str(self.bare), str(self.work))
        self.push("one")

    def push(self, word: str) -> None:
        """Push a state and a pillar that say this word."""
        for path, text in {
            "salt/word.txt": word,
            "pillar/top.sls": "base: {'*': [word]}",
            "pillar/word.sls": f"word: {word}",
        }.items():
            (self.work / path).parent.mkdir(exist_ok=True)
            (self.work / path).write_text(text)
        _git("-C", str(self.work), "add", "--all")
        _git("-C", str(self.work), "commit", f"--message={word}")
        _git("-C", str(self.work), "push", "origin", f"HEAD:{BRANCH}")
        # For git's protocol over a plain web server.
        _git("-C", str(self.bare), "update-server-info")

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """Let the server run."""
        handler = functools.partial(Quiet, directory=str(self.bare.parent))
        with http.server.ThreadingHTTPServer((HOST, PORT), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()

    def answers(self) -> bool:
        """Tell whether the server runs."""
        with contextlib.suppress(OSError), socket.create_connection((HOST, PORT), 1):
            return True
        return False


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing of a request."""


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Remote:
    return Remote(tmp_path_factory.mktemp("git"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three masters, to which the remote is new."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with applied(directory, "process", masters=3, minions=1, net=NET) as made:
        yield made


def declare(lab: Laboratory, remote: Remote) -> None:
    # The formula and its own pillar stay where the laboratory has them.
    files, pillars = lab.driver.tree_paths(cli.trees_of(lab.lab.directory))
    config = {
        "file_roots": {"base": files},
        "pillar_roots": {"base": pillars},
        "fileserver_backend": ["roots", "gitfs"],
        "gitfs_update_interval": UPDATE,
        "git_pillar_update_interval": UPDATE,
        "loop_interval": 1,
    }
    git = {
        "remotes": [{remote.url: [{"root": "salt"}, {"base": BRANCH}]}],
        "pillar": [{f"{BRANCH} {remote.url}": [{"root": "pillar"}, {"env": "base"}]}],
    }
    lab.declare(roots={"git": git}, master={"config": config})


def served(lab: Laboratory, master: str) -> set[str]:
    """Return the words that a master's states and pillar say."""
    state = lab.salt(master, "web1", "cp.get_file_str", "salt://word.txt")["web1"]
    pillar = lab.json(master, "salt-run", "pillar.show_pillar", "web1")
    return {str(state), str(pillar.get("word"))}


def until_served(lab: Laboratory, word: str) -> None:
    seen: dict[str, set[str]] = {}

    def everywhere() -> bool:
        seen.update({host.id: served(lab, host.id) for host in lab.lab.masters})
        return all(words == {word} for words in seen.values())

    try:
        until(everywhere, PATIENCE, f"every master to serve {word!r}", interval=1)
    except LabError as err:
        raise AssertionError(f"{err}; they serve {seen}") from err


def test_a_remote_that_is_down_is_refused_before_anything_is_changed(
    lab: Laboratory, remote: Remote
) -> None:
    declare(lab, remote)
    drop_in = f"{lab.host('saltm2').config_dir}/master.d/multimaster.conf"
    before = lab.read("saltm2", drop_in)
    result = lab.apply("saltm2")
    assert any("multimaster-git-remotes" in failure for failure in failures(result))
    assert not [name for name in changed(result) if "master" in name.split(":")[1][12:]]
    assert lab.read("saltm2", drop_in) == before


def test_every_master_serves_the_remote_and_each_push(lab: Laboratory, remote: Remote) -> None:
    with remote.served():
        result = lab.apply()
        assert not (failed := failures(result)), failed
        lab.until_settled("saltm1")
        until_served(lab, "one")
        remote.push("two")
        until_served(lab, "two")
        assert changed(lab.apply()) == []


def test_while_the_remote_is_down_its_last_content_is_served(
    lab: Laboratory, remote: Remote
) -> None:
    assert not remote.answers()
    for host in lab.lab.masters:
        assert served(lab, host.id) == {"two"}
    result = lab.apply()
    assert not failures(result)
    assert changed(result) == []
    code, data = lab.status()
    assert code == 1
    said = [
        line for line in data["problems"] if line.startswith("saltm1, saltm2, saltm3: git remote")
    ]
    assert said == data["problems"]
    assert "; what was fetched last is served; when it answers: salt-run" in said[0]
    with remote.served():
        remote.push("three")
        until_served(lab, "three")
        lab.until_connected()


@pytest.mark.long
def test_a_master_that_fetches_no_more_is_named_until_it_does(
    lab: Laboratory, remote: Remote
) -> None:
    odd = lab.host("saltm2")
    with remote.served(), held_up(Path(odd.master_cache_dir, "gitfs/work")) as locks:
        remote.push("four")
        for master in ("saltm1", "saltm3"):
            until(lambda on=master: served(lab, on) == {"four"}, PATIENCE, f"'four' on {master}")
        # Its pillar comes from another repository, with a lock of its own.
        until(lambda: served(lab, odd.id) == {"three", "four"}, PATIENCE, "the old state there")
        done = lab.run("saltm1", "salt-run", "multimaster.drift", "--out=json")
        assert done.returncode == 1
        (one,) = json.loads(done.stdout)["drift"]
        assert (one["subject"], one["side"]) == ("gitfs", "most masters")
        assert one["path"] == f"{remote.url} refs/remotes/origin/{BRANCH}"
        assert set(one["remedies"]) == {odd.id}
        for lock in locks:
            lock.unlink()
        lab.run(odd.id, *shlex.split(one["remedies"][odd.id]["command"]))
        assert served(lab, odd.id) == {"four"}
        lab.until_connected()


@contextlib.contextmanager
def held_up(work: Path) -> Iterator[list[Path]]:
    """Take Salt's lock of every repository, as a process does that hangs in a fetch."""
    locks = [directory / "update.lk" for directory in work.glob("*/_")]
    assert locks

    def taken(lock: Path) -> bool:
        with contextlib.suppress(FileExistsError), open(lock, "x") as stream:
            stream.write(f"{os.getpid()}\n")
            return True
        return False

    try:
        for lock in locks:
            until(functools.partial(taken, lock), PATIENCE, f"the lock {lock}", interval=0.01)
        yield locks
    finally:
        for lock in locks:
            lock.unlink(missing_ok=True)


def _git(*argv: str) -> None:
    identity = ["-c", "user.name=lab", "-c", "user.email=lab@example.com"]
    # A person's own configuration may ask for signatures or hooks.
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", *identity, *argv], check=True, capture_output=True, env=environment)
