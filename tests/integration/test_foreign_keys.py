"""Keys of the fleet that something else has written to, and a Redis that refuses some of them."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from tests.integration.test_registry import claim, make, submission, waiting
from worker.core.models import State
from worker.errors import LeaseLost, RegistryUnavailable
from worker.registry.records import DueSet
from worker.registry.registry import Registry

IDS = [f"t{n}" for n in range(5)]


@pytest.fixture
def registry(redis: Redis, namespace: str) -> Registry:
    return make(redis, namespace)


async def spoil(registry: Registry, *parts: str) -> None:
    """Put a string where the fleet keeps something else."""
    await registry.redis.set(registry.key(*parts), "something else")


@pytest.mark.parametrize("what", ["task", "work"])
@pytest.mark.parametrize("kind", DueSet)
async def test_a_task_whose_key_is_overwritten_holds_up_no_other(
    registry: Registry, kind: DueSet, what: str
) -> None:
    await registry.submit([submission(task_id) for task_id in IDS])
    for task_id in IDS:
        await registry.redis.zadd(registry.key("due", kind), {task_id: 1})
    await spoil(registry, what, IDS[0])
    batch = await registry.claim(kind, limit=100, in_hand=0, slots=100)
    assert sorted(job.task_id for job in batch.jobs) == IDS[1:]
    assert batch.aside == (IDS[0],)
    assert await registry.redis.zscore(registry.key("due", kind), IDS[0]) is None
    assert await registry.set_aside(seconds=60) == [IDS[0]]
    assert (await registry.overview()).counters["set_aside"] == 1


async def test_a_task_that_was_set_right_goes_on(registry: Registry) -> None:
    await registry.submit([submission()])
    record = await registry.record("t1")
    assert record is not None
    await spoil(registry, "task", "t1")
    assert await claim(registry, DueSet.COPY) == []
    assert await registry.reconcile() == 1  # it may have been set right
    assert await claim(registry, DueSet.COPY) == []
    await registry.redis.delete(registry.key("task", "t1"))
    await registry.redis.hset(registry.key("task", "t1"), mapping=record)
    await registry.redis.delete(registry.key("said", "reconcile"))
    assert await registry.reconcile() == 1
    assert [job.task_id for job in await claim(registry, DueSet.COPY)] == ["t1"]


async def test_the_others_of_a_claim_are_renewed_and_released(registry: Registry) -> None:
    await registry.submit([submission(task_id) for task_id in IDS])
    jobs = await claim(registry, DueSet.COPY)
    await spoil(registry, "work", IDS[2])
    renewed = await registry.renew(jobs)
    assert renewed == {i: "lost" if i == IDS[2] else "ok" for i in IDS}
    await registry.release(jobs)
    assert len(await claim(registry, DueSet.COPY)) == 4
    spoiled = next(job for job in jobs if job.task_id == IDS[2])
    with pytest.raises(LeaseLost):
        await registry.save(spoiled, to=DueSet.POLL)


async def test_lists_show_the_others(registry: Registry) -> None:
    await registry.submit([submission(task_id) for task_id in IDS])
    await spoil(registry, "task", IDS[1])
    assert (await registry.states(IDS))[IDS[1]] is None
    assert (await registry.states(IDS))[IDS[2]] is State.WAITING
    assert [r and r["task_id"] for r in await registry.records(IDS)][:3] == [IDS[0], None, IDS[2]]
    assert (await registry.fields(IDS, ["task_id"]))[:2] == [{"task_id": IDS[0]}, None]


@pytest.mark.parametrize("score", ["-inf", "-1e300"])
async def test_an_odd_score_is_no_trouble(registry: Registry, score: str) -> None:
    job = await waiting(registry)
    await registry.release([job])
    await registry.redis.zadd(registry.key("due", "poll"), {"t1": float(score)})
    assert [job.task_id for job in await claim(registry, DueSet.POLL)] == ["t1"]


async def test_an_odd_schema_is_no_trouble(registry: Registry) -> None:
    await registry.submit([submission("t1"), submission("t2")])
    await registry.redis.hset(registry.key("task", "t1"), "schema", "no number")
    assert {job.task_id for job in await claim(registry, DueSet.COPY)} == {"t1", "t2"}


async def test_a_key_of_the_whole_fleet_is_named(registry: Registry) -> None:
    assert await registry.check() == {}
    await spoil(registry, "suspects")
    await spoil(registry, "events")
    before = await registry.redis.keys(registry.key("*"))
    assert await registry.check() == {registry.key("suspects"): "", registry.key("events"): ""}
    assert sorted(await registry.redis.keys(registry.key("*"))) == sorted(before)


async def test_a_full_redis_is_no_refused_key(registry: Registry) -> None:
    await registry.redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(RegistryUnavailable, match="takes no writes"):
            await registry.check()
    finally:
        await registry.redis.config_set("maxmemory", "0")
