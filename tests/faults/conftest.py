"""Fixtures of the fault matrix, and the table of its results.

Sizes are those of the matrix if ``FAULTS`` is ``full``, else small. Results also go to the file
``FAULTS_RESULTS``, one JSON object per line.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.faults.kit import Row, Scene
from tests.support import BucketEnv, reported
from worker.sandbox.simulator import Simulator

_HERE = Path(__file__).parent
_ALWAYS = {"test_workers.py", "test_oracle.py"}
# the other rows take many minutes even at small sizes: they only run if FAULTS is set
collect_ignore = (
    []
    if os.environ.get("FAULTS")
    else [path.name for path in _HERE.glob("test_*.py") if path.name not in _ALWAYS]
)
if "SOAK_MINUTES" in os.environ:
    collect_ignore = []
elif "test_soak.py" not in collect_ignore:
    collect_ignore.append("test_soak.py")
_COLUMNS = (
    "row", "fault", "size", "lost", "doubled", "bad_bytes", "half_records", "unexplained",
    "recovery", "usual", "notes",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "faults: a row of the fault matrix (see docs/faults.md)")
    if target := os.environ.get("FAULTS_RESULTS"):  # fail now, not after half an hour
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).open("a").close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker("faults")


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url, decode_responses=True, protocol=2)
    yield client
    await client.aclose()


@pytest.fixture
async def scene(
    simulator: Simulator,
    redis: Redis,
    redis_url: str,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Scene:
    def report(row: Row) -> None:
        request.node.user_properties.append(("fault_row", asdict(row)))

    return Scene(
        simulator=simulator,
        redis=redis,
        redis_url=redis_url,
        bucket=bucket,
        namespace=namespace,
        logs=tmp_path,
        report=report,
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = reported(terminalreporter, "fault_row")
    if not rows:
        return
    rows.sort(key=lambda row: [int(row["row"].rstrip("abc")), row["row"], row["fault"]])
    if target := os.environ.get("FAULTS_RESULTS"):
        Path(target).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    terminalreporter.section("fault matrix")
    lines = [[name.replace("_", " ") for name in _COLUMNS]]
    lines += [[_shown(row[name]) for name in _COLUMNS] for row in rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(_COLUMNS))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if isinstance(value, float) else str(value)
