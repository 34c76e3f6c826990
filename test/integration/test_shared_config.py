"""Options of two masters in one directory on a mount, which their units name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import cli
from lab.laboratory import PATIENCE, Laboratory, applied, changed, failures
from lab.wait import until

pytestmark = [pytest.mark.docker, pytest.mark.long]
NET = "192.168.68"
MOUNT = "/srv/shared"
CONFIG = f"{MOUNT}/config"
UNIT = "/etc/systemd/system/salt-master.service.d/multimaster.conf"
MASTERS = ("saltm1", "saltm2")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Two masters, with the formula applied and each with its own options."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with applied(directory, "docker", masters=2, minions=0, net=NET) as made:
        yield made


def storage(lab: Laboratory) -> Path:
    """Return the directory of options as this machine sees it."""
    return lab.lab.directory / "srv/salt/config"


def say(lab: Laboratory, **options: Any) -> None:
    """Write the options on the storage: those of saltm1's own file, and more."""
    directory = storage(lab)
    (directory / "master.d").mkdir(parents=True, exist_ok=True)
    (directory / "master").write_text("include: /etc/salt/master.d/multimaster.conf\n")
    own = yaml.safe_load(lab.read("saltm1", "/etc/salt/master"))
    (directory / "master.d/site.conf").write_text(yaml.safe_dump(own | options))


def declare(lab: Laboratory, **master: Any) -> None:
    """Declare a mount that has the options, and what is to be so of the masters."""
    files, _ = lab.driver.tree_paths(cli.trees_of(lab.lab.directory))
    path = lab.lab.directory / "srv/pillar/multimaster/init.sls"
    pillar = yaml.safe_load(path.read_text())
    mount = {"path": MOUNT, "device": files[-1], "fstype": "none", "opts": "bind"}
    pillar["multimaster"]["roots"] = {"shared": {"mounts": [mount]}}
    pillar["multimaster"]["master"] = master
    path.write_text(yaml.safe_dump(pillar))


def daemon(lab: Laboratory, master: str) -> str:
    """Return the command line of a master's daemon."""
    argv = ["systemctl", "show", "--property=MainPID", "--value", "salt-master"]
    pid = lab.run(master, *argv).stdout.strip()
    return lab.read(master, f"/proc/{pid}/cmdline").replace("\0", " ")


def workers(lab: Laboratory, master: str) -> int:
    """Return how many workers a master's daemon has: what it has read, and nobody else."""
    return int(lab.run(master, "pgrep", "--count", "--full", "MWorker-[^ ]*[0-9]$").stdout)


def until_workers(lab: Laboratory, count: int) -> None:
    lab.until_settled("saltm1")
    until(
        lambda: all(workers(lab, master) == count for master in MASTERS),
        PATIENCE,
        f"both masters to have {count} workers",
    )
    lab.until_connected()


def test_a_host_whose_own_files_say_otherwise_is_refused_and_left_alone(lab: Laboratory) -> None:
    say(lab, worker_threads=3)
    lab.run("saltm2", "sh", "-c", "echo 'timeout: 9' >/etc/salt/master.d/own.conf")
    declare(lab, config_dir=CONFIG)
    found = [line for line in failures(lab.apply()) if "multimaster-shared-config" in line]
    assert [line for line in found if line.startswith("saltm1: ")] == []
    refusal = next(line for line in found if line.startswith("saltm2: "))
    assert "timeout is 9 with this host's own files and 5 without" in refusal
    assert lab.read("saltm2", UNIT) == ""
    assert lab.run("saltm2", "test", "-e", "/etc/salt/master.d/multimaster-shared.conf").returncode
    lab.run("saltm2", "rm", "/etc/salt/master.d/own.conf")
    lab.until_settled("saltm1")


def test_both_masters_run_with_the_options_there(lab: Laboratory) -> None:
    result = lab.apply()
    assert not (failed := failures(result)), failed
    until_workers(lab, 3)
    for master in MASTERS:
        assert f"salt-master -c {CONFIG} " in daemon(lab, master)
        argv = ["systemctl", "show", "--property=RequiresMountsFor", "--value", "salt-master"]
        assert CONFIG in lab.run(master, *argv).stdout.split()
        # The commands read the same.
        told = lab.json(master, "salt-run", "config.get", "worker_threads")
        assert told == 3
    done = changed(lab.apply())
    assert [name for name in done if not name.endswith(":multimaster-mounts")] == []


def test_a_change_there_is_read_by_both(lab: Laboratory) -> None:
    say(lab, worker_threads=4)
    result = lab.apply()
    assert not (failed := failures(result)), failed
    assert {f"{master}:multimaster-master-restart" for master in MASTERS} <= set(changed(result))
    until_workers(lab, 4)


def test_what_contradicts_the_declaration_is_refused(lab: Laboratory) -> None:
    declare(lab, config_dir=CONFIG, config={"worker_threads": 6})
    found = failures(lab.apply())
    for master in MASTERS:
        assert any(
            line.startswith(f"{master}: ") and f"{CONFIG}/master.d/site.conf" in line
            for line in found
        ), found


def test_no_longer_declared_they_read_their_own_again(lab: Laboratory) -> None:
    declare(lab, config={"worker_threads": 6})
    pillar = lab.lab.directory / "srv/pillar/multimaster/init.sls"
    declared = yaml.safe_load(pillar.read_text())
    own = yaml.safe_load(lab.read("saltm1", "/etc/salt/master"))
    roots = {name: own[name] for name in ("file_roots", "pillar_roots")}
    declared["multimaster"]["roots"] = {}
    declared["multimaster"]["master"]["config"] |= roots
    pillar.write_text(yaml.safe_dump(declared))
    result = lab.apply()
    assert not (failed := failures(result)), failed
    until_workers(lab, 6)
    for master in MASTERS:
        assert CONFIG not in daemon(lab, master)
        assert lab.read(master, UNIT) == ""
