"""Keys move to Salt 3008's other key store, and decisions go on to hold on every master."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.decisions import MASTERS, decide
from lab.laboratory import PATIENCE, Laboratory, applied, failures
from lab.wait import until

pytestmark = pytest.mark.long
NET = "127.0.58"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three masters and one minion, with the formula applied."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with applied(directory, "process", masters=3, minions=1, net=NET) as made:
        yield made


def listed(lab: Laboratory, master: str) -> dict[str, list[str]]:
    """Return the ids of the keys in each state, as ``salt-key`` has them."""
    found = lab.json(master, "salt-key", "--list=all")
    return {state: sorted(found.get(state, [])) for state in ("minions", "minions_rejected")}


def until_all_list(lab: Laboratory, accepted: set[str], rejected: set[str]) -> None:
    """Wait until every master has accepted and rejected these."""
    expected = {"minions": sorted(accepted), "minions_rejected": sorted(rejected)}
    for master in MASTERS:
        what = f"{expected} on {master}"
        until(lambda master=master: listed(lab, master) == expected, PATIENCE, what, interval=1)


def test_no_key_is_lost_when_all_masters_change_to_mmap_key(lab: Laboratory) -> None:
    lab.declare(master={"config": {"keys.cache_driver": "mmap_key"}})
    assert not failures(lab.apply())
    until_all_list(lab, lab.ids, set())
    lab.until_connected()
    for master in MASTERS:
        index = f"{lab.host(master).master_pki_dir}/.mmap_keys.idx"
        assert lab.run(master, "test", "-s", index).returncode == 0


def test_decisions_in_mmap_key_hold_on_all_masters(lab: Laboratory) -> None:
    rest = lab.ids - {"web1"}
    decide(lab, "saltm2", "reject", "web1")
    until_all_list(lab, rest, {"web1"})
    decide(lab, "saltm3", "accept", "web1")
    until_all_list(lab, lab.ids, set())
    with lab.stopped("web1", "salt-minion"):
        decide(lab, "saltm1", "delete", "web1")
        until_all_list(lab, rest, set())
    until(
        lambda: "web1" in lab.json("saltm2", "salt-key", "--list=pre")["minions_pre"],
        PATIENCE,
        "web1 to ask to be let in",
        interval=1,
    )
    decide(lab, "saltm2", "accept", "web1")
    until_all_list(lab, lab.ids, set())
    lab.until_connected()
