"""A fleet that works for a long time under random faults: ``make soak MINUTES=30``.

Tasks are handed in without end while workers are killed, stopped and frozen, Redis is killed and
started again, and the store and the network to Redis fail. What must hold at the end: nothing
lost, doubled or unexplained; the memory of a worker that was spared is level; and after a purge
Redis holds no key of any task.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from aiohttp import web
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from tests.faults.http_proxy import Forward, HttpProxy, Reset, Seen, s3_error
from tests.faults.kit import Scene, lively
from tests.faults.tcp_proxy import TcpProxy
from tests.fleet import FINAL, Fleet, Killer
from tests.support import command, eventually, repeating
from worker.sandbox.servers import Valkey

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
FOLDER = Path(os.environ.get("SOAK_FOLDER", "build/soak"))
BATCH = 40
BACKLOG = 500  # tasks that are not final, at most: the soak is to find leaks, not limits
GAP = 6.0  # seconds between two faults
GROWTH = 20.0  # MiB an hour that count as level; less is lost in the noise of a short soak


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What is read every two seconds. Memory in MiB: the spared worker's, and Redis' own."""

    at: float
    worker: float
    redis: float
    keys: int
    waiting: int


@dataclass(kw_only=True)
class Trouble:
    """The faults, one at a time, by chance."""

    scene: Scene
    fleet: Fleet
    server: Valkey
    network: TcpProxy
    seed: random.Random
    made: Counter[str] = field(default_factory=Counter)
    store_fails: bool = False

    async def store(self, _: Seen, forward: Forward) -> web.StreamResponse:
        """What the proxy before the store does: a third of the requests fail while it is hurt."""
        if not self.store_fails or self.seed.random() > 0.33:
            return await forward()
        kind = self.seed.choice(("SlowDown", "InternalError", "before", "after"))
        if kind == "after":
            await forward()
        if kind in ("before", "after"):
            raise Reset
        return s3_error(503 if kind == "SlowDown" else 500, kind)

    async def make(self) -> None:
        """One fault."""
        faults: Sequence[Callable[[], Awaitable[None]]] = (
            self._kill, self._kill, self._stop, self._freeze, self._redis, self._network,
            self._store,
        )  # fmt: skip
        fault = self.seed.choice(faults)
        await fault()
        self.made[fault.__name__.strip("_")] += 1

    async def _kill(self) -> None:
        with contextlib.suppress(redis_errors.RedisError, OSError):
            killer = Killer(self.fleet, self.scene.redis, self.scene.namespace)
            await killer.kill_a_busy_one(self.seed)

    async def _stop(self) -> None:
        for process in self.fleet.processes[:1]:
            process.send_signal(signal.SIGTERM)

    async def _freeze(self) -> None:
        for process in self.fleet.processes[:1]:
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(8)  # longer than the lease
            process.send_signal(signal.SIGCONT)

    async def _redis(self) -> None:
        self.server.kill()
        await asyncio.sleep(self.seed.uniform(0.2, 4))
        await asyncio.to_thread(self.server.start)

    async def _network(self) -> None:
        self.network.reset_all()

    async def _store(self) -> None:
        self.store_fails = True
        await asyncio.sleep(6)
        self.store_fails = False


def resident(pid: int) -> float:
    """Resident memory of a process, in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGESIZE") / 2**20, 1)


async def sample(scene: Scene, spared: Fleet, began: float) -> Sample | None:
    """Read memory and keys; ``None`` while Redis is away or the worker is being started again."""
    if not spared.processes:
        return None
    pid = spared.processes[0].pid
    try:
        used = (await scene.redis.info("memory"))["used_memory"]
        keys = await scene.redis.dbsize()
        open_ = [
            await scene.redis.zcard(f"{scene.namespace}:index:{s}") for s in ("waiting", "copying")
        ]
        memory = resident(pid)
    except (redis_errors.RedisError, OSError):
        return None
    return Sample(
        at=round(time.monotonic() - began, 1),
        worker=memory,
        redis=round(used / 2**20, 1),
        keys=keys,
        waiting=sum(open_),
    )


def slope(samples: Sequence[Sample]) -> float:
    """MiB an hour by which the spared worker grows after a third of the time (Theil-Sen)."""
    warm = samples[len(samples) // 3 :]
    points = warm[:: max(1, len(warm) // 200)]
    pairs = [(a, b) for n, a in enumerate(points) for b in points[n + 1 :]]
    return statistics.median((b.worker - a.worker) / (b.at - a.at) * 3600 for a, b in pairs)


def prepare() -> None:
    """Check that the results can be written: now, not after half an hour."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in ("soak.json", "soak.png"):
        (FOLDER / name).open("a").close()


def keep(samples: Sequence[Sample], **facts: object) -> None:
    """Write what was seen as JSON, and a plot of memory, keys and open tasks over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    whole = {**facts, "samples": [asdict(s) for s in samples]}
    (FOLDER / "soak.json").write_text(json.dumps(whole))
    minutes = [s.at / 60 for s in samples]
    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(9, 7), layout="constrained")
    curves = (("worker", "worker, MiB"), ("keys", "keys in Redis"), ("waiting", "open tasks"))
    for axis, (name, title) in zip(axes, curves, strict=True):
        axis.plot(minutes, [getattr(s, name) for s in samples])
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes")
    figure.savefig(FOLDER / "soak.png")


@contextlib.asynccontextmanager
async def servers(scene: Scene, folder: Path) -> AsyncIterator[tuple[Scene, Valkey, TcpProxy]]:
    """The scene with a Redis that may be killed, reached by the workers through a proxy."""
    server = Valkey(folder, appendfsync="always")
    server.start()
    try:
        async with (
            Redis.from_url(server.url, decode_responses=True, protocol=2) as redis,
            TcpProxy("127.0.0.1", server.port) as network,
        ):
            url = f"redis://127.0.0.1:{network.port}/0"
            yield replace(scene, redis=redis, redis_url=url), server, network
    finally:
        server.kill()


async def hand_in(scene: Scene, ids: list[str]) -> None:
    """Hand in until Redis has taken it; a repeated entry changes nothing."""

    async def taken() -> bool:
        try:
            await scene.hand_in(ids)
        except (redis_errors.RedisError, OSError):
            return False
        return True

    await eventually(taken, what="Redis")


async def test_soak(scene: Scene, tmp_path: Path) -> None:
    """Random faults for a long time."""
    prepare()
    seed, samples = random.Random(20), []
    (tmp_path / "spared").mkdir()
    async with contextlib.AsyncExitStack() as stack:
        scene, server, network = await stack.enter_async_context(
            servers(scene, tmp_path / "valkey")
        )
        store = await stack.enter_async_context(HttpProxy(scene.bucket.endpoint))
        fleet = scene.fleet(AWS_ENDPOINT_URL_S3=store.endpoint)
        spared = Fleet(fleet.environ, tmp_path / "spared", size=1)
        trouble = Trouble(scene=scene, fleet=fleet, server=server, network=network, seed=seed)
        store.rule = trouble.store
        await stack.enter_async_context(spared)
        await stack.enter_async_context(fleet)
        began = time.monotonic()

        async def feed() -> None:
            seen = await sample(scene, spared, began)
            if seen is not None:
                samples.append(seen)
                if seen.waiting < BACKLOG:
                    await hand_in(scene, scene.plant(lively(BATCH, seed, spread=15)))

        async with repeating(feed, 2):
            while time.monotonic() < began + 60 * MINUTES:
                await asyncio.sleep(GAP)
                await trouble.make()
        trouble.store_fails = False
        await scene.all_final()
        async with scene.watched() as watcher:
            await watcher.look()
        # a process may end when Redis goes away, to be started again: then there is no slope
        lived = spared.started == 1
        growth = slope(samples) if lived else None
        keep(
            samples,
            minutes=MINUTES,
            tasks=len(scene.ids),
            faults=dict(trouble.made),
            processes=fleet.started,
            spared_worker_lived=lived,
            spared_workers=spared.started,
            growth_mib_an_hour=growth,
        )
        await scene.judge(
            "20", "soak", notes=f"{trouble.made.total()} faults, {fleet.started} processes"
        )
        states = [option for state in FINAL for option in ("--state", state)]
        purged = await command(
            "purge", *states, "--yes", environ=fleet.environ, cwd=tmp_path, seconds=600
        )
        assert purged.code == 0, purged.said[-2000:]
        left = [key async for key in scene.redis.scan_iter(f"{scene.namespace}:*", count=1000)]
    of_tasks = [key for key in left if key.split(":")[1] in ("task", "work", "due", "index")]
    assert not of_tasks, of_tasks[:10]
    assert growth is None or growth < GROWTH or MINUTES < 10, f"{growth:.1f} MiB an hour"
