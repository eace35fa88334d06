"""``make bench``: how many signed polls a second of CPU pays for.

Three ways to ask about the same waiting ids every five seconds or so, each in turns against one
fake upstream that answers after 100 ms: this project's worker (Celery, Redis and all), one Celery
task an id with ``retry(countdown)`` on the prefork pool, and the HTTP client alone with the same
signed requests. Calls are counted at the upstream; CPU is that of the worker's processes. Then
the memory of one worker with few and many waiting ids, how four workers keep to a rate and
share the work, and how long one id waits for a call while other labels have far more than the rate
allows. Only ratios mean something elsewhere.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from tests.bench.options import keep, options, parse
from worker.core.submission import Submission
from worker.registry.registry import Registry
from worker.registry.tally import quantile
from worker.sandbox.servers import Valkey

OURS = "harvester"
COUNTDOWN = "retry(countdown), prefork"
ALONE = "HTTP client alone"
WAYS = (OURS, COUNTDOWN, ALONE)
_RATE = 400  # calls a second that four workers share
_FAIR_RATE = 20  # calls a second that labels share
_START = 60.0  # seconds within which a way must have begun to call
_AGE = 50.0  # of the ids: without a history they are asked about after a tenth of it
_TICKS = os.sysconf("SC_CLK_TCK")


class Upstream:
    """The fake upstream, in a process of its own."""

    def __init__(self, delay: float = 0.1, file: str = "") -> None:
        command = ["-m", "tests.bench.upstream", "--delay", str(delay), "--file", file]
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def ask(self, path: str) -> Any:
        """What it has counted."""
        with urllib.request.urlopen(self.endpoint + path) as answer:
            return json.load(answer)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


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


async def fill(
    redis_url: str,
    count: int,
    *,
    age: float = _AGE,
    over: float = 5.0,
    labels: int = 1,
    name: str = "bench",
) -> None:
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
    ids = [f"{name}-{number}" for number in range(count)]
    options = json.dumps({"callbacks": []})
    for start in range(0, count, 1000):
        some = ids[start : start + 1000]
        await registry.submit(
            [
                Submission(task_id=i, metadata="{}", label=f"{name}-{n % labels}", options=options)
                for n, i in enumerate(some)
            ]
        )
        now = await registry.now()
        async with redis.pipeline(transaction=False) as pipe:
            pipe.zrem("harvester:due:copy", *some)
            pipe.zadd("harvester:due:poll", {i: now + chance.random() * over * 1000 for i in some})
            for i in some:
                pipe.hset(f"harvester:work:{i}", "asked_from", now - round(age * 1000))
            await pipe.execute()
    await redis.aclose()


def _calling(calls: Callable[[], bool]) -> None:
    """Wait until workers call."""
    until = time.monotonic() + _START
    while not calls():
        if time.monotonic() > until:
            raise SystemExit(f"no worker called within {_START:g} s")
        time.sleep(0.05)


@contextmanager
def running(command: Sequence[str], environment: dict[str, str]) -> Iterator[int]:
    """A process, by its id."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
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


def cpu_of(pid: int) -> float:
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


def _behind(redis: Redis) -> int:
    """How many polls are overdue."""
    seconds, micros = redis.time()
    due = redis.zcount("harvester:due:poll", "-inf", seconds * 1000 + micros // 1000)
    return int(due) + int(redis.hget("harvester:turn:poll", "waiting") or 0)


def _caught_up(redis: Redis, ids: int) -> float:
    """Seconds until what came due while the worker started has been worked off, if it ever is.

    Polls are late until then, which says how long a worker takes to start and nothing else.
    """
    began = time.monotonic()
    while _behind(redis) > ids / 100 and time.monotonic() < began + _START:
        time.sleep(0.1)
    return time.monotonic() - began


def _lateness(before: dict[str, str], after: dict[str, str], share: float) -> float:
    """Within how many seconds so many polls were claimed between two moments."""
    since = {name: int(value) - int(before.get(name, 0)) for name, value in after.items()}
    return quantile(since, "poll_lag", share) or 0.0


def measure(
    way: str, upstream: Upstream, server: Valkey, ids: int, chosen: argparse.Namespace
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
        with running(_command(way), environment) as pid:
            started = upstream.ask("/calls")
            _calling(lambda: upstream.ask("/calls") >= started + min(100, ids // 4))
            caught_up = _caught_up(redis, ids) if way == OURS else 0.0
            time.sleep(chosen.rest)
            counters = redis.hgetall("harvester:counters")
            calls, cpu, at = upstream.ask("/calls"), cpu_of(pid), time.monotonic()
            time.sleep(chosen.seconds)
            _calling(lambda: upstream.ask("/calls") > calls)  # on a busy machine none may have come
            calls, cpu = upstream.ask("/calls") - calls, cpu_of(pid) - cpu
            passed = time.monotonic() - at
            found = {"rate": calls / passed, "a CPU-second": calls / cpu, "MB": _rss(pid)}
            if way == OURS:
                # what a worker counts comes with its next tick
                _calling(lambda: _lateness(counters, redis.hgetall("harvester:counters"), 0.5) > 0)
                after = redis.hgetall("harvester:counters")
                found["late p50"] = _lateness(counters, after, 0.5)
                found["late p99"] = _lateness(counters, after, 0.99)
                found["behind"] = _behind(redis)
                found["s to catch up"] = caught_up
        return found


def compare(chosen: argparse.Namespace, upstream: Upstream, server: Valkey) -> dict[str, Any]:
    """Medians of the rounds, the ways taken in turns, and what the goals are of."""
    rows: dict[str, list[dict[str, float]]] = {}
    for _ in range(chosen.rounds):
        for way in WAYS:
            found = measure(way, upstream, server, chosen.ids, chosen)
            rows.setdefault(way, []).append(found)
            print(f"{way:<26}", *(f"{v:>10,.2f} {name}" for name, v in found.items()), flush=True)
    medians = {
        way: {name: statistics.median(row[name] for row in found) for name in found[0]}
        for way, found in rows.items()
    }
    ours = medians[OURS]["a CPU-second"]
    ratios = {f"{OURS} / {way}": ours / medians[way]["a CPU-second"] for way in WAYS[1:]}
    return {"medians": medians, "ratios": ratios}


def memory(chosen: argparse.Namespace, upstream: Upstream, server: Valkey) -> dict[str, float]:
    """MB of one worker with a tenth of the ids waiting, and with ten times as many as that."""
    few, many = chosen.ids // 10, chosen.ids * 10
    found = {}
    for ids in (few, many):
        row = measure(OURS, upstream, server, ids, chosen)
        found[str(ids)] = row["MB"]
        print(f"{ids:>7,} waiting: {row['MB']:.0f} MB, {row['rate']:,.0f} polls/s", flush=True)
    return {**found, "growth": found[str(many)] / found[str(few)] - 1}


def share(chosen: argparse.Namespace, server: Valkey) -> dict[str, float]:
    """How much of a rate four workers use, the most in a second, and what each does of it."""
    upstream, keys = Upstream(), [f"bench-{number}" for number in range(4)]
    try:
        with Redis.from_url(server.url) as redis:
            redis.flushall()
        asyncio.run(fill(server.url, chosen.ids))
        with ExitStack() as workers:
            for key in keys:
                changes = {"HARVESTER_POLL_RATE": str(_RATE), "SPEEDPIX_APP_KEY": key}
                command = running(_command(OURS), environ(upstream, server.url, **changes))
                workers.enter_context(command)
            _calling(lambda: all(upstream.ask(f"/calls?key={key}") for key in keys))
            time.sleep(chosen.rest)
            before, at = [upstream.ask(f"/calls?key={key}") for key in keys], time.monotonic()
            time.sleep(2 * chosen.seconds)
            after, passed = (
                [upstream.ask(f"/calls?key={key}") for key in keys],
                time.monotonic() - at,
            )
        calls = [late - early for early, late in zip(before, after, strict=True)]
        mean = statistics.fmean(calls)
        found = {
            "rate": _RATE,
            "used": sum(calls) / passed / _RATE,
            "most in a second": upstream.ask("/most"),
            "least share": min(calls) / mean,
            "largest share": max(calls) / mean,
        }
    finally:
        upstream.stop()
    print("4 workers:", ", ".join(f"{name} {value:,.2f}" for name, value in found.items()))
    return found


def _first_call(redis: Redis, task_id: str) -> float:
    """Seconds until a call about a task has been made and noted."""
    at = time.monotonic()
    _calling(lambda: redis.hget(f"harvester:task:{task_id}", "polls") != "0")
    return time.monotonic() - at


def fair(
    labels: int, chosen: argparse.Namespace, upstream: Upstream, server: Valkey
) -> dict[str, float]:
    """Seconds that an id of its own label waits while so many labels are overdue."""
    waits = []
    with Redis.from_url(server.url, decode_responses=True) as redis:
        redis.flushall()
        asyncio.run(fill(server.url, 3000, over=0, labels=labels))
        environment = environ(upstream, server.url, HARVESTER_POLL_RATE=str(_FAIR_RATE))
        with running(_command(OURS), environment):
            before = upstream.ask("/calls")
            _calling(lambda: upstream.ask("/calls") > before + _FAIR_RATE)
            time.sleep(chosen.rest)
            for number in range(3 if chosen.quick else 10):
                asyncio.run(fill(server.url, 1, over=0, name=f"one-{number}"))
                waits.append(_first_call(redis, f"one-{number}-0"))
    found = {
        "median": statistics.median(waits),
        "most": max(waits),
        "bound": (labels + 1) / _FAIR_RATE,  # and the call itself
    }
    print(f"{labels:>3} labels overdue:", *(f"{name} {v:.2f} s" for name, v in found.items()))
    return found


def plot(found: dict[str, Any], file: Path) -> None:
    """Draw the comparison."""
    from matplotlib import pyplot  # slow, and seldom wanted

    figure, axes = pyplot.subplots(figsize=(7, 2.2), layout="constrained")
    values = [found["medians"][way]["a CPU-second"] for way in WAYS]
    bars = axes.barh(WAYS, values, color=["tab:blue", "tab:gray", "tab:gray"])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("signed polls a second of CPU")
    axes.margins(x=0.12)
    figure.savefig(file)


def main() -> None:
    """Measure, print what came of it, and keep it if asked to."""
    parser = options(__doc__)
    parser.add_argument("--ids", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--rest", type=float, default=5, help="seconds before each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where to draw the comparison")
    chosen = parse(parser)
    if chosen.quick:
        chosen.ids, chosen.seconds, chosen.rest, chosen.rounds = 1000, 2, 0.5, 1
    with tempfile.TemporaryDirectory() as folder, Valkey(folder) as server:
        upstream = Upstream()
        try:
            found = compare(chosen, upstream, server)
            found["memory"] = memory(chosen, upstream, server)
            found["share"] = share(chosen, server)
            found["fair"] = {
                str(labels): fair(labels, chosen, upstream, server) for labels in (2, 10, 100)
            }
        finally:
            upstream.stop()
    for name, ratio in found["ratios"].items():
        print(f"{name}: {ratio:.2f}")
    keep(found, chosen.json)
    if chosen.plot:
        plot(found, chosen.plot)


if __name__ == "__main__":
    main()
