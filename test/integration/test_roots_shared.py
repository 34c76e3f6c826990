"""States and pillars of two masters on shared storage: here one directory, bind-mounted on both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lab import cli
from lab.laboratory import Laboratory, applied, changed, failures

pytestmark = pytest.mark.docker
NET = "192.168.66"
MOUNTED = "/srv/shared"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Two masters, with the formula applied."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with applied(directory, "docker", masters=2, minions=0, net=NET) as made:
        yield made


def declare(lab: Laboratory, **config: Any) -> None:
    """Declare the laboratory's trees as shared, each on a mount of its own."""
    files, pillars = lab.driver.tree_paths(cli.trees_of(lab.lab.directory))
    mounts = [
        {"path": f"{MOUNTED}/{number}", "device": path, "fstype": "none", "opts": "bind"}
        for number, path in enumerate(files + pillars)
    ]
    paths = [str(mount["path"]) for mount in mounts]
    roots = {"base": paths[: len(files)]}, {"base": paths[len(files) :]}
    path = lab.lab.directory / "srv/pillar/multimaster/init.sls"
    pillar = yaml.safe_load(path.read_text())
    shared = {"mounts": mounts, "file_roots": roots[0], "pillar_roots": roots[1]}
    pillar["multimaster"]["roots"] = {"shared": shared}
    pillar["multimaster"]["master"] = {
        "config": config,
        "override": ["file_roots", "pillar_roots"],
    }
    path.write_text(yaml.safe_dump(pillar))


def test_what_must_not_be_shared_is_refused_and_nothing_mounted(lab: Laboratory) -> None:
    declare(lab, pki_dir=f"{MOUNTED}/0/pki", cachedir=f"{MOUNTED}/1/cache")
    result = lab.apply()
    for master in ("saltm1", "saltm2"):
        found = [line for line in failures(result) if line.startswith(f"{master}: ")]
        refusal = next(line for line in found if "multimaster-shareable" in line)
        assert "pki_dir: got" in refusal
        assert "cachedir: got" in refusal
        assert MOUNTED not in lab.read(master, "/proc/mounts")


def test_both_masters_serve_what_is_there(lab: Laboratory) -> None:
    declare(lab)
    result = lab.apply()
    assert not (failed := failures(result)), failed
    lab.until_settled("saltm1")
    lab.until_connected()
    (lab.lab.directory / "srv/salt/word.txt").write_text("shared")
    for master in ("saltm1", "saltm2"):
        assert f" {MOUNTED}/0 " in lab.read(master, "/proc/mounts")
        assert f"{MOUNTED}/0" in lab.read(master, "/etc/fstab")
        told = lab.salt(master, "*", "cp.get_file_str", "salt://word.txt")
        assert told == dict.fromkeys(lab.ids, "shared")
    result = lab.apply("*", "saltm2")
    assert not failures(result)
    # The container's own directory is a bind mount itself: Salt sees the path on the machine behind
    # it as the device, and takes that for another one.
    assert [name for name in changed(result) if not name.endswith(":multimaster-mounts")] == []
