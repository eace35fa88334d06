"""Redis is lost, and ``harvester rebuild`` brings back every record from the manifests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.fleet import FINAL, Fleet, environ
from tests.support import BOUND, BucketEnv, command, eventually
from worker.sandbox.simulator import Simulator

pytestmark = pytest.mark.fleet

COUNT = int(os.environ.get("REBUILD_TASKS", "40"))
SCRIPTS: tuple[dict[str, Any], ...] = (
    {"images": ["png"]},
    {"images": ["png", "gif"], "result": {"seed": 12345678901234567890}},
    {"images": [], "result": {"scale": 1.10}},
    {"end": "failed"},
    {"images": ["png", {"file": "png", "origin": "http://10.0.0.1"}]},
)
_IDS_A_MESSAGE = 1000


async def everything(
    redis: Redis, namespace: str, ids: list[str]
) -> tuple[list[dict[str, str]], list[list[tuple[str, float]]]]:
    """All records, and what the indexes list."""
    async with redis.pipeline(transaction=False) as pipe:
        for task_id in ids:
            pipe.hgetall(f"{namespace}:task:{task_id}")
        records = await pipe.execute()
    indexes = [
        await redis.zrange(f"{namespace}:index:{state}", 0, -1, withscores=True) for state in FINAL
    ]
    return records, indexes


async def rebuild(given: dict[str, str], directory: Path) -> str:
    ran = await command("rebuild", environ=given, cwd=directory, seconds=BOUND + COUNT / 5)
    assert ran.code == 0, ran.said
    return ran.said


async def test_records_are_equal_after_redis_was_wiped(
    simulator: Simulator,
    redis_url: str,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
) -> None:
    given = environ(simulator, redis_url, bucket, namespace, HARVESTER_POLL_RATE="5000")
    ids = [simulator.submit({"simulate": SCRIPTS[n % len(SCRIPTS)]}) for n in range(COUNT)]
    async with Fleet(given, tmp_path):
        for start in range(0, COUNT, _IDS_A_MESSAGE):
            body = {"task_ids": ids[start : start + _IDS_A_MESSAGE], "metadata": {"exact": 1.5}}
            await redis.xadd(f"{namespace}:intake", {"body": json.dumps(body)})

        async def ended() -> bool:  # counted: to read thousands of records again and again is slow
            sizes = [await redis.zcard(f"{namespace}:index:{state}") for state in FINAL]
            return sum(sizes) == COUNT

        await eventually(ended, seconds=BOUND + COUNT / 5, what="the end of every task")
    records, indexes = await everything(redis, namespace, ids)
    assert {record["state"] for record in records} == set(FINAL)

    await redis.flushall()
    assert await rebuild(given, tmp_path) == f"{COUNT} restored, 0 already known\n"
    assert await everything(redis, namespace, ids) == (records, indexes)
    assert await redis.ttl(f"{namespace}:task:{ids[0]}") > 0
    assert await redis.xlen(f"{namespace}:events") == 0  # nothing is told a second time
    assert await rebuild(given, tmp_path) == f"0 restored, {COUNT} already known\n"
