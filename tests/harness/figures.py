"""Figures that a run measured, for the table at its end (`passy test --large` prints it)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Note = Callable[[str, object], None]
_noted: list[tuple[str, str, str]] = []
FILE = "PASSY_FIGURES"
"""Variable that names a file for the same as JSON."""


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Note:
    """``figure("p99, ms", 12.5)``: a row of the table, under the name of the test."""

    def note(what: str, value: object) -> None:
        shown = f"{value:,.3g}" if isinstance(value, float) else str(value)
        request.node.user_properties.append(("figure", (what, shown)))

    return note


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # By way of the report, since the test may have run in another process.
    if report.when == "call":
        name = report.nodeid.rpartition("::")[2]
        rows = [value for kind, value in report.user_properties if kind == "figure"]
        _noted.extend((name, what, shown) for what, shown in rows)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _noted:
        return
    terminalreporter.section("figures")
    width = max(len(test) for test, _, _ in _noted)
    for test, what, value in _noted:
        terminalreporter.write_line(f"{test:<{width}}  {what}: {value}")
    if named := os.environ.get(FILE):
        rows = [dict(zip(("test", "what", "value"), row, strict=True)) for row in _noted]
        Path(named).write_text(json.dumps(rows, indent=1))
