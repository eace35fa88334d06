"""The HTTP API, fuzzed from its own OpenAPI document."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from redis.asyncio import Redis

from config.settings import load_settings
from tests.support import BOUND
from worker.cli.web import make

pytestmark = pytest.mark.page

CONFIG = Path(__file__).parents[1] / "schemathesis.toml"
TOKEN = "a-token-of-the-tests"


@pytest.fixture
def served(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The application with a token, on a loop and a port of its own."""
    monkeypatch.setenv("HARVESTER_WEB_TOKEN", TOKEN)
    server = uvicorn.Server(
        uvicorn.Config(make(load_settings(), "0.0.0.0"), port=0, log_config=None)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


async def test_answers_are_as_the_document_says(
    served: str, redis: Redis, namespace: str, tmp_path: Path
) -> None:
    # one that is alive for as long as the test takes, so that the fleet is ready
    await redis.zadd(f"{namespace}:workers", {"w1": (time.time() + 3600) * 1000})
    body = {"task_ids": ["one", "two", "three"], "label": "poster"}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(timeout=BOUND) as client:
        answer = await client.post(f"{served}/api/tasks", json=body, headers=headers)
    assert answer.status_code == 201
    done = await asyncio.to_thread(
        subprocess.run,
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG),
            "run", f"{served}/openapi.json", "--header", f"Authorization:Bearer {TOKEN}",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=BOUND,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
