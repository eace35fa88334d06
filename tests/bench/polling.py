"""``make bench-poll``: how many signed polls a second of CPU pays for.

Three ways to ask about the same waiting ids every five seconds or so, each in turns against one
fake upstream that answers after 100 ms: this project's worker (Celery, Redis and all), one Celery
task an id with ``retry(countdown)`` on the prefork pool, and the HTTP client alone with the same
signed requests. Calls are counted at the upstream; CPU is that of the worker's processes. Then
memory and lateness with few and many waiting ids. Only ratios mean something on another machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from worker.core.submission import Submission
from worker.registry.registry import Registry
from worker.registry.tally import HISTOGRAMS
from worker.sandbox.servers import Valkey

OURS = "harvester"
COUNTDOWN = "retry(countdown), prefork"
ALONE = "HTTP client alone"
WAYS = (OURS, COUNTDOWN, ALONE)
_AGE = 50.0  # of the ids: without a history they are asked about after a tenth of it
_TICKS = os.sysconf("SC_CLK_TCK")


class Upstream:
    """The fake upstream, in a process of its own."""

    def __init__(self, delay: float = 0.1) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.upstream", "--delay", str(delay)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def ask(self, path: str) -> int:
        """A number that it counts."""
        with urllib.request.urlopen(self.endpoint + path) as answer:
            return int(answer.read())

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def environ(upstream: Upstream, redis_url: str, **changes: str) -> dict[str, str]:
    """What the ways are told."""
    return {
        "PATH": os.environ["PATH"],
        "SPEEDPIX_ENDPOINT": upstream.endpoint,
        "SPEEDPIX_APP_KEY": "bench",
        "SPEEDPIX_APP_SECRET": "bench-secret",
        "REDIS_URL": redis_url,
        "HARVESTER_BUCKET": "bench",
        "HARVESTER_POLL_RATE": "100000",
        "HARVESTER_LOG_FORMAT": "json",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        **changes,
    }


async def fill(redis_url: str, count: int, *, age: float = _AGE, over: float = 5.0) -> None:
    """Have ``count`` ids wait for polls that come due over the next ``over`` seconds."""
    chance = random.Random(1)
    redis = AsyncRedis.from_url(redis_url, decode_responses=True, protocol=2)
    registry = Registry(
        redis,
        namespace="harvester",
        lease=60,
        poll_rate=1,
        deadline=86_400,
        record_ttl=0,
        events_maxlen=1000,
    )
    ids = [f"bench-{number}" for number in range(count)]
    options = json.dumps({"callbacks": []})
    for start in range(0, count, 1000):
        some = ids[start : start + 1000]
        await registry.submit(
            [Submission(task_id=i, metadata="{}", label="bench", options=options) for i in some]
        )
        now = await registry.now()
        async with redis.pipeline(transaction=False) as pipe:
            pipe.zrem("harvester:due:copy", *some)
            pipe.zadd("harvester:due:poll", {i: now + chance.random() * over * 1000 for i in some})
            for i in some:
                pipe.hset(f"harvester:work:{i}", "asked_from", now - round(age * 1000))
            await pipe.execute()
    await redis.aclose()


@contextmanager
def running(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[int]:
    """A process, by its id."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=out, stderr=out
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            for child in [*_children(process.pid), process.pid]:
                os.kill(child, 9)
            process.wait()


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _cpu(pid: int) -> float:
    """Seconds of CPU of a process and its children."""
    total = 0.0
    for each in [pid, *_children(pid)]:
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def _rss(pid: int) -> float:
    """Resident memory in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _command(way: str) -> list[str]:
    if way == OURS:
        return ["-m", "celery", "-A", "worker.app", "worker"]
    if way == COUNTDOWN:
        return ["-m", "celery", "-A", "tests.bench.countdown", "worker", "-P", "prefork", "-c", "2"]
    return ["-m", "tests.bench.client", "256"]


def _lateness(before: dict[str, str], after: dict[str, str], share: float) -> float:
    """The bound, in seconds, within which so many polls were claimed, between two bounds linear."""
    bounds = [f"{bound:g}" for bound in HISTOGRAMS["poll_lag"]]
    names = [f"poll_lag:{bound}" for bound in [*bounds, "inf"]]
    counts = [int(after.get(n, 0)) - int(before.get(n, 0)) for n in names]
    rest, low = share * sum(counts), 0.0
    for count, bound in zip(counts, bounds, strict=False):
        if count and rest <= count:
            return low + (float(bound) - low) * rest / count
        rest, low = rest - count, float(bound)
    return low


def measure(
    way: str, upstream: Upstream, server: Valkey, folder: Path, *, ids: int, seconds: float
) -> dict[str, float]:
    """One round: polls a second, polls a second of CPU, MB, and for ours lateness."""
    with Redis.from_url(server.url, decode_responses=True) as redis:
        redis.flushall()
        environment = environ(upstream, server.url)
        if way == COUNTDOWN:
            os.environ.update(environment)
            from tests.bench.countdown import poll

            for number in range(ids):
                poll.delay(f"bench-{number}")
        elif way == OURS:
            asyncio.run(fill(server.url, ids))
        with running(_command(way), environment, folder / "worker.log") as pid:
            started = upstream.ask("/calls")
            while upstream.ask("/calls") < started + 100:
                time.sleep(0.05)
            time.sleep(5)
            counters = redis.hgetall("harvester:counters")
            calls, cpu, at = upstream.ask("/calls"), _cpu(pid), time.monotonic()
            time.sleep(seconds)
            calls, cpu = upstream.ask("/calls") - calls, _cpu(pid) - cpu
            passed = time.monotonic() - at
            found = {"rate": calls / passed, "a CPU-second": calls / cpu, "MB": _rss(pid)}
            if way == OURS:
                after = redis.hgetall("harvester:counters")
                found["late p99"] = _lateness(counters, after, 0.99)
        return found


def main() -> None:
    """Measure in turns and print what came of it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ids", type=int, default=10_000)
    options.add_argument("--seconds", type=float, default=15)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", choices=WAYS, action="append")
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    upstream = Upstream()
    with tempfile.TemporaryDirectory() as name:
        server = Valkey(name)
        server.start()
        rows: dict[str, list[dict[str, float]]] = {}
        try:
            for _ in range(chosen.rounds):
                for way in chosen.only or WAYS:
                    row = measure(
                        way, upstream, server, Path(name), ids=chosen.ids, seconds=chosen.seconds
                    )
                    rows.setdefault(way, []).append(row)
                    print(way, {k: round(v, 2) for k, v in row.items()}, flush=True)
        finally:
            server.kill()
            upstream.stop()
    medians = {
        way: {k: statistics.median(row[k] for row in found) for k in found[0]}
        for way, found in rows.items()
    }
    print(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
