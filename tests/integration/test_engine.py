"""Drains and the engine's loop, on a real Valkey."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.test_registry import due, make, submission
from tests.support import BOUND, eventually
from worker import engine
from worker.engine import Drain, Engine, Pace, Parts, _Watchdog
from worker.errors import RegistryUnavailable
from worker.registry.client import Client
from worker.registry.records import Batch, DueSet
from worker.registry.registry import Registry
from worker.work.claim import Claim, insist


class Toy:
    """Work that does what a test says."""

    kind = DueSet.COPY

    def __init__(self, act: Callable[[Claim], Awaitable[str]], slots: int = 10) -> None:
        self.slots = slots
        self.reserve = 0
        self.most = 0
        self.now = 0
        self.seen: list[str] = []
        self._act = act

    async def __call__(self, claim: Claim) -> str:
        self.seen.append(claim.job.task_id)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._act(claim)
        finally:
            self.now -= 1


@pytest.fixture
def registry(redis: Redis, namespace: str) -> Registry:
    return make(redis, namespace)


@pytest.fixture
def short(redis: Redis, namespace: str) -> Registry:
    """A registry with a lease that tests can wait for."""
    return make(redis, namespace, lease=2)


async def running(registry: Registry, toy: Toy, *, tick: float = 0.1, crash: float = 30) -> Drain:
    drain = Drain(registry, toy, Pace(tick=tick, gather=0, crash=crash))
    drain.task = asyncio.create_task(drain.run())  # type: ignore[attr-defined]
    return drain


async def ended(drain: Drain) -> None:
    await drain.stop(2)
    await drain.task  # type: ignore[attr-defined]


async def put_off(claim: Claim) -> str:
    await claim.save(DueSet.POLL)
    return "done"


async def test_jobs_that_take_long_open_the_slots_that_are_kept_for_that(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that they hold up no others, and there are never more than all slots."""
    over = asyncio.Event()

    async def act(claim: Claim) -> str:
        await over.wait()
        return await put_off(claim)

    toy = Toy(act, slots=6)
    toy.reserve = 3
    await registry.submit([submission(f"t{n}") for n in range(20)])
    monkeypatch.setattr(engine, "LINGERS", 1e9)
    drain = await running(registry, toy)
    await eventually(lambda: toy.now == 3)
    await asyncio.sleep(0.5)
    assert toy.now == 3
    monkeypatch.setattr(engine, "LINGERS", 0.0)
    await eventually(lambda: toy.now == 6)
    over.set()
    await eventually(lambda: len(toy.seen) >= 20)
    await ended(drain)
    assert toy.most <= 6


async def test_everything_due_is_worked_within_the_slots(registry: Registry) -> None:
    async def act(claim: Claim) -> str:
        await asyncio.sleep(0)
        return await put_off(claim)

    toy = Toy(act, slots=7)
    await registry.submit([submission(f"t{n}") for n in range(100)])
    drain = await running(registry, toy)
    await eventually(lambda: len(toy.seen) == 100)
    await ended(drain)
    assert sorted(toy.seen) == sorted({f"t{n}" for n in range(100)})
    assert toy.most <= 7


async def test_a_wake_is_heard_at_once(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(put_off)
    drain = await running(registry, toy, tick=3600)
    answered, claim = asyncio.Event(), registry.claim

    async def claiming(*args: Any, **options: Any) -> Batch:
        answer = await claim(*args, **options)
        answered.set()
        return replace(answer, wait=3600)

    monkeypatch.setattr(registry, "claim", claiming)
    await answered.wait()  # nothing was due: without a wake it looks again in an hour
    await registry.submit([submission()])
    drain.wake()
    await eventually(lambda: toy.seen)
    await ended(drain)


async def test_long_work_keeps_its_lease(short: Registry) -> None:
    registry = short

    async def act(claim: Claim) -> str:
        claim.alive(30)
        await asyncio.sleep(2 * registry.lease)
        return await put_off(claim)

    first, second = Toy(act), Toy(act)
    await registry.submit([submission()])
    drains = [await running(registry, first), await running(registry, second)]
    await eventually(lambda: _moved(registry))
    for drain in drains:
        await ended(drain)
    assert len(first.seen) + len(second.seen) == 1


async def _moved(registry: Registry) -> bool:
    return (await due(registry))[DueSet.POLL] == 1


async def test_work_that_shows_no_life_is_broken_off_and_handed_back(short: Registry) -> None:
    registry, broken_off = short, []

    async def hang(claim: Claim) -> str:
        if broken_off:
            return await put_off(claim)
        claim.alive(0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            broken_off.append(claim.job.task_id)
            raise
        return "never"

    toy = Toy(hang)
    drain = await running(registry, toy, crash=0)
    await registry.submit([submission()])
    drain.wake()
    await eventually(lambda: toy.seen == ["t1", "t1"])
    await ended(drain)
    assert broken_off == ["t1"]
    said = await registry.redis.hget(registry.key("task", "t1"), "last_error")
    assert said == "the work on the task made no progress in time"
    assert registry.tally.take()["jobs_overdue"] == 1


async def test_work_that_swallows_a_cancellation_is_broken_off_by_the_next(short: Registry) -> None:
    registry, swallowed = short, []

    async def hang(claim: Claim) -> str:
        if swallowed:
            return await put_off(claim)
        claim.alive(0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.append(claim.job.task_id)
        await asyncio.Event().wait()
        return "never"

    toy = Toy(hang, slots=1)
    drain = await running(registry, toy, crash=0)
    await registry.submit([submission()])
    drain.wake()
    await eventually(lambda: toy.seen == ["t1", "t1"])
    await ended(drain)
    assert registry.tally.take()["jobs_overdue"] == 1


async def test_a_job_that_was_claimed_again_meanwhile_does_not_take_the_new_claim_along(
    registry: Registry, redis: Redis
) -> None:
    over = asyncio.Event()

    async def act(claim: Claim) -> str:
        if len(toy.seen) == 1:
            claim.alive(0)  # no sign of life: its lease is not renewed
            await over.wait()
            return "late"
        await asyncio.sleep(60)
        return "never"

    toy = Toy(act)
    await registry.submit([submission()])
    drain = await running(registry, toy)
    await eventually(lambda: toy.seen)
    await redis.zadd(registry.key("due", DueSet.COPY), {"t1": 0})  # its lease has lapsed
    await eventually(lambda: len(toy.seen) == 2)
    over.set()
    await eventually(lambda: toy.now == 1)
    await ended(drain)
    assert await redis.hget(registry.key("work", "t1"), "token") is None  # given back


async def test_a_stop_hands_claims_back_at_once(registry: Registry, redis: Redis) -> None:
    async def act(claim: Claim) -> str:
        await asyncio.sleep(60)
        return "never"

    toy = Toy(act)
    await registry.submit([submission(f"t{n}") for n in range(5)])
    drain = await running(registry, toy)
    await eventually(lambda: len(toy.seen) == 5)
    await ended(drain)
    answer = await registry.claim(DueSet.COPY, limit=10, in_hand=0, slots=10)
    assert len(answer.jobs) == 5
    assert all(job.note("lapses") == 0 and job.cap == 10 for job in answer.jobs)


async def test_claims_that_come_after_the_stop_are_handed_back(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, on_the_way, may_come = registry.claim, asyncio.Event(), asyncio.Event()

    async def late(*args: Any, **options: Any) -> Batch:
        answer = await ask(*args, **options)
        on_the_way.set()
        await may_come.wait()
        return answer

    async def act(claim: Claim) -> str:
        return await put_off(claim)

    toy = Toy(act)
    await registry.submit([submission("t")])
    monkeypatch.setattr(registry, "claim", late)
    drain = await running(registry, toy)
    await on_the_way.wait()
    await drain.stop(2)
    may_come.set()
    await drain.task  # type: ignore[attr-defined]
    assert toy.seen == []
    answer = await ask(DueSet.COPY, limit=10, in_hand=0, slots=10)
    assert [job.note("lapses") for job in answer.jobs] == [0]


async def test_a_crash_of_one_job_disturbs_no_other(registry: Registry) -> None:
    async def act(claim: Claim) -> str:
        if claim.job.task_id == "t3":
            raise ZeroDivisionError
        return await put_off(claim)

    toy = Toy(act)
    await registry.submit([submission(f"t{n}") for n in range(6)])
    drain = await running(registry, toy)
    await eventually(lambda: _polls(registry, 5))
    await ended(drain)
    assert await due(registry) == {DueSet.POLL: 5, DueSet.COPY: 1, DueSet.FETCH: 0, DueSet.TELL: 0}
    assert toy.seen.count("t3") == 1


@pytest.mark.parametrize("way_out", ["stop", "crash"])
async def test_what_work_came_to_is_kept_when_its_claim_is_released(
    registry: Registry, redis: Redis, way_out: str
) -> None:
    async def act(claim: Claim) -> str:
        claim.unsaved.calls += 2
        claim.unsaved.notes |= {"try:0": "a note", "faults": ""}
        if way_out == "crash":
            raise ZeroDivisionError
        await asyncio.sleep(60)
        return "never"

    toy = Toy(act)
    await registry.submit([submission("t1"), submission("t2")])
    for task_id in ("t1", "t2"):
        await redis.hset(registry.key("work", task_id), "faults", "1")
    drain = await running(registry, toy)
    await eventually(lambda: len(toy.seen) == 2)
    await ended(drain)
    for task_id in ("t1", "t2"):
        assert await redis.hget(registry.key("task", task_id), "polls") == "2"
        work = await redis.hgetall(registry.key("work", task_id))
        assert work["try:0"] == "a note"
        assert "faults" not in work
        assert "token" not in work
    assert await redis.hget(registry.key("counters"), "calls") == "4"


async def _polls(registry: Registry, count: int) -> bool:
    return (await due(registry))[DueSet.POLL] == count


async def test_insisting_outlasts_a_short_outage() -> None:
    calls = []

    async def call() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise RegistryUnavailable("away")
        return "there"

    assert await insist(call) == "there"
    calls.clear()
    with pytest.raises(RegistryUnavailable):
        await insist(call, seconds=0.05)


async def test_the_engine_starts_ticks_and_stops(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    closed = []
    heartbeat = tmp_path / "heartbeat"

    class Nothing:
        async def drain_stream(self) -> int:
            return 0

    async def build(_wake: Callable[[DueSet], None]) -> Parts:
        client = Client.from_url(redis_url, decode_responses=True, protocol=2)
        registry = make(client, namespace)

        async def close() -> None:
            closed.append(True)
            await registry.close()

        toy = Toy(put_off)
        return Parts(registry=registry, works=(toy,), intake=Nothing(), close=close)  # type: ignore[arg-type]

    engine = Engine(build, grace=5, heartbeat=heartbeat)
    engine.start()

    async def workers(parts: Parts) -> list[str]:
        async def alive() -> list[str]:
            return (await parts.registry.overview()).alive

        return await eventually(alive)

    assert await asyncio.to_thread(engine.call, workers) == [engine.name]
    heartbeat.unlink()
    await eventually(heartbeat.exists)
    # what is asked of it at a stop is refused, and can be asked of another one
    waiting = asyncio.Event()

    async def wait(_: Parts) -> None:
        waiting.set()
        await asyncio.Event().wait()

    asked = asyncio.create_task(asyncio.to_thread(engine.call, wait))
    await eventually(waiting.is_set)
    engine.stop()
    with pytest.raises(RegistryUnavailable):
        await asked
    assert engine.join(BOUND)
    engine.wake(DueSet.COPY)  # a message that comes late does no harm
    with pytest.raises(RegistryUnavailable):
        engine.call(workers)
    assert closed == [True]
    client = Client.from_url(redis_url, decode_responses=True, protocol=2)
    assert (await make(client, namespace).overview()).workers == {}
    await client.aclose()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_loop_that_stands_still_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit

    monkeypatch.setattr("worker.engine.os._exit", leave)
    watchdog = _Watchdog(2.0)
    watchdog.start()
    await asyncio.sleep(2.5)
    assert codes == []
    time.sleep(4)  # noqa: ASYNC251  the loop stands still
    await eventually(lambda: codes == [70])
    watchdog.join(BOUND)
    assert not watchdog.is_alive()
