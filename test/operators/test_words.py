"""
What a status says is so: known, or not known; and what it says to do about it helps.

A master without a key that was accepted elsewhere was said to agree with the others, a minion that
was installed anew to be not connected, and a master with a wrong private key not to answer.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from lab.decisions import MASTERS, decide, until_all_say, wait_for_key
from lab.keys import make_pair
from lab.laboratory import Laboratory, applied

pytestmark = pytest.mark.long

NET = "127.0.100"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three masters and two minions, with the formula applied."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with applied(directory, "process", masters=3, minions=2, net=NET) as made:
        yield made


def until_said(lab: Laboratory, words: str, master: str = "saltm1") -> tuple[str, dict[str, Any]]:
    """Wait until a problem in a master's status has some words; return it and the status."""
    data: dict[str, Any] = {}

    def said() -> list[str]:
        nonlocal data
        data = lab.status(master)[1]
        return [line for line in data["problems"] if words in line]

    lab.until(lambda: bool(said()), f"a problem with {words!r}", lambda: data.get("problems"))
    return said()[0], data


def carry_out(lab: Laboratory, command: str, master: str = "saltm1") -> None:
    """Give a command as a status has it."""
    done = lab.run(master, "sh", "-c", command)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def must(lab: Laboratory, host: str, *argv: str) -> None:
    done = lab.run(host, *argv)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def unwritable(lab: Laboratory, master: str, name: str) -> Iterator[None]:
    """Keep a master from writing keys, all if that can be done, or else the one of that name."""
    directory = f"{lab.host(master).master_pki_dir}/minions"
    if os.geteuid():
        must(lab, master, "chmod", "500", directory)
        try:
            yield
        finally:
            must(lab, master, "chmod", "700", directory)
        return
    # Who is root may write everywhere, but no file in place of a directory with something in it.
    must(lab, master, "mkdir", "-p", f"{directory}/{name}/x")
    try:
        yield
    finally:
        must(lab, master, "rm", "-r", f"{directory}/{name}")


def test_a_master_that_cannot_write_a_key_does_not_agree(lab: Laboratory) -> None:
    wait_for_key(lab, "kept", make_pair()[1], MASTERS)
    with unwritable(lab, "saltm2", "kept"):
        decide(lab, "saltm1", "accept", "kept")
        until_all_say(lab, "kept", "accepted", "saltm1", "saltm3")
        line, data = until_said(lab, "has keys otherwise than decided: kept", "saltm3")
        assert line.startswith("master saltm2 ")
        assert data["subjects"]["keys"]["differs"] is True
        drift = lab.json("saltm1", "salt-run", "multimaster.drift", "subject=keys")
        (one,) = [each for each in drift["drift"] if each["path"] == "stored:kept"]
        assert list(one["remedies"]) == ["saltm2"]
        if os.geteuid():
            until_said(lab, "master saltm2 cannot write keys, ")
    carry_out(lab, "salt-run multimaster.keys_repair")
    until_all_say(lab, "kept", "accepted")
    decide(lab, "saltm1", "delete", "kept")
    until_all_say(lab, "kept", None)


def test_a_minion_that_was_installed_anew_is_let_in_by_what_the_status_says(
    lab: Laboratory,
) -> None:
    with lab.stopped("web1", "salt-minion"):
        pki = lab.host("web1").minion_pki_dir
        must(lab, "web1", "rm", f"{pki}/minion.pem", f"{pki}/minion.pub")
    on_all = f"minion web1 is denied on {', '.join(MASTERS)} with key "
    line, data = until_said(lab, on_all, "saltm2")
    assert set(data["minions"]["web1"]["denied"]) == set(MASTERS)
    delete, accept = re.findall(r": (salt-run [^,;]+)[,;]", line)[:2]
    assert ".delete web1 " in delete
    assert ".accept web1 " in accept
    carry_out(lab, delete, "saltm2")

    def waiting() -> Any:
        row = lab.json("saltm2", "salt-run", "multimaster.keys", "web1")["keys"].get("web1")
        return row and row["masters"]["saltm2"]

    lab.until(lambda: waiting() == "pending", "web1 to ask saltm2", waiting)
    carry_out(lab, accept, "saltm2")
    lab.until_connected()

    def left() -> list[str]:
        shown = lab.json("saltm1", "salt-run", "multimaster.keys", "web1")
        return list(shown["keys"]["web1"]["denied"])

    lab.until(lambda: not left(), "no denied key to be left", left)


def test_a_private_key_that_does_not_fit_is_named_and_mended(lab: Laboratory) -> None:
    path = f"{lab.host('saltm2').master_pki_dir}/saltm2.pem"
    own = lab.read("saltm2", path)

    def put(pem: str) -> None:
        # The file stays, and with it owner and mode.
        done = lab.run("saltm2", "sh", "-c", 'cat > "$1"', "sh", path, input=pem)
        assert done.returncode == 0, done.stderr

    must(lab, "saltm2", "chmod", "600", path)
    try:
        with lab.stopped("saltm2", "salt-master"):
            put(make_pair()[0])
        line, data = until_said(lab, "does not fit the public key beside it")
        assert line.startswith("master saltm2 ")
        assert not any("config differs" in problem for problem in data["problems"])
        assert data["masters"]["saltm2"]["reachable"] is None
        carry_out(lab, f"salt {line.rpartition(': salt ')[2]}")
        lab.until_connected()
        assert lab.read("saltm2", path).strip() == own.strip()
    finally:
        if lab.read("saltm2", path).strip() != own.strip():
            with lab.stopped("saltm2", "salt-master"):
                put(own)
        must(lab, "saltm2", "chmod", "400", path)


def test_a_master_that_takes_no_commands_says_so_in_a_line(lab: Laboratory) -> None:
    with lab.stopped("saltm3", "salt-master"):
        code, data = lab.status("saltm3")
        assert code == 1
        (line,) = [each for each in data["problems"] if "takes no commands" in each]
        assert "Traceback" not in line
        assert {row["reachable"] for row in data["masters"].values()} == {None}
        line, data = until_said(lab, "does not run; salt saltm3 service.start salt-master")
        assert data["masters"]["saltm3"]["reachable"] is False
    lab.until_connected()


def test_what_salt_has_not_finished_is_no_minion(lab: Laboratory) -> None:
    before = lab.status("saltm2")[1]["masters"]["saltm2"]["accepted"]
    path = f"{lab.host('saltm2').master_pki_dir}/minions/tmpab12cd34"
    done = lab.run("saltm2", "tee", path, input=make_pair()[1])
    assert done.returncode == 0, done.stderr
    try:
        data = lab.status("saltm2")[1]
        assert "tmpab12cd34" not in data["minions"]
        assert data["masters"]["saltm2"]["accepted"] == before
    finally:
        must(lab, "saltm2", "rm", path)
    lab.until_connected()
