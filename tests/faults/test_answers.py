"""Answers about some ids, next to which the others keep their pace."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.faults.kit import CALM, Scene, size
from tests.fleet import FINAL, Fleet
from tests.support import repeating

GOOD, LOTS = 60, 3
REFUSED = ("bare_404", "proxy_403")
TOO_MUCH = ("long_pointer", "many_pointers", "long_names")
MEMORY = 1 << 30  # bytes a worker may hold at most; one such reply took three times as much


class Pace:
    """Seconds from handing good tasks in, some lots one after the other, to their final records."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def p95(self, bad: list[str] | None = None) -> float:
        """What 95 of a hundred take at most, with ``bad`` ids among those of the first lot."""
        scene, took = self._scene, list[float]()
        for lot in range(LOTS):
            good = scene.plant([{"simulate": {"images": ["png"], "duration": 1}}] * GOOD)
            ids = good + (bad or [] if lot == 0 else [])
            random.Random(lot).shuffle(ids)
            seconds, micro = await scene.redis.time()
            await scene.hand_in(ids)
            await scene.all_final(good)
            keys = [f"{scene.namespace}:task:{task_id}" for task_id in good]
            ends = [await scene.redis.hget(key, "finished_at") for key in keys]
            took += [int(end or 0) / 1000 - seconds - micro / 1e6 for end in ends]
        return sorted(took)[len(took) * 95 // 100]


@asynccontextmanager
async def traffic(scene: Scene) -> AsyncIterator[Pace]:
    """Good tasks come and go while the block runs: what they are answered speaks for the upstream.

    Three ids that are refused with no such answer between would rightly open the circuit.
    """

    async def one_more() -> None:
        await scene.hand_in(scene.plant([{"simulate": {"images": ["png"]}}]))

    async with repeating(one_more, 0.25):
        yield Pace(scene)
    await scene.all_final()


def plant_bad(scene: Scene, scripts: list[dict[str, Any]]) -> list[str]:
    ids = [scene.simulator.submit({"simulate": script}) for script in scripts]
    scene.ids += ids
    return ids


def kept(before: float, mixed: float, after: float) -> str:
    """Fail if good tasks took twice as long next to bad ids, on a machine that is calm."""
    usual = max(before, after)
    assert usual > CALM or mixed <= 2 * usual, (before, mixed, after)
    return f"p95 {mixed:.1f} s next to them, {before:.1f} s before, {after:.1f} s after"


def opened(fleet: Fleet) -> list[dict[str, Any]]:
    return [line for line in fleet.log_lines() if line.get("event") == "circuit.open"]


async def test_refused_ids(scene: Scene) -> None:
    """Row 21: ids that the upstream refuses without a reason stop no other."""
    fleet = scene.fleet()
    async with fleet, traffic(scene) as pace:
        await fleet.ready()
        before = await pace.p95()
        bad = plant_bad(
            scene,
            [
                {"answers": [{"fault": REFUSED[n % len(REFUSED)], "times": "ever"}]}
                for n in range(size(10, 40))
            ],
        )
        async with scene.watched(bad):
            mixed = await pace.p95(bad)
            await scene.all_final(bad)
        after = await pace.p95()
    assert not opened(fleet)
    notes = kept(before, mixed, after)
    endings = dict.fromkeys(bad, ("failed", "upstream_error"))
    await scene.judge("21", "refused without a reason", notes=notes, endings=endings)


def peak(fleet: Fleet) -> int:
    """The most memory that any worker has held, in bytes."""
    lines = [
        line
        for process in fleet.processes
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return max(int(line.split()[1]) * 1024 for line in lines)


async def test_replies_that_are_too_much(scene: Scene) -> None:
    """Row 22: replies that are small and cost much end their own ids, and nothing else."""
    fleet = scene.fleet()
    async with fleet, traffic(scene) as pace:
        await fleet.ready()
        before = await pace.p95()
        bad = plant_bad(scene, [{"end": end} for end in TOO_MUCH for _ in range(size(2, 4))])
        endless = scene.simulator.submit(
            {"simulate": {"answers": [{"fault": "huge_json", "times": "ever"}]}}
        )
        async with scene.watched(bad):
            mixed = await pace.p95([*bad, endless])
            await scene.all_final(bad)
        after = await pace.p95()
        assert fleet.started == len(fleet.processes)
        held = peak(fleet)
        state = await scene.redis.hget(f"{scene.namespace}:task:{endless}", "state")
    assert state not in FINAL  # what is larger than any reply may be says nothing about its task
    assert held < MEMORY
    assert not opened(fleet)
    notes = f"{kept(before, mixed, after)}; a worker held {held >> 20} MiB at most"
    await scene.judge("22", "replies that are too much", notes=notes)
