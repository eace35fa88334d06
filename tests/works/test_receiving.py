"""What the consumer of a Redis broker notes of whether that answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Queue

from tests.support import Clock
from worker import broker
from worker.reach import SILENCE, Reach


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def reach(clock: Clock) -> Iterator[Reach]:
    before, made = broker._reach, Reach(clock)
    broker.reports_to(made)
    yield made
    broker.reports_to(before)


@contextlib.contextmanager
def consuming(redis_url: str, namespace: str, taken: list[Any]) -> Iterator[Any]:
    """A connection that receives one message, and no other until that is acknowledged."""
    options = {
        "unacked_key": f"{namespace}:unacked",
        "unacked_index_key": f"{namespace}:unacked_index",
        "unacked_mutex_key": f"{namespace}:unacked_mutex",
    }
    with (
        broker.Connection(
            redis_url, transport=broker.Transport, transport_options=options
        ) as connection,
        connection.channel() as channel,
    ):
        consumer = broker.Consumer(
            channel, [Queue(namespace, channel=channel)], on_message=taken.append, prefetch_count=1
        )
        with consumer:
            yield connection


def drain(connection: Any) -> None:
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=1.5)


def test_a_worker_with_its_hands_full_does_not_miss_the_broker(
    redis_url: str, namespace: str, reach: Reach, clock: Clock
) -> None:
    taken: list[Any] = []
    with consuming(redis_url, namespace, taken) as connection:
        connection.SimpleQueue(namespace).put({"a": 1})
        for _ in range(10):
            drain(connection)
            if taken:
                break
        assert len(taken) == 1
        drain(connection)  # may not ask for more
        reach.take()
        clock.now += 4 * SILENCE
        assert reach.take() == []
        taken[0].ack()
        drain(connection)
        assert [report[:2] for report in reach.take()] == [["broker", 0]]
