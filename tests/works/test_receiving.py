"""What the consumer of a Redis broker notes of whether that answers."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Queue
from redis.exceptions import RedisError

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


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """The port of a server that says the same whatever it is asked."""

    class Caller(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while self.request.recv(65536):
                    self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Caller) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("answer", ["-MOVED 1", "-ASK x", "*0", "*1\r\n:1", ":x"])
@pytest.mark.parametrize("protocol", [2, 3])
def test_an_answer_that_cannot_be_read_is_an_error_of_redis(answer: str, protocol: int) -> None:
    """Celery connects again after it; any other error would end the worker."""
    with answering(f"{answer}\r\n".encode()) as port:
        connection = broker.Channel.connection_class(port=port, protocol=protocol)
        with contextlib.suppress(RedisError):
            connection.connect()
            connection.send_command("GET", "a")
            connection.read_response()
        connection.disconnect()


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
