"""The main story with the other supported Salt series."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.laboratory import PATIENCE, Laboratory, changed, failures, laboratory
from lab.wait import until

NETS = {"3006": "127.0.66", "3007": "127.0.67"}
pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module", params=sorted(NETS))
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    """Three hosts to be masters, and one minion, with an older Salt."""
    series = request.param
    directory = tmp_path_factory.mktemp("lab") / "lab"
    with laboratory(
        directory, "process", masters=3, minions=1, net=NETS[series], salt=series
    ) as made:
        yield made


def test_one_master_becomes_three(lab: Laboratory) -> None:
    result = lab.apply()
    assert not failures(result)
    assert set(result) == lab.ids, "a return was lost"
    data = lab.until_connected()
    assert {row["version"].partition(".")[0] for row in data["masters"].values()} == {lab.lab.salt}
    lab.assert_no_key_outside_pki()


def test_a_second_apply_changes_nothing(lab: Laboratory) -> None:
    result = lab.apply()
    assert not failures(result)
    assert changed(result) == []


@pytest.mark.parametrize("signing", [True, False], ids=["on", "off"])
def test_minions_follow_the_masters_into_signing_and_out_of_it(
    lab: Laboratory, signing: bool
) -> None:
    lab.declare(masters=lab.masters(3), signing=signing)
    # On: the first makes the pair, and restarts nothing.
    for _ in range(2 if signing else 1):
        assert not failures(lab.apply())
    expected = dict.fromkeys(lab.ids, signing)

    def followed() -> bool:
        if not lab.restarted() or lab.status()[0]:
            return False
        return lab.salt("saltm1", "*", "multimaster.verifies") == expected

    until(followed, PATIENCE, f"every minion, verifying: {signing}", interval=1)
    lab.until_connected()
    lab.assert_no_key_outside_pki()
