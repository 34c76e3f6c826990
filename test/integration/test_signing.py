"""
Masters that sign, minions that verify, and an impostor: told once for each mode, in this order.

Every command goes through a master that its minion listens to, as in failover mode it must.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from lab.laboratory import PATIENCE, Laboratory, changed, failures, laboratory
from lab.wait import until

NETS = {"hot": "127.0.85", "failover": "127.0.86"}
SIGNING = ("master_sign.pem", "master_sign.pub", "master_pubkey_signature")
REFUSED = "but signature verification failed"


@pytest.fixture(scope="module", params=["hot", pytest.param("failover", marks=pytest.mark.long)])
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    """Three hosts that can be masters, of which two are, and two minions, one of them unused."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    net = NETS[request.param]
    with laboratory(
        directory,
        "process",
        masters=3,
        minions=2,
        net=net,
        pillar={"multimaster": {"mode": request.param}},
    ) as made:
        made.mode = request.param  # type: ignore[attr-defined]
        made.driver.control(made.lab, made.host("web2"), "stop", "salt-minion")
        declare(made, 2, signing=False)
        assert not failures(apply(made, {"saltm1", "saltm2", "saltm3", "web1"}))
        until_all_answer(made, {"saltm1", "saltm2", "saltm3", "web1"}, False)
        yield made


@pytest.fixture(autouse=True)
def no_key_leaks(lab: Laboratory) -> Iterator[None]:
    """After every test, neither private key is anywhere but in the masters' pki directories."""
    yield
    lab.assert_no_key_outside_pki()


# Verbs


def declare(lab: Laboratory, masters: int, *, signing: bool) -> None:
    mode = lab.mode  # type: ignore[attr-defined]
    lab.declare(mode=mode, masters=lab.masters(masters), signing=signing)


def masters_of(lab: Laboratory) -> list[str]:
    """Return the masters that run."""
    states = {h.id: lab.driver._state(lab.lab, h, "salt-master") for h in lab.lab.masters}  # type: ignore[attr-defined]
    return [name for name, state in states.items() if state == "RUNNING"]


def reached_by(lab: Laboratory) -> dict[str, set[str]]:
    """Return which minions answer to which master."""
    found = {}
    for master in masters_of(lab):
        # Who does not listen is not asked, as Salt would wait long for it.
        listening = lab.driver.connected(lab.lab, lab.host(master))  # type: ignore[attr-defined]
        wanted = f"L@{','.join(sorted(listening))}"
        found[master] = lab.answering(master, wanted) if listening else set()
    return found


def is_reached(lab: Laboratory, minion: str) -> bool:
    """Tell whether a minion answers to any master."""
    return any(minion in minions for minions in reached_by(lab).values())


def apply(lab: Laboratory, targets: set[str], *argv: str) -> dict[str, Any]:
    """Apply the formula to each minion, from the first master that it answers to."""
    result: dict[str, Any] = {}

    def complete() -> bool:
        # A master that is about to restart does not get the returns of another's commands.
        if not lab.restarted():
            return False
        for master, minions in reached_by(lab).items():
            mine = (minions & targets) - set(result)
            if mine:
                one = lab.apply(",".join(sorted(mine)), master, *argv)
                assert set(one) == mine, "a return was lost"
                result.update(one)
                break
        return set(result) == targets

    until(complete, PATIENCE, f"{sorted(targets)} to be reached")
    return result


def until_all_answer(lab: Laboratory, minions: set[str], verify: bool) -> None:
    """Wait until all minions answer as their mode lets them, and all or none of them verify."""

    def complete() -> bool:
        # To ask delays a restart, which waits for the end of every job.
        if not lab.restarted():
            return False
        by_master = reached_by(lab)
        anywhere = set().union(*by_master.values())
        if lab.mode == "failover":  # type: ignore[attr-defined]
            # The masters' own minions are hot.
            hosts = {host.id for host in lab.lab.masters} & minions
            declared = {name for name in by_master if name in hosts}
            answer = minions <= anywhere and all(declared <= by_master[name] for name in by_master)
        else:
            answer = all(minions <= found for found in by_master.values())
        return answer and verifying(lab) == dict.fromkeys(minions, verify)

    what = f"answers of {sorted(minions)}, verifying: {verify}"
    until(complete, PATIENCE, what, interval=0.5)


def verifying(lab: Laboratory) -> dict[str, bool]:
    """Return what each minion that answers says of itself."""
    told: dict[str, bool] = {}
    for master, minions in reached_by(lab).items():
        if minions:
            told |= lab.salt(master, ",".join(sorted(minions)), "multimaster.verifies")
    return told


def pair_on(lab: Laboratory, master: str) -> list[str]:
    pki = Path(lab.host(master).master_pki_dir)
    return [(pki / name).read_text() if (pki / name).exists() else "" for name in SIGNING]


def restart(lab: Laboratory, host: str, unit: str) -> None:
    with lab.stopped(host, unit):
        pass


def log_of(lab: Laboratory, minion: str) -> str:
    return lab.read(minion, f"{lab.host(minion).log_dir}/minion")


class Impostor:
    """A real salt-master with keys of its own; it accepts everyone, and signs if told so."""

    def __init__(self, directory: Path, address: str, prefix: Path, user: str, sign: bool) -> None:
        self.directory, self.prefix = directory, prefix
        self.pki = directory / "pki/master"
        options = {
            "root_dir": str(directory),
            "pki_dir": str(self.pki),
            "user": user,
            "id": "impostor",
            "interface": address,
            "auto_accept": True,
            "worker_threads": 2,
            "master_sign_pubkey": sign,
        }
        (directory / "master").write_text(yaml.safe_dump(options))
        self.process = subprocess.Popen(
            [prefix / "bin/salt-master", "-c", directory],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def knows(self, minion: str) -> bool:
        """Tell whether a minion has asked to be let in."""
        return (self.pki / "minions" / minion).exists()

    def commands(self, minion: str) -> bool:
        """Give a command; tell whether the minion obeys."""
        argv = [self.prefix / "bin/salt", "-c", self.directory, "--out=json", "--static"]
        done = subprocess.run(
            [*argv, "--timeout=3", minion, "test.ping"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return f'"{minion}": true' in done.stdout

    def pub(self) -> str:
        return (self.pki / "master.pub").read_text().strip()

    def stop(self) -> None:
        processes = [psutil.Process(self.process.pid)]
        processes += processes[0].children(recursive=True)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)
        psutil.wait_procs(processes, 30)


@contextlib.contextmanager
def impostor(lab: Laboratory, master: str, *, sign: bool) -> Iterator[Impostor]:
    """An impostor in the place of a master, which is back in the end."""
    address = lab.host(master).address
    # Short, for its sockets' names.
    with lab.stopped(master, "salt-master"), tempfile.TemporaryDirectory(prefix="lab-") as scratch:
        fake = Impostor(
            Path(scratch),
            address,
            lab.driver.prefix,  # type: ignore[attr-defined]
            psutil.Process().username(),
            sign,
        )
        try:
            yield fake
        finally:
            fake.stop()


# The story


@pytest.mark.long
def test_a_test_run_makes_no_pair(lab: Laboratory) -> None:
    declare(lab, 2, signing=True)
    result = apply(lab, {"saltm1", "saltm2", "web1"}, "test=True")
    assert not failures(result)
    assert "saltm1:multimaster-signing" in changed(result)
    assert pair_on(lab, "saltm1") == pair_on(lab, "saltm2") == ["", "", ""]


def test_the_first_apply_makes_one_pair_and_nobody_signs_yet(lab: Laboratory) -> None:
    declare(lab, 2, signing=True)
    result = apply(lab, {"saltm1", "saltm2", "saltm3", "web1"})
    assert not failures(result)
    assert all(pair_on(lab, "saltm1"))
    assert not any(pair_on(lab, "saltm2"))
    until_all_answer(lab, {"saltm1", "saltm2", "saltm3", "web1"}, False)


def test_when_every_master_signs_every_minion_verifies_also_one_that_was_away(
    lab: Laboratory,
) -> None:
    present = {"saltm1", "saltm2", "saltm3"}
    with lab.stopped("web1", "salt-minion"):
        assert not failures(apply(lab, present))
        until_all_answer(lab, present, True)
    until_all_answer(lab, present | {"web1"}, True)
    assert pair_on(lab, "saltm1") == pair_on(lab, "saltm2")
    # What it needs at a first contact, it gets like everyone.
    assert not failures(apply(lab, {"web1"}))


@pytest.mark.long
def test_a_second_apply_changes_nothing(lab: Laboratory) -> None:
    result = apply(lab, {"saltm1", "saltm2", "saltm3", "web1"})
    assert not failures(result)
    assert changed(result) == []
    for minion in ("saltm1", "web1"):
        pki = Path(lab.host(minion).minion_pki_dir)
        assert (pki / "master_sign.pub").read_text() == pair_on(lab, "saltm1")[1]


def test_a_new_minion_with_the_public_signing_key_refuses_an_impostor_at_first_contact(
    lab: Laboratory,
) -> None:
    fresh(lab, masters=["saltm1", "saltm2"], verify=True)
    with impostor(lab, "saltm1", sign=True) as fake, started(lab, "web2"):
        until(lambda: fake.knows("web2"), PATIENCE, "web2 at the impostor")
        until(lambda: REFUSED in log_of(lab, "web2"), PATIENCE, "its refusal")
        until(lambda: is_reached(lab, "web2"), PATIENCE, "web2 at the real master")
        assert not fake.commands("web2")
        known = Path(lab.host("web2").minion_pki_dir, "minion_master.pub").read_text()
        assert known.strip() != fake.pub()
    until_all_answer(lab, {"saltm1", "saltm2", "saltm3", "web1"}, True)


def test_a_new_minion_joins(lab: Laboratory) -> None:
    lab.driver.control(lab.lab, lab.host("web2"), "start", "salt-minion")
    until(lambda: is_reached(lab, "web2"), PATIENCE, "web2")
    drop_ins = Path(lab.host("web2").config_dir, "minion.d")
    (drop_ins / "new.conf").unlink()
    assert not failures(apply(lab, {"web2"}))
    (drop_ins / "signing.conf").unlink()
    until_all_answer(lab, lab.ids, True)
    # Public, and nothing else of the masters' keys.
    pillar = lab.json("web2", "salt-call", "pillar.items")["local"]
    assert set(pillar["multimaster"]["keypair"]) == {"sign_pub"}


@pytest.mark.long
def test_a_new_master_joins_and_signs_with_the_same_pair(lab: Laboratory) -> None:
    declare(lab, 3, signing=True)
    assert not failures(apply(lab, lab.ids))
    until_all_answer(lab, lab.ids, True)
    assert pair_on(lab, "saltm3") == pair_on(lab, "saltm1")
    rows = lab.until_connected("saltm2")["masters"]
    assert [row["signs"] for row in rows.values()] == [True, True, True]


@pytest.mark.long
def test_a_minion_that_knows_its_masters_refuses_an_impostor_and_goes_on(lab: Laboratory) -> None:
    before = log_of(lab, "web1").count(REFUSED)
    with impostor(lab, "saltm1", sign=True) as fake:
        until(lambda: fake.pki.joinpath("master.pub").exists(), PATIENCE, "the impostor")
        restart(lab, "web1", "salt-minion")
        until(lambda: fake.knows("web1"), PATIENCE, "web1 at the impostor")
        until(lambda: log_of(lab, "web1").count(REFUSED) > before, PATIENCE, "its refusal")
        until(lambda: is_reached(lab, "web1"), PATIENCE, "web1 at a real master")
        assert not fake.commands("web1")
    until_all_answer(lab, lab.ids, True)


@pytest.mark.long
def test_an_impostor_that_does_not_sign_does_not_make_minions_stop_verifying(
    lab: Laboratory,
) -> None:
    with impostor(lab, "saltm1", sign=False) as fake:
        until(lambda: fake.pki.joinpath("master.pub").exists(), PATIENCE, "the impostor")
        restart(lab, "web1", "salt-minion")
        until(lambda: fake.knows("web1"), PATIENCE, "web1 at the impostor")
        # With the real masters gone as well, nothing but the impostor is left to be followed.
        with lab.stopped("saltm2", "salt-master"), lab.stopped("saltm3", "salt-master"):
            seen = lab.json("web1", "salt-call", "--local", "multimaster.follow_masters")["local"]
            assert seen["wanted"] is None
            assert not fake.commands("web1")
    until_all_answer(lab, lab.ids, True)


def test_when_no_master_signs_no_minion_verifies_also_one_that_was_away(lab: Laboratory) -> None:
    declare(lab, len(masters_of(lab)), signing=False)
    present = lab.ids - {"web1"}
    with lab.stopped("web1", "salt-minion"):
        assert not failures(apply(lab, present))
        until_all_answer(lab, present, False)
    until_all_answer(lab, lab.ids, False)
    lab.until_connected("saltm2")
    result = apply(lab, lab.ids)
    assert not failures(result)
    assert changed(result) == []


@pytest.mark.long
def test_without_signing_an_impostor_is_believed_at_first_contact(lab: Laboratory) -> None:
    # What the refusals above are worth.
    lab.driver.control(lab.lab, lab.host("web2"), "stop", "salt-minion")
    fresh(lab, masters=["saltm1"], verify=False)
    with impostor(lab, "saltm1", sign=False) as fake, started(lab, "web2"):
        until(lambda: fake.commands("web2"), PATIENCE, "web2 to obey the impostor")


@contextlib.contextmanager
def started(lab: Laboratory, minion: str) -> Iterator[None]:
    lab.driver.control(lab.lab, lab.host(minion), "start", "salt-minion")
    try:
        yield
    finally:
        lab.driver.control(lab.lab, lab.host(minion), "stop", "salt-minion")


def fresh(lab: Laboratory, masters: list[str], *, verify: bool) -> None:
    """Make web2 a minion that has met no master yet, as whoever installs it would."""
    host = lab.host("web2")
    pki = Path(host.minion_pki_dir)
    drop_ins = Path(host.config_dir, "minion.d")
    (drop_ins / "multimaster.conf").unlink(missing_ok=True)
    for name in ("minion_master.pub", "master_sign.pub"):
        (pki / name).unlink(missing_ok=True)
    drop_ins.mkdir(exist_ok=True)
    options = {"master": [lab.host(name).address for name in masters]}
    (drop_ins / "new.conf").write_text(yaml.safe_dump(options))
    if verify:
        (drop_ins / "signing.conf").write_text("verify_master_pubkey_sign: true\n")
        (pki / "master_sign.pub").write_text(pair_on(lab, "saltm1")[1])
