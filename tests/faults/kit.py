"""What the rows of the fault matrix share: the servers, the watcher, and the row's result."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from tests.fleet import FINAL, Findings, Fleet, all_final, audit, environ
from tests.scripts import COMMON
from tests.support import BOUND, BucketEnv, eventually, joined
from worker.sandbox.simulator import Simulator

FULL = os.environ.get("FAULTS") == "full"
LEASE = 5.0  # seconds; what tests.fleet.environ sets
TICKS = 2 * 1.2  # seconds; two ticks with their jitter
CALM = 10.0  # seconds: a machine on which a task takes longer does not judge recovery
_SETTLED = ("state", "reason", "error", "files", "result", "manifest", "finished_at", "run")


def size(short: int, full: int) -> int:
    """``full`` under ``make faults``, ``short`` otherwise."""
    return full if FULL else short


def lively(count: int, seed: random.Random, *, spread: float) -> list[dict[str, Any]]:
    """A mixed lot of tasks, without those that take a minute to end."""
    made = [COMMON[n % len(COMMON)](seed) for n in range(count)]
    for script in made:
        script["duration"] = round(seed.uniform(0, spread), 2)
    seed.shuffle(made)
    return [{"simulate": script} for script in made]


class Watcher:
    """Reads every record again and again while a fleet works, as an impatient reader would.

    No result may show before the end, every end must be whole at first sight, its objects in
    place, and nothing of it may change afterwards. ``pause`` is the longest time in seconds for
    which this loop, and so the simulator, stood still.
    """

    def __init__(self, redis: Redis, bucket: BucketEnv, namespace: str, ids: list[str]) -> None:
        self._redis = redis
        self._bucket = bucket
        self._namespace = namespace
        self._open = list(ids)
        self._stopping = False
        self.ends: dict[str, dict[str, str]] = {}
        self.wrong: list[str] = []
        self.looks = 0

    async def watch(self) -> None:
        """Look until :meth:`stop`. A Redis that is away is waited for."""
        last = False
        while not last:
            last = self._stopping  # one look more, at what ended just before
            with suppress(redis_errors.RedisError, OSError):
                await self.look()
            await asyncio.sleep(0.1)

    def stop(self) -> None:
        """End watching after the look that is under way."""
        self._stopping = True

    async def look(self) -> None:
        """Look once at every record that was not final before."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for task_id in self._open:
                pipe.hgetall(f"{self._namespace}:task:{task_id}")
            records = dict(zip(self._open, await pipe.execute(), strict=True))
        self.looks += len(records)
        ended: dict[str, dict[str, str]] = {}
        for task_id, record in records.items():
            if record.get("state") in FINAL:
                ended[task_id] = record
            elif record.get("files") or record.get("result") or record.get("finished_at"):
                self.wrong.append(f"{task_id} is {record.get('state')} and shows {sorted(record)}")
        if not ended:
            return
        keys = set(await asyncio.to_thread(self._bucket.keys, f"{self._namespace}/"))
        for task_id, record in ended.items():
            named = [record.get("manifest", "")]
            named += [
                file["key"] for file in json.loads(record.get("files", "[]")) if "key" in file
            ]
            missing = [key for key in named if key not in keys]
            if missing:
                self.wrong.append(f"{task_id} is final, and {missing} were not there yet")
        self.ends |= ended
        self._open = [task_id for task_id in self._open if task_id not in ended]

    def changed(self, records: Mapping[str, Mapping[str, str]]) -> list[str]:
        """The ends that have changed after they were first seen."""
        return [
            f"{task_id}: {name} changed after the end"
            for task_id, end in self.ends.items()
            for name in _SETTLED
            if records[task_id].get(name) != end.get(name)
        ]


@dataclass(kw_only=True)
class Row:
    """A row's result, as the table shows it."""

    row: str
    fault: str
    size: int
    lost: int
    doubled: int
    bad_bytes: int
    half_records: int
    unexplained: int
    recovery: float | None = None
    usual: float | None = None
    notes: str = ""


@dataclass(kw_only=True)
class Scene:
    """One row: its servers, its tasks, its fleet."""

    simulator: Simulator
    redis: Redis
    redis_url: str
    bucket: BucketEnv
    namespace: str
    logs: Path
    report: Callable[[Row], None]
    ids: list[str] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)
    unhurt: list[float] = field(default_factory=list)

    def fleet(self, *, workers: int = 2, program: Sequence[str] = (), **env: str) -> Fleet:
        """A fleet on these servers."""
        made = environ(self.simulator, self.redis_url, self.bucket, self.namespace, **env)
        chosen: dict[str, Any] = {"program": program} if program else {}
        return Fleet(made, self.logs, size=workers, **chosen)

    def plant(self, scripts: Sequence[Mapping[str, Any]]) -> list[str]:
        """Submit tasks upstream; returns their ids, which the row then answers for."""
        ids = [self.simulator.submit(dict(script)) for script in scripts]
        self.ids += ids
        return ids

    async def hand_in(self, ids: Sequence[str], **options: object) -> None:
        """Put ids into the intake stream."""
        for start in range(0, len(ids), 20):
            body = json.dumps({"task_ids": list(ids[start : start + 20]), **options})
            await self.redis.xadd(f"{self.namespace}:intake", {"body": body})

    @asynccontextmanager
    async def watched(self, ids: list[str] | None = None) -> AsyncIterator[Watcher]:
        """Have a watcher read the records while the block runs."""
        watcher = Watcher(self.redis, self.bucket, self.namespace, ids or self.ids)
        self.watchers.append(watcher)
        task = asyncio.create_task(watcher.watch())
        try:
            yield watcher
        finally:
            watcher.stop()
            await joined(task)

    async def all_final(self, ids: list[str] | None = None) -> None:
        """Wait until every task is final; Redis may be away meanwhile."""
        await all_final(self.redis, self.namespace, ids or self.ids, seconds=size(BOUND, 900))

    async def works(self, *, piled_up: bool = False) -> float:
        """Seconds until a task from the stream and one from Celery have run from end to end.

        If work has ``piled_up``, behind which they must wait: until they are accepted, and tasks
        end.
        """
        began = time.monotonic()
        events = f"{self.namespace}:events"
        before = await self.redis.xlen(events)
        probes = self.plant([{"simulate": {"images": ["png"]}} for _ in range(2)])
        await self.hand_in(probes[:1])
        await self.send("harvester.submit", probes[1])

        async def moves() -> bool:
            keys = [f"{self.namespace}:task:{task_id}" for task_id in probes]
            known: int = await self.redis.exists(*keys)
            return known == len(keys) and await self.redis.xlen(events) > before

        await eventually(moves, what="work")
        moved = time.monotonic() - began
        await self.all_final(probes)
        return moved if piled_up else time.monotonic() - began

    async def send(self, name: str, *args: object, **options: object) -> None:
        """Send a Celery message, as another application does."""

        def send() -> None:
            with Celery("another", broker=self.redis_url) as app:
                app.send_task(name, args=args, kwargs=options, queue=self.namespace)

        await asyncio.to_thread(send)

    async def measure(self) -> None:
        """Take the time of a task while nothing is hurt: the baseline of :meth:`soon`.

        The first one is taken while the workers start, which shows best how loaded the machine is.
        """
        self.unhurt.append(await self.works())

    def soon(self, recoveries: Sequence[float], *, within: float) -> float:
        """The slowest recovery; on a calm machine it must come ``within`` a time.

        That is the time of leases, ticks and pauses, to which twice the baseline is added. Where
        the baseline itself shows a loaded machine, the recovery is only reported.
        """
        assert len(self.unhurt) > 1, "the baseline is taken before and after"
        slowest, usual = max(recoveries), max(self.unhurt)
        assert usual > CALM or slowest <= within + 2 * usual, (recoveries, self.unhurt)
        return slowest

    async def counter(self, name: str) -> int:
        """One of the fleet's own counters."""
        return int(await self.redis.hget(f"{self.namespace}:counters", name) or 0)

    async def judge(
        self,
        row: str,
        fault: str,
        *,
        recovery: float | None = None,
        notes: str = "",
        endings: Mapping[str, tuple[str, str]] | None = None,
    ) -> Findings:
        """Audit, report the row, and fail if anything is wrong."""
        found = await audit(
            self.simulator, self.redis, self.bucket, self.namespace, self.ids, endings=endings
        )
        assert self.watchers
        for watcher in self.watchers:
            assert watcher.looks
            found.half_records += watcher.wrong
            found.doubled += watcher.changed(found.records)
        self.report(
            Row(
                row=row,
                fault=fault,
                size=len(self.ids),
                lost=len(found.lost),
                doubled=len(found.doubled),
                bad_bytes=len(found.bad_bytes),
                half_records=len(found.half_records),
                unexplained=len(found.unexplained),
                recovery=recovery,
                usual=max(self.unhurt, default=None),
                notes=notes,
            )
        )
        assert not found.wrong, "\n".join(found.wrong[:20])
        return found
