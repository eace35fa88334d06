"""Redis away, restarted, full, behind a bad network, and replaced by a replica that lags."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from tests.faults.kit import Scene, lively, size
from tests.faults.tcp_proxy import TcpProxy
from tests.faults.test_workers import slow
from tests.fleet import Killer
from tests.support import eventually, needs, repeating
from worker.core.models import State
from worker.errors import LeaseLost
from worker.registry.records import DueSet, Job
from worker.registry.registry import Registry
from worker.sandbox.servers import Valkey

AGAIN = 15.0  # seconds after Redis answers: leases, ticks, and the pauses between attempts


class RedisServer(Valkey):
    """The ``redis-server`` that is installed on this machine."""

    name = "redis-server"

    def _binary(self) -> Path:
        return Path(shutil.which(self.name) or self.name)


on_both_servers = pytest.mark.parametrize(
    "own_valkey",
    [
        Valkey,
        pytest.param(RedisServer, marks=needs(RedisServer.name, shutil.which(RedisServer.name))),
    ],
    indirect=True,
    ids=lambda kind: kind.name,
)


@pytest.fixture
def own_valkey(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Valkey]:
    """A Valkey that the row may kill, which keeps every write; or another kind of server."""
    kind: type[Valkey] = getattr(request, "param", Valkey)
    server = kind(tmp_path_factory.mktemp(kind.name), appendfsync="always")
    server.start()
    yield server
    server.kill()


@asynccontextmanager
async def on(scene: Scene, url: str, *, direct: str = "") -> AsyncIterator[Scene]:
    """The scene with another Redis; the row itself reads at ``direct``."""
    client = Redis.from_url(direct or url, decode_responses=True, protocol=2)
    try:
        yield replace(scene, redis=client, redis_url=url)
    finally:
        await client.aclose()


async def product(redis: Redis) -> str:
    """What server this is, and which version."""
    info = await redis.info("server")
    return (
        f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info['redis_version']}"
    )


async def test_queues_deleted(scene: Scene) -> None:
    """Row 4: the Celery queues are deleted again and again."""
    ids = scene.plant(lively(size(60, 500), random.Random(4), spread=size(4, 30)))
    deleted = 0

    async def delete() -> None:
        nonlocal deleted
        deleted += await scene.redis.llen(scene.namespace)
        keys = [scene.namespace, *[key async for key in scene.redis.scan_iter("_kombu.*")]]
        keys += [f"{scene.namespace}:unacked", f"{scene.namespace}:unacked_index"]
        await scene.redis.delete(*keys)

    async with scene.fleet() as fleet, scene.watched():
        async with repeating(delete, 0.02):
            await scene.hand_in(ids)
            while deleted < 10:
                await scene.send("harvester.poll")
                await scene.send("harvester.copy")
            await scene.all_final()
        (late,) = scene.plant([{"simulate": {"images": ["png"]}}])
        await scene.send("harvester.submit", late)
        await scene.all_final([late])
        assert fleet.started == 2
    await scene.judge("4", "Celery queues deleted", notes=f"{deleted} messages deleted")


@on_both_servers
async def test_killed_and_restarted(scene: Scene, own_valkey: Valkey) -> None:
    """Row 5: Redis killed under load and started again."""
    seed, recoveries = random.Random(5), []
    async with on(scene, own_valkey.url) as scene:
        async with scene.fleet() as fleet:
            await scene.measure()
            for _ in range(size(2, 10)):
                ids = scene.plant(lively(size(20, 100), seed, spread=size(3, 10)))
                async with scene.watched(ids):
                    await scene.hand_in(ids)
                    await eventually(
                        lambda: scene.redis.zcard(f"{scene.namespace}:due:fetch"), what="a copy"
                    )
                    await asyncio.sleep(seed.uniform(0, 2))
                    own_valkey.kill()
                    await asyncio.sleep(seed.uniform(0.5, size(2, 8)))
                    await asyncio.to_thread(own_valkey.start)
                    recoveries.append(await scene.works())
                    await scene.all_final(ids)
            await scene.measure()
        await scene.judge(
            "5",
            f"{await product(scene.redis)} killed and restarted",
            recovery=scene.soon(recoveries, within=AGAIN),
            notes=f"{len(recoveries)} kills, {fleet.started - 2} workers restarted",
        )


async def test_bad_network_to_redis(scene: Scene, own_valkey: Valkey) -> None:
    """Row 5: connections to Redis reset, silent, cut in the middle of an answer, and slow."""
    ids = scene.plant(lively(size(40, 200), random.Random(55), spread=size(8, 40)))
    recoveries = []
    async with TcpProxy("127.0.0.1", own_valkey.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        async with on(scene, url, direct=own_valkey.url) as scene:
            async with scene.fleet() as fleet, scene.watched(ids):
                await scene.measure()
                await scene.hand_in(ids)
                await eventually(
                    lambda: scene.redis.zcard(f"{scene.namespace}:due:fetch"), what="a copy"
                )
                for _ in range(size(1, 3)):
                    for hurt in ("reset", "cut", "refuse", "latency", "blackhole"):
                        if hurt == "reset":
                            proxy.reset_all()
                        elif hurt == "cut":
                            proxy.cut_after = 3000
                        elif hurt == "refuse":
                            proxy.refuse = True
                            proxy.reset_all()
                        elif hurt == "latency":
                            proxy.latency = 0.1
                        else:
                            proxy.blackhole = True
                        await asyncio.sleep(size(1, 7))
                        proxy.heal()
                    recoveries.append(await scene.works(piled_up=True))
                await scene.all_final()
                await scene.measure()
            await scene.judge(
                "5b",
                "bad network to Redis",
                recovery=scene.soon(recoveries, within=AGAIN),
                notes=f"{proxy.connections} connections, {fleet.started - 2} workers restarted",
            )


@on_both_servers
async def test_out_of_memory(scene: Scene, own_valkey: Valkey) -> None:
    """Row 10: Redis is full and takes no writes; what it acknowledged before is kept."""
    seed, refused = random.Random(10), 0
    async with on(scene, own_valkey.url) as scene:
        ids = scene.plant(lively(size(30, 100), seed, spread=size(5, 20)))
        async with scene.fleet() as fleet, scene.watched(ids):
            await scene.measure()
            await scene.hand_in(ids)
            await eventually(
                lambda: scene.redis.zcard(f"{scene.namespace}:due:fetch"), what="a copy"
            )
            over_celery = scene.plant([{"simulate": {"images": ["png"]}} for _ in range(5)])
            for task_id in over_celery:
                await scene.send("harvester.submit", task_id)
            await scene.redis.config_set("maxmemory", 1)
            try:
                for _ in range(size(40, 300)):
                    (late,) = [scene.simulator.submit({"simulate": {"images": ["png"]}})]
                    try:
                        await scene.hand_in([late])
                        scene.ids.append(late)
                    except redis_errors.OutOfMemoryError:
                        refused += 1
                    await asyncio.sleep(0.1)
            finally:
                await scene.redis.config_set("maxmemory", 0)
            recovery = await scene.works()
            await scene.all_final()
            await scene.measure()
        assert refused > 10
        assert fleet.started == 2  # they wait for room, and do not need a supervisor for it
        await scene.judge(
            "10",
            f"{await product(scene.redis)} out of memory",
            recovery=scene.soon([recovery], within=AGAIN),
            notes=f"{refused} hand-ins refused, {fleet.started - 2} workers restarted",
        )


async def test_failover_to_a_stale_replica(
    scene: Scene, own_valkey: Valkey, tmp_path: Path
) -> None:
    """Row 16: a replica that does not know the latest claims takes over."""
    with Valkey(tmp_path / "replica") as replica:
        async with TcpProxy("127.0.0.1", own_valkey.port) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}/0"
            async with (
                on(scene, url, direct=own_valkey.url) as before,
                on(scene, url, direct=replica.url) as after,
            ):
                await after.redis.replicaof("127.0.0.1", own_valkey.port)
                ids = before.plant(slow(size(20, 50)))
                async with before.fleet() as fleet:
                    await before.hand_in(ids)
                    killer = Killer(fleet, before.redis, before.namespace)
                    frozen = await eventually(killer.freeze_a_copying_one, what="a copy")
                    assert await before.redis.wait(1, 60_000) == 1
                    # from here on the replica knows nothing new
                    await after.redis.replicaof("NO", "ONE")
                    await eventually(
                        partial(_taken_over, before, after), what="two holders", seconds=60
                    )
                    both = await _taken_over(before, after)
                    stale = [await _job(before, task_id) for task_id in both]
                    proxy.target = ("127.0.0.1", replica.port)
                    proxy.reset_all()
                    own_valkey.kill()
                    began = time.monotonic()
                    refused = [await _is_refused(after, job) for job in stale]
                    frozen.send_signal(signal.SIGCONT)
                    async with after.watched(ids):
                        await after.all_final(ids)
                    recovery = time.monotonic() - began
                assert all(refused)
                await after.judge(
                    "16",
                    "failover to a stale replica",
                    recovery=recovery,
                    notes=f"{len(refused)} claims held twice, the stale writes refused",
                )


async def _taken_over(before: Scene, after: Scene) -> list[str]:
    """The tasks that are claimed by another token than the replica knows."""
    found = []
    for task_id in before.ids:
        key = f"{before.namespace}:work:{task_id}"
        new, old = await before.redis.hget(key, "token"), await after.redis.hget(key, "token")
        if new and old and new != old:
            found.append(task_id)
    return found


async def _job(scene: Scene, task_id: str) -> Job:
    """A task as the worker has it in hand that owns it now."""
    return Job(
        kind=DueSet.COPY,
        task_id=task_id,
        token=await scene.redis.hget(f"{scene.namespace}:work:{task_id}", "token"),
        claimed_at=0,
        record=await scene.redis.hgetall(f"{scene.namespace}:task:{task_id}"),
        work={},
    )


async def _is_refused(scene: Scene, job: Job) -> bool:
    """Whether each write of that owner is refused."""
    registry = Registry(
        scene.redis, namespace=scene.namespace, lease=5, poll_rate=1, deadline=1, record_ttl=1,
        events_maxlen=1,
    )  # fmt: skip
    state = State.FAILED
    for write in (
        registry.progress(job, "key:0", "elsewhere"),
        registry.save(job, to=DueSet.COPY, delay=1000),
        registry.finish(job, state=state, reason="stale", finished_at=1, record={"files": "[]"}),
    ):
        with pytest.raises(LeaseLost):
            await write
    return True
