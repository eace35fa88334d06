"""A worker that lives, but consumes no Celery message any more, must not go unnoticed.

Its ticks go on when Celery's connection is lost, and so does everything that is due: that work is
done proves nothing here. There is one worker, so that no other covers it up.
"""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from celery import Celery
from redis.asyncio import Redis

from tests.faults.tcp_proxy import TcpProxy
from tests.fleet import Fleet, idle_environ
from tests.support import eventually, repeating
from worker.sandbox.servers import Valkey

pytestmark = pytest.mark.brokers


class Lone:
    """One worker, its Redis, and the proxy between them."""

    def __init__(self, server: Valkey, proxy: TcpProxy, fleet: Fleet, namespace: str) -> None:
        self.server = server
        self.proxy = proxy
        self.fleet = fleet
        self.namespace = namespace

    async def send(self, count: int = 1) -> list[str]:
        """Hand tasks in over Celery, each by a message, past the proxy; their records' keys."""
        ids = [uuid.uuid4().hex for _ in range(count)]

        def send() -> None:
            with Celery("another", broker=self.server.url, set_as_current=False) as app:
                for task_id in ids:
                    app.send_task("harvester.submit", args=[task_id], queue=self.namespace)

        await asyncio.to_thread(send)
        return [f"{self.namespace}:task:{task_id}" for task_id in ids]

    async def consumes(self) -> None:
        """Send a message a second until one of them has been consumed.

        The first may be lost: Redis hands it to a connection that it does not know to be dead.
        """
        keys = list[str]()

        async def send() -> None:
            keys.extend(await self.send())

        async with Redis.from_url(self.server.url) as redis, repeating(send, 1):
            await eventually(
                lambda: keys and redis.exists(*keys), what="a message's end", seconds=60
            )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "valkey", appendfsync="always") as server:
        yield server


@pytest.fixture
async def lone(server: Valkey, namespace: str, tmp_path: Path) -> AsyncIterator[Lone]:
    async with TcpProxy("127.0.0.1", server.port) as proxy:
        environ = idle_environ(f"redis://127.0.0.1:{proxy.port}/0", namespace)
        async with Fleet(environ, tmp_path, size=1) as fleet:
            lone = Lone(server, proxy, fleet, namespace)
            await lone.consumes()
            yield lone


async def test_consumes_after_restarts_of_redis(lone: Lone) -> None:
    for _ in range(2):
        await lone.send(30)  # so that some are in hand, and not acknowledged
        lone.server.kill()
        await asyncio.to_thread(lone.server.start)
        await lone.consumes()


async def test_consumes_after_its_connections_went_silent(lone: Lone) -> None:
    lone.proxy.forget()
    await lone.consumes()


async def test_a_stop_in_the_middle_loses_no_message(lone: Lone) -> None:
    async with Redis.from_url(lone.server.url) as redis:
        sending = asyncio.create_task(lone.send(200))
        await eventually(lambda: redis.llen(lone.namespace), what="more than is in hand")
        await lone.fleet.stop()
        keys = await sending
        await lone.fleet.start()

        async def consumed() -> bool:
            return await redis.exists(*keys) == len(keys)

        await eventually(consumed, what="the end of every message")


async def test_what_a_full_redis_lets_go_comes_back(lone: Lone) -> None:
    (worker,) = lone.fleet.processes
    async with Redis.from_url(lone.server.url) as redis:
        worker.send_signal(signal.SIGSTOP)
        try:
            keys = await lone.send(8)  # none can be sent once Redis is full
            await redis.config_set("maxmemory", 1)
        finally:
            worker.send_signal(signal.SIGCONT)
        try:
            await eventually(lambda: "intake.kept" in lone.fleet.log_text(), what="a refusal")
        finally:
            await redis.config_set("maxmemory", 0)

        async def consumed() -> bool:
            return await redis.exists(*keys) == len(keys)

        await eventually(consumed, what="the end of every message")
    assert lone.fleet.started == 1
    assert "intake.put_back" in lone.fleet.log_text()
