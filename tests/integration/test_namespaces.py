"""Two fleets on one Redis and one broker: what befalls one does not touch the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.fleet import Fleet, all_final, environ, verify
from tests.support import BucketEnv, eventually
from worker.sandbox.simulator import Simulator

pytestmark = pytest.mark.fleet


async def test_an_outage_and_a_flood_of_one_do_not_touch_the_other(
    simulator: Simulator,
    redis_url: str,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
) -> None:
    well, ill = f"{namespace}-well", f"{namespace}-ill"
    ids = [simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(10)]
    flood = [f"flood-{n}" for n in range(2000)]
    for folder in ("well", "ill"):
        (tmp_path / folder).mkdir()
    refused = environ(simulator, redis_url, bucket, ill, SPEEDPIX_APP_SECRET="a-wrong-one")
    healthy = environ(simulator, redis_url, bucket, well)
    async with Fleet(refused, tmp_path / "ill", size=1), Fleet(healthy, tmp_path / "well", size=1):
        for start in range(0, len(flood), 500):
            body = {"task_ids": flood[start : start + 500]}
            await redis.xadd(f"{ill}:intake", {"body": json.dumps(body)})
        await eventually(lambda: redis.exists(f"{ill}:circuit:upstream"), what="the circuit")
        await redis.xadd(f"{well}:intake", {"body": json.dumps({"task_ids": ids})})
        await all_final(redis, well, ids)
        assert not await redis.exists(f"{well}:circuit:upstream")
    await verify(simulator, redis, bucket, well, ids)
    assert await redis.zcard(f"{ill}:index:waiting") == len(flood)
    assert not [key async for key in redis.scan_iter(f"{well}:*:flood-*")]


async def test_throttling_of_one_does_not_slow_the_other(
    simulator: Simulator,
    redis_url: str,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
) -> None:
    well, ill = f"{namespace}-well", f"{namespace}-ill"
    asked_too_often = {"answers": [{"fault": "throttled", "times": "ever"}]}
    throttled = [simulator.submit({"simulate": asked_too_often}) for _ in range(50)]
    ids = [simulator.submit({"simulate": {"images": ["png"], "duration": 1}}) for _ in range(10)]
    for folder in ("well", "ill"):
        (tmp_path / folder).mkdir()
    slowed = environ(simulator, redis_url, bucket, ill)
    healthy = environ(simulator, redis_url, bucket, well)

    async def factor() -> bool:
        return float(await redis.hget(f"{ill}:rate", "factor") or 1) < 0.3

    async with (
        Fleet(slowed, tmp_path / "ill", size=1),
        Fleet(healthy, tmp_path / "well", size=1) as fleet,
    ):
        await redis.xadd(f"{ill}:intake", {"body": json.dumps({"task_ids": throttled})})
        await eventually(factor, what="the throttled fleet's lower rate")
        await redis.xadd(f"{well}:intake", {"body": json.dumps({"task_ids": ids})})
        await all_final(redis, well, ids)
        assert float(await redis.hget(f"{well}:rate", "factor") or 1) == 1
        assert "upstream.throttled" not in fleet.log_text()
    await verify(simulator, redis, bucket, well, ids)
    assert await redis.zcard(f"{ill}:index:waiting") == len(throttled)
