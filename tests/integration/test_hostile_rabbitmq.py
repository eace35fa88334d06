"""What a sender on RabbitMQ can lay into the queue ends no worker and has it publish nothing."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any

import amqp
import pytest
from celery import Celery, signature
from redis.asyncio import Redis

from tests.fleet import Fleet, environ
from tests.rabbitmq import INSTALLED, RabbitMQ
from tests.support import BucketEnv, eventually, needs
from worker.sandbox.simulator import Simulator

pytestmark = [pytest.mark.brokers, needs("rabbitmq-server", INSTALLED)]

MIB = 1024 * 1024
HEADERS = {"task": "harvester.submit", "id": "i", "lang": "py"}


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as broker:
        yield broker


class Crafted(amqp.Message):
    """A message whose properties are given as bytes."""

    crafted = b""

    def _serialize_properties(self) -> bytes:
        return self.crafted


def crafted(properties: bytes) -> Crafted:
    message = Crafted(b"[[], {}, {}]")
    message.crafted = properties
    return message


def nested(levels: int) -> bytes:
    table = b""
    for _ in range(levels):
        table = b"\x01aF" + pack(">I", len(table)) + table
    return pack(">H", 1 << 13) + pack(">I", len(table)) + table


def in_table(value: bytes) -> bytes:
    return pack(">HI", 1 << 13, len(value) + 2) + b"\x01a" + value


def message(body: Any, encoding: str = "utf-8", **headers: Any) -> amqp.Message:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return amqp.Message(
        data,
        content_type="application/json",
        content_encoding=encoding,
        application_headers=HEADERS | headers,
        reply_to="shop",
    )


def first_protocol(body: dict[str, Any]) -> amqp.Message:
    return amqp.Message(json.dumps(body), content_type="application/json", content_encoding="utf-8")


async def test_hostile_messages(
    rabbitmq: RabbitMQ, simulator: Simulator, redis_url: str, redis: Redis, bucket: BucketEnv,
    namespace: str, tmp_path: Path,
) -> None:  # fmt: skip
    url = rabbitmq.vhost(namespace, queue_type="classic")
    given = environ(simulator, redis_url, bucket, namespace, CELERY_BROKER_URL=url)
    ids = [simulator.submit() for _ in range(5)]
    call = {"task": "shop.pay", "args": [], "kwargs": {}, "options": {"queue": "shop"}}
    first = {"task": "harvester.submit", "id": "i", "args": [ids[0]], "kwargs": {}}
    packed = zlib.compressobj(9)
    bomb = b"".join([*(packed.compress(bytes(16 * MIB)) for _ in range(32)), packed.flush()])
    hostile = [
        crafted(nested(3000)),
        crafted(in_table(b"T" + b"\xff" * 8)),  # a date beyond all years
        crafted(pack(">H", 1 << 15) + b"\x02\xff\xfe"),  # a content type that is not UTF-8
        message(bomb, compression="application/x-gzip"),
        message(b"x" * 40 * MIB),
        message(b"a" * 2 * MIB, "punycode"),
        message([[], {}, {}], task="celery.chord"),
        message(b"\xff"),
        first_protocol(first | {"callbacks": [call]}),
        message([[ids[1]], {}, {"callbacks": [call, call], "chord": call}]),
        message([[ids[2]], {}, {}], eta="2999-01-01T00:00:00", timelimit=[1, 1]),
    ]

    def send() -> None:
        with Celery("shop", broker=url, set_as_current=False) as app:
            with app.connection_for_write() as connection:
                connection.default_channel.queue_declare("shop", durable=True, auto_delete=False)
            pay = signature("shop.pay", app=app, queue="shop")
            link = {"link": pay, "link_error": pay, "queue": namespace}
            app.send_task("harvester.submit", args=[ids[3]], **link)
            with app.connection_for_write() as connection:
                channel = connection.default_channel
                for one in hostile:
                    channel.basic_publish(one, routing_key=namespace)
            app.send_task("harvester.submit", args=[ids[4]], queue=namespace)

    def left(queue: str) -> int:
        with Celery("t", broker=url, set_as_current=False) as app, app.connection() as connection:
            return int(connection.default_channel.queue_declare(queue, passive=True).message_count)

    def memory(fleet: Fleet) -> int:
        status = Path(f"/proc/{fleet.processes[0].pid}/status").read_text()
        return int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.M)[0]) * 1024

    async def accepted() -> bool:
        return all([await redis.exists(f"{namespace}:task:{i}") for i in ids])

    async with Fleet(given, tmp_path, size=1) as fleet:
        await eventually(lambda: redis.zcard(f"{namespace}:workers"), what="a worker")
        before = memory(fleet)
        await asyncio.to_thread(send)
        await eventually(accepted, what="the records")
        assert memory(fleet) - before < 40 * MIB
        assert await asyncio.to_thread(left, namespace) == 0
        assert await asyncio.to_thread(left, "shop") == 0
    assert fleet.started == 1, fleet.log_text()
    refused = [json.loads(text) for text in await redis.lrange(f"{namespace}:refused", 0, -1)]
    found = sorted(entry["value"] for entry in refused if "not carried out" in entry["reason"])
    assert found == ["callbacks", "callbacks, chord", "callbacks, errbacks", "eta, timelimit"]
    assert len(refused) == 4 + 8
