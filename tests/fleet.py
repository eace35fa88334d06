"""Real worker processes under a supervisor, and an oracle that checks what they left behind."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from tests.support import BOUND, ROOT, BucketEnv, eventually, repeating
from worker.sandbox.simulator import Simulator

CELERY = ("-m", "celery")
FINAL = ("stored", "partial", "failed")


class Fleet:
    """``size`` workers, each started again when it dies, until :meth:`stop`.

    ``program`` is what Python runs instead of Celery itself, in the checkout ``root``.
    """

    def __init__(
        self,
        environ: dict[str, str],
        logs: Path,
        *,
        size: int = 2,
        program: Sequence[str] = CELERY,
        root: Path = ROOT,
    ) -> None:
        self._root = root
        self.environ = {
            "PATH": os.environ["PATH"],
            "AWS_EC2_METADATA_DISABLED": "true",
            "HARVESTER_LOG_FORMAT": "json",
            **environ,
        }
        self._logs = logs
        self._size = size
        self._program = program
        self._processes: list[subprocess.Popen[bytes]] = []
        self._started = 0
        self._supervising = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Fleet:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the workers and their supervisor."""
        self._processes = [self._spawn() for _ in range(self._size)]
        await self._supervising.enter_async_context(repeating(self._supervise, 0.1))

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The workers that run now."""
        return [process for process in self._processes if process.poll() is None]

    @property
    def started(self) -> int:
        """How many processes there have been."""
        return self._started

    def log_lines(self) -> list[dict[str, Any]]:
        """Every JSON line that any worker has logged."""
        lines = []
        for path in sorted(self._logs.glob("worker-*.log")):
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return lines

    def log_text(self) -> str:
        """All that the workers have written."""
        return "".join(p.read_text(errors="replace") for p in self._logs.glob("worker-*.log"))

    async def ready(self) -> None:
        """Wait until every worker runs: before, SIGTERM ends it as it ends any program."""

        def all_run() -> bool:
            events = [line.get("event") for line in self.log_lines()]
            return events.count("engine.started") >= self._started

        await eventually(all_run, what="the workers")

    async def stop(self) -> list[int]:
        """SIGTERM all; returns their exit codes."""
        try:
            await self._supervising.aclose()
            for process in self.processes:
                process.terminate()
            return [await asyncio.to_thread(p.wait, BOUND) for p in self._processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._started += 1
        with (self._logs / f"worker-{self._started}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *self._program, "-A", "worker.app", "worker"],
                cwd=self._root,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def _supervise(self) -> None:
        self._processes = [p if p.poll() is None else self._spawn() for p in self._processes]


class Killer:
    """Kills workers at random and counts in what stage their tasks were."""

    def __init__(self, fleet: Fleet, redis: Redis, namespace: str) -> None:
        self._fleet = fleet
        self._redis = redis
        self._namespace = namespace
        self.kills = 0
        self.stages: collections.Counter[str] = collections.Counter()

    async def kill_a_busy_one(self, seed: random.Random) -> None:
        """SIGKILL a worker that has tasks in hand, if there is one."""
        for process in seed.sample(self._fleet.processes, len(self._fleet.processes)):
            # stopped first, so that the count is of what the kill hits
            process.send_signal(signal.SIGSTOP)
            try:
                hit = await self.in_hand(process.pid)
                if hit:
                    process.kill()
                    process.wait()
                    self.kills += 1
                    self.stages += hit
                    return
            finally:  # a look that is cut short must not leave it stopped
                process.send_signal(signal.SIGCONT)

    async def freeze_a_copying_one(self) -> subprocess.Popen[bytes] | None:
        """SIGSTOP a worker in the middle of a copy, if there is one."""
        for process in self._fleet.processes:
            process.send_signal(signal.SIGSTOP)
            hit = await self.in_hand(process.pid)
            if hit["mid-copy"] + hit["before the first byte"]:
                return process
            process.send_signal(signal.SIGCONT)
        return None

    async def in_hand(self, pid: int) -> collections.Counter[str]:
        """The stages of the tasks that a process has claimed."""
        owner, found = f"{socket.gethostname()}:{pid}", collections.Counter[str]()
        async for key in self._redis.scan_iter(f"{self._namespace}:work:*", count=1000):
            work = await self._redis.hgetall(key)
            if work.get("owner") == owner and "token" in work:
                task_id = key.rpartition(":")[2]
                found[await self._stage(task_id, work)] += 1
        return found

    async def _stage(self, task_id: str, work: dict[str, str]) -> str:
        if await self._redis.zscore(f"{self._namespace}:due:poll", task_id) is not None:
            return "polling"
        if "data" not in work:
            return "ending" if "ending" in work else "first look"
        files = len(json.loads(work.get("plan", "[]")))
        done = sum(name.startswith(("file:", "lost:")) for name in work)
        if files and done == files:
            return "before the record"
        if any(name.startswith("key:") for name in work):
            return "mid-copy" if not done else "between files"
        return "before the first byte"


async def all_final(
    redis: Redis, namespace: str, ids: Sequence[str], *, seconds: float = BOUND
) -> None:
    """Wait until every task is final; Redis may be away meanwhile.

    ``seconds`` may pass without a task that ends: how long all of them take is the machine's.
    """
    missing = list(ids)

    async def fewer() -> bool:
        nonlocal missing
        await asyncio.sleep(0.2)
        before = len(missing)
        with contextlib.suppress(redis_errors.RedisError, OSError):
            async with redis.pipeline(transaction=False) as pipe:
                for task_id in missing:
                    pipe.hget(f"{namespace}:task:{task_id}", "state")
                states = await pipe.execute()
            missing = [i for i, state in zip(missing, states, strict=True) if state not in FINAL]
        return len(missing) < before

    while missing:
        try:
            await eventually(fewer, seconds=seconds)
        except AssertionError:
            raise AssertionError(f"{len(missing)} not final: {missing[:10]}") from None


async def over(value: Awaitable[str | None], bound: float) -> bool:
    """Whether a number that Redis holds is above a bound."""
    return float(await value or 0) > bound


async def idle(redis: Redis, namespace: str) -> bool:
    """Whether no worker has a task in hand."""
    keys = redis.scan_iter(f"{namespace}:work:*", count=1000)
    return not any([await redis.hexists(key, "token") async for key in keys])


@dataclass(kw_only=True)
class Findings:
    """What is wrong with what a fleet has left behind, a line for each thing; and the records."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    bad_bytes: list[str] = field(default_factory=list)
    half_records: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    records: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        """All of it."""
        return [
            *self.lost, *self.doubled, *self.bad_bytes, *self.half_records, *self.unexplained
        ]  # fmt: skip


async def audit(
    simulator: Simulator,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    ids: list[str],
    *,
    endings: Mapping[str, tuple[str, str]] | None = None,
    lists: bool = True,
) -> Findings:
    """Compare Redis, the bucket and the stream with what the simulator foretells.

    Every task ends as foretold (or as ``endings`` says: state and reason); every object is
    byte-exact; no object or open upload is unexplained (``lists``: of a store that lists uploads);
    every task is announced once. The fleet must use the namespace as its prefix.
    """
    foretold = await asyncio.to_thread(lambda: simulator.oracle()["tasks"])
    found = Findings()
    explained: set[str] = set()
    sums: dict[str, str] = {}
    for task_id in ids:
        record = await redis.hgetall(f"{namespace}:task:{task_id}")
        found.records[task_id] = record
        oracle = foretold.get(task_id, {"state": "failed", "reason": "unknown_task", "files": []})
        ended = (record.get("state"), record.get("reason"))
        wanted = (endings or {}).get(task_id, (oracle["state"], oracle["reason"]))
        if record.get("state") not in FINAL:
            found.lost.append(f"{task_id} is {record.get('state')}, foretold {wanted}")
            continue
        if "unsure" not in wanted and ended != wanted:
            found.lost.append(f"{task_id} ended {ended}, foretold {wanted}: {record.get('error')}")
            continue
        found.half_records += [f"{task_id} lacks {name}" for name in _lacking(record)]
        explained.add(record.get("manifest", ""))
        files = json.loads(record.get("files", "[]"))
        by_refs = {tuple(file["refs"]): file for file in files}
        if record["state"] != "failed" and len(files) != len(oracle["files"]):
            found.lost.append(f"{task_id} has {len(files)} files, foretold {len(oracle['files'])}")
        for file in oracle["files"]:
            stored = by_refs.get(tuple(file["refs"]))
            if file["expected"] == "stored" and record["state"] != "failed":
                if stored is None or stored.get("sha256") != file["sha256"]:
                    found.lost.append(f"{task_id} {file['refs']}: {stored}, foretold {file}")
                    continue
                sums[stored["key"]] = file["sha256"]
        explained |= {file["key"] for file in files if "key" in file}
    keys = set(await asyncio.to_thread(bucket.keys, f"{namespace}/"))
    found.lost += [f"{key} is not in the bucket" for key in sorted(explained - keys)]
    bases = collections.Counter(key.rpartition(".")[0] for key in explained)
    probe = f"{namespace}/.doctor/probe"  # of the store, and of no task
    for key in sorted(keys - explained - {probe}):
        twin = bases[key.rpartition(".")[0]]
        (found.doubled if twin else found.unexplained).append(f"nothing explains {key}")
    for key in sorted(keys & sums.keys()):
        body = await asyncio.to_thread(bucket.read, key)
        if hashlib.sha256(body).hexdigest() != sums[key]:
            found.bad_bytes.append(f"{key} has other bytes than its source")
    uploads: dict[str, Any] = {}
    if lists:
        uploads = await asyncio.to_thread(
            bucket.client.list_multipart_uploads, Bucket=bucket.bucket, Prefix=f"{namespace}/"
        )
    left_open = {upload["Key"] for upload in uploads.get("Uploads", ())} - {probe}
    found.unexplained += [f"open upload of {key}" for key in sorted(left_open)]
    told = collections.Counter(
        (event["task_id"], event["run"]) for _, event in await redis.xrange(f"{namespace}:events")
    )
    wanted_told = {(task_id, found.records[task_id].get("run", "")) for task_id in ids}
    found.doubled += [f"announced {n} times: {k}" for k, n in told.items() if n != 1]
    found.lost += [f"never announced: {k}" for k in sorted(wanted_told - told.keys())]
    found.unexplained += [f"announced: {k}" for k in sorted(told.keys() - wanted_told)]
    return found


def _lacking(record: Mapping[str, str]) -> list[str]:
    """The fields that a final record lacks."""
    names = ["reason", "finished_at", "files", "manifest", "run", "told"]
    names += ["result"] if record["state"] in ("stored", "partial") else []
    filled = ["finished_at", "files", "manifest"]
    filled += ["reason", "error"] if record["state"] != "stored" else []
    return [n for n in names if n not in record] + [n for n in filled if not record.get(n)]


async def verify(
    simulator: Simulator,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    ids: list[str],
    *,
    endings: Mapping[str, tuple[str, str]] | None = None,
    lists: bool = True,
) -> dict[str, dict[str, str]]:
    """:func:`audit`, and fail if anything is wrong. The records are returned."""
    found = await audit(simulator, redis, bucket, namespace, ids, endings=endings, lists=lists)
    assert not found.wrong, "\n".join(found.wrong[:20])
    return found.records


def environ(
    simulator: Simulator, redis_url: str, bucket: BucketEnv, namespace: str, **changes: str
) -> dict[str, str]:
    """The environment of a worker for these servers."""
    return {
        **simulator.environ,
        **bucket.environ,
        "REDIS_URL": redis_url,
        "HARVESTER_NAMESPACE": namespace,
        "HARVESTER_PREFIX": namespace,
        "HARVESTER_SOURCE_ALLOW_PRIVATE": "127.0.0.1/32",
        "HARVESTER_LEASE": "5",
        "HARVESTER_POLL_RATE": "200",
        "HARVESTER_UNKNOWN_TASK_GRACE": "10",
        "HARVESTER_CLOCK_SETTLED": "0",
        **changes,
    }


def idle_environ(redis_url: str, namespace: str) -> dict[str, str]:
    """The environment of a worker that only takes tasks in: its upstream cannot be reached."""
    return {
        "REDIS_URL": redis_url,
        "SPEEDPIX_ENDPOINT": "http://127.0.0.1:9",
        "SPEEDPIX_APP_KEY": "key",
        "SPEEDPIX_APP_SECRET": "secret",
        "HARVESTER_BUCKET": "media",
        "HARVESTER_NAMESPACE": namespace,
        "HARVESTER_POLL_RATE": "1",
    }
