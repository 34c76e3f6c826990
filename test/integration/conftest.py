"""What a failed test says: the ends of the logs of all hosts, before the laboratory is removed."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

pytest.register_assert_rewrite("integration.cleaned", "kitchen.topology_checks")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs to the report of a test that failed with a laboratory at hand."""
    report = yield
    lab: Any = getattr(item, "funcargs", {}).get("lab")
    if report.failed and lab is not None:
        for host in lab.lab.hosts:
            report.sections.append((f"logs of {host.id}", lab.logs(host.id)))
    return report
