"""One laboratory for each driver, in each mode in turn; a load during each test; a table at last.

Three masters and two minions.  A test leaves everything connected, and all accepted jobs accounted
for: see :class:`lab.trial.Trial`.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.laboratory import PATIENCE, Laboratory, applied, failures
from lab.load import current, load, serve_evidence
from lab.trial import ALIVE_INTERVAL, Trial
from lab.wait import until

ROWS = pytest.StashKey[list[str]]()
NETS = {"process": "127.0.75", "docker": "192.168.75"}
DRIVERS = ["process", pytest.param("docker", marks=pytest.mark.docker)]
MODES = ("hot", "failover")
# Jobs a second. In failover mode a minion runs only those of its one master.
RATES = {"hot": 3.0, "failover": 6.0}


@pytest.fixture(scope="session", params=DRIVERS)
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    """Make the laboratory of a driver, in hot mode."""
    driver = request.param
    directory = tmp_path_factory.mktemp("chaos") / "lab"
    with applied(directory, driver, masters=3, minions=2, net=NETS[driver]) as made:
        serve_evidence(made)
        yield made


@pytest.fixture(scope="session", params=MODES)
def mode(request: pytest.FixtureRequest, built: Laboratory) -> dict[str, Any]:
    """Bring the laboratory into a mode; return what is declared for it."""
    changes: dict[str, Any] = {"mode": request.param, "minions": 5}
    if request.param == "failover":
        changes["failover"] = {"master_alive_interval": ALIVE_INTERVAL}
    built.declare(**changes)
    result = built.apply()
    assert not (failed := failures(result)), failed
    assert set(result) == built.ids, "a return was lost"
    if request.param == "failover":
        # Who was there before its master restarted has left it: the tests begin on the first.
        until(built.restarted, PATIENCE, "the end of every restart", interval=1)
        built.bring_together()
    built.until_settled("saltm1")
    built.until_connected()
    return changes


@pytest.fixture
def lab(built: Laboratory, mode: dict[str, Any]) -> Laboratory:
    """The laboratory in its mode, for tests."""
    return built


@pytest.fixture
def trial(lab: Laboratory, mode: dict[str, Any]) -> Iterator[Trial]:
    """Start a load that has been answered."""
    began = time.time()
    masters = [host.id for host in lab.lab.masters]
    hot = mode["mode"] == "hot"
    if not hot and len(lab.answering(current(lab), "web*")) < 2:
        # The test before has parted them.
        lab.bring_together()
    with load(lab, not hot, RATES[mode["mode"]]) as running:
        for master in masters if hot else [current(lab)]:
            running.until_answered(began, 30, master)
        yield Trial(lab, mode, running, current(lab))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Leave all of it to ``make chaos``: it needs a machine of its own, and long."""
    if Path(__file__).parent in item.path.parents:
        item.add_marker("long")


@pytest.hookimpl(trylast=True)  # after pytest's own order, which knows no order of parameters
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what one laboratory in one mode can run, then the next."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]

    def place(item: pytest.Item) -> tuple[bool, bool]:
        params = item.callspec.params  # type: ignore[attr-defined]
        return (params["built"] == "docker", params["mode"] == "failover")

    items[:] = [item for item in items if item not in here] + sorted(here, key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what a test has measured, also of one that failed."""
    report = yield
    trial: Any = getattr(item, "funcargs", {}).get("trial")
    if report.when == "call" and trial is not None:
        cells = [
            "-" if value is None else f"{value:.1f}" for value in (trial.answer, trial.recovery)
        ]
        name = item.name.removeprefix("test_")
        row = f"{report.outcome:7} {cells[0]:>7} {cells[1]:>8}  {name}: {trial.account}"
        item.config.stash.setdefault(ROWS, []).append(row)
        report.user_properties += [("answer", cells[0]), ("recovery", cells[1])]
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the figures of all tests."""
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("chaos: seconds to the next answer, and to full recovery")
        for row in ["        answer recovery  test: jobs", *rows]:
            terminalreporter.write_line(row)
