"""Messages that fill memory, and entries that close or clog the stream, next to good tasks."""

from __future__ import annotations

import asyncio
import json
import zlib

from redis import exceptions as redis_errors

from tests.faults.kit import CALM, Scene, size
from tests.faults.test_answers import MEMORY, peak
from tests.faults.test_hostile_files import p95
from tests.fleet import Fleet
from tests.security.test_bounds import MIB, envelope
from tests.support import eventually

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
CLOSING = f"{2**64 - 1}-{2**64 - 1}"


def bomb() -> bytes:
    """A megabyte that unpacks into a gigabyte."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(MIB)) for _ in range(1024)), packer.flush()])


async def judged(
    scene: Scene, row: str, fault: str, fleet: Fleet, usual: float, took: float
) -> None:
    assert fleet.started == len(fleet.processes), "a worker has died"
    held = peak(fleet)
    assert held < MEMORY
    # a loaded machine only reports it
    assert usual > CALM or took <= 2 * usual + 2, (took, usual)
    notes = f"p95 of good tasks {took:.1f} s, alone {usual:.1f} s; "
    await scene.judge(row, fault, notes=f"{notes}a worker held {held >> 20} MiB at most")


async def test_messages_that_fill_memory(scene: Scene) -> None:
    """Row 27: compressed, for later, large and nested ones in Celery's queue and as commands."""
    packed = await asyncio.to_thread(bomb)
    bombs = [
        json.dumps(envelope(packed, compression=name) | {"content-encoding": "utf-8"})
        for name in ("zlib", "application/x-gzip", "gzip", "application/x-bz2", "zstd")
    ]
    later = [
        json.dumps(envelope([[f"no/{n}"], {"padding": "x" * 4000}, EMBED], eta="2999-01-01"))
        for n in range(size(2000, 15_000))
    ]
    nested = json.dumps(envelope(f"[[{'[],' * 600_000}1],{{}},{{}}]".encode()))
    messages: list[str | bytes] = [*bombs, b"x" * 20 * MIB, nested] * size(2, 10) + later
    async with scene.fleet() as fleet:
        await fleet.ready()
        await p95(scene)  # the workers start
        usual = await p95(scene)
        async with scene.watched():
            for start in range(0, len(messages), 50):
                await scene.redis.lpush(scene.namespace, *messages[start : start + 50])
            for message in bombs:
                await scene.redis.publish(f"/0.{scene.namespace}.pidbox", message)
            behind = scene.plant([{"simulate": {"images": ["png"]}}] * 5)
            for task_id in behind:
                await scene.send("harvester.submit", task_id)
            took = await p95(scene)
            await scene.all_final()
        await judged(scene, "27", "messages that fill memory", fleet, usual, took)


async def test_entries_that_hurt_the_stream(scene: Scene) -> None:
    """Row 28: entries of 60 MiB, of bytes that are no text, and one with the highest id."""
    stream = f"{scene.namespace}:intake"

    async def bad() -> None:
        words = [part for _ in range(4) for part in (b"body", b"y" * 15 * MIB)]
        await scene.redis.execute_command("XADD", stream, "*", *words)
        await scene.redis.xadd(stream, {"body": b'{"task_ids": ["a\xff"]}'})
        await scene.redis.xadd(stream, {"body": b"\xff" * MIB, "task_ids": "x"})

    async def open_again() -> bool:
        try:
            await scene.redis.xadd(stream, {"body": "{}"})
        except redis_errors.ResponseError:
            return False
        return True

    async with scene.fleet() as fleet:
        await fleet.ready()
        await p95(scene)  # the workers start
        usual = await p95(scene)
        took = 0.0
        async with scene.watched():
            for _ in range(size(2, 6)):
                good = scene.plant([{"simulate": {"images": ["png"]}}] * 10)
                for task_id in good:
                    await bad()
                    await scene.hand_in([task_id])
                took = max(took, await p95(scene))
                await scene.redis.xadd(stream, {"body": "{}"}, id=CLOSING)
                await eventually(open_again, what="an open stream")
            await scene.all_final()
        await judged(scene, "28", "entries that hurt the stream", fleet, usual, took)
