"""The examples, run as their READMEs say, together against a fleet."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from standardwebhooks import Webhook

from tests.fleet import Fleet, all_final, environ, verify
from tests.support import BucketEnv, eventually
from worker.sandbox.simulator import Simulator

EXAMPLES = Path(__file__).parents[2] / "examples"
SECRET = "whsec_" + base64.b64encode(b"an example's 24 bytes ok").decode()


@contextlib.contextmanager
def example(path: str, out: Path, environ: dict[str, str], *arguments: str) -> Iterator[Path]:
    """An example that runs until the end of the block; yields the file of its output."""
    with out.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / path, *arguments],
            env={"PATH": os.environ["PATH"], **environ},
            stdin=subprocess.DEVNULL,
            stdout=file,
        )
        try:
            yield out
        finally:
            process.terminate()
            process.wait()


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines() if line[:1] == "{"]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Path]:
    environ = {"HARVESTER_WEBHOOK_SECRET": SECRET, "DATABASE": str(tmp_path / "seen.sqlite")}
    with example("webhook_receiver/receive.py", tmp_path / "received", environ, "0") as out:
        yield out


async def address(receiver: Path) -> str:
    def announced() -> str:
        text = receiver.read_text()
        return text.split()[-1] if text.endswith("/\n") else ""

    return await eventually(announced, what="the receiver")


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
            produced = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, EXAMPLES / "celery_producer/produce.py", *ids,
                 "--callback-url", url],
                env={"PATH": os.environ["PATH"], **names},
                capture_output=True, text=True, timeout=90,
            )  # fmt: skip
            assert produced.returncode == 0, produced.stderr
            assert produced.stdout == "6 handed in\n"
            await all_final(redis, namespace, ids, seconds=60)
            await eventually(lambda: len(lines(receiver)) >= 6, what="webhooks")
            await eventually(lambda: len(lines(one) + lines(two)) >= 6, what="events")
    records = await verify(simulator, redis, bucket, namespace, ids)
    uris = {i: [f["uri"] for f in json.loads(record["files"])] for i, record in records.items()}

    # each ending went to one of the two, and is acknowledged
    consumed = lines(one) + lines(two)
    assert sorted(line["task_id"] for line in consumed) == sorted(ids)
    assert {line["task_id"]: line["files"] for line in consumed} == uris
    assert (await redis.xpending(f"{namespace}:events", "shop"))["pending"] == 0

    received = lines(receiver)
    assert {line["type"] for line in received} == {"task.stored"}
    assert sorted(line["task_id"] for line in received) == sorted(ids)
    assert {line["task_id"]: line["files"] for line in received} == uris


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
    async with httpx.AsyncClient(trust_env=False) as client:
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
