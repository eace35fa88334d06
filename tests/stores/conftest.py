"""Prints the table of the stores after a run."""

from __future__ import annotations

import os

import pytest

from tests.stores.servers import STORES
from tests.stores.table import HEAD
from tests.support import reported


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = reported(terminalreporter, "store_row")
    if rows:
        terminalreporter.section("stores")
        order = [title for title, _, _ in STORES.values()]
        rows.sort(key=lambda row: order.index(row.split(" | ")[0].removeprefix("| ")))
        for line in (*HEAD, *rows):
            terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    unknown = set(os.environ.get("STORES", "").split()) - STORES.keys()
    if unknown:
        raise pytest.UsageError(f"STORES knows {', '.join(STORES)}; not {', '.join(unknown)}")
