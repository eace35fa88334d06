"""What never ends is ended, and says where it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import run

ENDLESS = """
import asyncio

async def forever():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("not now")

async def test_endless():
    await forever()

async def test_endless_after_a_failure():
    asyncio.create_task(forever())
    await asyncio.sleep(0)
    raise ValueError
"""


@pytest.mark.parametrize(
    ("name", "bound", "seconds", "processes"),
    [
        ("test_endless", "timeout", 1, 2),
        ("test_endless", "run_timeout", 20, 2),  # a busy machine needs some to begin
        ("test_endless_after_a_failure", "timeout", 1, 0),
    ],
)
async def test_what_swallows_its_cancellation_ends_and_shows_where_it_was(
    name: str, bound: str, seconds: int, processes: int, tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text(ENDLESS)
    ran = await run(
        "-m", "pytest", "-p", "tests.bounds", "-n", str(processes), "-o", "asyncio_mode=auto",
        "-o", f"{bound}={seconds}", f"test_it.py::{name}",
        environ={"PATH": os.environ["PATH"]}, cwd=tmp_path,
    )  # fmt: skip
    assert ran.code not in (0, pytest.ExitCode.USAGE_ERROR), ran.said
    assert f"took more than {seconds} s" in ran.said
    assert "await asyncio.sleep(3600)" in ran.said
    if processes:
        assert f"crashed while running 'test_it.py::{name}'" in ran.said
