"""The fleet's rate, counted where it matters: at an upstream, with real worker processes."""

from __future__ import annotations

import asyncio
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


@pytest.mark.parametrize("size", [2, 4])
async def test_no_second_holds_more_calls_than_the_rate_and_a_burst(
    upstream: Upstream, redis_url: str, tmp_path: Path, size: int
) -> None:
    """However many workers there are, and although ten times as many calls are wanted."""
    await fill(redis_url, 10 * RATE, age=0, over=0)
    settings = environ(upstream, redis_url, HARVESTER_POLL_RATE=str(RATE))

    async def after(calls: int) -> float:
        await eventually(
            lambda: asyncio.to_thread(lambda: upstream.ask("/calls") >= calls), seconds=60
        )
        return time.monotonic()

    async with Fleet(settings, tmp_path, size=size) as fleet:
        # all of them are there and have had their first burst
        await eventually(lambda: fleet.log_text().count("engine.started") == size)
        already = await asyncio.to_thread(upstream.ask, "/calls")
        first, last = await after(already + RATE), await after(already + 6 * RATE)
    assert await asyncio.to_thread(upstream.ask, "/most") <= 2 * RATE
    assert 0.7 * 5 <= last - first <= 5 / 0.7


def test_throttling_halves_the_rate_and_it_comes_back_by_a_sixtieth_a_second(
    redis_url: str, namespace: str
) -> None:
    with Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        server = Server(client, namespace)

        def factor() -> float:
            server.call("take", RATE, RATE / 4)
            return float(server.look().hashes["rate"]["factor"])

        assert factor() == 1
        server.call("throttle", RATE, RATE / 4)
        server.call("throttle", RATE, RATE / 4)  # the same second: another worker's
        found = [factor()]
        for _ in range(4):
            server.advance(10)
            found.append(factor())
        assert found == pytest.approx([1 / 2, 4 / 6, 5 / 6, 1, 1], abs=1e-5)
