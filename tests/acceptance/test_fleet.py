"""The whole job by real worker processes, hurt while they work."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

import pytest
from celery import Celery
from redis.asyncio import Redis

from tests.fleet import FINAL, Fleet, Killer, all_final, environ, idle, over, verify
from tests.scripts import mixed
from tests.support import BucketEnv, eventually, repeating
from worker.sandbox.simulator import Simulator

MIXED = 300
KILLS = 8
KILL_EVERY = 3.0  # seconds
BETWEEN = 10  # tasks that end between two kills, so that a slow machine gets on, too


def celery_of_another_application(redis_url: str) -> Celery:
    return Celery("another", broker=redis_url)


async def hand_in(redis_url: str, namespace: str, *args: object, **options: object) -> None:
    """As the README tells other applications to."""

    def send() -> None:
        with celery_of_another_application(redis_url) as app:
            app.send_task("harvester.submit", args=args, kwargs=options, queue=namespace)

    await asyncio.to_thread(send)


async def test_the_vendors_example(
    simulator: Simulator, redis: Redis, redis_url: str, bucket: BucketEnv, namespace: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    task_id = simulator.example()
    async with Fleet(environ(simulator, redis_url, bucket, namespace), tmp_path, size=1):
        await hand_in(redis_url, namespace, task_id, metadata={"order": 42})
        await all_final(redis, namespace, [task_id])
    records = await verify(simulator, redis, bucket, namespace, [task_id])
    record = records[task_id]
    assert record["state"] == "stored"
    assert json.loads(record["metadata"]) == {"order": 42}
    (file,) = json.loads(record["files"])
    assert file["refs"] == ["/result/poster/url", "/images/0"]
    assert file["key"] == f"{namespace}/{task_id}/result/poster.webp"
    assert file["uri"] == f"s3://{bucket.bucket}/{file['key']}"
    assert (file["content_type"], file["width"], file["height"]) == ("image/webp", 472, 1024)
    result = json.loads(record["result"])
    assert result["images"] == [file["uri"]]
    assert result["result"]["poster"]["url"] == file["uri"]
    assert result["result"]["poster"]["object_key"].startswith("comfy/output/")
    head = bucket.client.head_object(Bucket=bucket.bucket, Key=file["key"])
    assert head["ContentType"] == "image/webp"
    assert head["Metadata"] == {"task-id": task_id, "sha256": file["sha256"]}
    assert head["ContentDisposition"].startswith("inline")
    manifest = json.loads(bucket.read(record["manifest"]))
    assert manifest["state"] == "stored"
    assert manifest["result"] == result


@pytest.mark.fleet
async def test_workers_killed_again_and_again_lose_nothing(
    simulator: Simulator, redis: Redis, redis_url: str, bucket: BucketEnv, namespace: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    seed = random.Random(7)
    scripts = mixed(MIXED, seed, spread=25)
    simulator.control(latency=0.3)  # so that kills hit polls in flight, too
    async with Fleet(environ(simulator, redis_url, bucket, namespace), tmp_path) as fleet:
        killer = Killer(fleet, redis, namespace)
        ids = [simulator.submit(script) for script in scripts]
        for start in range(0, MIXED, 20):
            body = json.dumps({"task_ids": ids[start : start + 20]})
            await redis.xadd(f"{namespace}:intake", {"body": body})

        ended = 0

        async def kill() -> None:
            nonlocal ended
            counts = [await redis.zcard(f"{namespace}:index:{state}") for state in FINAL]
            if killer.kills < KILLS and sum(counts) >= ended + BETWEEN:
                await killer.kill_a_busy_one(seed)
                ended = sum(counts)

        async with repeating(kill, KILL_EVERY):
            await all_final(redis, namespace, ids)
    await verify(simulator, redis, bucket, namespace, ids)
    print(f"{killer.kills} kills: {dict(killer.stages)}")
    assert killer.kills >= 5
    assert killer.stages["polling"] > 0
    assert sum(killer.stages[stage] for stage in ("mid-copy", "between files")) > 0


async def test_doubled_and_lost_messages_change_nothing(
    simulator: Simulator, redis: Redis, redis_url: str, bucket: BucketEnv, namespace: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    ids = [simulator.submit({"simulate": {"duration": 3, "images": ["png"]}}) for _ in range(20)]
    async with Fleet(environ(simulator, redis_url, bucket, namespace), tmp_path) as fleet:
        for _ in range(3):
            await hand_in(redis_url, namespace, ids)
        await eventually(lambda: redis.zcard(f"{namespace}:index:waiting"), what="the first record")
        await redis.delete(namespace)
        with celery_of_another_application(redis_url) as app:
            for kind in ("poll", "copy", "tell") * 5:
                app.send_task(f"harvester.{kind}", queue=namespace)
        await all_final(redis, namespace, ids)
        await fleet.ready()
        assert await fleet.stop() == [0, 0]
    await verify(simulator, redis, bucket, namespace, ids)


async def test_garbage_leaves_the_workers_standing(
    simulator: Simulator, redis: Redis, redis_url: str, bucket: BucketEnv, namespace: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    good = [simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(3)]
    garbage: list[tuple[tuple[object, ...], dict[str, object]]] = [
        ((), {}),
        ((None,), {}),
        ((5,), {}),
        (({"a": 1},), {}),
        (("x" * 1_000_000,), {}),
        (("../../etc/passwd",), {}),
        (("a\nb\x00",), {}),
        (("<script>",), {"metadata": [1]}),
        ((["ok-1", "../no", 7, None],), {"nonsense": True, "prefix": "../x"}),
        (("ok-2", "second argument"), {}),
        ((["too", "many"] * 1000,), {}),
    ]
    async with Fleet(environ(simulator, redis_url, bucket, namespace), tmp_path, size=1) as fleet:
        (process,) = fleet.processes
        for args, options in garbage:
            await hand_in(redis_url, namespace, *args, **options)
        for raw in (b"not json", b"{}", b"\xff\xfe\x00", b"[]", b'{"body": 1}', b"null"):
            await redis.lpush(namespace, raw)
        for body in ("", "no json", "[1]", "{}", '{"task_ids": "../x"}', "{" * 5000):
            await redis.xadd(f"{namespace}:intake", {"body": body})
        await redis.xadd(f"{namespace}:intake", {"other": "field"})
        await hand_in(redis_url, namespace, good[0])
        await redis.xadd(f"{namespace}:intake", {"body": json.dumps({"task_ids": good[1:]})})
        await all_final(redis, namespace, good)
        assert fleet.processes == [process], fleet.log_text()[-3000:]
        refused = [json.loads(text) for text in await redis.lrange(f"{namespace}:refused", 0, -1)]
    assert all(entry["reason"] and len(entry["value"]) < 1000 for entry in refused)
    values = " ".join(entry["value"] for entry in refused)
    assert "passwd" in values
    assert await redis.exists(f"{namespace}:task:ok-1")
    assert not await redis.exists(f"{namespace}:task:../no")
    assert await redis.xlen(f"{namespace}:intake") == 0


@pytest.mark.fleet
async def test_a_wrong_upstream_secret_ends_nothing(
    simulator: Simulator, redis: Redis, redis_url: str, bucket: BucketEnv, namespace: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    secret = simulator.app_secret
    env = environ(simulator, redis_url, bucket, namespace)
    simulator.control(app_secret="another-secret-now")
    ids = [simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(20)]
    async with Fleet(env, tmp_path) as fleet:
        await hand_in(redis_url, namespace, ids)
        await eventually(lambda: redis.exists(f"{namespace}:circuit:upstream"), what="the circuit")
        await eventually(lambda: idle(redis, namespace), what="the end of the first calls")
        began, calls = time.monotonic(), simulator.counters.signature_failures
        # the gap to the next probe doubles with a probe that fails
        gap = f"{namespace}:circuit:upstream", "gap"
        await eventually(lambda: over(redis.hget(*gap), 5000), what="a probe")
        await eventually(lambda: idle(redis, namespace), what="the end of the probe")
        probes, took = simulator.counters.signature_failures - calls, time.monotonic() - began
        assert probes <= 1 + took / 5  # one prober, and no gap is shorter than 5 s
        assert await redis.zcard(f"{namespace}:index:waiting") == 20
        loud = [line for line in fleet.log_lines() if line.get("event") == "circuit.open"]
        assert len(loud) == 1
        assert loud[0]["level"] == "error"
        simulator.control(app_secret=secret)
        await all_final(redis, namespace, ids)
    await verify(simulator, redis, bucket, namespace, ids)
    assert secret not in fleet.log_text()


@pytest.mark.fleet
async def test_wrong_bucket_credentials_end_nothing(
    simulator: Simulator, redis: Redis, redis_url: str, bucket: BucketEnv, namespace: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    ids = [simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(20)]
    env = environ(simulator, redis_url, bucket, namespace)
    wrong = {**env, "AWS_SECRET_ACCESS_KEY": "wrong"}
    async with Fleet(wrong, tmp_path) as fleet:
        await hand_in(redis_url, namespace, ids)
        await eventually(lambda: redis.exists(f"{namespace}:circuit:store"), what="the circuit")
        gap = f"{namespace}:circuit:store", "gap"
        await eventually(lambda: over(redis.hget(*gap), 5000), what="a probe")
        assert await redis.zcard(f"{namespace}:index:waiting") == 20
        loud = [line for line in fleet.log_lines() if line.get("event") == "circuit.open"]
        assert [line["circuit"] for line in loud] == ["store"]
    async with Fleet(env, tmp_path):
        await all_final(redis, namespace, ids)
    await verify(simulator, redis, bucket, namespace, ids)
