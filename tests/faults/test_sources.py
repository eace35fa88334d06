"""An upstream that stumbles, and hosts that send what they should not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest

from tests.faults.kit import CALM, FULL, Scene, size
from tests.faults.tcp_proxy import TcpProxy
from tests.filehost import Caller, hosted
from tests.support import eventually
from worker.work.shares import LINGERS

RATE = 40

ANSWERS = (
    "throttled", "throttled_429", "flow_control", "error_500", "error_502", "error_503",
    "error_504", "empty_body", "broken_json", "html", "deep_json", "reset", "invoke_timeout",
    "unknown", "strange", "service_error", "empty", "no_data", "foreign",
    *(["hang", "huge_json"] if FULL else []),
)  # fmt: skip

FILES: tuple[dict[str, Any], ...] = (
    {"fault": "truncated", "times": 2},
    {"fault": "truncated", "after": 0},
    {"fault": "reset", "times": 2},
    {"fault": "no_length", "times": "ever"},
    {"fault": "html", "times": 2},
    {"fault": "empty", "times": 2},
    {"fault": "error_500", "times": 2},
    {"fault": "error_503", "times": 2},
    {"fault": "redirect", "hops": 3, "times": "ever"},
    {"fault": "redirect_to", "times": "ever"},
    {"fault": "redirect_to", "to": "http://10.1.2.3/x.png", "times": "ever"},
    {"fault": "redirect_loop"},
    {"fault": "no_range", "times": "ever"},
    {"fault": "gzip", "times": "ever"},
    {"fault": "oversized", "bytes": 30_000_000, "times": "ever"},
    *([{"fault": "stalled"}] if FULL else []),
)
STORED_AFTER_ALL = {"html", "empty", "redirect_loop"}


@pytest.mark.parametrize("answers", [(a,) for a in ANSWERS] if FULL else [ANSWERS],
                         ids=ANSWERS if FULL else ["all"])  # fmt: skip
async def test_upstream_stumbles(scene: Scene, answers: tuple[str, ...]) -> None:
    """Row 6: bad answers, of which none may end a task; the rate is held."""
    ids = scene.plant(
        [
            {"simulate": {"answers": [{"fault": a, "times": 1}], "images": ["png"]}}
            for a in answers
            for _ in range(size(2, 200))
        ]
    )
    # a loaded machine may take longer to its first look than the short grace of the other rows
    fleet = scene.fleet(HARVESTER_POLL_RATE=str(RATE), HARVESTER_UNKNOWN_TASK_GRACE="120")
    async with fleet, scene.watched():
        began = time.monotonic()
        await scene.hand_in(ids)
        await scene.all_final()
        took = time.monotonic() - began
    counters = scene.simulator.counters
    # a quarter of a second's calls may come at once. No second is looked at alone: a loaded machine
    # holds calls up, and then they come together
    assert counters.calls <= RATE * (took + 0.25) + 1
    fault = answers[0].replace("_", " ") if len(answers) == 1 else "each of them"
    most = counters.max_calls_per_second
    await scene.judge("6", f"upstream: {fault}", notes=f"at most {most} calls/s, limit {RATE}")


async def test_upstream_out_of_reach(scene: Scene) -> None:
    """Row 6: an upstream that is slow, silent, and resets connections."""
    ids = scene.plant([{"simulate": {"images": ["png"]}}] * size(10, 200))
    port = int(scene.simulator.endpoint.rpartition(":")[2])
    async with TcpProxy("127.0.0.1", port) as proxy:
        address = f"http://127.0.0.1:{proxy.port}"
        proxy.refuse = True
        async with scene.fleet(SPEEDPIX_ENDPOINT=address), scene.watched() as watcher:
            await scene.hand_in(ids)
            await eventually(lambda: proxy.connections >= 3 * len(ids), what="connections")
            assert not watcher.ends
            proxy.heal()
            await scene.all_final()
    await scene.judge("6", "upstream: out of reach", notes=f"{proxy.connections} connections")


@pytest.mark.parametrize("faults", [(f,) for f in FILES] if FULL else [FILES],
                         ids=lambda f: f[0]["fault"] if FULL else "all")  # fmt: skip
async def test_file_host(scene: Scene, faults: tuple[dict[str, Any], ...]) -> None:
    """Row 7: bodies that are cut, wrong, elsewhere, or too much."""

    def file(fault: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {"file": "png", "faults": [fault]}
        return made | ({"expect": "stored"} if fault["fault"] in STORED_AFTER_ALL else {})

    count = size(2, 10 if faults[0]["fault"] == "oversized" else 100)
    ids = scene.plant([{"simulate": {"images": [file(f)]}} for f in faults for _ in range(count)])
    async with scene.fleet(HARVESTER_MAX_FILE_BYTES="20000000"), scene.watched():
        await scene.hand_in(ids)
        await scene.all_final()
    fault = faults[0]["fault"].replace("_", " ") if len(faults) == 1 else "each of them"
    await scene.judge("7", f"file host: {fault}")


async def test_addresses_expired(scene: Scene) -> None:
    """Row 8: addresses that have died before the copy; some for ever."""
    dead: list[dict[str, Any]] = [
        {"stale_replies": 1, "images": ["png", "webp"]},
        {"stale_replies": 2, "images": ["png"]},
        {"images": [{"file": "png", "faults": [{"fault": "expired", "times": 1}]}]},
        {"images": [{"file": "png", "faults": [{"fault": "forbidden", "times": 2}]}]},
        {"images": [{"file": "png", "faults": [{"fault": "gone", "times": 1}]}]},
    ]
    if FULL:
        dead += [
            {"images": [{"file": "png", "faults": [{"fault": "expired", "times": "ever"}]}]},
            {"images": ["png", {"file": "png", "faults": [{"fault": "missing", "times": "ever"}]}]},
            {"stale_replies": 9, "images": ["png"]},
        ]
    ids = scene.plant([{"simulate": dead[n % len(dead)]} for n in range(size(15, 100))])
    async with scene.fleet(), scene.watched():
        await scene.hand_in(ids)
        await scene.all_final()
    asked = sum(task["successes"] for task in scene.simulator.oracle()["tasks"].values())
    await scene.judge("8", "addresses expired", notes=f"{asked} successes asked for")


async def test_later_replies_differ(scene: Scene) -> None:
    """Row 18: later replies list the files in another order, renamed, re-signed; or elsewhere."""
    once = [{"fault": "expired", "times": 1}]
    script: dict[str, Any] = {
        "rename": True,
        "images": [{"file": "png", "faults": once}, "jpeg", {"file": "webp"}, {"same": "poster"}],
        "result": {
            "poster": {"file": "png", "name": "poster", "faults": once},
            "clips": [{"file": "mp4"}, {"file": "mp4", "faults": once}],
        },
    }
    # addresses that are all new can be told apart by their places only
    kinds = ({"shuffle": True, "reorder": True}, {"readdress": True})
    ids = scene.plant([{"simulate": script | kinds[n % 2]} for n in range(size(12, 100))])
    async with scene.fleet(), scene.watched():
        await scene.hand_in(ids)
        await scene.all_final()
    oracle = scene.simulator.oracle()["tasks"]
    assert all(task["successes"] > 1 for task in oracle.values())
    fetches = sum(f["fetches"] for task in oracle.values() for f in task["files"])
    await scene.judge("18", "later replies differ", notes=f"{fetches} fetches")


async def dribble(call: Caller) -> None:
    """Headers without end, a few bytes at a time, or answers before the answer."""
    line = b"HTTP/1.1 103 Early Hints\r\n\r\n" if call.number % 2 else b"H"
    with contextlib.suppress(ConnectionError):
        for _ in range(600):
            call.writer.write(line)
            await call.writer.drain()
            await asyncio.sleep(1)


async def test_hosts_that_hold(scene: Scene) -> None:
    """Row 24: bodies at a trickle and headers without end; the tasks of others keep their pace."""
    good = [scene.plant([{"simulate": {"images": ["png"]}}] * size(5, 40)) for _ in range(3)]

    async def pace() -> float:
        """Seconds for some good tasks, from submission to the last record."""
        began = time.monotonic()
        ids = good.pop()
        await scene.hand_in(ids)
        await scene.all_final(ids)
        return time.monotonic() - began

    port = int(scene.simulator.endpoint.rpartition(":")[2])
    async with (
        hosted(dribble) as host,
        TcpProxy("127.0.0.1", port) as proxy,  # a host of its own
        scene.fleet(workers=1, HARVESTER_MEMORY_BUDGET="100000000"),
    ):
        theirs = {"file": "png", "origin": f"http://127.0.0.1:{proxy.port}", "expect": "stored"}
        slow = theirs | {"faults": [{"fault": "slow", "seconds": size(20, 150)}]}
        endless = {"fault": "redirect_to", "to": host.url(), "times": 1}
        held = theirs | {"faults": [endless]}
        holding = scene.plant(
            [{"simulate": {"images": [file]}} for file in (slow, held) for _ in range(12)]
        )
        async with scene.watched():
            await pace()  # the workers start
            usual = await pace()
            await scene.hand_in(holding)
            await eventually(lambda: len(host.calls) >= 4, what="requests that are held")
            took = await pace()
            states = [
                await scene.redis.hget(f"{scene.namespace}:task:{task_id}", "state")
                for task_id in holding
            ]
            assert "copying" in states, "they were still held"
            await scene.all_final()
    # a loaded machine only reports it
    assert usual > CALM or took <= 2 * usual + LINGERS + 3, (took, usual)
    notes = f"good tasks: {took:.1f} s, before {usual:.1f} s"
    await scene.judge("24", "hosts that hold", notes=notes)
