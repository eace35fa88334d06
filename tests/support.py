"""Helpers that tests share; the fixtures built on them are in ``conftest.py``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
import speedpix

if TYPE_CHECKING:
    from worker.sandbox.simulator import Simulator

ROOT = Path(__file__).parent.parent

# A failing test waits until this bound, which is far above what a busy machine needs. The timeout
# of a test in pyproject.toml is longer.
BOUND = 240

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketEnv:
    """A real bucket: its address and credentials, and a boto3 client."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    region: str
    client: Any = field(repr=False)

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that point boto3 and the harvester at this bucket."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "HARVESTER_BUCKET": self.bucket,
        }

    def keys(self, prefix: str = "") -> list[str]:
        """All keys below ``prefix``, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))

    def read(self, key: str) -> bytes:
        """The bytes of one object."""
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()


class Clock:
    """A clock in seconds that tests move by hand."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def point_to(patch: pytest.MonkeyPatch, endpoint: str, *, secret: str = "SK") -> None:
    """Point boto3 to a store that a test plays, with some credentials."""
    patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", "AK")
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret)


def reported(reporter: pytest.TerminalReporter, name: str) -> list[Any]:
    """The values that the tests of a run have reported under a name."""
    return [
        value
        for reports in reporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for key, value in report.user_properties
        if key == name
    ]


async def eventually(
    condition: Callable[[], Awaitable[Found] | Found], *, seconds: float = BOUND, what: str = ""
) -> Found:
    """Wait until ``condition()`` is truthy and return its value; raises ``AssertionError`` if
    never.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or 'the condition'} did not hold within {seconds:g} s")
        await asyncio.sleep(0.01)


async def joined(task: asyncio.Task[Found]) -> Found:
    """The result of a task that ends because a flag was set.

    It is not cancelled: ``asyncio.wait_for`` of Python 3.11, which redis-py uses, sometimes loses a
    cancellation, and the caller would wait for ever.
    """
    await asyncio.wait([task], timeout=BOUND)
    assert task.done(), f"{task.get_name()} did not end: {task.get_stack()}"
    return task.result()


@contextlib.asynccontextmanager
async def repeating(step: Callable[[], Awaitable[object]], every: float) -> AsyncIterator[None]:
    """Repeat a step while the block runs, with a pause of ``every`` seconds after each."""
    over = asyncio.Event()

    async def repeat() -> None:
        while not over.is_set():
            await step()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await over.wait()

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        over.set()
        await joined(task)


async def signed_call(
    simulator: Simulator,
    call: str,
    document: Any,
    *,
    app_secret: str = "",
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    """POST ``/scc/<call>``, signed by the vendor's SDK; ``headers`` overwrite the SDK's."""
    path = f"/scc/{call}"
    sdk = speedpix.Client(simulator.app_key, app_secret or simulator.app_secret, simulator.endpoint)
    body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    signed = sdk._generate_header("POST", path, document) | (headers or {})
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as client:
        return await client.post(simulator.endpoint + path, content=body, headers=signed)


async def ask_result(simulator: Simulator, task_id: str) -> Any:
    """The JSON reply to one signed ``comfy_get_result``."""
    response = await signed_call(simulator, "comfy_get_result", {"taskId": task_id})
    assert response.status_code == 200, response.headers
    return response.json()


@dataclass(frozen=True, kw_only=True)
class Ran:
    """The exit code of a command, and everything it printed."""

    code: int
    said: str


async def run(*arguments: str, environ: dict[str, str], cwd: Path, seconds: float = BOUND) -> Ran:
    """Run Python with ``arguments`` in a separate process, for ``seconds`` at most."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=cwd, env={"PYTHONPATH": str(ROOT), **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), seconds)
    assert process.returncode is not None
    return Ran(code=process.returncode, said=out.decode(errors="replace"))


async def command(
    *arguments: str, environ: dict[str, str], cwd: Path, seconds: float = BOUND
) -> Ran:
    """Run ``harvester`` in an empty directory."""
    return await run("-m", "worker.cli.main", *arguments, environ=environ, cwd=cwd, seconds=seconds)


def needs(program: str, found: object) -> pytest.MarkDecorator:
    """Skip a test if a program is not installed; in CI the test then fails instead."""
    absent = not found and "CI" not in os.environ
    return pytest.mark.skipif(absent, reason=f"{program} is not installed")
