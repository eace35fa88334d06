"""The whole job on ``redis+sentinel://`` while the primary is lost and its replica takes over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from celery import Celery
from redis.asyncio import Redis

from config.celery import celery_config
from config.settings import load_settings
from tests.fleet import Fleet, all_final, environ, verify
from tests.support import BucketEnv, eventually
from worker.doctor.examine import examine
from worker.doctor.finding import Level
from worker.errors import RegistryUnavailable
from worker.sandbox.servers import Valkey
from worker.sandbox.simulator import Simulator
from worker.wiring import make_redis

pytestmark = [pytest.mark.brokers, pytest.mark.usefixtures("patient_doctor")]

NAME = "fleet"


class Replica(Valkey):
    """A Valkey that follows another."""

    def __init__(self, directory: Path, primary: Valkey) -> None:
        super().__init__(directory)
        self._primary = primary

    def _arguments(self) -> list[str]:
        return [*super()._arguments(), "--replicaof", f"127.0.0.1 {self._primary.port}"]


class Sentinel(Valkey):
    """A sentinel that watches a primary, and agrees with one other that it is down."""

    name = "sentinel"

    def __init__(self, directory: Path, primary: Valkey) -> None:
        super().__init__(directory)
        self._primary = primary

    def _arguments(self) -> list[str]:
        config = self.directory / "sentinel.conf"  # which it keeps its state in
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir .\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self._primary.port} 2\n"
            f"sentinel down-after-milliseconds {NAME} 1000\n"
            f"sentinel failover-timeout {NAME} 5000\n"
        )
        return [config.name, "--sentinel"]


class Deployment:
    """A primary, its replica and three sentinels."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.primary = stack.enter_context(Valkey(directory / "primary"))
        self.replica = stack.enter_context(Replica(directory / "replica", self.primary))
        self.sentinels = [
            stack.enter_context(Sentinel(directory / f"sentinel-{number}", self.primary))
            for number in range(3)
        ]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{NAME}/0"

    async def agreed(self) -> bool:
        """Whether every sentinel knows the others and the replica, as a failover needs."""
        for sentinel in self.sentinels:
            async with Redis(port=sentinel.port, decode_responses=True, protocol=2) as client:
                seen = await client.sentinel_master(NAME)
                if seen["num-slaves"] != 1 or seen["num-other-sentinels"] != 2:
                    return False
        async with Redis(port=self.replica.port, decode_responses=True, protocol=2) as client:
            return (await client.info("replication"))["master_link_status"] == "up"

    async def promoted(self) -> bool:
        """Whether the replica has become the primary."""
        async with Redis(port=self.replica.port, decode_responses=True, protocol=2) as client:
            return (await client.info("replication"))["role"] == "master"


@pytest.fixture
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with ExitStack() as stack:
        yield Deployment(tmp_path_factory.mktemp("sentinel"), stack)


async def test_a_failover_loses_nothing(
    deployment: Deployment,
    simulator: Simulator,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await eventually(deployment.agreed, what="the sentinels' agreement")
    given = environ(simulator, deployment.url, bucket, namespace)
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    settings = load_settings()
    redis = make_redis(settings.redis_url)  # as the fleet reaches it

    async def hand_in(ids: list[str]) -> None:
        for task_id in ids:
            await redis.xadd(f"{namespace}:intake", {"body": json.dumps({"task_ids": [task_id]})})

    def send(task_id: str) -> None:
        with Celery("another") as app:
            app.config_from_object(celery_config(settings))
            app.send_task("harvester.submit", args=[task_id], queue=namespace)

    def plan(seconds: float) -> str:
        return simulator.submit({"simulate": {"images": ["png"], "duration": seconds}})

    early = [plan(0) for _ in range(6)]
    under_way = [plan(1 + number) for number in range(12)]
    async with Fleet(given, tmp_path) as fleet:
        await hand_in(early)
        await all_final(redis, namespace, early)
        await hand_in(under_way)
        await eventually(lambda: redis.zcard(f"{namespace}:due:poll"), what="a poll to come")
        deployment.primary.kill()
        await eventually(deployment.promoted, what="the failover")

        # Replication is asynchronous: what the new primary never heard of is handed in again.
        # What it knows is not changed by that.
        async def again() -> bool:
            try:
                await hand_in(early + under_way)
            except RegistryUnavailable:
                return False
            return True

        await eventually(again, what="a hand-in after the failover")
        late = plan(0)
        await asyncio.to_thread(send, late)  # the broker has moved as well
        ids = [*early, *under_way, late]
        await all_final(redis, namespace, ids)

        # The old primary comes back believing in itself, and is made a replica.
        await asyncio.to_thread(deployment.primary.start)
        last = plan(0)
        await asyncio.to_thread(send, last)
        ids.append(last)
        await all_final(redis, namespace, ids)
        found = {finding.name: finding for finding in await examine(settings)}
        assert found["Redis"].level is Level.GOOD
        assert found["Broker"].level is Level.GOOD
        assert fleet.started == 2  # a failover is survived, not ended by
    async with redis:
        await verify(simulator, redis, bucket, namespace, ids)
