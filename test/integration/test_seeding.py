"""A new master knows every key before its daemon starts; the tests build on each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.decisions import decide, state, wait_for_key
from lab.keys import make_pair
from lab.laboratory import PATIENCE, Laboratory, failures, laboratory
from lab.wait import until

HERE = Path(__file__).parent
NEW = ("saltm2", "saltm3")
# Somebody's key that nobody uses, and one that is not wanted.
GHOST, UNWANTED = "ghost", "unwanted"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three hosts to be masters and three minions; the master caches pillars."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with laboratory(directory, "process", masters=3, minions=3, net="127.0.68") as made:
        for name, verb in ((GHOST, "accept"), (UNWANTED, "reject")):
            wait_for_key(made, name, make_pair()[1], ("saltm1",))
            decide(made, "saltm1", verb, name)
        yield made
        made.assert_no_key_outside_pki()


def keys_in(lab: Laboratory, master: str) -> dict[str, str | None]:
    return {name: state(lab, master, name) for name in sorted({*lab.ids, GHOST, UNWANTED})}


def ask(lab: Laboratory, host: str, minion_id: str) -> dict[str, object]:
    """Ask for a page of keys from a host, in the name of a minion."""
    code = (HERE / "ask_for_keys.py").read_text()
    path = f"{lab.host(host).config_dir}/minion"
    done = lab.run(host, lab.python, "-c", code, path, minion_id)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_page_is_given_to_a_declared_master_alone(lab: Laboratory) -> None:
    assert ask(lab, "saltm2", "saltm2") == {"pillar": True, "given": ["keys", "sealed"]}
    # An ordinary minion, and one that says that it is another.
    assert ask(lab, "web1", "web1") == {"pillar": True, "given": []}
    assert ask(lab, "web1", "saltm2")["pillar"] is False
    assert ask(lab, "web1", "nobody")["pillar"] is False
    # One that waits to be let in.
    with lab.stopped("web3", "salt-minion"):
        decide(lab, "saltm1", "delete", "web3")
        assert ask(lab, "web3", "web3")["pillar"] is False
        assert ask(lab, "web3", "saltm2")["pillar"] is False
        assert state(lab, "saltm1", "web3") == "pending"
        decide(lab, "saltm1", "accept", "web3")
    lab.until_answering("saltm1")


def test_new_masters_know_all_keys_while_the_first_ones_minion_is_down(lab: Laboratory) -> None:
    # In the caches of the master from before the key was decided on.
    config = f"{lab.host('saltm1').config_dir}/master.d/zz-pillar-cache.conf"
    lab.run("saltm1", "mkdir", "-p", str(Path(config).parent))
    assert lab.run("saltm1", "tee", config, input="pillar_cache: true\n").returncode == 0
    with lab.stopped("saltm1", "salt-master"):
        pass
    lab.until_answering("saltm1")
    lab.salt("saltm1", "*", "saltutil.refresh_pillar", "wait=True")
    expected = dict.fromkeys(lab.ids, "accepted") | {GHOST: "accepted", UNWANTED: "rejected"}
    with lab.stopped("saltm1", "salt-minion"):
        result = lab.apply("saltm2,saltm3,web1,web2,web3")
        assert not failures(result)
        for master in NEW:
            assert keys_in(lab, master) == expected
            pki = lab.host(master).master_pki_dir
            pid = lab.json(master, "salt-call", "--local", "multimaster.daemons")["local"]["master"]
            newer = lab.run(
                master, "find", pki, "-path", f"{pki}/minions*/*", "-newermt", f"@{pid[1]}"
            )
            assert newer.stdout.split() == [], "keys came after the daemon's start"
        for master in NEW:
            until(
                lambda master=master: {"web1", "web2", "web3"} <= lab.answering(master),
                PATIENCE,
                f"web1 to web3 to answer to {master}",
                interval=1,
            )


def test_no_page_and_no_question_stays_in_the_masters_caches(lab: Laboratory) -> None:
    cache = lab.host("saltm1").master_cache_dir
    # The names of the question, of what it asks for, and of the page.
    found = lab.run("saltm1", "grep", "-rlE", "multimaster_keys", cache)
    assert found.stdout.split() == []


def test_a_key_that_was_deleted_before_its_masters_ledger_began_does_not_come_back(
    lab: Laboratory,
) -> None:
    seeds = [f"{lab.host(m).master_cache_dir}/multimaster/seeds.json" for m in NEW]
    assert all(lab.run(m, "test", "-e", p).returncode == 0 for m, p in zip(NEW, seeds, strict=True))
    # There is no ledger yet that could remember it.
    decide(lab, "saltm1", "delete", GHOST)
    until(lambda: "saltm1" in lab.answering("saltm1"), PATIENCE, "saltm1's minion", interval=1)
    assert not failures(lab.apply("saltm1"))
    expected = dict.fromkeys(lab.ids, "accepted") | {GHOST: None, UNWANTED: "rejected"}
    for master in ("saltm1", *NEW):
        until(
            lambda master=master: keys_in(lab, master) == expected,
            PATIENCE,
            f"{GHOST} to be gone from {master}",
            interval=1,
        )
    for master, path in zip(NEW, seeds, strict=True):
        until(
            lambda master=master, path=path: lab.run(master, "test", "-e", path).returncode == 1,
            PATIENCE,
            f"{master} to have no provisional key",
            interval=1,
        )
    for master in ("saltm1", *NEW):
        history = lab.json(master, "salt-run", "multimaster.key_history", GHOST)
        assert "accepted" not in json.dumps(history)
