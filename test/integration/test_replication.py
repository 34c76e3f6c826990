"""A decision on a key, taken on one master with Salt's own tools, holds on every master."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab.decisions import MASTERS, decide, state, until_all_say, wait_for_key, wait_for_keys
from lab.keys import make_pair
from lab.laboratory import PATIENCE, Laboratory, applied
from lab.model import REPOSITORY
from lab.wait import until

NET = "127.0.64"
SECRET = "not a secret"
MASTER = {
    # Seconds until it makes the new AES key that it is asked for.
    "loop_interval": 5,
    "autosign_file": "/etc/salt/autosign.conf",
    "autosign_grains_dir": "/etc/salt/autosign",
    "external_auth": {"sharedsecret": {"admin": ["@wheel"]}},
    "sharedsecret": SECRET,
    "netapi_enable_clients": ["wheel"],
    "rest_cherrypy": {"port": 8000, "host": f"{NET}.101", "disable_ssl": True},
}
MINION = {"autosign_grains": ["id"]}
HOSTILE = Path(__file__).with_name("hostile_minion.py")
CORE = REPOSITORY / "salt/_utils"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three masters and one minion, with the formula applied."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    pillar = {"multimaster": {"master": {"config": MASTER}, "minion": {"config": MINION}}}
    with applied(directory, "process", masters=3, minions=1, net=NET, pillar=pillar) as made:
        yield made


@pytest.fixture
def stranger(lab: Laboratory, request: pytest.FixtureRequest) -> str:
    """A minion whose key waits on every master; it is known by the name of the test."""
    name = request.node.originalname.removeprefix("test_")[:40]
    wait_for_key(lab, name, make_pair()[1], MASTERS)
    return name


def rotations(lab: Laboratory, master: str) -> int:
    """Return how often a master has made itself a new AES key."""
    return lab.events(master).count("rotate_aes_key")


def web1_answers(lab: Laboratory, master: str) -> bool:
    """Tell whether the one minion answers to a master; many here have a key and no daemon."""
    return "web1" in lab.answering(master, "web1")


def until_web1_answers(lab: Laboratory, master: str) -> None:
    """Wait until the one minion answers to a master."""
    what = f"web1 to answer to {master}"
    until(lambda: web1_answers(lab, master), PATIENCE, what, interval=1)


@pytest.mark.parametrize(
    "master",
    [pytest.param(name, marks=() if name == "saltm2" else pytest.mark.long) for name in MASTERS],
)
def test_every_decision_on_one_master_holds_on_all(lab: Laboratory, master: str) -> None:
    name = f"decided-on-{master}"
    wait_for_key(lab, name, make_pair()[1], MASTERS)
    for verb, expected in (("accept", "accepted"), ("reject", "rejected"), ("accept", "accepted")):
        decide(lab, master, verb, name)
        until_all_say(lab, name, expected)
    decide(lab, master, "delete", name)
    until_all_say(lab, name, None)


def test_a_key_that_only_one_master_has_seen_reaches_all(lab: Laboratory) -> None:
    wait_for_key(lab, "seen-by-one", make_pair()[1], ("saltm2",))
    decide(lab, "saltm2", "accept", "seen-by-one")
    until_all_say(lab, "seen-by-one", "accepted")


def test_a_deletion_reaches_a_master_that_was_down(lab: Laboratory, stranger: str) -> None:
    decide(lab, "saltm1", "accept", stranger)
    until_all_say(lab, stranger, "accepted")
    with lab.stopped("saltm3", "salt-master"):
        decide(lab, "saltm1", "delete", stranger)
        until_all_say(lab, stranger, None, "saltm1", "saltm2")
        assert state(lab, "saltm3", stranger) == "accepted"
    until_all_say(lab, stranger, None)


def test_a_decision_on_a_master_that_is_down_reaches_the_others(
    lab: Laboratory, stranger: str
) -> None:
    with lab.stopped("saltm2", "salt-master"):
        decide(lab, "saltm2", "accept", stranger)
        assert state(lab, "saltm1", stranger) == "pending"
    until_all_say(lab, stranger, "accepted")


@pytest.mark.long
def test_of_two_decisions_on_masters_without_each_other_the_later_wins(
    lab: Laboratory, stranger: str
) -> None:
    with lab.stopped("saltm1", "salt-master"), lab.stopped("saltm3", "salt-master"):
        decide(lab, "saltm2", "accept", stranger)
        until_all_say(lab, stranger, "accepted", "saltm2")
        history = lab.salt("saltm2", "saltm2", "multimaster.key_history", stranger)["saltm2"]
        assert [entry["verdict"] for entry in history] == ["accepted"]
        # Noticed when it starts again, and so later.
        decide(lab, "saltm1", "reject", stranger)
    until_all_say(lab, stranger, "rejected")


def test_two_keys_under_one_id_stay_as_they_are_until_resolved(lab: Laboratory) -> None:
    name, pubs = "two-keys", {master: make_pair()[1] for master in ("saltm1", "saltm2")}
    with lab.stopped("saltm1", "salt-master"), lab.stopped("saltm3", "salt-master"):
        for master, pub in pubs.items():
            wait_for_key(lab, name, pub, (master,))
            decide(lab, master, "accept", name)

    def conflicts(master: str) -> Any:
        argv = ["salt-call", "--local", "multimaster.report", "timeout=1"]
        return lab.json(master, *argv)["local"]["conflicts"]

    for master in MASTERS:
        what = f"{master} to know of the conflict"
        until(lambda master=master: conflicts(master) == [name], PATIENCE, what, interval=1)
    for master, pub in pubs.items():
        path = f"{lab.host(master).master_pki_dir}/minions/{name}"
        assert lab.read(master, path).strip() == pub.strip()
    rows = json_of(lab, "salt-run", "multimaster.keys", name)["keys"]
    assert rows[name]["differs"]
    assert len(rows[name]["fingerprints"]) == 2
    keep = lab.salt("saltm1", "saltm2", "multimaster.key_states", name)["saltm2"][name]
    json_of(lab, "salt-run", "multimaster.resolve", name, keep["fingerprint"])
    until_all_say(lab, name, "accepted")
    for master in MASTERS:
        path = f"{lab.host(master).master_pki_dir}/minions/{name}"
        assert lab.read(master, path).strip() == pubs["saltm2"].strip()
    assert [conflicts(master) for master in MASTERS] == [[], [], []]


def test_a_lost_ledger_is_made_again_and_loses_no_decision(lab: Laboratory, stranger: str) -> None:
    decide(lab, "saltm1", "accept", stranger)
    until_all_say(lab, stranger, "accepted")
    with lab.stopped("saltm2", "salt-master"):
        path = f"{lab.host('saltm2').master_cache_dir}/multimaster/ledger.db"
        assert lab.run("saltm2", "truncate", "--size=4096", path).returncode == 0
        decide(lab, "saltm1", "delete", stranger)
        until_all_say(lab, stranger, None, "saltm1", "saltm3")
    until_all_say(lab, stranger, None)
    rows = lab.status()[1]["masters"]
    assert len({row["digest"] for row in rows.values()}) == 1


@pytest.mark.parametrize(
    ("verb", "left"),
    [("reject", "rejected"), pytest.param("delete", "pending", marks=pytest.mark.long)],
)
def test_who_is_shut_out_can_no_longer_run_anything(lab: Laboratory, verb: str, left: str) -> None:
    before = {master: rotations(lab, master) for master in MASTERS}
    decide(lab, "saltm2", verb, "web1")
    for master in MASTERS:
        what = f"web1 to be out on {master}"
        until(lambda master=master: not web1_answers(lab, master), PATIENCE, what, interval=1)
        what = f"a new AES key on {master}"
        until(lambda master=master: rotations(lab, master) > before[master], PATIENCE, what)
    for master in MASTERS:

        def asks_again(master: str = master) -> bool:
            # What it overhears and cannot read makes it ask.
            return bool(lab.answering(master, "salt*")) and state(lab, master, "web1") == left

        until(asks_again, PATIENCE, f"web1 to be {left} on {master}", interval=1)
    # Who asks again is let in again, everywhere, by one word.
    decide(lab, "saltm3", "accept", "web1")
    until_all_say(lab, "web1", "accepted")
    for master in MASTERS:
        until_web1_answers(lab, master)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        pytest.param("autosign.conf", "web1", marks=pytest.mark.long),
        pytest.param("autosign/id", "web1", marks=pytest.mark.long),
        ("master.d/auto-accept.conf", "auto_accept: True"),
    ],
)
def test_who_is_let_in_by_one_master_is_let_in_by_all(
    lab: Laboratory, path: str, content: str
) -> None:
    file = f"{lab.host('saltm2').config_dir}/{path}"

    def configured() -> contextlib.AbstractContextManager[None]:
        # Autosign files are read whenever a minion asks.
        restart = path.startswith("master.d")
        return lab.stopped("saltm2", "salt-master") if restart else contextlib.nullcontext()

    with lab.stopped("web1", "salt-minion"):
        decide(lab, "saltm1", "delete", "web1")
        until_all_say(lab, "web1", None)
        lab.run("saltm2", "mkdir", "-p", str(Path(file).parent))
        with configured():
            assert lab.run("saltm2", "tee", file, input=f"{content}\n").returncode == 0
            lab.run("saltm2", "chmod", "644", file)
    until_all_say(lab, "web1", "accepted")
    history = lab.salt("saltm1", "saltm1", "multimaster.key_history", "web1")["saltm1"]
    assert [history[-1]["verdict"], history[-1]["origin"]] == ["accepted", "saltm2"]
    with configured():
        assert lab.run("saltm2", "rm", file).returncode == 0
    until_web1_answers(lab, "saltm3")


def test_salt_api_decides_like_salt_key(lab: Laboratory, stranger: str) -> None:
    host = lab.host("saltm3")
    argv = ["salt-api", f"--config-dir={host.config_dir}"]
    daemon = threading.Thread(target=lab.run, args=("saltm3", *argv))
    daemon.start()
    url = f"http://{host.address}:8000"

    def request(**fields: str) -> Any:
        lowstate = {"client": "wheel", "eauth": "sharedsecret", "username": "admin", **fields}
        body = json.dumps([{**lowstate, "password": SECRET}]).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/run", body, headers), timeout=60
        ) as reply:
            return json.load(reply)["return"]

    def listens() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return True
        return False

    try:
        until(listens, PATIENCE, "salt-api to listen", interval=0.2)
        assert request(fun="key.accept", match=stranger)[0]["data"]["success"] is True
        until_all_say(lab, stranger, "accepted")
        assert request(fun="key.delete", match=stranger)[0]["data"]["success"] is True
        until_all_say(lab, stranger, None)
    finally:
        lab.run("saltm3", "pkill", "--full", "--", " ".join(argv))
        daemon.join(30)


def test_a_key_is_decided_on_by_its_fingerprint(lab: Laboratory, stranger: str) -> None:
    found = lab.salt("saltm1", "saltm1", "multimaster.key_states", stranger)["saltm1"][stranger]
    wrong = lab.run("saltm1", "salt-run", "multimaster.accept", stranger, "f" * 64)
    assert wrong.returncode != 0
    assert found["fingerprint"] in wrong.stdout + wrong.stderr
    argv = ["salt-run", "multimaster.accept", stranger, found["fingerprint"]]
    assert json_of(lab, *argv, "test=True")["changed"] is True
    assert state(lab, "saltm1", stranger) == "pending"
    assert json_of(lab, *argv)["changed"] is True
    until_all_say(lab, stranger, "accepted")
    history = json_of(lab, "salt-run", "multimaster.key_history", stranger)
    assert [entry["verdict"] for entry in history] == ["accepted"]
    assert history[0]["origin"] == "saltm1"


def test_events_that_a_minion_makes_up_change_nothing(lab: Laboratory, stranger: str) -> None:
    forged = {
        "salt/key": {"result": True, "act": "accept", "id": stranger},
        "multimaster/wake": {"origin": "saltm2"},
        "salt/auth": {"act": "accept", "id": stranger, "result": True},
    }
    for tag, data in forged.items():
        sent = lab.json("web1", "salt-call", "event.send", tag, str(data))
        assert sent["local"] is True
    # Somebody else's decision comes through meanwhile, so that the forged ones have, too.
    wait_for_key(lab, "meanwhile", make_pair()[1], MASTERS)
    decide(lab, "saltm1", "accept", "meanwhile")
    until_all_say(lab, "meanwhile", "accepted")
    assert {state(lab, master, stranger) for master in MASTERS} == {"pending"}
    history = lab.salt("saltm1", ",".join(MASTERS), "multimaster.key_history", stranger)
    assert history == {master: [] for master in MASTERS}


def test_answers_that_a_minion_makes_up_are_refused(lab: Laboratory, stranger: str) -> None:
    host, pub = lab.host("web1"), make_pair()[1]
    argv = [lab.python, str(HOSTILE), "--config", host.config_dir, "--core", str(CORE)]
    with lab.stopped("web1", "salt-minion"):
        done = lab.run("web1", *argv, "--wanted", stranger, "--pub", pub)
        assert done.returncode == 0, done.stderr
        hostile = psutil.Process(int(lab.read("web1", f"{host.root}/var/run/salt-minion.pid")))
        # The masters ask each other, and their own answers get through all the same.
        for master in MASTERS:
            wait_for_key(lab, f"meanwhile-{master}", make_pair()[1], MASTERS)
            decide(lab, master, "accept", f"meanwhile-{master}")
            until_all_say(lab, f"meanwhile-{master}", "accepted")
        what = "forged answers that reach every master"
        until(lambda: all(refusals(lab, master) for master in MASTERS), PATIENCE, what, interval=1)
        hostile.terminate()
        # Or the minion that is started next takes it for a running instance, and exits.
        until(lambda: is_over(hostile), PATIENCE, "the end of the hostile minion")
    assert {state(lab, master, stranger) for master in MASTERS} == {"pending"}
    history = lab.salt("saltm1", ",".join(MASTERS), "multimaster.key_history", stranger)
    assert history == {master: [] for master in MASTERS}


def is_over(process: psutil.Process) -> bool:
    """Tell whether a process has ended, whoever is to reap it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def refusals(lab: Laboratory, master: str) -> int:
    """Return how many answers a master has refused because of their signature."""
    log = lab.read(master, f"{lab.host(master).log_dir}/master")
    return log.count("the answer is not signed with the masters' key")


def test_in_the_end_all_masters_list_the_same_keys(lab: Laboratory) -> None:
    listed = [lab.json(master, "salt-key", "--list=accepted") for master in MASTERS]
    assert "seen-by-one" in listed[0]["minions"]
    assert listed[0] == listed[1] == listed[2]
    rejected = [lab.json(master, "salt-key", "--list=rejected") for master in MASTERS]
    assert rejected[0] == rejected[1] == rejected[2]


def test_more_keys_are_shown_than_one_answer_holds(lab: Laboratory) -> None:
    wait_for_keys(lab, {f"many-{number}" for number in range(12_000)})
    done = lab.run("saltm1", "salt-run", "multimaster.keys", "many-*", "--out=json")
    rows = json.loads(done.stdout)["keys"]
    assert len(rows) == 12_000
    assert {frozenset(row["masters"].items()) for row in rows.values()} == {
        frozenset((master, "pending") for master in MASTERS)
    }
    assert done.returncode == 0


def json_of(lab: Laboratory, *argv: str) -> Any:
    """Run a runner on saltm1 and return its output, whatever its exit status."""
    return lab.json("saltm1", *argv)
