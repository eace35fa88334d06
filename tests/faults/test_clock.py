"""The clock of Redis steps while a fleet works."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.faults.kit import Scene, size

PROGRAM = ("-m", "tests.faults.hurt_worker")
TASK: dict[str, Any] = {"simulate": {"duration": 2, "images": ["png"]}}
LONG: dict[str, Any] = {"simulate": {"duration": 45, "images": ["png"]}}
HOUR, DAY = 3_600_000, 86_400_000
# name, then what the clock is off by and for how many seconds; at last it stays as it is
STEPS = {
    "back an hour": [(-HOUR, 0)],
    "a replica ten minutes behind": [(-600_000, 0)],
    "ahead a day for 8 s": [(DAY, 8), (0, 0)],
    "ahead 25 hours for 10 s": [(25 * HOUR, 10), (0, 0)],
    "back and ahead": [(-HOUR, 5), (HOUR, 5), (-DAY, 5), (0, 0)],
}


async def test_the_clock_of_redis_steps(scene: Scene) -> None:
    """Row 20: nothing waits for as long as the step was, and nothing ends because of it."""
    key = f"{scene.namespace}:off"
    fleet = scene.fleet(
        workers=2,
        program=PROGRAM,
        HURT_REDIS_CLOCK=key,
        HARVESTER_LEASE="30",
        HARVESTER_CLOCK_SETTLED="60",
    )
    recoveries: list[float] = []
    async with fleet:
        await scene.measure()
        async with scene.watched():
            for steps in list(STEPS.values())[: size(3, len(STEPS))]:
                waiting = scene.plant([LONG] * size(3, 20) + [TASK] * size(5, 40))
                await scene.hand_in(waiting)
                await asyncio.sleep(3)  # for some to be polled, and some claimed
                for off, seconds in steps:
                    await scene.redis.set(key, off)
                    await asyncio.sleep(seconds)
                recoveries.append(await scene.works())
                await scene.all_final(waiting)
                await scene.redis.set(key, 0)
            await scene.all_final()
        await scene.measure()
        started = fleet.started
    assert started == 2, fleet.log_text()
    steps_seen = [line for line in fleet.log_lines() if line.get("event") == "clock.stepped"]
    assert steps_seen
    slowest = scene.soon(recoveries, within=10)
    await scene.judge(
        "20",
        "the clock of Redis steps: " + ", ".join(STEPS),
        recovery=slowest,
        notes=f"{len(steps_seen)} steps repaired",
    )
