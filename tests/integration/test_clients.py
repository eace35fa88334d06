"""Clients that are generated from the OpenAPI document, compiled strictly and used.

``make clients`` has put the generators into ``build/clients``.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from config.settings import load_settings
from tests.fleet import Fleet
from tests.support import BOUND, ROOT, eventually, joined
from worker.cli.web import make
from worker.sandbox.simulator import Simulator

pytestmark = pytest.mark.clients

TOKEN = "a-token-of-the-clients"
PROGRAMS = ROOT / "tests" / "clients"
TOOLS = ROOT / "build" / "clients"


async def done(*words: str | Path, cwd: Path) -> str:
    """What a program printed that ended well."""
    # the generator calls the ruff that was installed with it
    environ = {"HOME": os.environ.get("HOME", ""), "PATH": f"{TOOLS}/bin:{os.environ['PATH']}"}
    process = await asyncio.create_subprocess_exec(
        *map(str, words), cwd=cwd, env=environ,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), BOUND)
    assert process.returncode == 0, out.decode() + err.decode()
    return out.decode()


@pytest.fixture
async def served(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setenv("HARVESTER_WEB_TOKEN", TOKEN)
    server = uvicorn.Server(
        uvicorn.Config(make(load_settings(), "127.0.0.1"), port=0, log_config=None)
    )
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await joined(task)


async def test_generated_clients_compile_and_work(
    served: str, settings: dict[str, str], simulator: Simulator, tmp_path: Path
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=served, headers=headers, timeout=BOUND) as client:
        (tmp_path / "openapi.json").write_text((await client.get("/openapi.json")).text)
        ids = [
            simulator.submit({"simulate": {"duration": 3600}}),
            simulator.submit({"simulate": {"duration": 0.1, "images": ["png"]}}),
            simulator.submit({"simulate": {"end": "failed"}}),
        ]
        body = {"task_ids": ids, "label": "clients"}
        assert (await client.post("/api/tasks", json=body)).status_code == 201
        async with Fleet(settings, tmp_path, size=1):
            for task_id in ids[1:]:
                await eventually(lambda i=task_id: _final(client, i))
        stored = (await client.get(f"/api/tasks/{ids[1]}")).json()
    sizes = [file["bytes"] for file in stored["files"]]
    assert len(sizes) == 1
    expected = {
        "tasks": [
            {"state": "waiting", "bytes": [], "reason": "", "finished": False},
            {"state": "stored", "bytes": sizes, "reason": "", "finished": True},
            {"state": "failed", "bytes": [], "reason": "upstream_failed", "finished": True},
        ],
        "listed": [ids[2]],
        "dry": 1,
        "not_done": {"waiting": 1, "stored": 1},
        "unknown": 404,
        "again": [False] * 3,
    }  # fmt: skip
    await _python(tmp_path)
    said = await done(sys.executable, "use.py", served, TOKEN, *ids, cwd=tmp_path)
    assert json.loads(said) == expected
    if shutil.which("npm"):
        await _typescript(tmp_path)
        said = await done("node", "use.js", served, TOKEN, *ids, cwd=tmp_path)
        assert json.loads(said) == expected


async def _final(client: httpx.AsyncClient, task_id: str) -> bool:
    record = (await client.get(f"/api/tasks/{task_id}")).json()
    return "finished_at" in record


async def _python(folder: Path) -> None:
    """Generate the Python client, and check its types and those of the program that uses it."""
    said = await done(
        TOOLS / "bin" / "openapi-python-client", "generate", "--path", "openapi.json",
        "--meta", "none", "--output-path", "harvester_client", "--fail-on-warning", cwd=folder,
    )  # fmt: skip
    assert "WARNING" not in said
    for name in ("mypy.ini", "use.py"):
        shutil.copy(PROGRAMS / name, folder)
    await done(sys.executable, "-m", "mypy", "use.py", cwd=folder)


async def _typescript(folder: Path) -> None:
    """Generate the types, and compile the program that uses them."""
    for name in ("package.json", "tsconfig.json", "use.ts"):
        shutil.copy(PROGRAMS / name, folder)
    (folder / "node_modules").symlink_to(TOOLS / "node" / "node_modules")
    await done("npx", "openapi-typescript", "openapi.json", "-o", "api.d.ts", cwd=folder)
    await done("npx", "tsc", "-p", ".", cwd=folder)
