"""The examples, run as their READMEs say, together against a fleet."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import playwright
import pytest
from redis.asyncio import Redis
from standardwebhooks import Webhook

from tests import support
from tests.fleet import Fleet, all_final, environ, verify
from tests.support import BOUND, ROOT, BucketEnv, eventually
from worker.sandbox.simulator import Simulator

pytestmark = pytest.mark.programs

EXAMPLES = Path(__file__).parents[2] / "examples"
SECRET = "whsec_" + base64.b64encode(b"an example's 24 bytes ok").decode()


def example(
    path: str, out: Path, environ: dict[str, str], *arguments: str
) -> contextlib.AbstractContextManager[Path]:
    """An example that runs until the end of the block; yields the file of its output."""
    return running([sys.executable, str(EXAMPLES / path), *arguments], out, environ)


@contextlib.contextmanager
def running(command: list[str], out: Path, environ: dict[str, str]) -> Iterator[Path]:
    """A program that runs until the end of the block; yields the file of its output."""
    with out.open("wb") as file:
        process = subprocess.Popen(
            command,
            env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **environ},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            yield out
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines() if line[:1] == "{"]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Path]:
    environ = {"HARVESTER_WEBHOOK_SECRET": SECRET, "DATABASE": str(tmp_path / "seen.sqlite")}
    with example("webhook_receiver/receive.py", tmp_path / "received", environ, "0") as out:
        yield out


async def address(out: Path) -> str:
    """Where a program says that it listens."""

    def announced() -> str:
        found = re.search(r"http://127\.0\.0\.1:\d+\b(?=.*\n)", out.read_text())
        return found[0] if found else ""

    return await eventually(announced, what="a listening server")


async def run(command: list[str], environ: dict[str, str]) -> str:
    """A program that ends well; its output."""
    done = await asyncio.to_thread(
        subprocess.run, command,
        env={"PATH": os.environ["PATH"], **environ}, capture_output=True, text=True, timeout=BOUND,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_producer_consumers_and_receiver(
    simulator: Simulator,
    redis_url: str,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
    receiver: Path,
) -> None:
    ids = [simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(6)]
    url = await address(receiver)
    settings = environ(
        simulator, redis_url, bucket, namespace,
        HARVESTER_WEBHOOK_SECRET=SECRET, HARVESTER_WEBHOOK_ALLOW_PRIVATE="127.0.0.1/32",
    )  # fmt: skip
    names = {"REDIS_URL": redis_url, "HARVESTER_NAMESPACE": namespace}
    consume = "event_consumer/consume.py"
    with (
        example(consume, tmp_path / "one", {**names, "CONSUMER": "one"}) as one,
        example(consume, tmp_path / "two", {**names, "CONSUMER": "two"}) as two,
    ):
        async with Fleet(settings, tmp_path, size=1):
            produced = await run(
                [sys.executable, str(EXAMPLES / "celery_producer/produce.py"), *ids,
                 "--callback-url", url],
                names,
            )  # fmt: skip
            assert produced == "6 submitted\n"
            await all_final(redis, namespace, ids)
            await eventually(lambda: len(lines(receiver)) >= 6, what="webhooks")
            await eventually(lambda: len(lines(one) + lines(two)) >= 6, what="events")
    records = await verify(simulator, redis, bucket, namespace, ids)
    stored = {task_id: uris(record) for task_id, record in records.items()}

    # each ending went to one of the two, and is acknowledged
    consumed = lines(one) + lines(two)
    assert sorted(line["task_id"] for line in consumed) == sorted(ids)
    assert {line["task_id"]: line["files"] for line in consumed} == stored
    assert (await redis.xpending(f"{namespace}:events", "shop"))["pending"] == 0

    received = lines(receiver)
    assert {line["type"] for line in received} == {"task.stored"}
    assert sorted(line["task_id"] for line in received) == sorted(ids)
    assert {line["task_id"]: line["files"] for line in received} == stored


async def test_the_receiver_drops_repetitions_and_refuses_what_is_not_genuine(
    receiver: Path,
) -> None:
    url = await address(receiver)
    now = datetime.now(UTC)
    body = json.dumps({"type": "task.stored", "data": {"task_id": "t1", "files": []}})
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("msg_1", now, body),
    }
    async with httpx.AsyncClient(trust_env=False, timeout=BOUND) as client:
        answers = [
            await client.post(url, content=body, headers=headers),
            await client.post(url, content=body, headers=headers),
            await client.post(url, content=body + " ", headers=headers),
            await client.post(url, content=body, headers=headers | {"webhook-id": "msg_2"}),
            await client.post(url, content=body),
            await client.post(url, content=b"\xff", headers=headers),
            await client.post(url, content=body, headers=headers | {"webhook-signature": "v1,a"}),
        ]
    assert [answer.status_code for answer in answers] == [
        204, 204, 401, 401, 401, 401, 401,
    ]  # fmt: skip
    assert [line["task_id"] for line in lines(receiver)] == ["t1"]


def pictures(simulator: Simulator, count: int) -> list[str]:
    return [simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(count)]


def uris(record: dict[str, str]) -> list[str]:
    return [file["uri"] for file in json.loads(record["files"])]


async def shown(client: httpx.AsyncClient, task_id: str) -> dict[str, Any]:
    """What an application shows of a task, once that is stored."""

    async def stored() -> dict[str, Any]:
        answer = await client.get(f"/pictures/{task_id}")
        document: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        return document if document.get("state") == "stored" else {}

    return await eventually(stored, what="the application's picture")


async def test_django(
    simulator: Simulator,
    redis_url: str,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
) -> None:
    ids = pictures(simulator, 3)
    settings = environ(
        simulator, redis_url, bucket, namespace, HARVESTER_REPLY_ALLOW="shop/shop.picture_ready"
    )
    database = tmp_path / "shop.sqlite"
    names = {
        "REDIS_URL": redis_url, "HARVESTER_NAMESPACE": namespace, "DATABASE": str(database)
    }  # fmt: skip
    manage = [sys.executable, str(EXAMPLES / "django_producer/manage.py")]
    worker = [
        sys.executable, "-m", "celery", "--workdir", str(EXAMPLES / "django_producer"),
        "-A", "shop", "worker", "--queues", "shop", "--concurrency", "1",
    ]  # fmt: skip
    serve = [*manage, "runserver", "--noreload", f"127.0.0.1:{free_port()}"]
    await run([*manage, "migrate", "--run-syncdb"], names)
    with (
        running(serve, tmp_path / "served", names) as served,
        running(worker, tmp_path / "worked", names),
    ):
        async with (
            Fleet(settings, tmp_path, size=1),
            httpx.AsyncClient(
                base_url=await address(served), trust_env=False, timeout=BOUND
            ) as client,
        ):
            for task_id in ids[:2]:
                answer = await client.post("/pictures", json={"task_id": task_id})
                assert (answer.status_code, answer.json()) == (202, {"task_id": task_id})
            found = [await shown(client, task_id) for task_id in ids[:2]]

            # a row whose message was lost
            with contextlib.closing(sqlite3.connect(database)) as rows, rows:
                rows.execute(
                    "INSERT INTO shop_picture (task_id, state, run, files, created_at)"
                    " VALUES (?, 'waiting', 0, '[]', '2026-01-01 00:00:00')",
                    ids[2:],
                )
            assert await run([*manage, "hand_in_again"], names) == "1 submitted again\n"
            found.append(await shown(client, ids[2]))
            assert (await client.get("/pictures/another")).status_code == 404
    records = await verify(simulator, redis, bucket, namespace, ids)
    assert [(p["task_id"], p["files"]) for p in found] == [(i, uris(records[i])) for i in ids]


async def test_fastapi(
    simulator: Simulator,
    redis_url: str,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
) -> None:
    task_id, other = pictures(simulator, 2)
    serve = [
        sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES / "fastapi_producer"),
        "produce:app", "--port", "0",
    ]  # fmt: skip
    names = {"REDIS_URL": redis_url, "HARVESTER_NAMESPACE": namespace}
    settings = environ(simulator, redis_url, bucket, namespace)
    with running(serve, tmp_path / "served", names) as served:
        async with (
            Fleet(settings, tmp_path, size=1),
            httpx.AsyncClient(
                base_url=await address(served), trust_env=False, timeout=BOUND
            ) as client,
        ):
            assert (await client.get(f"/pictures/{task_id}")).status_code == 404
            wrong = await client.post("/pictures", json={"task_id": "../x", "order": 1})
            assert wrong.status_code == 422
            answer = await client.post("/pictures", json={"task_id": task_id, "order": 42})
            assert (answer.status_code, answer.json()) == (202, {"task_id": task_id})
            found = await shown(client, task_id)
            body = json.dumps({"task_ids": [other]})
            await redis.xadd(f"{namespace}:intake", {"body": body})  # by somebody else
            foreign = await shown(client, other)
    records = await verify(simulator, redis, bucket, namespace, [task_id, other])
    assert (found["order"], found["files"]) == (42, uris(records[task_id]))
    assert (foreign["order"], foreign["files"]) == (None, uris(records[other]))


async def test_node(
    simulator: Simulator,
    redis_url: str,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
) -> None:
    # Playwright brings a Node of its own
    node = shutil.which("node") or str(Path(playwright.__file__).parent / "driver" / "node")
    ids = pictures(simulator, 3)
    token = "a token of sixteen characters or more".replace(" ", "-")
    settings = environ(simulator, redis_url, bucket, namespace, HARVESTER_WEB_TOKEN=token)
    serve = [sys.executable, "-m", "worker.cli.main", "web", "--port", str(free_port())]
    with running(serve, tmp_path / "served", settings):
        port = serve[-1]
        await eventually(lambda: listens(int(port)), what="the API")
        names = {"API_URL": f"http://127.0.0.1:{port}", "HARVESTER_WEB_TOKEN": token}
        async with Fleet(settings, tmp_path, size=1):
            out = await run([node, str(EXAMPLES / "node_producer/produce.mjs"), *ids], names)
    records = await verify(simulator, redis, bucket, namespace, ids)
    found = {line["task_id"]: line for line in map(json.loads, out.splitlines())}
    assert {i: line["files"] for i, line in found.items()} == {i: uris(records[i]) for i in ids}
    assert {line["state"] for line in found.values()} == {"stored"}
    assert {record["metadata"] for record in records.values()} == {'{"from":"node_producer"}'}


async def test_a_fleet_in_the_tests_of_an_application(tmp_path: Path) -> None:
    """The fixture and the test of ``docs/simulator.md``, as they are there."""
    page = (ROOT / "docs" / "simulator.md").read_text()
    section = page.partition("## A fleet in your tests")[2].partition("\n## ")[0]
    conftest, test = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_posters.py").write_text(test)
    ran = await support.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path),
        environ={"PATH": os.environ["PATH"]}, cwd=tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.said
    assert "1 passed" in ran.said
