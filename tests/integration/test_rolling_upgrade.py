"""Two versions side by side, as during a rolling upgrade: real workers, records of both schemas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.fleet import CELERY, Fleet, all_final, environ, verify
from tests.newer_worker import NEXT
from tests.support import ROOT, BucketEnv, Ran, command, eventually, run
from worker.sandbox.simulator import Simulator

pytestmark = pytest.mark.fleet

NEWER = ("-m", "tests.newer_worker")


async def test_old_and_new_workers_share_the_work(
    simulator: Simulator,
    redis_url: str,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
) -> None:
    given = environ(simulator, redis_url, bucket, namespace)
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()

    def fleet(program: tuple[str, ...], folder: str) -> Fleet:
        return Fleet(given, tmp_path / folder, size=1, program=program)

    async def hand_in(count: int, seconds: float) -> list[str]:
        script = {"simulate": {"images": ["png"], "duration": seconds}}
        ids = [simulator.submit(script) for _ in range(count)]
        await redis.xadd(f"{namespace}:intake", {"body": json.dumps({"task_ids": ids})})

        async def accepted() -> bool:
            return int(await redis.exists(*known(ids))) == count

        await eventually(accepted, what="the records")
        return ids

    def known(ids: list[str]) -> list[str]:
        return [f"{namespace}:task:{task_id}" for task_id in ids]

    def said(fleet: Fleet) -> Callable[[], bool]:
        return lambda: any(line.get("event") == "record.newer" for line in fleet.log_lines())

    # the old version alone, then the new one beside it: both accept, each works on what it can
    async with fleet(CELERY, "old") as old:
        first = await hand_in(6, 20)
        async with fleet(NEWER, "new"):
            await all_final(redis, namespace, first)
    # the new one is rolled back while records of its own are unfinished
    async with fleet(NEWER, "new"):
        second = await hand_in(6, 30)
    async with fleet(CELERY, "old") as old:
        await eventually(said(old), what="the old worker's complaint")
        third = await hand_in(3, 0)
        await all_final(redis, namespace, third)  # nothing holds up what it can read
        for key in known(second):
            assert await redis.hmget(key, "schema", "state") == [str(NEXT), "waiting"]
        async with fleet(NEWER, "new"):
            await all_final(redis, namespace, second)
    everything = [*first, *second, *third]
    records = await verify(simulator, redis, bucket, namespace, everything)
    schemas = [records[task_id]["schema"] for task_id in everything]
    assert schemas == ["1"] * 6 + [str(NEXT)] * 6 + ["1"] * 3

    # Redis is lost: the old version restores what it can read, the new one the rest
    await redis.flushall()
    ran = await command("rebuild", environ=given, cwd=ROOT)
    assert ran.code == 1
    assert "9 restored, 0 already known" in ran.said
    assert ran.said.count(f"schema {NEXT} is newer than this version's, {NEXT - 1}") == 6
    ran = await run(*NEWER, "rebuild", environ=given, cwd=ROOT)
    assert ran == Ran(code=0, said="6 restored, 9 already known\n")
    for task_id in everything:
        assert await redis.hgetall(f"{namespace}:task:{task_id}") == records[task_id]

    # an id is handed in to the old version whose manifest the new one has written
    await redis.delete(f"{namespace}:task:{second[0]}")
    body = json.dumps({"task_ids": second[:1]})
    async with fleet(CELERY, "old") as old:
        await redis.xadd(f"{namespace}:intake", {"body": body})
        await eventually(said(old), what="the old worker's complaint")
        async with fleet(NEWER, "new"):
            await all_final(redis, namespace, second[:1])
    again = await redis.hgetall(f"{namespace}:task:{second[0]}")
    assert (again["restored"], again["files"]) == ("true", records[second[0]]["files"])
