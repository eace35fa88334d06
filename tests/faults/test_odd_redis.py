"""A Redis that answers, and says no: busy, without its primary, forgetful, without rights."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from tests.faults.kit import Scene, size
from tests.faults.test_redis import AGAIN, on, on_both_servers, own_valkey, product
from tests.support import eventually, joined, repeating
from worker.sandbox.servers import Valkey

__all__ = ["own_valkey"]  # the fixture

SECONDS = size(2, 6)


async def busy(redis: Redis) -> None:
    """A script of another tenant that does not end."""
    other = Redis(connection_pool=redis.connection_pool)

    async def loop() -> None:
        with contextlib.suppress(redis_errors.RedisError):
            await other.eval("while true do end", 0)

    await redis.config_set("lua-time-limit", 50)
    script = asyncio.create_task(loop())
    await asyncio.sleep(SECONDS)
    await redis.script_kill()
    await joined(script)


async def forgetful(redis: Redis) -> None:
    """Scripts are forgotten as soon as they are loaded."""
    async with repeating(redis.script_flush, 0.005):
        await asyncio.sleep(SECONDS)


async def without_rights(redis: Redis) -> None:
    """First no script may run, then none may write to a sorted set."""
    for right in ("evalsha", "zadd"):
        await redis.execute_command("ACL", "SETUSER", "default", f"-{right}")
        await asyncio.sleep(SECONDS)
        await redis.execute_command("ACL", "SETUSER", "default", "+@all")


async def without_primary(redis: Redis) -> None:
    """A replica that has lost its primary, and shows nothing that may be old."""
    await redis.config_set("replica-serve-stale-data", "no")
    await redis.replicaof("127.0.0.1", "1")
    await asyncio.sleep(SECONDS)
    await redis.replicaof("NO", "ONE")


HURTS: tuple[Callable[[Redis], Awaitable[None]], ...] = (
    busy, forgetful, without_rights, without_primary,
)  # fmt: skip


@on_both_servers
async def test_redis_answers_oddly(scene: Scene, own_valkey: Valkey) -> None:
    """Row 23: nothing ends, nobody exits, and a task whose key is overwritten is set aside."""
    recoveries = []
    async with on(scene, own_valkey.url) as scene:
        async with scene.fleet() as fleet:
            await scene.measure()
            for hurt in HURTS * size(1, 3):
                ids = scene.plant(
                    [
                        {"simulate": {"images": ["png"], "duration": n % 4}}
                        for n in range(size(20, 60))
                    ]
                )
                async with scene.watched(ids):
                    await scene.hand_in(ids)
                    await eventually(
                        lambda: scene.redis.zcard(f"{scene.namespace}:due:poll"), what="a poll"
                    )
                    await hurt(scene.redis)
                    recoveries.append(await scene.works())
                    await scene.all_final(ids)
            victims = [scene.simulator.submit({"simulate": {"duration": 600}}) for _ in range(5)]
            await scene.hand_in(victims)
            due = f"{scene.namespace}:due:poll"

            async def all_due() -> bool:
                return None not in await scene.redis.zmscore(due, victims)

            await eventually(all_due, what="the victims")
            for task_id in victims:
                await scene.redis.set(f"{scene.namespace}:work:{task_id}", "something else")

            async def aside() -> bool:
                return await scene.counter("set_aside") >= len(victims)

            await eventually(aside, what="tasks that are set aside")
            await scene.measure()
            assert fleet.started == 2, fleet.log_text()[-3000:]
        await scene.judge(
            "23",
            f"{await product(scene.redis)} answers oddly",
            recovery=scene.soon(recoveries, within=AGAIN),
            notes=", ".join(hurt.__name__ for hurt in HURTS),
        )
