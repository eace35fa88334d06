"""An object store that fails, lies, or is out of reach."""

from __future__ import annotations

import asyncio
import collections
import json
import random
import time
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from tests.faults.http_proxy import Forward, HttpProxy, Reset, Seen, Silence, s3_error
from tests.faults.kit import FULL, Scene, size
from tests.fleet import idle, over
from tests.support import eventually

Fault = Callable[[Seen, Forward], Awaitable[web.StreamResponse]]

LARGE = {"simulate": {"images": [{"file": "png", "size": 20_000_000}, "webp"]}}
SMALL = {"simulate": {"images": ["png"], "result": {"clip": {"file": "mp4"}}}}


def some(count: int, large: int) -> list[dict[str, object]]:
    """Tasks whose files go up whole, and some whose files go up in parts."""
    return [LARGE] * large + [SMALL] * (count - large)


async def slow_down(_: Seen, __: Forward) -> web.StreamResponse:
    return s3_error(503, "SlowDown")


async def internal_error(_: Seen, __: Forward) -> web.StreamResponse:
    return s3_error(500, "InternalError")


async def no_answer(_: Seen, __: Forward) -> web.StreamResponse:
    return await Silence().keep()


async def reset_before(_: Seen, __: Forward) -> web.StreamResponse:
    raise Reset


async def reset_after_commit(_: Seen, forward: Forward) -> web.StreamResponse:
    await forward()
    raise Reset


async def no_answer_after_commit(_: Seen, forward: Forward) -> web.StreamResponse:
    await forward()
    return await Silence().keep()


async def conflict(seen: Seen, forward: Forward) -> web.StreamResponse:
    return s3_error(409, "ConditionalRequestConflict") if seen.conditional else await forward()


async def exists_allegedly(seen: Seen, forward: Forward) -> web.StreamResponse:
    return s3_error(412, "PreconditionFailed") if seen.conditional else await forward()


async def not_implemented(seen: Seen, forward: Forward) -> web.StreamResponse:
    return s3_error(501, "NotImplemented") if seen.conditional else await forward()


async def error_after_200(seen: Seen, forward: Forward) -> web.StreamResponse:
    return s3_error(200, "InternalError") if seen.step == "complete" else await forward()


FAULTS: tuple[Fault, ...] = (
    slow_down, internal_error, no_answer, reset_before, reset_after_commit,
    no_answer_after_commit, conflict, exists_allegedly, not_implemented, error_after_200,
)  # fmt: skip


class Once:
    """Hurts each step of each object once, by turns with each of the faults."""

    def __init__(self, faults: tuple[Fault, ...], seed: random.Random) -> None:
        self._faults = faults
        self._seed = seed
        self._met: set[tuple[str, str]] = set()
        self.hurt: collections.Counter[str] = collections.Counter()

    async def __call__(self, seen: Seen, forward: Forward) -> web.StreamResponse:
        step = (seen.step, seen.path)
        if step in self._met:
            return await forward()
        self._met.add(step)
        fault = self._seed.choice(self._faults)
        self.hurt[fault.__name__] += 1
        return await fault(seen, forward)


@pytest.mark.parametrize(
    "faults", [(f,) for f in FAULTS] if FULL else [FAULTS],
    ids=[f.__name__ for f in FAULTS] if FULL else ["all"],
)  # fmt: skip
async def test_store_fails(scene: Scene, faults: tuple[Fault, ...]) -> None:
    """Row 9: every step against the store meets a fault once."""
    ids = scene.plant(some(size(16, 100), large=size(3, 10)))
    rule = Once(faults, random.Random(9))
    async with (
        HttpProxy(scene.bucket.endpoint, rule) as proxy,
        scene.fleet(AWS_ENDPOINT_URL_S3=proxy.endpoint) as fleet,
        scene.watched(),
    ):
        await scene.hand_in(ids)
        await scene.all_final()
        assert fleet.started == 2
    assert set(rule.hurt) == {fault.__name__ for fault in faults}
    names = "each of them" if len(faults) > 1 else faults[0].__name__.replace("_", " ")
    await scene.judge("9", f"store: {names}", notes=f"{rule.hurt.total()} requests hurt")


async def test_wrong_credentials(scene: Scene) -> None:
    """Row 9: the store denies everything for a while."""
    denied = True

    async def rule(_: Seen, forward: Forward) -> web.StreamResponse:
        return s3_error(403, "InvalidAccessKeyId") if denied else await forward()

    ids = scene.plant(some(size(16, 100), large=2))
    async with (
        HttpProxy(scene.bucket.endpoint, rule) as proxy,
        scene.fleet(AWS_ENDPOINT_URL_S3=proxy.endpoint) as fleet,
        scene.watched(),
    ):
        await scene.hand_in(ids)
        # the gap to the next probe doubles with a probe that fails
        gap = f"{scene.namespace}:circuit:store", "gap"
        await eventually(lambda: over(scene.redis.hget(*gap), 5000), what="the first probe")
        await eventually(lambda: idle(scene.redis, scene.namespace), what="its end")
        began, before = time.monotonic(), len(proxy.seen)
        await eventually(lambda: over(scene.redis.hget(*gap), 10_000), what="the second probe")
        await eventually(lambda: idle(scene.redis, scene.namespace), what="its end")
        asked, took = len(proxy.seen) - before, time.monotonic() - began
        assert await scene.redis.zcard(f"{scene.namespace}:index:waiting") == len(ids)
        denied, began = False, time.monotonic()
        await scene.all_final()
        recovery = time.monotonic() - began
        loud = [line for line in fleet.log_lines() if line.get("event") == "circuit.open"]
    assert {line["circuit"] for line in loud} == {"store"}
    assert asked <= 3 * (1 + took / 10)  # one prober, which asks again where it may
    await scene.judge(
        "9", "store: wrong credentials", recovery=recovery, notes=f"{asked} probes while it lasted"
    )


async def test_keeps_half(scene: Scene) -> None:
    """Row 19: the store answers 200 and keeps half of the bytes."""
    lying, halves = True, 0

    async def rule(seen: Seen, forward: Forward) -> web.StreamResponse:
        nonlocal halves
        if not lying or seen.step not in ("PUT", "complete"):
            return await forward()
        halves += 1
        if seen.step == "complete":
            response = await forward()
        else:
            response = web.Response(headers={"ETag": '"0"'})
        key = seen.path.partition(f"/{scene.bucket.bucket}/")[2]
        await asyncio.to_thread(
            scene.bucket.client.put_object,
            Bucket=scene.bucket.bucket,
            Key=key,
            Body=seen.body[: len(seen.body) // 2],
        )
        return response

    ids = scene.plant(some(size(12, 100), large=2))
    async with (
        HttpProxy(scene.bucket.endpoint, rule) as proxy,
        scene.fleet(AWS_ENDPOINT_URL_S3=proxy.endpoint),
        scene.watched(),
    ):
        await scene.hand_in(ids)
        await eventually(lambda: halves >= size(15, 120), what="halves")
        states = [await scene.redis.hget(f"{scene.namespace}:task:{i}", "state") for i in ids]
        assert "stored" not in states
        assert await scene.redis.xlen(f"{scene.namespace}:events") == 0
        manifests = [k for k in scene.bucket.keys(f"{scene.namespace}/") if k.endswith(".json")]
        assert not manifests
        lying, began = False, time.monotonic()
        await scene.all_final()
        recovery = time.monotonic() - began
    found = await scene.judge(
        "19", "answers 200, keeps half", recovery=recovery, notes=f"{halves} halves"
    )
    assert all(json.loads(record["files"]) for record in found.records.values())
