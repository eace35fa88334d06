"""``Procfile``, run by honcho: a worker and the web, with nothing but settings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from tests.fleet import ROOT, verify
from tests.support import BOUND, BucketEnv, eventually
from worker.sandbox.simulator import Simulator

pytestmark = pytest.mark.programs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def honcho(environ: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The Procfile's processes, started as a user of this environment would."""
    scripts = str(Path(sys.executable).parent)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "honcho", "start"],
            cwd=ROOT,
            env={**environ, "PATH": f"{scripts}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()  # killed, it would leave its own processes behind
        process.wait(BOUND)


async def test_worker_and_web(
    settings: dict[str, str],
    simulator: Simulator,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
) -> None:
    port, log = free_port(), tmp_path / "honcho.log"
    with honcho({**settings, "PORT": str(port)}, log) as process:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=BOUND
        ) as client:

            async def ready() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(ready, what="a ready fleet")
            task_id = simulator.submit({"simulate": {"images": ["png"]}})
            answer = await client.post("/api/tasks", json={"task_ids": [task_id]})
            assert answer.status_code == 201
            record = (await client.get(f"/api/tasks/{task_id}", params={"wait": 60})).json()
            assert record["state"] == "stored"
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, BOUND)
            assert not await ready()
    started = set(re.findall(r"(\w+)\.1 +\| \{.*\"(?:web|engine)\.started\"", log.read_text()))
    assert started == {"web", "worker"}
    await verify(simulator, redis, bucket, namespace, [task_id])
    assert not await redis.exists(f"{namespace}:workers")  # it has signed off
