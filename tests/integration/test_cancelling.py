"""Loops of the product end although Redis' answer swallows their cancellation, as it may."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from config.settings import load_settings
from tests.integration.test_registry import make, submission
from tests.support import eventually
from worker.cli import events, stats, tasks
from worker.registry import feed
from worker.registry.registry import Registry
from worker.web import stream
from worker.web.desk import Desk
from worker.wiring import make_policy, make_store

FEW = 8  # commands of one round of any loop


class Swallow:
    """Once armed: the next command waits for a cancellation, and is sent in spite of it."""

    def __init__(self) -> None:
        self.armed = False
        self.reached = asyncio.Event()
        self.later = 0

    async def before_sending(self) -> None:
        if self.reached.is_set():
            self.later += 1
        elif self.armed:
            self.reached.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return


@pytest.fixture
def swallow(monkeypatch: pytest.MonkeyPatch) -> Swallow:
    swallow, send = Swallow(), AbstractConnection.send_packed_command

    async def sending(self: Any, *args: Any, **options: Any) -> None:
        await swallow.before_sending()
        await send(self, *args, **options)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", sending)
    return swallow


@pytest.fixture
async def registry(settings: dict[str, str], redis: Redis, namespace: str) -> Registry:
    registry = make(redis, namespace)
    await registry.submit([submission()])
    return registry


async def follow_feed(registry: Registry) -> None:
    async for _ in feed.follow(registry, "0-0", patience=math.inf):
        pass


async def follow_stream(registry: Registry) -> None:
    chosen = load_settings()
    desk = Desk(
        registry=registry, store=make_store(chosen), policy=make_policy(chosen), probe_key="none"
    )
    events = stream._events(desk, "0-0")
    async for _ in stream._with_silence(events, str):
        pass


LOOPS: dict[str, Callable[[Registry], Coroutine[Any, Any, None]]] = {
    "feed": follow_feed,
    "server-sent events": follow_stream,
    "events --follow": lambda _: events._print(
        load_settings(), since=None, follow=True, as_json=True
    ),
    "stats --watch": lambda _: stats._stats(load_settings(), as_json=False, watch=True),
    "stats --watch --json": lambda _: stats._stats(load_settings(), as_json=True, watch=True),
    "wait": lambda _: tasks._wait(load_settings(), tasks.Report(["t1"], quiet=True), None),
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
async def test_a_loop_ends(
    loop: Callable[[Registry], Coroutine[Any, Any, None]],
    swallow: Swallow,
    registry: Registry,
) -> None:
    task = asyncio.create_task(loop(registry))
    swallow.armed = True
    await eventually(swallow.reached.is_set)
    task.cancel()
    await eventually(lambda: task.done() or swallow.later > FEW)
    assert task.cancelled()


async def test_waiting_for_tasks_gives_up_in_time(swallow: Swallow, registry: Registry) -> None:
    async def wait() -> None:
        async with asyncio.timeout(0.05):
            await tasks._follow(registry, tasks.Report(["t1"], quiet=True))

    swallow.armed = True
    task = asyncio.create_task(wait())
    await eventually(lambda: task.done() or swallow.later > FEW)
    assert isinstance(task.exception(), TimeoutError)
