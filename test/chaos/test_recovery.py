"""What docs/recovery.md says is run as it stands there, and mends what it is for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from chaos.places import everywhere
from lab.faults import down, foreign_pair
from lab.laboratory import Laboratory
from lab.model import REPOSITORY

PAGE = Path(REPOSITORY, "docs/recovery.md")
# The addresses of the example in the README.
EXAMPLE = {"192.168.50.10": 0, "192.168.50.100": 1, "192.168.50.101": 2}
MASTER, MINION = "salt-master", "salt-minion"
pytestmark = pytest.mark.long


def follow(lab: Laboratory, number: int) -> None:
    """Run the commands of one procedure, in their order; each has to succeed.

    A command for web1 is given on a master that it is with, as the page says.
    """
    section = re.search(rf"^## {number}\. .*?(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    assert section, f"no procedure {number}"
    steps = re.findall(r"^(\w+)# (.+)$", section[0], re.M)
    assert steps, f"no command in procedure {number}"
    for host, command in steps:
        if command.startswith("salt web1 "):
            host = next(host.id for host in lab.lab.masters if lab.answering(host.id, "web1"))
        for address, index in EXAMPLE.items():
            command = re.sub(rf"\b{address}\b", lab.lab.masters[index].address, command)
        done = lab.run(host, "sh", "-c", command)
        assert done.returncode == 0, f"{host}# {command}: {done.stdout}{done.stderr}"


def recovered(lab: Laboratory) -> None:
    """Wait until everything is as it should be, also for the command that the page begins with."""
    lab.until_settled()
    lab.until_connected("saltm2")


@everywhere
def test_1_a_master_that_is_down_is_started(lab: Laboratory, mode: dict[str, Any]) -> None:
    lab.driver.control(lab.lab, lab.host("saltm1"), "kill", MASTER)
    follow(lab, 1)
    recovered(lab)


@everywhere
def test_2_a_frozen_master_is_restarted(lab: Laboratory, mode: dict[str, Any]) -> None:
    lab.driver.control(lab.lab, lab.host("saltm1"), "freeze", MASTER)
    follow(lab, 2)
    recovered(lab)


@everywhere
def test_3_a_master_with_another_key_pair_is_repaired(
    lab: Laboratory, mode: dict[str, Any]
) -> None:
    with foreign_pair(lab, "saltm1"):
        follow(lab, 3)
        recovered(lab)


@everywhere
@pytest.mark.parametrize("number", [4, 5])
def test_4_and_5_a_minion_with_masters_that_are_gone_comes_back(
    lab: Laboratory, mode: dict[str, Any], number: int
) -> None:
    host = lab.host("web1")
    drop_in = f"{host.config_dir}/minion.d/multimaster.conf"
    if number == 5:
        # As if from an old image.
        content = lab.read("web1", drop_in)
        for master in lab.lab.masters:
            content = content.replace(f"{master.address}\n", f"{lab.lab.net}.250\n")
        with lab.stopped("web1", MINION):
            lab.run("web1", "tee", drop_in, input=content)
        assert "web1" not in lab.answering("saltm2", "web1")
    else:
        lab.run("web1", "sed", "-i", "s/^recon_max: .*/recon_max: 5000/", drop_in)
    follow(lab, number)
    recovered(lab)


@everywhere
def test_6_any_master_is_enough_when_all_were_down(lab: Laboratory, mode: dict[str, Any]) -> None:
    with down(lab, "stop", "saltm2", "saltm3"):
        lab.driver.control(lab.lab, lab.host("saltm1"), "stop", MASTER)
        follow(lab, 1)
        lab.until_answering("saltm1")
    recovered(lab)


@everywhere
def test_7_all_masters_are_restarted(lab: Laboratory, mode: dict[str, Any]) -> None:
    follow(lab, 7)
    recovered(lab)
