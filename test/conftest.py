"""Run what this machine can run, and say at the end what was left out and how to run it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from typing import Any

import hypothesis
import pytest

# The machine's load must not decide about a property.
hypothesis.settings.register_profile(
    "lab", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
# With --hypothesis-profile=long: as many examples as there is time for now and then.
hypothesis.settings.register_profile(
    "long", hypothesis.settings.get_profile("lab"), max_examples=1000
)
hypothesis.settings.load_profile("lab")

LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run what takes long, too")
    parser.addoption("--matrix", action="store_true", help="run the tests of other Salt series too")


def pytest_configure() -> None:
    # Not at collection: what a worker of pytest-xdist raises there is shown as an internal error.
    if os.environ.get("LAB_REQUIRE_PROMTOOL") == "1" and not shutil.which("promtool"):
        raise pytest.UsageError("LAB_REQUIRE_PROMTOOL=1, and there is no promtool")


def _docker_answers() -> bool:
    try:
        # Some clients exit with 0 though no engine answers; they print no server version then.
        command = ["docker", "info", "--format", "{{.ServerVersion}}"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and bool(answer.stdout.strip())


@pytest.hookimpl(trylast=True)  # after -k and -m: what they leave out is no news
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what has a target of its own, and what needs an engine where none answers."""
    notices = config.stash.setdefault(LEFT_OUT, [])

    def leave_out(marker: str, advice: str) -> None:
        out = [item for item in items if item.get_closest_marker(marker)]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
        notices.append(f"NOT RUN: {len(out)} test{'s' * (len(out) != 1)} {advice}")

    if config.option.markexpr == "walk":
        notices.append("NOT RUN: the other tests with daemons; to run them: make test-all")
    if not config.getoption("--matrix") and any(i.get_closest_marker("matrix") for i in items):
        leave_out("matrix", "of other Salt series; to run them: make test-matrix")
    if not config.getoption("--long") and any(i.get_closest_marker("long") for i in items):
        leave_out("long", "that take long; to run them: make test-long")
    if os.geteuid() != 0 and any(i.get_closest_marker("root") for i in items):
        leave_out("root", "that need root; to run them: the same again as root")
    if any(i.get_closest_marker("promtool") for i in items) and not shutil.which("promtool"):
        leave_out(
            "promtool", "that need promtool; install Debian's prometheus, then the same again"
        )
    if any(i.get_closest_marker("docker") for i in items) and not _docker_answers():
        if os.environ.get("LAB_REQUIRE_DOCKER") == "1":
            raise pytest.UsageError("LAB_REQUIRE_DOCKER=1, and no Docker engine answers")
        leave_out("docker", "that need Docker; start an engine, then the same again")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what a worker of pytest-xdist has left out to the one process that tells of it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left out"] = session.config.stash.get(LEFT_OUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it; all workers have collected the same, and one that crashed hands on nothing."""
    if "left out" in getattr(node, "workeroutput", {}):
        node.config.stash[LEFT_OUT] = node.workeroutput["left out"]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for notice in config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(notice, yellow=True, bold="Docker" in notice)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the ends of all hosts' logs to what a test says that failed with a laboratory."""
    report = yield
    given: Any = getattr(item, "funcargs", {})
    lab = given.get("lab") or given.get("built")
    if report.failed and lab is not None:
        for host in lab.lab.hosts:
            report.sections.append((f"logs of {host.id}", lab.logs(host.id)))
    return report
