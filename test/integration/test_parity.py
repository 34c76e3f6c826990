"""Everything that is declared reaches every master alike, and replaces nothing without a word."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.laboratory import SCANNER, Laboratory, changed, failures, laboratory

NET = "127.0.101"
MASTERS = ("saltm1", "saltm2")
STATE = "multimaster-master-config"
SECRETS = {"sharedsecret": "plaice-behind-the-gurnard", "mysql.pass": "tench-under-the-bream"}
# The effective configuration, as the master's daemon computes it.
EFFECTIVE = """
import json, sys, salt.config
opts = salt.config.master_config(sys.argv[1])
json.dump({str(name): value for name, value in opts.items()}, sys.stdout, default=str)
"""
# Salt's own judge of new keys, with the configuration of this host's master.
JUDGE = """
import json, sys, salt.config, salt.daemons.masterapi
judge = salt.daemons.masterapi.AutoKey(salt.config.master_config(sys.argv[1]))
json.dump(
    [
        judge.check_autosign("auto1"),
        judge.check_autosign("other"),
        judge.check_autosign("other", {"room": "b12"}),
        judge.check_autoreject("bad1"),
    ],
    sys.stdout,
)
"""


def declared(remote: Path) -> dict[str, Any]:
    """Return options of every kind; the laboratory's own has the roots."""
    url = f"file://{remote}"
    return {
        "external_auth": {"sharedsecret": {"operator": ["test.*", "@runner"]}},
        "publisher_acl": {"operator": ["test.ping"]},
        "publisher_acl_blacklist": {"modules": ["disk.*"]},
        "peer": {"saltm1": ["test.echo"]},
        "peer_run": {"saltm1": ["test.metasyntactic"]},
        "reactor": [{"lab/parity": ["/srv/reactor/none.sls"]}],
        "schedule": {"parity": {"function": "test.metasyntactic", "hours": 24}},
        "nodegroups": {"second": "L@saltm2"},
        "fileserver_backend": ["roots", "gitfs"],
        "gitfs_remotes": [url],
        "gitfs_base": "main",
        "gitfs_root": "files",
        "gitfs_update_interval": 120,
        "git_pillar_update_interval": 120,
        "ext_pillar": [
            {"git": [{f"main {url}": [{"root": "pillar"}, {"env": "base"}]}]},
            {"cmd_yaml": "echo 'from_command: sole'"},
        ],
        "master_job_cache": "local_cache",
        "ext_job_cache": "",
        "cache": "localfs",
        "timeout": 30,
        "gather_job_timeout": 20,
        "worker_threads": 3,
        **SECRETS,
    }


def settings(remote: Path, *override: str) -> dict[str, Any]:
    """Return what is declared for masters; what a host has must be overridden by name."""
    return {
        "config": declared(remote),
        "autosign": ["auto*"],
        "autoreject": ["bad*"],
        "autosign_grains": {"room": ["b12"]},
        # The laboratory's masters have another number in their main file.
        "override": ["worker_threads", *override],
    }


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository with a file to serve and a pillar."""
    directory = tmp_path_factory.mktemp("git")
    work, bare = directory / "work", directory / "parity.git"
    for path, text in {
        "files/probe.txt": "from git\n",
        "pillar/top.sls": "base: {'*': [probe]}\n",
        "pillar/probe.sls": "from_git: sole\n",
    }.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text)
    _git("init", "--bare", "--initial-branch=main", str(bare))
    at = [f"--git-dir={bare}", f"--work-tree={work}"]
    _git(*at, "add", "--all")
    _git(*at, "commit", "--message=A file and a pillar")
    return bare


@pytest.fixture(scope="module")
def lab(remote: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """One master of two, before the formula was applied."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with laboratory(directory, "process", masters=2, minions=0, net=NET) as made:
        # Who has the right grain may be accepted under any id.
        made.declare(masters=made.proved_masters(2), master=settings(remote))
        yield made


@pytest.fixture(scope="module")
def outputs() -> list[str]:
    """Everything that the commands of these tests have printed of states."""
    return []


@pytest.fixture(scope="module")
def would(lab: Laboratory, outputs: list[str]) -> dict[str, Any]:
    """What a test run says before the formula was applied."""
    result = lab.apply("*", "saltm1", "test=True")
    outputs.append(repr(result))
    return result


def test_a_test_run_shows_the_effective_change(would: dict[str, Any]) -> None:
    assert not failures(would)
    for master in MASTERS:
        changes = changes_of(would, master)
        assert changes["worker_threads"] == {"old": 2, "new": 3}
        # The default and not nothing.
        assert changes["gather_job_timeout"] == {"old": 10, "new": 20}
        assert changes["mysql.pass"]["new"].startswith("hash:")
    # On all masters alike.
    assert len({changes_of(would, master)["mysql.pass"]["new"] for master in MASTERS}) == 1


def test_what_was_shown_is_what_then_changes(
    lab: Laboratory, would: dict[str, Any], outputs: list[str]
) -> None:
    did = lab.apply()
    outputs.append(repr(did))
    assert not failures(did)
    for master in MASTERS:
        assert changes_of(did, master) == changes_of(would, master)
    lab.until_connected()


def test_every_master_has_the_same_effective_configuration(lab: Laboratory, remote: Path) -> None:
    first, second = (effective(lab, master) for master in MASTERS)
    assert {
        name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
    } <= {
        # By design, or by the laboratory's.
        "id",
        "interface",
    }
    for name, value in declared(remote).items():
        assert first[name] == value
    assert first["autosign_file"] == "ROOT/etc/salt/multimaster/autosign.conf"


@pytest.mark.parametrize("master", MASTERS)
class TestEffects:
    def test_of_nodegroups(self, lab: Laboratory, master: str) -> None:
        answers = lab.json(master, "salt", "--static", "-N", "second", "test.ping")
        assert answers == {"saltm2": True}

    def test_of_the_blacklist(self, lab: Laboratory, master: str) -> None:
        done = lab.run(master, "salt", "saltm2", "disk.usage")
        assert "Authorization error occurred" in done.stdout
        assert lab.salt(master, "saltm2", "test.ping") == {"saltm2": True}

    def test_of_peer(self, lab: Laboratory, master: str) -> None:
        publish = ["publish.publish", "saltm2", "test.echo", "word"]
        assert lab.salt(master, "saltm1", *publish)["saltm1"] == {"saltm2": "word"}
        assert not lab.salt(master, "saltm2", *publish)["saltm2"]

    def test_of_peer_run(self, lab: Laboratory, master: str) -> None:
        run = ["publish.runner", "test.metasyntactic"]
        assert "foo" in lab.salt(master, "saltm1", *run)["saltm1"]
        assert "foo" not in str(lab.salt(master, "saltm2", *run)["saltm2"])

    def test_of_file_server_and_pillars(self, lab: Laboratory, master: str) -> None:
        ask = ["cp.get_file_str", "salt://probe.txt"]
        assert lab.salt(master, "saltm2", *ask) == {"saltm2": "from git\n"}
        assert {"from_git", "from_command"} <= set(
            lab.salt(master, "saltm2", "pillar.items")["saltm2"]
        )

    def test_of_autosign_files(self, lab: Laboratory, master: str) -> None:
        done = lab.run(master, lab.python, "-c", JUDGE, f"{lab.host(master).config_dir}/master")
        assert json.loads(done.stdout) == [True, False, True, True], done.stderr


def test_a_second_run_changes_nothing(lab: Laboratory, outputs: list[str]) -> None:
    result = lab.apply("*", "saltm2")
    outputs.append(repr(result))
    assert not failures(result)
    assert changed(result) == []


def test_what_a_main_file_says_is_not_replaced(
    lab: Laboratory, remote: Path, outputs: list[str]
) -> None:
    main = f"{lab.host('saltm2').config_dir}/master"
    drop_in = f"{lab.host('saltm2').config_dir}/master.d/multimaster.conf"
    Path(main).write_text(lab.read("saltm2", main) + "mysql.pass: turbot-of-old\ncache: other\n")
    before = lab.read("saltm2", drop_in)
    for mode in (["test=True"], []):
        result = lab.apply("*", "saltm1", *mode)
        outputs.append(repr(result))
        failed = [line for line in failures(result) if "requisite" not in line]
        assert {line.partition(":")[0] for line in failed} == {"saltm2"}
        text = "\n".join(failed)
        assert f"cache: {main} also sets it: cache is 'other' there and 'localfs' here" in text
        assert f"mysql.pass: {main} also sets it: mysql.pass is 'hash:" in text
        assert "list it under multimaster:master:override" in text
        assert changed(result) == []
        assert lab.read("saltm2", drop_in) == before

    lab.declare(masters=lab.proved_masters(2), master=settings(remote, "mysql.pass", "cache"))
    result = lab.apply()
    outputs.append(repr(result))
    assert not failures(result)
    # What was in force is so still.
    assert changed(result) == []
    assert effective(lab, "saltm2")["cache"] == "localfs"


def test_no_secret_is_anywhere_but_in_configuration_and_pillar(
    lab: Laboratory, outputs: list[str]
) -> None:
    needles = [*SECRETS.values(), "turbot-of-old"]
    for output in outputs:
        assert not any(needle in output for needle in needles)
    for host in lab.lab.hosts:
        salt = Path(host.config_dir)
        job = {
            "needles": needles,
            "roots": [host.root],
            "allowed": [
                f"{salt}/master.d/multimaster.conf",
                f"{salt}/master",
                # Salt's copy of each minion's pillar, which has the declaration.
                f"{host.master_cache_dir}/pillar/",
                # The states with their arguments, for root alone.
                rendered := f"{host.minion_cache_dir}/highstate.cache.p",
            ],
        }
        done = lab.run(host.id, lab.python, "-c", SCANNER.read_text(), input=json.dumps(job))
        found = json.loads(done.stdout)
        assert not found, "\n".join(found)
        assert stat.S_IMODE(os.stat(rendered).st_mode) == 0o600
        assert not any(needle in lab.events(host.id) for needle in needles)
    for arguments in lab.arguments_seen:
        assert not any(needle in arguments for needle in needles)
    lab.assert_no_key_outside_pki()


# After the search for secrets: Salt itself keeps the password of such a command with its job.
@pytest.mark.parametrize("master", MASTERS)
def test_external_auth_works_on_every_master(lab: Laboratory, master: str) -> None:
    right = ["-a", "sharedsecret", "--username=operator"]
    right.append(f"--password={SECRETS['sharedsecret']}")
    assert lab.json(master, "salt", "--static", *right, "saltm2", "test.ping") == {"saltm2": True}
    done = lab.run(master, "salt", *right, "saltm2", "sys.doc")
    assert "saltm2" not in done.stdout
    wrong = ["-a", "sharedsecret", "--username=operator", "--password=x"]
    assert "saltm2" not in lab.run(master, "salt", *wrong, "saltm2", "test.ping").stdout


def changes_of(result: dict[str, Any], minion: str) -> dict[str, Any]:
    """Return the changes of the state that writes a master's drop-in."""
    (found,) = (state for state in result[minion].values() if state["__id__"] == STATE)
    return dict(found["changes"])


def effective(lab: Laboratory, master: str) -> dict[str, Any]:
    """Return a master's options as Salt computes them, with a word for its root directory."""
    done = lab.run(master, lab.python, "-c", EFFECTIVE, f"{lab.host(master).config_dir}/master")
    root = json.loads(done.stdout)["root_dir"]
    text = done.stdout.replace(root, "ROOT").replace(lab.host(master).root, "ROOT")
    return dict(json.loads(text))


def _git(*argv: str) -> None:
    identity = ["-c", "user.name=lab", "-c", "user.email=lab@example.com"]
    # A person's own configuration may ask for signatures or hooks.
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", *identity, *argv], check=True, capture_output=True, env=environment)
