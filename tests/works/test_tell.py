"""Telling: a target that keeps its callers waiting holds few of them, and no other target up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from amqp.exceptions import ResourceLocked
from celery import Celery
from kombu.exceptions import OperationalError
from redis.asyncio import Redis

from tests.integration.test_registry import claim, due, finish, make, submission
from tests.support import BOUND, eventually
from worker.core.schedule import Gaps
from worker.core.services import REPLIES
from worker.errors import TellError
from worker.registry.records import DueSet, Job
from worker.registry.registry import Registry
from worker.telling.reply import CeleryReply
from worker.work.claim import Claim
from worker.work.shares import FEW
from worker.work.tell import _LARGE, TellWork

SILENT, GOOD = "https://silent.example:8443/hook", "https://good.example/hook"


class Targets:
    """A channel: targets of a silent host answer when ``over`` is set, all others at once."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.called: list[str] = []

    async def tell(self, callback: Mapping[str, str], record: Mapping[str, Any]) -> None:
        self.called.append(callback["target"])
        if "silent" in callback["target"]:
            await self.over.wait()
            raise TellError("no answer in time")


class Telling:
    """Claimed endings and the work on them."""

    def __init__(self, registry: Registry, *, slots: int = 16, reserve: int = 0) -> None:
        self.registry = registry
        self.targets = Targets()
        self.work = TellWork(
            {"webhook": self.targets}, slots=slots, reserve=reserve, gaps=Gaps(busy=30)
        )
        self.running: list[asyncio.Task[str]] = []

    async def jobs(self, *targets: str, of_each: int = 1) -> list[Job]:
        """Claimed endings, so many for each target; ids are ``0``, ``1``…"""
        hooks = [{"channel": "webhook", "target": each} for each in targets]
        ids = [str(number) for number in range(of_each * len(hooks))]
        for number, task_id in enumerate(ids):
            await self.registry.submit([submission(task_id, callbacks=[hooks[number // of_each]])])
        for job in await claim(self.registry, DueSet.COPY):
            await finish(self.registry, job)
        jobs = await claim(self.registry, DueSet.TELL)
        return sorted(jobs, key=lambda job: int(job.task_id))

    def start(self, job: Job) -> asyncio.Task[str]:
        self.running.append(asyncio.create_task(self.work(Claim(self.registry, job))))
        return self.running[-1]


@pytest.fixture
def registry(redis: Redis, namespace: str) -> Registry:
    return make(redis, namespace)


@asynccontextmanager
async def telling(registry: Registry, **options: int) -> AsyncIterator[Telling]:
    made = Telling(registry, **options)
    try:
        yield made
    finally:
        made.targets.over.set()
        await asyncio.gather(*made.running, return_exceptions=True)


async def told(registry: Registry, task_id: str) -> list[dict[str, Any]]:
    record = await registry.record(task_id)
    assert record is not None
    found: list[dict[str, Any]] = json.loads(record.get("told") or "[]")
    return found


async def test_a_silent_host_holds_a_few_slots_and_its_other_callbacks_wait_untouched(
    registry: Registry,
) -> None:
    async with telling(registry) as tell:
        jobs = await tell.jobs(f"{SILENT}/1", f"{SILENT}/2", GOOD, of_each=5)
        silent = [tell.start(job) for job in jobs[:10]]
        async with asyncio.timeout(BOUND):
            assert [await each for each in silent[FEW:]] == ["crowded"] * (10 - FEW)
            for job in jobs[10:]:
                assert await tell.start(job) == "told"
        assert len(tell.targets.called) == FEW + 5
        for job in jobs[FEW:10]:
            assert await told(registry, job.task_id) == []
            now = await registry.now()
            at = await registry.redis.zscore(registry.key("due", "tell"), job.task_id)
            assert now + 20_000 < at <= now + 31_000
            assert await registry.redis.ttl(registry.key("task", job.task_id)) == -1
        tell.targets.over.set()
        assert [await each for each in silent[:FEW]] == ["again"] * FEW
        assert [entry["attempts"] for entry in await told(registry, jobs[0].task_id)] == [1]


async def test_a_host_that_answers_is_given_all_slots(registry: Registry) -> None:
    async with telling(registry) as tell:
        jobs = await tell.jobs(GOOD, of_each=30)
        for job in jobs[:3]:
            assert await tell.start(job) == "told"
        rest = [tell.start(job) for job in jobs[3 : 3 + 16]]
        assert [await each for each in rest] == ["told"] * 16


async def test_any_number_of_silent_hosts_leaves_slots_to_one_that_answers(
    registry: Registry,
) -> None:
    async with telling(registry, slots=16, reserve=8) as tell:
        strangers = [f"https://silent-{n}.example/" for n in range(20)]
        jobs = await tell.jobs(GOOD, *strangers, of_each=2)
        assert await tell.start(jobs[0]) == "told"
        for job in jobs[2:]:
            tell.start(job)
        await eventually(lambda: sum(map(asyncio.Task.done, tell.running)) == 1 + 40 - 12)
        assert await tell.start(jobs[1]) == "told"


async def test_callbacks_of_one_task_do_not_wait_for_each_other(registry: Registry) -> None:
    hooks = [{"channel": "webhook", "target": each} for each in (SILENT, GOOD)]
    async with telling(registry) as tell:
        await registry.submit([submission(callbacks=hooks)])
        (job,) = await claim(registry, DueSet.COPY)
        await finish(registry, job)
        (job,) = await claim(registry, DueSet.TELL)
        running = tell.start(job)
        await eventually(lambda: tell.targets.called == [SILENT, GOOD])
        tell.targets.over.set()
        assert await running == "again"
        entries = {entry["target"]: entry for entry in await told(registry, "t1")}
        assert entries[GOOD]["done_at"] is not None
        assert entries[SILENT]["done_at"] is None


async def test_few_large_records_are_held_at_once_whoever_is_to_be_told(
    registry: Registry,
) -> None:
    async with telling(registry) as tell:
        jobs = await tell.jobs(*(f"https://silent-{n}.example/" for n in range(8)), GOOD)
        result = json.dumps({"text": "x" * _LARGE})
        large = [replace(job, record={**job.record, "result": result}) for job in jobs[:8]]
        running = [tell.start(job) for job in large]
        assert [await each for each in running[FEW:]] == ["crowded"] * (8 - FEW)
        assert await tell.start(jobs[8]) == "told"
        assert (await due(registry))[DueSet.TELL] == 8


async def test_few_large_records_are_held_at_once_even_after_prompt_answers(
    registry: Registry,
) -> None:
    async with telling(registry) as tell:
        strangers = [f"https://silent-{n}.example/" for n in range(12)]
        jobs = await tell.jobs(GOOD, *strangers)
        result = json.dumps({"text": "x" * _LARGE})
        first, *large = [replace(job, record={**job.record, "result": result}) for job in jobs]
        assert await tell.start(first) == "told"
        running = [tell.start(job) for job in large]
        async with asyncio.timeout(BOUND):
            assert [await each for each in running[FEW:]] == ["crowded"] * (12 - FEW)


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_queue_that_refuses_replies_does_not_put_the_broker_out_of_reach(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    """RabbitMQ has answered; a broker that does not is another matter."""
    errors: list[Exception] = [ResourceLocked("exclusive queue"), ConnectionResetError("gone")]

    def send(*_: Any, **__: Any) -> None:
        error = errors.pop(0)
        if wrapped:
            raise OperationalError(str(error)) from error  # as Celery hands them on
        raise error

    reply = CeleryReply(Celery(broker="memory://", set_as_current=False))
    monkeypatch.setattr(reply, "_send", send)
    work = TellWork({"reply": reply}, slots=4, gaps=Gaps.none())
    callback = {"channel": "reply", "task": "shop.done", "queue": "shop"}
    await registry.submit([submission(callbacks=[callback])])
    (job,) = await claim(registry, DueSet.COPY)
    await finish(registry, job)
    for trouble in ([], [REPLIES]):
        (job,) = await claim(registry, DueSet.TELL)
        assert await work(Claim(registry, job)) == "again"
        assert [report[0] for report in registry.reach.take()] == trouble
    (entry,) = await told(registry, "t1")
    assert (entry["attempts"], entry["done_at"]) == (2, None)
