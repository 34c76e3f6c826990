"""The scripts that Test Kitchen is run with, over a made-up Docker and a made-up Kitchen.

Each is a program that writes down its arguments; what it says and how it ends is up to the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kitchen import topology_checks as checks

SCRIPTS = Path(__file__).parents[1] / "kitchen"
NETWORK = "multimaster-kitchen"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout that has nothing but Kitchen's scripts, and a place for programs."""
    checkout = tmp_path / "checkout"
    (checkout / "test/kitchen").mkdir(parents=True)
    (checkout / ".kitchen").mkdir()
    for name in ("run", "shared", "suites.py", "suites.yml"):
        shutil.copy(SCRIPTS / name, checkout / "test/kitchen" / name)
    shutil.copy(SCRIPTS.parents[1] / "pillar.example", checkout)
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return checkout


@pytest.fixture
def program(checkout):
    """Put a program in place of another; what it does beside writing down its call is given."""

    def make(name, body):
        path = checkout.parent / "bin" / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> "$CALLS"\n{body}\n')
        path.chmod(0o755)
        return path

    return make


def calls(checkout):
    return (checkout.parent / "calls").read_text().splitlines()


def call(checkout, script, *arguments, **environment):
    return subprocess.run(
        [checkout / "test/kitchen" / script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


class TestRun:
    @pytest.fixture
    def run(self, checkout, program):
        def run(*suites, fails="nothing", **environment):
            kitchen = program(
                "kitchen",
                f'case "$*" in "list --bare"*) printf "one\\ntwo\\n";; {fails}) exit 20;; esac',
            )
            environment |= {"KITCHEN": str(kitchen), "KITCHEN_IMAGE": "x"}
            return call(checkout, "run", *suites, **environment)

        return run

    @pytest.mark.parametrize("suites", [[], ["clean"], ["failover", "clean"]], ids=str)
    def test_goes_through_all_phases_of_each_suite(self, run, checkout, suites):
        assert run(*suites).returncode == 0
        expected = ["kitchen version"]
        for suite in suites or ["hot"]:
            expected.append(f"kitchen create ^{suite}-")
            verify = [f"kitchen list --bare ^{suite}-", "kitchen verify one", "kitchen verify two"]
            converge = [f"kitchen converge ^{suite}-"]
            expected += converge + verify
            if suite == "clean":
                expected += 2 * converge + verify
            expected.append(f"kitchen destroy ^{suite}-")
        assert calls(checkout) == expected

    def test_stops_at_the_first_host_that_fails_and_destroys_all(self, run, checkout):
        failed = run("hot", "clean", fails='"verify one"')
        assert failed.returncode == 20
        assert ".kitchen/logs" in failed.stderr
        assert calls(checkout)[-2:] == ["kitchen verify one", "kitchen destroy ^hot-"]

    def test_says_which_suites_there_are_before_it_makes_anything(self, run, checkout):
        refused = run("none")
        assert refused.returncode == 1
        assert "got suite 'none'; supported: hot, failover, clean" in refused.stderr
        assert calls(checkout) == ["kitchen version"]

    @pytest.mark.parametrize("fails", ["nothing", "converge*"])
    def test_keeps_all_hosts_if_that_is_asked_for(self, run, checkout, fails):
        ended = run(fails=fails, KITCHEN_KEEP="1")
        assert ended.returncode == (0 if fails == "nothing" else 20)
        assert not any("destroy" in one for one in calls(checkout))
        assert "kitchen destroy" in ended.stdout

    def test_that_cannot_destroy_fails(self, run):
        assert run(fails="destroy*").returncode == 1


class TestTwoCheckouts:
    """Containers and network of one are not the other's."""

    @pytest.fixture
    def docker(self, program):
        def docker(owner):
            program("docker", f'case "$*" in *--format*) echo "{owner}";; *rm*) exit 1;; esac')

        return docker

    def test_one_is_told_how_to_move_before_it_makes_anything(self, docker, checkout):
        docker("/another")
        refused = call(checkout, "shared", "up", NETWORK, "192.168.50.0/24")
        assert refused.returncode == 1
        assert "KITCHEN_NAME=" in refused.stderr
        assert "KITCHEN_NET=" in refused.stderr
        assert not any("create" in one for one in calls(checkout))

    @pytest.mark.parametrize("verb", ["down", "logs"])
    def test_one_leaves_what_is_the_others(self, docker, checkout, verb):
        docker("/another")
        assert call(checkout, "shared", verb, NETWORK, KITCHEN_SUITE_NAME="saltm1").returncode == 0
        assert [one.split()[:3] for one in calls(checkout)] == [["docker", "network", "inspect"]]

    def test_one_removes_its_own(self, docker, checkout):
        docker(checkout)
        assert call(checkout, "shared", "down", NETWORK, KITCHEN_SUITE_NAME="web1").returncode == 0
        assert f"docker rm --force --volumes {NETWORK}-web1" in calls(checkout)


def test_what_a_host_has_said_is_kept(checkout, program):
    said = "journalctl) echo its journal;; salt-key) exit 1"
    program(
        "docker",
        f'case "$1" in network) echo "{checkout}";; exec) case "$3" in {said};; esac;; esac',
    )
    assert call(checkout, "shared", "logs", NETWORK, KITCHEN_SUITE_NAME="web1").returncode == 0
    kept = checkout / ".kitchen/logs/web1"
    assert (kept / "journal.log").read_text() == "its journal\n"
    assert (kept / "keys.log").exists()
    assert f"docker cp {NETWORK}-web1:/var/log/salt/. .kitchen/logs/web1" in calls(checkout)


@pytest.mark.usefixtures("checkout")
def test_hosts_that_are_not_there_are_named_at_once(program):
    program("docker", "printf 'a-saltm1\\na-saltm10\\n'")
    hosts = ["a-saltm1", "a-saltm2", "a-web1"]
    assert checks.not_running(hosts) == ["a-saltm2", "a-web1"]
