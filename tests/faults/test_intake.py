"""Submissions received by a worker that dies, and submissions that are none."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import string
from typing import Any

from celery import Celery
from redis import exceptions as redis_errors

from tests.faults.kit import Scene, size
from tests.support import eventually

GOOD: dict[str, Any] = {"simulate": {"images": ["png"]}}
IDLE = 30_000  # milliseconds after which an entry that a dead worker took is taken again


async def pending(scene: Scene) -> int:
    """How many entries of the intake stream are taken and not acknowledged."""
    try:
        found = await scene.redis.xpending(f"{scene.namespace}:intake", "harvester")
    except redis_errors.ResponseError:  # no group yet
        return 0
    return int(found["pending"])


async def send(scene: Scene, messages: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
    """Send submissions over Celery."""

    def send() -> None:
        with Celery("another", broker=scene.redis_url) as app:
            for args, options in messages:
                app.send_task("harvester.submit", args=args, kwargs=options, queue=scene.namespace)

    await asyncio.to_thread(send)


async def test_killed_while_receiving_from_the_stream(scene: Scene) -> None:
    """Row 17: a worker is killed with stream entries in hand; the stream loses none."""
    rounds, hits = size(2, 100), 0
    async with scene.fleet(workers=1) as fleet:
        while hits < rounds:
            ids = scene.plant([GOOD] * 20)
            await eventually(lambda: fleet.processes, what="a worker")
            (process,) = fleet.processes
            # handed in one by one, so that the kill falls between some of them
            async with scene.redis.pipeline(transaction=False) as pipe:
                for task_id in ids:
                    body = json.dumps({"task_ids": task_id})
                    pipe.xadd(f"{scene.namespace}:intake", {"body": body})
                await pipe.execute()
            before = hits
            while hits == before and await scene.redis.xlen(f"{scene.namespace}:intake"):
                process.send_signal(signal.SIGSTOP)
                hits += await pending(scene) > 0
                process.send_signal(signal.SIGKILL if hits > before else signal.SIGCONT)
            if hits > before:
                await asyncio.to_thread(process.wait)
        # a restarted fleet sees to what the dead ones had taken once it has lain for a while
        async with scene.watched():
            await scene.all_final()

            async def empty() -> bool:
                return not await scene.redis.xlen(f"{scene.namespace}:intake")

            # what the last one had accepted and not acknowledged is taken once more
            await eventually(empty, what="an empty stream")
    await scene.judge("17", "killed while receiving (stream)", notes=f"{hits} kills")


async def test_killed_while_receiving_over_celery(scene: Scene) -> None:
    """Row 17: a worker is killed as Celery messages reach it; handing in again heals the losses."""
    rounds, lost = size(2, 100), 0

    async def idle() -> bool:
        open_ = [f"{scene.namespace}:index:{state}" for state in ("waiting", "copying")]
        return not sum([await scene.redis.zcard(key) for key in open_])

    async with scene.fleet(workers=1) as fleet:
        for _ in range(rounds):
            started = fleet.started
            await eventually(lambda: scene.redis.zcard(f"{scene.namespace}:workers"), what="life")
            await eventually(
                lambda: scene.redis.exists(f"_kombu.binding.{scene.namespace}"), what="a consumer"
            )
            (process,) = fleet.processes
            process.send_signal(signal.SIGSTOP)
            await send(scene, [((task_id,), {}) for task_id in scene.plant([GOOD] * 3)])
            process.kill()
            await eventually(lambda n=started: fleet.started > n, what="a new worker")
            await scene.redis.delete(f"{scene.namespace}:workers")
            # a task that is alone in a worker that dies again and again would rightly be parked
            await eventually(idle, what="the end of what has arrived")

        async def quiet() -> bool:
            return not await scene.redis.llen(scene.namespace)

        await eventually(quiet, what="an empty queue")
        await asyncio.sleep(2)
        exist = [await scene.redis.exists(f"{scene.namespace}:task:{i}") for i in scene.ids]
        lost = exist.count(0)
        await send(scene, [((scene.ids,), {})])
        async with scene.watched():
            await scene.all_final()
    await scene.judge(
        "17",
        "killed while receiving (Celery)",
        notes=f"{rounds} kills, {lost} messages lost by Celery, healed by handing in again",
    )


def garbage(seed: random.Random, ids: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A submission of which something must be refused. The only good ids in it are ``ids``."""
    odd = [
        None, True, 7, 1.5, {}, [], [[]], {"a": [1]}, "", " ", "../../etc/passwd", "..", "a/b",
        "a\\b", "a\nb", "a\x00b", "<script>alert(1)</script>", "'; DROP TABLE tasks; --", "é" * 5,
        "\u202e", "x" * 1_000_000, "k" * 129, "${jndi:ldap://x}", "%2e%2e%2f", "{{7*7}}", "a b",
        "".join(seed.choices(string.printable, k=seed.randint(1, 200))) + "\x07",
    ]  # fmt: skip
    wrong = [
        {"prefix": "../x"}, {"prefix": 5}, {"metadata": [1]}, {"metadata": "x" * 100_000},
        {"deadline": -1}, {"deadline": "soon"}, {"callback_url": "ftp://x"}, {"callback_url": 7},
        {"callback_url": "http://169.254.169.254/"}, {"label": "x" * 10_000}, {"label": {}},
        {"nonsense": True}, {"reply_task": "os.system"}, {"expected_seconds": "NaN"}, {"": 1},
        {"__proto__": 1}, {"prefix": "a\x00b"}, {"task_ids": "second"},
    ]  # fmt: skip
    kind = seed.randrange(5)
    if kind == 0:
        return (seed.choice(odd),), {}
    if kind == 1:
        return ([seed.choice(odd) for _ in range(seed.randint(1, 5))],), {}
    if kind == 2:
        return (seed.choice(ids),), dict(seed.choice(wrong))
    if kind == 3:
        return (seed.choice(ids), seed.choice(odd)), {}
    return (), {**seed.choice(wrong), "task_ids": seed.choice(odd)}


async def test_garbage(scene: Scene) -> None:
    """Row 13: generated garbage over Celery, over the stream, and raw into the queue."""
    seed = random.Random(13)
    count = size(150, 1000)
    ids = scene.plant([{"simulate": {"duration": n % 5, "images": ["png"]}} for n in range(20)])
    raw = [b"not json", b"{}", b"\xff\xfe\x00", b"[]", b"null", b'{"body": 1}', b"{" * 5000]
    async with scene.fleet(workers=1) as fleet, scene.watched():
        await scene.hand_in(ids[:10])
        over_celery = [garbage(seed, ids) for _ in range(count // 2)]
        await send(scene, over_celery)
        for _ in range(count // 4):
            args, options = garbage(seed, ids)
            named = {"task_ids": args[0]} if args else {}
            body = json.dumps({"surplus": 1, **options, **named})
            cut = seed.choice([len(body), seed.randrange(len(body))])
            await scene.redis.xadd(f"{scene.namespace}:intake", {"body": body[:cut]})
        for _ in range(count // 4):
            await scene.redis.lpush(scene.namespace, seed.choice(raw))
            await scene.redis.xadd(f"{scene.namespace}:intake", {"other": "field"})
            await scene.redis.xadd(f"{scene.namespace}:intake", {"body": seed.choice(raw)})
        await scene.hand_in(ids[10:15])
        await send(scene, [((ids[15:],), {})])
        await scene.all_final()

        async def taken() -> bool:
            left = await scene.redis.llen(scene.namespace)
            return not left + await scene.redis.xlen(f"{scene.namespace}:intake")

        await eventually(taken, what="empty queues")
        assert fleet.started == 1, fleet.log_text()[-2000:]
    refused = [
        json.loads(text) for text in await scene.redis.lrange(f"{scene.namespace}:refused", 0, -1)
    ]
    assert len(refused) >= min(1000, count // 2)
    assert all(entry["reason"] and len(entry["value"]) < 1000 for entry in refused)
    tasks = scene.redis.scan_iter(f"{scene.namespace}:task:*", count=1000)
    known = {key.removeprefix(f"{scene.namespace}:task:") async for key in tasks}
    assert known == set(ids)
    await scene.judge("13", "garbage", notes=f"{count} messages, {len(refused)} refusals kept")
