"""The whole job with RabbitMQ as broker, classic queues and quorum queues."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from kombu import Queue
from redis.asyncio import Redis

from config.settings import load_settings
from tests.fleet import Fleet, all_final, environ, verify
from tests.rabbitmq import INSTALLED, RabbitMQ
from tests.support import BucketEnv, eventually, needs
from worker.doctor.examine import examine
from worker.doctor.finding import Level
from worker.sandbox.simulator import Simulator

pytestmark = [
    pytest.mark.brokers,
    pytest.mark.usefixtures("patient_doctor"),
    needs("rabbitmq-server", INSTALLED),
]


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as broker:
        yield broker


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_the_whole_job(
    rabbitmq: RabbitMQ,
    simulator: Simulator,
    redis_url: str,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
    queue_type: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = rabbitmq.vhost(namespace, queue_type=queue_type)
    given = environ(
        simulator, redis_url, bucket, namespace, CELERY_BROKER_URL=url,
        HARVESTER_REPLY_ALLOW="shop/shop.*",
    )  # fmt: skip
    ids = [simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(6)]

    def submit(task_ids: list[str]) -> None:
        # as any application does: it imports nothing of this project and declares what it likes
        with Celery("shop", broker=url) as shop:
            shop.conf.task_queues = [Queue("shop", queue_arguments={"x-queue-type": "quorum"})]
            reply = {"reply_task": "shop.ready", "reply_queue": "shop"}
            with shop.connection_for_write() as connection:
                shop.amqp.queues["shop"].bind(connection.default_channel).declare()
            shop.send_task("harvester.submit", args=[task_ids], kwargs=reply, queue=namespace)

    def replies() -> int:
        with Celery("shop", broker=url) as shop, shop.connection_for_read() as connection:
            return int(connection.default_channel.queue_declare("shop", passive=True).message_count)

    async with Fleet(given, tmp_path, size=2) as fleet:
        await asyncio.to_thread(submit, ids[:3])
        await all_final(redis, namespace, ids[:3])

        quorum = [namespace, "shop"] if queue_type == "quorum" else ["shop"]
        await eventually(lambda: rabbitmq.noted(namespace, *quorum), what="the list of queues")
        # a broker that crashes stops neither the work in hand nor, once it is back, the intake
        rabbitmq.kill()
        await asyncio.to_thread(rabbitmq.start)
        await asyncio.to_thread(submit, ids[3:])
        await all_final(redis, namespace, ids[3:])

        async def all_told() -> bool:
            return await asyncio.to_thread(replies) == len(ids)

        await eventually(all_told, what="the replies")
        for name, text in given.items():
            monkeypatch.setenv(name, text)
        found = {finding.name: finding for finding in await examine(load_settings())}
        assert found["Broker"].level is Level.GOOD
        # neither a wrong kind of prefetch nor two workers under one name
        assert "NOT_IMPLEMENTED" not in fleet.log_text()
        assert "RESOURCE_LOCKED" not in fleet.log_text()
    await verify(simulator, redis, bucket, namespace, ids)
    assert rabbitmq.queues(namespace)[namespace] == queue_type
