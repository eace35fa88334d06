"""What a fleet's size is computed from: memory in Redis, CPU and memory of a worker.

Run with ``make bench-capacity`` (Linux). CPU is counted, not time, so that a busy machine does not
change what is seen. docs/capacity.md holds the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from tests.bench.options import keep, options, parse
from tests.fleet import all_final, environ
from tests.support import BucketEnv, eventually
from worker.core.submission import Policy, read_submission
from worker.registry.registry import Registry
from worker.sandbox.servers import SeaweedFS, Valkey
from worker.sandbox.simulator import Simulator

ROOT = Path(__file__).parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 2**20
CHUNK = 1000
PARTS = ("polls", "completions", "memory")


class Worker:
    """One worker process, seen from outside."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "worker.app", "worker"],
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self, what: str = "VmRSS") -> float:
        """MiB: resident now, or ``VmHWM``, the most so far."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(rf"{what}:\s+(\d+) kB", text)
        assert found
        return int(found[1]) / 1024

    def stop(self) -> None:
        """End it and wait."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


@dataclass(kw_only=True)
class Bench:
    """The servers, and what is set."""

    simulator: Simulator
    redis: Redis
    redis_url: str
    bucket: BucketEnv
    folder: Path
    rest: float
    """Seconds for a worker to settle."""

    def environ(self, namespace: str) -> dict[str, str]:
        """A worker's, with rates that hold nothing up."""
        given = environ(
            self.simulator, self.redis_url, self.bucket, namespace,
            HARVESTER_POLL_RATE="100000", HARVESTER_LEASE="60",
        )  # fmt: skip
        passed = {name: text for name, text in os.environ.items() if name.startswith("MALLOC_")}
        return {**given, **passed, "AWS_EC2_METADATA_DISABLED": "true"}

    @asynccontextmanager
    async def worker(self, namespace: str) -> AsyncIterator[Worker]:
        """A worker that has come up, on an empty Redis."""
        await self.redis.flushall()
        worker = Worker(self.environ(namespace), self.folder / f"{namespace}.log")
        try:
            await eventually(
                lambda: self.redis.exists(f"{namespace}:workers"), seconds=120, what="a worker"
            )
            await asyncio.sleep(self.rest)
            yield worker
        finally:
            await asyncio.to_thread(worker.stop)

    async def hand_in(self, namespace: str, script: dict[str, Any], count: int) -> list[str]:
        """Tasks by the intake stream."""
        ids = [self.simulator.submit({"simulate": script}) for _ in range(count)]
        for start in range(0, count, CHUNK):
            body = {"task_ids": ids[start : start + CHUNK], "label": "poster"}
            body["metadata"] = {"order": 1234567}  # type: ignore[assignment]
            await self.redis.xadd(f"{namespace}:intake", {"body": json.dumps(body)})
        return ids


async def ended(bench: Bench, namespace: str, count: int) -> None:
    """Wait until that many tasks are stored, at little cost to Redis."""

    async def stored() -> bool:
        await asyncio.sleep(0.1)
        return int(await bench.redis.zcard(f"{namespace}:index:stored")) >= count

    await eventually(stored, seconds=600, what="the end of every task")


async def polls(bench: Bench, seconds: float) -> dict[str, float]:
    """CPU of one answer "not done yet"."""
    async with bench.worker("polls") as worker:
        idle, resting = worker.memory(), worker.cpu()
        await asyncio.sleep(seconds / 2)
        resting = (worker.cpu() - resting) / (seconds / 2)
        await bench.hand_in("polls", {"duration": 36_000}, 2_000)
        await asyncio.sleep(bench.rest)
        before, asked = worker.cpu(), bench.simulator.counters.polls
        redis = await redis_cpu(bench.redis)
        await asyncio.sleep(seconds)
        redis = await redis_cpu(bench.redis) - redis
        spent = worker.cpu() - before - resting * seconds
        calls = bench.simulator.counters.polls - asked
        return {
            "idle_mib": idle,
            "idle_cpu_percent": 100 * resting,
            "polls_seen": calls,
            "poll_cpu_ms": 1000 * spent / calls,
            "poll_redis_cpu_ms": 1000 * redis / calls,
            "polling_mib": worker.memory("VmHWM"),
        }


async def completions(bench: Bench, count: int, clip_size: int) -> dict[str, float]:
    """CPU of a task from its id to its record, with one picture of 1 MB; then memory of clips."""
    picture = {"images": [{"file": "png", "size": 1_000_000}]}
    clip = {"images": [{"file": "mp4", "size": clip_size}]}
    async with bench.worker("done") as worker:
        found: dict[str, float] = {}
        total = 0
        for name, script in (("empty", {"images": [], "result": {}}), ("picture", picture)):
            before, redis = worker.cpu(), await redis_cpu(bench.redis)
            await bench.hand_in("done", script, count)
            total += count
            await ended(bench, "done", total)
            found[f"{name}_cpu_ms"] = 1000 * (worker.cpu() - before) / count
            redis = await redis_cpu(bench.redis) - redis
            found[f"{name}_redis_cpu_ms"] = 1000 * redis / count
        found["pictures_mib"] = worker.memory("VmHWM")
        await bench.hand_in("done", clip, 8)
        await ended(bench, "done", total + 8)
        found["clips_mib"] = worker.memory("VmHWM")
        await asyncio.sleep(bench.rest)
        found["afterwards_mib"] = worker.memory()
    return found


async def redis_cpu(redis: Redis) -> float:
    """Seconds of CPU that Redis has used so far."""
    info = await redis.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def wipe(redis: Redis) -> None:
    """Empty Redis, and wait until the memory is free."""
    await redis.execute_command("FLUSHALL", "SYNC")


async def used(redis: Redis) -> int:
    """Bytes of memory that the data take."""
    return int((await redis.info("memory"))["used_memory"])


async def waiting(bench: Bench, count: int) -> float:
    """Bytes in Redis for each waiting id."""
    await wipe(bench.redis)
    registry = Registry(
        bench.redis, namespace="harvester", lease=60, poll_rate=20, deadline=86_400,
        record_ttl=2_592_000, events_maxlen=100_000,
    )  # fmt: skip
    before = await used(bench.redis)
    for start in range(0, count, CHUNK):
        ids = [f"01jgjgyaqh85f7rs{n:010d}" for n in range(start, start + CHUNK)]
        options = {"label": "poster", "metadata": {"order": 1234567}}
        accepted, _ = read_submission(ids, options, Policy())
        await registry.submit(accepted)
    return (await used(bench.redis) - before) / count


async def event(bench: Bench, count: int) -> float:
    """Bytes in Redis for each entry of the event stream."""
    await wipe(bench.redis)
    fields = {
        "run": "1", "state": "stored", "reason": "", "label": "poster", "at": "1764000000000"
    }  # fmt: skip
    async with bench.redis.pipeline(transaction=False) as pipe:
        for n in range(count):
            pipe.xadd("harvester:events", {"task_id": f"01jgjgyaqh85f7rs{n:010d}", **fields})
        await pipe.execute()
    return int(await bench.redis.memory_usage("harvester:events", samples=0)) / count


async def final(bench: Bench, files: int, count: int) -> float:
    """Bytes in Redis for each stored task: real ones, then copies of them under other ids."""
    picture = {"images": [{"file": "png"}] * files}
    async with bench.worker("harvester"):
        ids = await bench.hand_in("harvester", picture, 20)
        await all_final(bench.redis, "harvester", ids)
    dumps: list[tuple[bytes, bytes]] = []
    async with Redis.from_url(bench.redis_url, protocol=2) as raw:
        for task_id in ids:
            task, work = f"harvester:task:{task_id}", f"harvester:work:{task_id}"
            dumps.append((await raw.dump(task), await raw.dump(work)))
        await wipe(raw)
        before = await used(bench.redis)
        for start in range(0, count, CHUNK):
            async with raw.pipeline(transaction=False) as pipe:
                for n in range(start, start + CHUNK):
                    task_id = f"01jgjgyaqh85f7rs{n:010d}"
                    task, work = dumps[n % len(dumps)]
                    pipe.restore(f"harvester:task:{task_id}", 2_592_000_000, task)
                    pipe.restore(f"harvester:work:{task_id}", 2_592_000_000, work)
                    pipe.zadd("harvester:index:stored", {task_id: 1_764_000_000_000 + n})
                    pipe.zadd("harvester:expiring", {task_id: 1_766_592_000_000 + n})
                await pipe.execute()
        return (await used(bench.redis) - before) / count


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure every part that was chosen."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = stack.enter_context(Valkey(folder / "valkey"))
        store = stack.enter_context(SeaweedFS(folder / "seaweedfs", "media"))
        simulator = await stack.enter_async_context(Simulator())
        redis = await stack.enter_async_context(
            Redis.from_url(valkey.url, decode_responses=True, protocol=2)
        )
        bucket = BucketEnv(
            endpoint=store.endpoint, access_key=store.access_key, secret_key=store.secret_key,
            bucket=store.bucket, region=store.region, client=None,
        )  # fmt: skip
        bench = Bench(
            simulator=simulator, redis=redis, redis_url=valkey.url, bucket=bucket, folder=folder,
            rest=given.rest,
        )  # fmt: skip
        found: dict[str, Any] = {}
        if "polls" in given.only:
            found["polls"] = await polls(bench, given.seconds)
            print("polls", json.dumps(found["polls"]), flush=True)
        if "completions" in given.only:
            found["completions"] = await completions(bench, given.tasks, given.clip * 1_000_000)
            print("completions", json.dumps(found["completions"]), flush=True)
        for count in given.ids if "memory" in given.only else ():
            sizes = {
                "waiting": await waiting(bench, count),
                "stored, 1 file": await final(bench, 1, count),
                "stored, 4 files": await final(bench, 4, count),
                "event": await event(bench, count),
            }
            found[f"bytes of {count}"] = sizes
            print(f"{count:,} in Redis, bytes each:", json.dumps(sizes), flush=True)
        return found


def main() -> None:
    """Print the figures."""
    parser = options(__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="*", default=PARTS)
    parser.add_argument("--ids", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--clip", type=int, default=100, help="MB of each of eight clips")
    parser.add_argument("--rest", type=float, default=5, help="seconds for a worker to settle")
    given = parse(parser)
    if given.quick:
        given.ids, given.seconds, given.tasks, given.clip, given.rest = [CHUNK], 2, 20, 5, 1
    keep(asyncio.run(measure(given)), given.json)


if __name__ == "__main__":
    main()
