"""Keys of the fleet that something else has written to, and a Redis that refuses some of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from tests.integration.test_registry import claim, claim_one, finish, make, submission, waiting
from tests.support import eventually
from worker.core.durations import Lesson
from worker.core.models import State
from worker.errors import LeaseLost, RecordMalformed, RegistryUnavailable
from worker.registry.records import DueSet
from worker.registry.registry import Registry
from worker.registry.stats import read_stats

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


FLEETS_KEYS = [
    "rate", "counters", "services", "webhooks", "versions", "clock", "circuit:upstream",
    "circuit:store", "circuit:tell", "intake:strikes", "turn:poll", "turn:copy", "turns:poll",
    "turns:copy", "due:poll", "due:copy", "due:fetch", "due:tell", "index:waiting",
    "index:copying", "index:failed", "expiring", "workers", "suspects", "aside", "refused",
    "events", "durations:poster", "reconciled:waiting", "reconciled:copying", "said:reconcile",
    "overdue:poll:poster", "overdue:copy:poster",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["string", "hash"])
@pytest.mark.parametrize("key", FLEETS_KEYS)
async def test_a_key_of_the_whole_fleet_that_is_overwritten_stops_nothing(
    registry: Registry, key: str, kind: str
) -> None:
    spoilt = registry.key(key)
    if kind == "string":
        await registry.redis.set(spoilt, "nan")
    else:
        fields = ("at", "tokens", "factor", "calls", "found", "waiting", "came", "count")
        await registry.redis.hset(spoilt, mapping=dict.fromkeys(fields, "nan"))
    await registry.tick("w")
    await registry.submit([submission(task_id) for task_id in IDS])
    await registry.reconcile()
    for job in await claim(registry, DueSet.COPY):
        await registry.save(job, to=DueSet.POLL)
    polled = await claim(registry, DueSet.POLL)
    assert sorted(job.task_id for job in polled) == IDS
    lesson = Lesson(fields=("total:3",), lag=0)
    await registry.save(polled[0], to=DueSet.FETCH, state=State.COPYING, learned=lesson)
    for job in [*polled[1:], *await claim(registry, DueSet.FETCH)]:
        await finish(registry, job, State.FAILED)
    assert (await registry.overview()).counts[State.FAILED] == len(IDS)
    assert (await read_stats(registry)).states[State.FAILED] == len(IDS)
    await registry.take_call("token")
    assert await registry.reconcile() == 0


async def test_what_can_begin_again_does_so_at_once_and_is_named(registry: Registry) -> None:
    await spoil(registry, "rate")
    await spoil(registry, "intake")  # of producers: it is left for a person to look at
    assert await registry.tick("w") == [registry.key("rate")]
    assert await registry.tick("w") == []
    assert await registry.check() == {registry.key("intake"): ""}


@pytest.mark.parametrize("field", ["factor", "at", "tokens"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-1e300", "9e18", "1e-320", "x", ""])
async def test_an_odd_rate_stops_no_poll(registry: Registry, field: str, value: str) -> None:
    await registry.release([await waiting(registry)])
    kept = {"at": await registry.now() - 60_000, "tokens": "1", "factor": "1"}
    await registry.redis.hset(registry.key("rate"), mapping={**kept, field: value})
    await registry.overview()

    async def polled() -> bool:
        return bool(await claim(registry, DueSet.POLL))

    await eventually(polled, what="a poll")


@pytest.mark.parametrize("probe_at", ["nan", "inf", "9e18", "x", "9999999999999"])
async def test_a_probe_is_not_put_off_for_ever(registry: Registry, probe_at: str) -> None:
    await registry.release([await waiting(registry)])
    await registry.trip("upstream", kind="credentials", message="no", probe=False)
    await registry.redis.hset(registry.key("circuit", "upstream"), "probe_at", probe_at)
    assert [job.probe for job in await claim(registry, DueSet.POLL)] == [True]


@pytest.mark.parametrize("score", ["+inf", "1e300", "9e15"])
async def test_a_time_that_never_comes_is_found(registry: Registry, score: str) -> None:
    await registry.release([await waiting(registry)])
    await registry.redis.zadd(registry.key("due", "poll"), {"t1": float(score)})
    assert await registry.reconcile() == 1
    assert [job.task_id for job in await claim(registry, DueSet.COPY)] == ["t1"]


async def test_what_is_done_once_in_a_while_is_done_again(registry: Registry) -> None:
    """After a step back of Redis' clock a key lives on for as long as the step was."""
    assert await registry.say_once("x")
    assert not await registry.say_once("x")
    for more in ({}, {"ex": 3600}):
        await registry.redis.set(registry.key("said", "x"), "1", **more)
        assert await registry.say_once("x")
        assert not await registry.say_once("x")


DAMAGED = [
    ("state", "odd"), ("submitted_at", "x"), ("submitted_at", "9" * 30), ("run", ""),
    ("run", "x"), ("finished_at", "nan"), ("polls", "-1"), ("updated_at", "1e5"),
    ("files", "null"), ("files", '[{"key": 3}]'), ("files", "[" * 9999), ("options", "{}"),
    ("metadata", "x"), ("upstream", "[]"), ("told", "{}"), ("last_error_at", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "text"), DAMAGED)
async def test_a_record_that_cannot_be_read_hides_no_other(
    registry: Registry, field: str, text: str
) -> None:
    await registry.submit([submission("t1"), submission("t2")])
    await registry.redis.hset(registry.key("task", "t1"), field, text)
    with pytest.raises(RecordMalformed, match=f"t1 .* its {field}"):
        await registry.record("t1")
    first, second = await registry.records(["t1", "t2"])
    assert (first, second and second["task_id"]) == (None, "t2")
    named = ("task_id", field)
    first, second = await registry.fields(["t1", "t2"], named)
    assert (first, second and second["task_id"]) == (None, "t2")
    if field == "state":
        assert await registry.states(["t1"]) == {"t1": None}


async def test_a_job_with_an_odd_record_is_given_back(registry: Registry) -> None:
    await registry.submit([submission()])
    await registry.redis.hset(registry.key("task", "t1"), "run", "x")
    job = await claim_one(registry, DueSet.COPY)
    assert (job.run, job.cap) == (0, 100)


async def test_a_callback_for_an_odd_record_is_refused(registry: Registry) -> None:
    callback = {"channel": "webhook", "target": "https://a.test"}
    again = replace(submission(), options=json.dumps({"callbacks": [callback]}))
    await registry.submit([submission()])
    await registry.redis.hset(registry.key("task", "t1"), "options", "x")
    new, (refusal,) = await registry.submit([again])
    assert (new, refusal.what) == ({"t1": False}, "callback")
    await spoil(registry, "task", "t1")
    assert await registry.submit([again]) == ({"t1": False}, [])


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
