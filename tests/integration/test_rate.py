"""The fleet's rate, counted where it matters: at an upstream, with real worker processes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.bench.polling import Upstream, environ, fill
from tests.fleet import Fleet
from tests.model.harness import Server
from tests.support import eventually

RATE = 40


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.stop()


@pytest.mark.fleet
@pytest.mark.parametrize("size", [2, 4])
async def test_a_fleet_makes_no_more_calls_than_its_rate_and_a_burst(
    upstream: Upstream, redis_url: str, tmp_path: Path, size: int
) -> None:
    """However many workers there are, and although ten times as many calls are wanted."""
    await fill(redis_url, 10 * RATE, age=0, over=0)
    settings = environ(upstream, redis_url, HARVESTER_POLL_RATE=str(RATE))
    began = 0.0

    def started() -> int:
        nonlocal began
        now, count = time.monotonic(), fleet.log_text().count("engine.started")
        if not count:
            began = now  # before the first call
        return count

    async def made() -> int:
        return await asyncio.to_thread(upstream.ask, "/calls")

    async def enough() -> bool:
        return await made() >= already + 5 * RATE

    async with Fleet(settings, tmp_path, size=size) as fleet:
        await eventually(lambda: started() == size)
        already = await made()
        await eventually(enough, what="calls")
        calls, took = await made(), time.monotonic() - began
    assert calls <= RATE * (took + 0.25) + 1


def test_throttling_halves_the_rate_and_it_comes_back_by_a_sixtieth_a_second(
    redis_url: str, namespace: str
) -> None:
    with Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        server = Server(client, namespace)

        def factor() -> float:
            server.call("take", RATE, RATE / 4, secrets.token_hex(8))
            return float(server.look().hashes["rate"]["factor"])

        assert factor() == 1
        server.call("throttle", RATE, RATE / 4)
        server.call("throttle", RATE, RATE / 4)  # the same second: another worker's
        found = [factor()]
        for _ in range(4):
            server.advance(10)
            found.append(factor())
        assert found == pytest.approx([1 / 2, 4 / 6, 5 / 6, 1, 1], abs=1e-5)
