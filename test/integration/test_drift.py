"""Three masters, one of which is made to differ by hand: found, named, mended as told, gone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from lab.laboratory import PATIENCE, Laboratory, failures, laboratory
from lab.model import REPOSITORY, LabError
from lab.wait import until

NET = "127.0.105"
WORD = "hunter2hunter2"
ODD = "saltm2"
# Everybody is there, however slow the machine is.
WAITING = f"timeout={PATIENCE}"
# What all masters are to have, and what is in the main file of each.
DECLARED = {"nodegroups": {"web": "web*"}, "timeout": 6}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three masters, each with trees of its own, that agree."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    roots = {name: directory / "hosts" / name for name in ("saltm1", "saltm2", "saltm3")}
    for root in roots.values():
        for path, content in (
            ("srv/salt/local.sls", "{}\n"),
            ("srv/pillar/local.sls", "port: 80\n"),
            (
                "srv/pillar/top.sls",
                yaml.safe_dump({"base": {"*": ["multimaster", "multimaster.keypair", "local"]}}),
            ),
            ("etc/salt/autosign.conf", "web9\n"),
        ):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content)
    mine = {name: options(directory, root) for name, root in roots.items()}
    with laboratory(
        directory, "process", masters=3, minions=1, net=NET, initial_master=mine["saltm1"]
    ) as made:
        for name in ("saltm2", "saltm3"):
            main = Path(made.host(name).config_dir, "master")
            main.write_text(yaml.safe_dump({**yaml.safe_load(main.read_text()), **mine[name]}))
        # The roots are in the main files, since they are other directories on each host.
        path = directory / "srv/pillar/multimaster/init.sls"
        pillar = yaml.safe_load(path.read_text())
        pillar["multimaster"]["master"]["config"] = DECLARED
        pillar["multimaster"]["drift"] = {"interval": 10}
        path.write_text(yaml.safe_dump(pillar))
        assert not (failed := failures(made.apply())), failed
        made.until_connected()
        until_agreed(made)
        yield made
        made.assert_no_key_outside_pki()
        for host in made.lab.masters:
            assert WORD not in made.events(host.id)


def options(directory: Path, root: Path) -> dict[str, Any]:
    """Return what the administrator has in a master's main file."""
    return {
        "file_roots": {
            "base": [f"{root}/srv/salt", str(REPOSITORY / "salt"), f"{directory}/srv/salt"]
        },
        "pillar_roots": {"base": [f"{root}/srv/pillar", f"{directory}/srv/pillar"]},
        # Below the root of each host.
        "autosign_file": "/etc/salt/autosign.conf",
    }


def drift(lab: Laboratory, *argv: str, master: str = "saltm1") -> tuple[int, dict[str, Any]]:
    """Return exit status and data."""
    done = lab.run(master, "salt-run", "multimaster.drift", *argv, WAITING, "--out=json")
    assert WORD not in done.stdout + done.stderr
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        raise AssertionError(done.stdout + done.stderr) from None


def until_agreed(lab: Laboratory) -> None:
    """Wait until no master differs from the others, the running ones from their files included."""
    seen: dict[str, Any] = {}

    def agreed() -> bool:
        nonlocal seen
        code, seen = drift(lab)
        return code == 0

    try:
        until(agreed, PATIENCE, "masters that agree", interval=1)
    except LabError as err:
        named = [(one["subject"], one["path"]) for one in seen.get("drift", [])]
        raise AssertionError(f"{err}; last: {named} {seen.get('problems')}") from err


class Case(NamedTuple):
    """A file that one master gets, and the difference that it makes."""

    file: str
    content: Any
    subject: str
    path: str
    side: str
    told: str


DROP_IN = "etc/salt/master.d/x.conf"
REMOVE = f"from {{root}}/{DROP_IN} on {ODD}"
CASES = {
    "worker_threads": Case(
        DROP_IN, {"worker_threads": 3}, "config", "worker_threads", "most masters", REMOVE
    ),
    "external_auth": Case(
        DROP_IN,
        {"external_auth": {"pam": {"eve": [".*"]}}},
        "access",
        "external_auth:pam:eve:0",
        "most masters",
        REMOVE,
    ),
    "publisher_acl": Case(
        DROP_IN,
        {"publisher_acl": {"eve": [".*"]}},
        "access",
        "publisher_acl:eve:0",
        "most masters",
        REMOVE,
    ),
    "a declared option": Case(
        DROP_IN,
        {"nodegroups": {"db": "db*"}},
        "config",
        "nodegroups:db",
        "the declaration",
        REMOVE,
    ),
    "a secret": Case(DROP_IN, {"mysql.pass": WORD}, "config", "mysql.pass", "most masters", REMOVE),
    "a file": Case(
        "srv/salt/more.sls", WORD, "files:base", "more.sls", "most masters", "remove more.sls"
    ),
    "a pillar": Case(
        "srv/pillar/local.sls",
        f"port: 81\nword: {WORD}\n",
        "pillar:base",
        "local.sls",
        "most masters",
        "overwrite local.sls",
    ),
    "a module": Case(
        "var/cache/salt/master/extmods/runners/mine.py",
        f"# {WORD}",
        "modules",
        "extension_modules/runners/mine.py",
        "most masters",
        "var/cache/salt/master/extmods/runners/mine.py on saltm2",
    ),
    "an autosign file": Case(
        "etc/salt/autosign.conf",
        "web9\neve*\n",
        "access",
        "autosign_file:content:eve*",
        "most masters",
        "make the content of autosign_file on saltm2",
    ),
}


# The others, too, with ``make test-long``: each takes a quarter of a minute.
USUAL = ("a secret", "a pillar")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[] if name in USUAL else pytest.mark.long)
        for name, case in CASES.items()
    ],
)
def test_a_difference_of_one_master_is_named_and_mended_as_told(
    lab: Laboratory, case: Case
) -> None:
    root = Path(lab.host(ODD).root)
    file = root / case.file
    before = file.read_text() if file.exists() else None
    file.parent.mkdir(parents=True, exist_ok=True)
    text = case.content if isinstance(case.content, str) else yaml.safe_dump(case.content)
    file.write_text(text)
    try:
        assert_named_and_mended(lab, case, file, before)
    except BaseException:
        # Or every test after this one would fail, too.
        mend(file, before)
        raise


def assert_named_and_mended(lab: Laboratory, case: Case, file: Path, before: str | None) -> None:
    root = Path(lab.host(ODD).root)
    code, data = drift(lab, master="saltm3")
    assert code == 1
    found = {(one["subject"], one["path"]): one for one in data["drift"]}
    one = found[case.subject, case.path]
    assert one["side"] == case.side
    assert list(one["remedies"]) == [ODD]
    values = one["values"]
    assert values["saltm1"] == values["saltm3"] != values[ODD]
    remedy = one["remedies"][ODD]
    assert case.told.format(root=root) in remedy["text"]
    # People are told the same, and no secret either.
    shown = lab.run("saltm1", "salt-run", "multimaster.drift", WAITING).stdout
    assert f"{case.subject}: {case.path}" in shown
    assert WORD not in shown
    code, status = lab.status()
    assert code == 1
    assert status["subjects"][case.subject]["differs"] is True
    assert WORD not in json.dumps(status)
    if not remedy["command"] or "remove" in remedy["text"]:
        mend(file, before)
    if remedy["command"]:
        where = remedy["where"] or "saltm1"
        done = lab.run(where, *shlex.split(remedy["command"]))
        assert done.returncode == 0, done.stderr
    until_agreed(lab)


# One value for every kind of option that masters are to have in common; none is of the defaults.
EVERY = {
    "external_auth": {"pam": {"eve": [".*"]}},
    "publisher_acl": {"eve": [".*"]},
    "publisher_acl_blacklist": {"users": ["root"]},
    "peer": {"eve": ["test.*"]},
    "peer_run": {"eve": ["manage.up"]},
    "autoreject_file": "/etc/salt/autoreject.conf",
    "autosign_grains_dir": "/etc/salt/grains",
    "reactor": [{"salt/x": ["/srv/reactor/x.sls"]}],
    "schedule": {"often": {"function": "manage.up", "seconds": 3600}},
    "nodegroups": {"db": "db*"},
    "file_roots": {"dev": ["/srv/dev"]},
    "pillar_roots": {"dev": ["/srv/dev-pillar"]},
    "gitfs_remotes": ["https://192.0.2.1/x.git"],
    "gitfs_base": "trunk",
    "git_pillar_base": "trunk",
    "ext_pillar": [{"cmd_json": f"echo {WORD}"}],
    "master_job_cache": "sqlite3",
    "ext_job_cache": "sqlite3",
    "cache": "redis",
    "gather_job_timeout": 11,
    "timeout": 12,
    "worker_threads": 3,
}


@pytest.mark.long
def test_every_option_that_one_master_has_otherwise_is_named(lab: Laboratory) -> None:
    until_agreed(lab)
    file = Path(lab.host(ODD).root, DROP_IN)
    file.write_text(yaml.safe_dump(EVERY))
    try:
        code, data = drift(lab)
        assert code == 1
        found: dict[str, set[str]] = {}
        for one in data["drift"]:
            if one["subject"] in ("config", "access"):
                assert list(one["remedies"]) == [ODD], one
                option = one["path"].partition(":")[0]
                found.setdefault(option, set()).add(one["remedies"][ODD]["text"])
        assert set(EVERY) <= set(found)
        for option in EVERY:
            assert any(str(file) in text for text in found[option]), (option, found[option])
    finally:
        file.unlink()
        lab.run("saltm1", "salt", ODD, "multimaster.restart", "salt-master")
    until_agreed(lab)


def mend(file: Path, before: str | None) -> None:
    """Do what the words of a remedy say."""
    if before is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(before)


def test_masters_that_agree_are_so_in_words_and_exit_status(lab: Laboratory) -> None:
    until_agreed(lab)
    done = lab.run("saltm2", "salt-run", "multimaster.drift", WAITING)
    assert done.returncode == 0, done.stdout
    assert "The masters agree on config, access, files:base, pillar:base" in done.stdout
    shown = lab.run("saltm2", "salt-run", "multimaster.status", WAITING).stdout
    assert "Everything is connected, and the masters agree." in shown
    assert "content" in shown


def test_a_file_that_is_newer_than_its_master_and_says_the_same_is_no_difference(
    lab: Laboratory,
) -> None:
    until_agreed(lab)
    main = Path(lab.host(ODD).config_dir, "master")
    main.write_text(main.read_text())
    Path(lab.host(ODD).config_dir, "master.d").touch()
    code, data = drift(lab)
    assert (code, data["drift"], data["unknown"]) == (0, [], [])


def test_a_running_master_with_an_older_configuration_is_named(lab: Laboratory) -> None:
    # One of its own, in which it may differ from the others.
    main = Path(lab.host(ODD).config_dir, "master")
    text = main.read_text()
    main.write_text(yaml.safe_dump({**yaml.safe_load(text), "max_event_size": 1048577}))
    try:
        _, data = drift(lab, "subject=running")
        (one,) = data["drift"]
        assert one["path"] == "max_event_size"
        assert one["values"][ODD] == "1048576 in use, 1048577 in its files"
        assert one["remedies"][ODD]["command"] == f"salt {ODD} multimaster.restart salt-master"
        lab.run("saltm1", *shlex.split(one["remedies"][ODD]["command"]))
        until(
            lambda: drift(lab, "subject=running")[1]["drift"] == [], PATIENCE, "it to have read it"
        )
    finally:
        main.write_text(text)
        lab.run("saltm1", *shlex.split(f"salt {ODD} multimaster.restart salt-master"))
    until_agreed(lab)


@pytest.mark.long
def test_an_event_tells_of_a_difference_and_of_its_end(lab: Laboratory) -> None:
    until_agreed(lab)

    def told(*words: str) -> bool:
        # By the first master that is up, on its own bus.
        lines = [line for line in lab.events("saltm1").splitlines() if "multimaster/drift'" in line]
        return bool(lines) and all(word in lines[-1] for word in words)

    file = Path(lab.host("saltm3").root, "srv/salt/odd.sls")
    file.write_text("{}")
    until(lambda: told("odd.sls", "'clean': False"), PATIENCE, "an event that names odd.sls")
    file.unlink()
    until(lambda: told("'clean': True", "'over': 1"), PATIENCE, "an event that all is well")
    assert "multimaster/drift'" not in lab.events("saltm2")


@pytest.mark.long
def test_the_next_master_looks_while_the_first_is_away(lab: Laboratory) -> None:
    until_agreed(lab)
    file = Path(lab.host("saltm3").root, "srv/salt/late.sls")
    with lab.stopped("saltm1", "salt-master"):
        file.write_text("{}")
        until(
            lambda: any(
                "multimaster/drift'" in line and "late.sls" in line
                for line in lab.events("saltm2").splitlines()
            ),
            PATIENCE,
            "an event on the second master",
        )
        file.unlink()
    lab.until_connected()
    until_agreed(lab)


def test_metrics_are_written_for_prometheus(lab: Laboratory, tmp_path: Path) -> None:
    path = tmp_path / "multimaster.prom"
    wanted = {"multimaster_check_complete 1"}
    for name in ("saltm1", "saltm2", "saltm3"):
        wanted.add(f'multimaster_up{{master="{name}"}} 1')
        # The minions on three hosts, and another one.
        wanted.add(f'multimaster_connected_minions{{master="{name}"}} 4')

    def written() -> bool:
        done = lab.run("saltm1", "salt-run", "multimaster.metrics", f"path={path}")
        assert done.returncode == 0, done.stdout
        return wanted <= set(path.read_text().splitlines())

    # A master may have restarted just before, and its minions are on their way back.
    until(written, PATIENCE, "three masters that are up, with all minions", interval=1)
