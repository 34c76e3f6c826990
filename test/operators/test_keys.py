"""What tired people do with keys: no ordinary command destroys, and what is open is named."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import yaml

from lab.decisions import MASTERS, decide, state, until_all_say, wait_for_key, wait_for_keys
from lab.keys import make_pair
from lab.laboratory import Laboratory, applied

NET = "127.0.97"
OTHERS = ("saltm1", "saltm3")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three masters and three minions, with the formula applied."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with applied(directory, "process", masters=3, minions=3, net=NET) as made:
        yield made


def accepted(lab: Laboratory, master: str, prefix: str) -> int:
    """Return how many keys whose ids begin so a master has accepted."""
    directory = f"{lab.host(master).master_pki_dir}/minions"
    found = lab.run(
        master, "find", directory, "-type", "f", "-name", f"{prefix}*"
    ).stdout.splitlines()
    return len(found)


def until_accepted(lab: Laboratory, prefix: str, expected: dict[str, int]) -> None:
    """Wait until each master has accepted so many keys whose ids begin so."""

    def found() -> dict[str, int]:
        return {master: accepted(lab, master, prefix) for master in expected}

    lab.until(lambda: found() == expected, f"{prefix}*: {expected}", found, interval=0.5)


def until_nothing_changes(lab: Laboratory) -> None:
    """Wait until all masters know the same, and each has looked at all of its keys since."""

    def digests() -> list[str | None]:
        return [row["digest"] for row in lab.status()[1]["masters"].values()]

    lab.json("saltm1", "salt-run", "multimaster.keys_repair")
    lab.until(lambda: len(set(digests())) == 1, "equal ledgers", digests, interval=1)


def proposals(lab: Laboratory, master: str = "saltm1") -> list[dict[str, Any]]:
    """Return what a master's status has of proposals."""
    return list(lab.status(master)[1]["masters"][master]["proposed"])


def until_proposed(lab: Laboratory, like: str, count: int) -> None:
    """Wait until something is proposed of so many ids on each master."""

    def proposed(master: str) -> int:
        confirm = ("multimaster.confirm", like, "test=True", "--out=json")
        done = lab.run(master, "salt-run", *confirm)
        if done.returncode:
            # So it says that there is nothing.
            assert "supported: " in done.stdout + done.stderr
            return 0
        return int(json.loads(done.stdout)["count"])

    def found() -> dict[str, int]:
        return {name: proposed(name) for name in MASTERS}

    lab.until(lambda: set(found().values()) == {count}, f"{like}: {count} proposed", found)


def bulk(lab: Laboratory, prefix: str, count: int) -> None:
    """Have many keys accepted on all masters, of minions that are not there."""
    wait_for_keys(lab, {f"{prefix}{number}" for number in range(count)})
    done = lab.run("saltm1", "salt-key", "--yes", f"--accept={prefix}*")
    assert done.returncode == 0, done.stderr
    until_accepted(lab, prefix, dict.fromkeys(MASTERS, count))


def clear(lab: Laboratory, prefix: str, count: int) -> None:
    """Have many keys deleted on all masters: to Salt they are minions that are down."""
    lab.run("saltm2", "salt-key", "--yes", f"--delete={prefix}*")
    until_proposed(lab, f"{prefix}*", count)
    settle(lab, "confirm", f"{prefix}*")
    until_accepted(lab, prefix, dict.fromkeys(MASTERS, 0))


def manage_down(lab: Laboratory) -> list[str]:
    """Do what Salt documents for minions that are down; return them."""
    # Or a minion that is slow to answer is down, too.
    patience = [f"{name}={lab.lab.slowed(15):.0f}" for name in ("timeout", "gather_job_timeout")]
    command = ("salt-run", "manage.down", "removekeys=True", *patience, "--out=json")
    done = lab.run("saltm2", *command)
    # What its wheel functions return is printed before.
    return list(json.loads(done.stdout[done.stdout.index("[") :]))


def settle(lab: Laboratory, verb: str, *ids: str, master: str = "saltm1") -> Any:
    """Confirm what is proposed, or take it back."""
    return lab.json(master, "salt-run", f"multimaster.{verb}", *ids)


def engine(lab: Laboratory, master: str) -> psutil.Process:
    """Return the engine that replicates keys on a master."""
    root = str(lab.host(master).root)
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            text = " ".join(process.info["cmdline"] or [])
            if root in text + " ".join(process.environ().values()) and "multimaster)" in text:
                return process
    raise AssertionError(f"no engine on {master}")


def test_a_minion_that_is_gone_is_cleaned_up_everywhere_at_once(lab: Laboratory) -> None:
    """The first of this file: soon after many others, it would be one more of them."""
    with lab.stopped("web3", "salt-minion"):
        down = manage_down(lab)
        assert down == ["web3"]
        until_all_say(lab, "web3", None)
        assert proposals(lab) == []
    lab.until(lambda: state(lab, "saltm1", "web3") == "pending", "web3 to ask", interval=1)
    decide(lab, "saltm1", "accept", "web3")
    lab.until_connected()


@pytest.mark.parametrize(
    "count",
    [10, *(pytest.param(many, marks=pytest.mark.long) for many in (1, 500, 20_000))],
)
def test_what_is_deleted_in_bulk_stays_deleted_and_goes_elsewhere_when_confirmed(
    lab: Laboratory, count: int
) -> None:
    """Of 500, 330, 232, 303 and 265 came back on all masters in 6 of 7 tries."""
    prefix = f"bulk{count}-"
    bulk(lab, prefix, count)
    done = lab.run("saltm2", "salt-key", "--yes", f"--delete={prefix}*")
    assert done.returncode == 0, done.stderr
    if count > 5:
        until_proposed(lab, f"{prefix}*", count)
        until_nothing_changes(lab)
        until_accepted(lab, prefix, {"saltm1": count, "saltm2": 0, "saltm3": count})
        status, data = lab.status("saltm3")
        assert status == 1
        assert any("done on saltm2" in line for line in data["problems"]), data["problems"]
        told = settle(lab, "confirm", f"{prefix}*", master="saltm3")
        assert told["count"] == count
    until_accepted(lab, prefix, dict.fromkeys(MASTERS, 0))
    if proposals(lab):
        # What was deleted a moment before has become part of it.
        settle(lab, "confirm", "*")
    until_proposed(lab, "*", 0)


@pytest.mark.long
def test_what_is_deleted_and_accepted_again_stays_accepted(lab: Laboratory) -> None:
    """Of 500 deleted and accepted again, 40 were not accepted two minutes later."""
    bulk(lab, "again-", 500)
    lab.run("saltm2", "salt-key", "--yes", "--delete=again-*")
    until_proposed(lab, "again-*", 500)
    wait_for_keys(lab, {f"again-{number}" for number in range(500)})
    lab.run("saltm2", "salt-key", "--yes", "--accept=again-*")
    until_proposed(lab, "*", 0)
    until_nothing_changes(lab)
    until_accepted(lab, "again-", dict.fromkeys(MASTERS, 500))
    clear(lab, "again-", 500)


@pytest.mark.long
def test_an_engine_that_is_killed_amid_a_bulk_deletion_undoes_nothing(lab: Laboratory) -> None:
    bulk(lab, "killed-", 500)
    engine(lab, "saltm2").kill()
    lab.run("saltm2", "salt-key", "--yes", "--delete=killed-*")
    until_nothing_changes(lab)
    until_accepted(lab, "killed-", {"saltm2": 0})
    settle(lab, "confirm", "killed-*")
    until_accepted(lab, "killed-", dict.fromkeys(MASTERS, 0))


@pytest.mark.long
def test_a_bulk_rejection_is_taken_back_everywhere(lab: Laboratory) -> None:
    bulk(lab, "refused-", 20)
    lab.run("saltm2", "salt-key", "--yes", "--include-accepted", "--reject=refused-*")
    until_proposed(lab, "refused-*", 20)
    until_accepted(lab, "refused-", {"saltm1": 20, "saltm2": 0, "saltm3": 20})
    settle(lab, "take_back", "refused-*")
    until_accepted(lab, "refused-", dict.fromkeys(MASTERS, 20))
    clear(lab, "refused-", 20)


@contextlib.contextmanager
def connected_to_one(lab: Laboratory, minion: str, master: str) -> Iterator[None]:
    """Have a minion know one master only; a hot one may lose the others."""
    path = f"{lab.host(minion).config_dir}/minion.d/multimaster.conf"
    before = lab.read(minion, path)
    alone = yaml.safe_load(before) | {"master": [lab.host(master).address]}
    with lab.stopped(minion, "salt-minion"):
        assert lab.run(minion, "tee", path, input=yaml.safe_dump(alone)).returncode == 0
    try:
        what = f"{minion} to answer to {master}"
        lab.until(lambda: minion in lab.answering(master, minion), what, interval=1)
        yield
    finally:
        with lab.stopped(minion, "salt-minion"):
            lab.run(minion, "tee", path, input=before)
        lab.until_connected()


@pytest.mark.long
def test_a_minion_that_is_connected_elsewhere_is_not_cleaned_up_with_the_dead(
    lab: Laboratory,
) -> None:
    """One that was connected to saltm1 only was deleted on all three within 1.5 s."""
    with connected_to_one(lab, "web1", "saltm1"):
        down = manage_down(lab)
        assert "web1" in down
        until_proposed(lab, "web1", 1)
        assert state(lab, "saltm1", "web1") == "accepted"
        assert state(lab, "saltm2", "web1") != "accepted"
        until_all_say(lab, "web1", "accepted", *OTHERS)
        lab.until(lambda: lab.answering("saltm1", "web1") == {"web1"}, "web1 to answer saltm1")
        settle(lab, "take_back", "web1")
        until_all_say(lab, "web1", "accepted")
    until_proposed(lab, "*", 0)


def test_the_masters_hosts_come_back_when_somebody_deletes_them(lab: Laboratory) -> None:
    """All keys on all masters were deleted, and nothing healed by itself."""
    done = lab.run("saltm2", "salt-key", "--yes", "--delete=salt*")
    assert done.returncode == 0, done.stderr
    for name in MASTERS:
        until_all_say(lab, name, "accepted")
    until_proposed(lab, "salt*", 3)
    settle(lab, "take_back", "salt*")
    until_proposed(lab, "*", 0)
    lab.until_connected("saltm2")


@pytest.mark.long
def test_a_master_that_lost_ledger_and_keys_finds_the_others_again(lab: Laboratory) -> None:
    host = lab.host("saltm2")
    with lab.stopped("saltm2", "salt-master"):
        script = f"rm -f {host.master_cache_dir}/multimaster/ledger.db*"
        assert lab.run("saltm2", "sh", "-c", script).returncode == 0
        script = f"rm -f {host.master_pki_dir}/minions/*"
        assert lab.run("saltm2", "sh", "-c", script).returncode == 0
    for name in (*MASTERS, "web1"):
        until_all_say(lab, name, "accepted")
    lab.until_connected("saltm2")


@pytest.mark.long
def test_nothing_is_repaired_while_masters_differ(lab: Laboratory) -> None:
    done = lab.json("saltm1", "salt-run", "multimaster.keys_repair")
    assert (done["repaired"], done["left"]) == (True, [])
    wait_for_key(lab, "unequal", make_pair()[1], MASTERS)
    decide(lab, "saltm1", "accept", "unequal")
    until_all_say(lab, "unequal", "accepted")
    with lab.stopped("saltm3", "salt-master"):
        decide(lab, "saltm1", "delete", "unequal")
        done = lab.json("saltm1", "salt-run", "multimaster.keys_repair", "timeout=3")
        assert done["repaired"] is False
    until_all_say(lab, "unequal", None)


def test_an_old_copy_of_a_key_store_is_brought_up_to_the_ledger(lab: Laboratory) -> None:
    """A minion deleted since was accepted on all masters within 10 s."""
    pki = lab.host("saltm2").master_pki_dir
    old, new = make_pair()[1], make_pair()[1]
    for name in ("copied-deleted", "copied-renewed"):
        wait_for_key(lab, name, old, MASTERS)
        decide(lab, "saltm1", "accept", name)
        until_all_say(lab, name, "accepted")
    # The store has to be older than what is decided then, by more than a file's time is coarse.
    assert lab.run("saltm2", "cp", "-a", f"{pki}/minions", f"{pki}.copy").returncode == 0
    for path in ("copied-deleted", "copied-renewed"):
        lab.run("saltm2", "touch", "-d", "1 hour ago", f"{pki}.copy/{path}")
        decide(lab, "saltm1", "delete", path)
        until_all_say(lab, path, None)
    for name, pub in (("copied-renewed", new), ("copied-later", old)):
        wait_for_key(lab, name, pub, MASTERS)
        decide(lab, "saltm1", "accept", name)
        until_all_say(lab, name, "accepted")
    with lab.stopped("saltm2", "salt-master"):
        script = f"rm -r {pki}/minions && mv {pki}.copy {pki}/minions"
        assert lab.run("saltm2", "sh", "-c", script).returncode == 0
    until_all_say(lab, "copied-deleted", None)
    until_all_say(lab, "copied-later", "accepted")
    for master in MASTERS:
        path = f"{lab.host(master).master_pki_dir}/minions/copied-renewed"
        lab.until(
            lambda path=path, master=master: lab.read(master, path).strip() == new.strip(),
            f"the new key on {master}",
            interval=1,
        )
    assert proposals(lab) == []
    for name in ("copied-renewed", "copied-later"):
        decide(lab, "saltm3", "delete", name)
        until_all_say(lab, name, None)


def test_what_a_lost_mount_took_comes_back(lab: Laboratory) -> None:
    pki = lab.host("saltm2").master_pki_dir
    before = accepted(lab, "saltm2", "")
    script = f"mv {pki}/minions {pki}/away && mkdir {pki}/minions"
    assert lab.run("saltm2", "sh", "-c", script).returncode == 0
    until_accepted(lab, "", {"saltm2": before})
    assert proposals(lab) == []


@pytest.mark.long
def test_who_answers_to_no_master_is_listed(lab: Laboratory) -> None:
    with lab.stopped("web2", "salt-minion"):
        done = lab.run("saltm3", "salt-run", "multimaster.down", "--out=json")
        assert "web2" in json.loads(done.stdout)["down"]
        assert done.returncode == 1
    lab.until_connected()
