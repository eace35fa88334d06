"""Hosts that send errors and traps with status 200, next to which the others keep their pace."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tests.bench.heads import empty_extents, mutated
from tests.faults.kit import CALM, FULL, Scene, size
from tests.filehost import Caller, hosted
from tests.fleet import Fleet

GOOD = 40
ERRORS = (
    b'{"code": "AccessDenied"}', b"Service Unavailable", b"null", b"\n", b"",
    b"<!doctype html><h1>Bad gateway</h1>", b"<?xml version='1.0'?><Error/>",
    b"<br />\n<b>Warning</b>: fopen()", "服务不可用".encode("gbk"),
)  # fmt: skip
GAPS = "0,15,30" if FULL else "0,1,2"  # seconds before each fresh address
EXTENTS = (46, 116, 2500)  # items of 65,535 extents each, in hundreds of bytes


async def p95(scene: Scene, next_to: Sequence[str] = ()) -> float:
    """Seconds that 95 of a hundred good tasks take at most, handed in among others."""
    good = scene.plant([{"simulate": {"images": ["png"]}}] * GOOD)
    ids = [*good, *next_to]
    random.Random(len(ids)).shuffle(ids)
    await scene.hand_in(ids)
    await scene.all_final(good)
    took = []
    for task_id in good:
        key = f"{scene.namespace}:task:{task_id}"
        begun, ended = await scene.redis.hmget(key, "submitted_at", "finished_at")
        took.append((int(ended or 0) - int(begun or 0)) / 1000)
    return sorted(took)[len(took) * 95 // 100]


async def judged(
    scene: Scene, row: str, fault: str, scripts: Sequence[dict[str, Any]], fleet: Fleet
) -> None:
    """Submit hostile tasks among good ones, after as many harmless ones; then judge the row."""
    async with fleet:
        await fleet.ready()
        await p95(scene)  # the workers start
        usual = await p95(scene, scene.plant([{"simulate": {"images": ["png"]}}] * len(scripts)))
        hostile = scene.plant([{"simulate": script} for script in scripts])
        async with scene.watched():
            took = await p95(scene, hostile)
            await scene.all_final()
        assert fleet.started == len(fleet.processes), "a worker has died"
        assert not [line for line in fleet.log_lines() if line.get("event") == "job.overdue"]
    # a loaded machine only reports it
    assert usual > CALM or took <= 2 * usual + 2, (took, usual)
    notes = f"p95 of good tasks {took:.1f} s, next to harmless ones {usual:.1f} s"
    await scene.judge(row, fault, notes=notes)


async def test_files_that_hurt(scene: Scene) -> None:
    """Row 25: pictures whose headers lie cost what others cost."""
    chance = random.Random(25)

    async def serve(call: Caller) -> None:
        number = int(call.path.strip("/"))
        body = empty_extents(EXTENTS[number % 3]) if number % 2 else mutated(chance)
        await call.whole(body=body)

    async with hosted(serve) as host:
        scripts = [
            {
                "images": [
                    {
                        "file": "png",
                        "faults": [
                            {"fault": "redirect_to", "to": host.url(f"/{n}"), "times": "ever"}
                        ],
                        "expect": "unsure",
                    }
                ]
            }
            for n in range(size(24, 400))
        ]
        await judged(scene, "25", "files that hurt", scripts, scene.fleet())


async def test_errors_with_status_200(scene: Scene) -> None:
    """Row 26: an error in place of a file is asked for again; one that stays loses its file."""

    async def serve(call: Caller) -> None:
        await call.whole(body=ERRORS[int(call.path.strip("/")) % len(ERRORS)])

    async with hosted(serve) as host:
        scripts = [
            {
                "images": [
                    {
                        "file": ("png", "mp4", "wav", "zip")[n % 4],
                        "faults": [{"fault": "redirect_to", "to": host.url(f"/{n}"), "times": t}],
                        "expect": "files_unavailable" if t == "ever" else "stored",
                    }
                ]
            }
            for n in range(size(27, 400))
            for t in (2, "ever")[: 1 + (n % 3 == 0)]
        ]
        fleet = scene.fleet(HARVESTER_FRESH_ADDRESS_GAPS=GAPS)
        await judged(scene, "26", "errors with status 200", scripts, fleet)
