"""Poison, deployments in the middle of it, and clocks that are wrong."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import pytest

from tests.faults.kit import FULL, Scene, size
from tests.fleet import Fleet
from tests.support import eventually, repeating

PROGRAM = ("-m", "tests.faults.hurt_worker")
MARK = "deadly-9f2c"

POISON: dict[str, Any] = {
    "simulate": {"result": {"shot": {"file": "png", "fields": {"filename": f"{MARK}.png"}}}}
}
GOOD: dict[str, Any] = {"simulate": {"images": ["png"]}}
PARKED = ("failed", "poisoned")


async def poisoned(scene: Scene, bad: int, good: int) -> dict[str, tuple[str, str]]:
    """Hand in poison among good tasks; returns how the poison must end."""
    scripts = [POISON] * bad + [GOOD] * good
    random.Random(12).shuffle(scripts)
    ids = scene.plant(scripts)
    await scene.hand_in(ids)
    return {i: PARKED for i, script in zip(ids, scripts, strict=True) if script is POISON}


@pytest.mark.parametrize("deployments", [False, True] if FULL else [True])
async def test_poison(scene: Scene, deployments: bool) -> None:
    """Rows 12 and 14: tasks that kill every worker that copies them, among good ones.

    Row 14 also kills and stops workers all the time; no good task may pay for it.
    """
    seed, workers = random.Random(14), size(2, 3)
    endings: dict[str, tuple[str, str]] = {}
    for _ in range(size(1, 10 if deployments else 4)):
        bad, good = (1, 99) if deployments else (5, 120)
        endings |= await poisoned(scene, size(1, bad), size(24, good))
    fleet = scene.fleet(workers=workers, program=PROGRAM, HURT_POISON=MARK)
    deployed = 0

    async def deploy() -> None:
        nonlocal deployed
        if deployments and fleet.processes:
            process = seed.choice(fleet.processes)
            process.send_signal(seed.choice([signal.SIGTERM, signal.SIGKILL]))
            deployed += 1

    async with scene.watched(), fleet, repeating(deploy, 4):
        await scene.all_final()
    await scene.judge(
        "14" if deployments else "12",
        "poison and deployments" if deployments else "poison tasks",
        endings=endings,
        notes=f"{len(endings)} parked, {deployed} deployments, {fleet.started} processes",
    )


async def test_clocks_off_by_ten_minutes(scene: Scene) -> None:
    """Row 11: one worker's clock is ahead, the other's behind; leases and signatures hold."""
    ids = scene.plant(
        [
            {
                "simulate": {
                    "images": [{"file": "png", "faults": [{"fault": "slow", "seconds": 7}]}]
                }
            },
            *[{"simulate": {"duration": n % 4, "images": ["png"]}} for n in range(size(19, 99))],
        ]
    )
    (scene.logs / "behind").mkdir()
    # a lease that a loaded machine renews in time, too
    ahead = scene.fleet(workers=1, program=PROGRAM, HURT_CLOCK="600", HARVESTER_LEASE="60")
    behind = Fleet(
        {**ahead.environ, "HURT_CLOCK": "-600"}, scene.logs / "behind", size=1, program=PROGRAM
    )
    async with scene.watched(), ahead, behind:
        await scene.hand_in(ids)
        await scene.all_final()
        assert (ahead.started, behind.started) == (1, 1)
    assert await scene.counter("leases_expired") == 0
    assert await scene.counter("stale_writes") == 0
    for fleet in (ahead, behind):
        assert any(line.get("event") == "task.final" for line in fleet.log_lines())
    await scene.judge("11", "clocks ten minutes off")


async def test_a_clock_too_far_off_is_named(scene: Scene) -> None:
    """Row 11: beyond what the upstream tolerates, the error says that it is the clock."""
    ids = scene.plant([GOOD] * 5)
    async with scene.watched():
        async with scene.fleet(workers=1, program=PROGRAM, HURT_CLOCK="1200") as fleet:
            await scene.hand_in(ids)
            opened = "circuit.open"
            await eventually(lambda: opened in fleet.log_text(), what="the circuit")
            (loud,) = [line for line in fleet.log_lines() if line.get("event") == opened]
            assert loud["kind"] == "clock"
            assert "clock" in loud["error"]
        began = time.monotonic()
        async with scene.fleet(workers=1):
            await scene.all_final()
    await scene.judge("11", "clock 20 minutes off", recovery=time.monotonic() - began)
