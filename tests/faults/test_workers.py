"""Workers that are stopped, frozen, or wrong about the time."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import time
from contextlib import AsyncExitStack, suppress

import pytest

from tests.faults.kit import Scene, lively, size
from tests.fleet import Killer
from tests.support import BOUND, eventually

pytestmark = pytest.mark.fleet

GRACE = 60
SOON = 20.0  # seconds that a stop takes at most


def slow(count: int, seconds: float = 3) -> list[dict[str, object]]:
    """Tasks whose file takes a while to arrive."""
    fault = {"fault": "slow", "seconds": seconds, "times": "ever"}
    return [{"simulate": {"images": [{"file": "png", "faults": [fault]}]}} for _ in range(count)]


async def claimed_by(scene: Scene, pid: int) -> list[dict[str, str]]:
    """What a process has in hand, each with what is noted about it."""
    owner, found = f"{socket.gethostname()}:{pid}", []
    async for key in scene.redis.scan_iter(f"{scene.namespace}:work:*", count=1000):
        work = await scene.redis.hgetall(key)
        if work.get("owner") == owner and "token" in work:
            found.append({"key": key, **work})
    return found


async def test_rolling_restart(scene: Scene) -> None:
    """Row 3: SIGTERM to one worker after the other, under load."""
    seed = random.Random(3)
    rounds, batch = size(1, 6), size(40, 56)
    took: list[float] = []
    # a lease that a loaded machine renews in time, too
    env = {"HARVESTER_SHUTDOWN_GRACE": str(GRACE), "HARVESTER_LEASE": str(GRACE)}
    async with scene.fleet(workers=size(2, 3), **env) as fleet, AsyncExitStack() as watchers:
        await scene.measure()
        for _ in range(rounds):
            for process in fleet.processes:
                # until this one is busy: the others may end a batch before it has even started
                for _ in range(10):
                    ids = scene.plant(lively(batch, seed, spread=size(6, 20)))
                    await scene.hand_in(ids)
                    await watchers.enter_async_context(scene.watched(ids))
                    with suppress(AssertionError):
                        await eventually(lambda p=process: claimed_by(scene, p.pid), seconds=30)
                        break
                else:
                    pytest.fail("a worker claims nothing")
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                code = await asyncio.to_thread(process.wait, BOUND)
                took.append(time.monotonic() - began)
                assert code == 0, fleet.log_text()[-5000:]
                assert not await claimed_by(scene, process.pid)
        await scene.all_final()
        await scene.measure()
    assert await scene.counter("leases_expired") == 0
    await scene.judge(
        "3",
        "rolling SIGTERM",
        recovery=scene.soon(took, within=SOON),
        notes=f"{len(took)} restarts",
    )


async def test_frozen_longer_than_the_lease(scene: Scene) -> None:
    """Row 2: SIGSTOP for longer than the lease, then SIGCONT."""
    ids = scene.plant(slow(size(24, 100), seconds=3))
    waited: list[float] = []
    async with scene.fleet() as fleet, scene.watched():
        await scene.hand_in(ids)
        killer = Killer(fleet, scene.redis, scene.namespace)
        for _ in range(size(1, 5)):
            process = await eventually(killer.freeze_a_copying_one, what="a copy")
            began = time.monotonic()
            await eventually(lambda p=process: _none_left(scene, p.pid), what="the others")
            waited.append(time.monotonic() - began)
            await asyncio.sleep(1)
            process.send_signal(signal.SIGCONT)
        await scene.all_final()
        assert fleet.started == 2  # none of them died of it
        # noticed at a write, or at the renewal that came before it
        lost = [line for line in fleet.log_lines() if line.get("event") == "lease.lost"]
    stale = await scene.counter("stale_writes")
    assert stale or lost
    await scene.judge(
        "2",
        "SIGSTOP beyond the lease",
        recovery=max(waited),
        notes=f"{len(waited)} freezes, {stale} stale writes refused",
    )


async def _none_left(scene: Scene, pid: int) -> bool:
    return not await claimed_by(scene, pid)
