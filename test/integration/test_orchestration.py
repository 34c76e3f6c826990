"""Orchestrations with real daemons: the tests build on each other, in this order."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.laboratory import PATIENCE, Laboratory, laboratory
from lab.wait import ENOUGH, until

DEPLOY, RESTART = "multimaster.orch.deploy", "multimaster.orch.restart"
STEPS = ["preflight", "masters", "minions"]
LOAD = Path(__file__).with_name("steady_commands.py")
# Commands a second under which masters are restarted, each a job on four minions, at most.
RATE = 1


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """One master that is to become three, and four more minions; the formula is not applied."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with laboratory(directory, "process", masters=3, minions=4, net="127.0.81") as made:
        yield made
        made.assert_no_key_outside_pki()


class Result:
    """What ``salt-run state.orchestrate`` has said: exit status, steps, progress."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.progress = done.stderr
        # Only the result is there, whatever is said on the way.
        (states,) = json.loads(done.stdout)["data"].values()
        assert isinstance(states, dict), states
        self.steps = {
            state["__id__"].rpartition("-")[2]: state
            for state in states.values()
            if state["__id__"] != "multimaster-orch-modules"
        }

    def comment(self, step: str) -> str:
        """Return what a step says."""
        return str(self.steps[step]["comment"])

    def changes(self, step: str) -> dict[str, str]:
        """Return what a step has changed."""
        return dict(self.steps[step]["changes"])


def orchestrate(lab: Laboratory, name: str, *arguments: str, master: str = "saltm1") -> Result:
    """Run an orchestration on a master."""
    argv = ["salt-run", "state.orchestrate", name, *arguments, "--out=json"]
    return Result(lab.run(master, *argv, timeout=900))


def drop_ins(lab: Laboratory) -> list[str]:
    """Return the drop-ins of the formula that there are on all hosts."""
    return [
        path
        for host in lab.lab.hosts
        for path in lab.run(
            host.id, "find", host.config_dir, "-name", "multimaster.conf"
        ).stdout.split()
    ]


@contextlib.contextmanager
def broken(lab: Laboratory, host_id: str) -> Iterator[None]:
    """Let a minion have a drop-in that contradicts the formula's."""
    path = Path(lab.host(host_id).config_dir, "minion.d/zz-other.conf")
    path.parent.mkdir(exist_ok=True)
    path.write_text("rejected_retry: false\n")
    try:
        yield
    finally:
        path.unlink()


def test_preflight_shows_all_faults_at_once_and_changes_nothing(lab: Laboratory) -> None:
    masters = [*lab.masters(2), {"id": "saltm3", "address": "192.0.2.1"}]
    lab.declare(
        masters=[*masters, {"id": "saltm9", "address": "127.0.81.109"}],
        mode="failsafe",
        deploy={"disk": 1_000_000_000},
    )
    try:
        result = orchestrate(lab, DEPLOY)
    finally:
        lab.declare(masters=lab.masters(3))
    assert result.code == 1
    said = result.comment("preflight")
    assert "declaration: mode: got 'failsafe'; supported: hot, failover" in said
    assert "saltm9: its minion's key is not accepted on this master" in said
    assert "needed: 1e+09 (deploy: disk)" in said
    for minion in ("web1", "saltm1"):
        for port in (4505, 4506):
            assert f"{minion}: cannot reach port {port} of saltm3 (192.0.2.1): " in said
            # Where nothing listens yet, something stood in for the master.
            assert f"{minion}: cannot reach port {port} of saltm2" not in said
    assert result.steps["masters"]["result"] is result.steps["minions"]["result"] is False
    assert drop_ins(lab) == []


@pytest.mark.long
def test_a_port_that_another_process_has_is_found(lab: Laboratory) -> None:
    import socket

    with socket.create_server((lab.host("saltm2").address, 4506)):
        result = orchestrate(lab, DEPLOY, "test=True")
    assert result.code == 1
    assert result.comment("preflight").splitlines()[0] == (
        "saltm2: port 4506 is taken, and not by salt-master"
    )


@pytest.mark.long
def test_in_test_mode_it_says_what_would_be_done_and_does_nothing(lab: Laboratory) -> None:
    result = orchestrate(lab, DEPLOY, "test=True")
    assert result.code == 0, result.steps
    assert result.changes("masters") == dict.fromkeys(
        ["saltm1", "saltm2", "saltm3"], "would be deployed"
    )
    assert result.steps["minions"]["result"] is None
    assert drop_ins(lab) == []
    # What stood in for the new masters is gone.
    assert lab.salt("saltm1", "saltm2", "multimaster_orch.reach", json.dumps(
        [lab.host("saltm2").address]), "[4505, 4506]"
    )["saltm2"] == {lab.host("saltm2").address: {"4505": "refused", "4506": "refused"}}  # fmt: skip


def test_a_canary_that_fails_stops_it_before_the_second_batch(lab: Laboratory) -> None:
    with broken(lab, "web1"), lab.stopped("web4", "salt-minion"):
        result = orchestrate(lab, DEPLOY)
    assert result.code == 1
    assert result.changes("masters") == dict.fromkeys(["saltm1", "saltm2", "saltm3"], "deployed")
    said = result.comment("minions").splitlines()
    assert said[0] == "stopped at canary web1"
    assert "another file also sets 'rejected_retry'" in said[1]
    assert "minions left as they are: web2, web3" in said
    assert "absent, and left for a later run: web4" in said
    assert set(result.changes("minions")) == {"web1"}
    # The masters are changed one after the other, the one that this runs on last.
    order = [line.split()[4].strip(":") for line in result.progress.splitlines() if "well" in line]
    assert order == ["saltm2", "saltm3", "saltm1"]


def test_a_second_run_resumes_and_deploys_what_is_left(lab: Laboratory) -> None:
    until(lambda: "web4" in lab.answering("saltm1"), PATIENCE, "web4 to be back", interval=1)
    result = orchestrate(lab, DEPLOY)
    assert result.code == 0, result.steps
    assert result.changes("masters") == {}
    assert result.changes("minions") == dict.fromkeys(["web1", "web2", "web3", "web4"], "deployed")
    data = lab.until_connected()
    assert set(data["masters"]) == {"saltm1", "saltm2", "saltm3"}
    assert set(data["minions"]) == lab.ids


@pytest.mark.long
def test_a_third_run_changes_nothing(lab: Laboratory) -> None:
    result = orchestrate(lab, DEPLOY, master="saltm3")
    assert result.code == 0, result.steps
    for step in STEPS:
        assert result.changes(step) == {}
        assert result.steps[step]["result"] is True
    assert "in place already: web1, web2, web3, web4" in result.comment("minions")


def test_masters_are_restarted_in_turn_and_no_command_on_the_others_is_lost(
    lab: Laboratory,
) -> None:
    before = daemons(lab)
    with load(lab) as account:
        result = orchestrate_with(lab, account)
    assert result.code == 0, result.steps
    assert result.changes("masters") == dict.fromkeys(["saltm1", "saltm2", "saltm3"], "restarted")
    after = daemons(lab)
    assert all(before[name] != after[name] for name in before)
    assert account["accepted"] > 20
    assert account["lost"] == [], account
    lab.until_connected()


@pytest.mark.long
def test_a_minion_that_is_away_does_not_count_as_one_that_answers(lab: Laboratory) -> None:
    with lab.stopped("web4", "salt-minion"):
        for function in ("test.ping", "multimaster_orch.facts"):
            answers = lab.salt("saltm1", "saltm2", "multimaster_orch.ask", "[web3, web4]", function)
            assert set(answers["saltm2"]) == {"web3"}


@pytest.mark.long
def test_no_master_is_restarted_while_another_one_is_down(lab: Laboratory) -> None:
    # Without progress it gives up soon: nobody starts that master.
    lab.declare(masters=lab.masters(3), deploy={"timeout": 5})
    try:
        with lab.stopped("saltm2", "salt-master"):
            before = daemons(lab)
            result = orchestrate(lab, RESTART)
            assert daemons(lab) == before
    finally:
        lab.declare(masters=lab.masters(3))
    assert result.code == 1
    said = result.comment("masters").splitlines()
    assert "is not restarted: not all masters are well" in said[0]
    assert "saltm2: its master does not run" in said
    lab.until_connected()


@pytest.mark.long
def test_a_declaration_with_a_master_less_is_deployed_the_same_way(lab: Laboratory) -> None:
    lab.declare(masters=lab.masters(2))
    result = orchestrate(lab, DEPLOY)
    assert result.code == 0, result.steps
    assert result.changes("masters") == {"saltm1": "deployed", "saltm2": "deployed"}
    # The host of the third is a minion like any other now.
    assert set(result.changes("minions")) == {"saltm3", "web1", "web2", "web3", "web4"}
    assert set(lab.until_connected()["masters"]) == {"saltm1", "saltm2"}


def daemons(lab: Laboratory) -> dict[str, Any]:
    """Return what identifies each master's daemon."""
    ids = ",".join(host.id for host in lab.lab.masters)
    answers = lab.salt("saltm1", ids, "multimaster.daemons")
    return {name: answer["master"] for name, answer in answers.items()}


@contextlib.contextmanager
def load(lab: Laboratory) -> Iterator[dict[str, Any]]:
    """Give commands at a steady rate meanwhile; afterwards the account has what became of them."""
    minions = ",".join(host.id for host in lab.lab.hosts if "master" not in host.roles)
    paths = [f"{host.config_dir}/master" for host in lab.lab.masters]
    argv = [sys.executable, str(LOAD), str(1 / RATE), minions, *paths]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        account: dict[str, Any] = {"input": process.stdin}
        try:
            yield account
        finally:
            out, _ = process.communicate(timeout=ENOUGH * PATIENCE)
        account |= json.loads(out)


def orchestrate_with(lab: Laboratory, account: dict[str, Any]) -> Result:
    """Restart the masters; the load goes to the other ones, as the progress tells it."""
    progress = lab.lab.directory / "progress"
    over = threading.Event()

    def follow() -> None:
        seen = 0
        while not over.wait(0.05):
            lines = progress.read_text().splitlines()
            for line in lines[seen:]:
                name = line.partition(":")[0].rpartition(" ")[2]
                if "waits for" in line:
                    print(f"{lab.host(name).config_dir}/master", file=account["input"], flush=True)
            seen = len(lines)

    argv = ["salt-run", "state.orchestrate", RESTART, "--out=json"]
    with open(progress, "w") as stderr:
        follower = threading.Thread(target=follow)
        follower.start()
        try:
            host = lab.host("saltm1")
            done = lab.driver.exec(
                lab.lab, host, argv, stdout=subprocess.PIPE, stderr=stderr, timeout=900
            )
        finally:
            over.set()
            follower.join()
    done.stderr = progress.read_text()
    return Result(done)
