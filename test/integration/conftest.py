"""Which tests share a laboratory; what a failed one says, before its laboratory is removed."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("integration.cleaned", "kitchen.topology_checks")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, with ``--dist loadgroup``, the tests of a file and of one laboratory of it."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            params = getattr(getattr(item, "callspec", None), "params", {})
            name = f"{item.path.stem}-{params.get('lab', '')}".rstrip("-")
            item.add_marker(pytest.mark.xdist_group(name))


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
