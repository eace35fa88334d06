"""How workers survive a Redis that goes away: exits, and seconds until they consume again.

Run with ``python -m tests.bench.restarts``, in an environment with the versions of Celery, kombu
and redis-py to be judged. Redis is killed while messages are sent, or with ``--silence`` every
connection to it goes silent without being closed. Each worker has a queue of its own, so that none
is covered up by another, and is started again when it exits.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path

from celery import Celery
from redis import RedisError
from redis.asyncio import Redis

from tests.bench.options import keep, options, parse
from tests.faults.tcp_proxy import TcpProxy
from tests.fleet import Fleet, idle_environ
from tests.support import repeating
from worker.sandbox.servers import Valkey

AGAIN = 15.0  # seconds after Redis answers within which a message must be consumed
PATIENCE = 90.0


class Bench:
    """One Redis, ``workers`` supervised workers, and what was sent to them."""

    def __init__(self, server: Valkey, port: int, directory: Path, workers: int) -> None:
        self._server = server
        self._port = port
        self._redis = Redis.from_url(server.url, decode_responses=True, protocol=2)
        self.fleets = {f"b{n}": self._fleet(f"b{n}", directory / f"b{n}") for n in range(workers)}
        self.sent: dict[str, str] = {}

    def _fleet(self, namespace: str, logs: Path) -> Fleet:
        logs.mkdir()
        environ = idle_environ(f"redis://127.0.0.1:{self._port}/0", namespace)
        return Fleet(environ, logs, size=1)

    async def _send(self, namespace: str) -> None:
        task_id = f"t{time.monotonic_ns()}"

        def send() -> None:
            with Celery("sender", broker=self._server.url, set_as_current=False) as app:
                app.send_task("harvester.submit", args=[task_id], queue=namespace, retry=False)

        await asyncio.to_thread(send)
        self.sent[task_id] = namespace

    async def send_some(self) -> None:
        """One message to each worker; a Redis that is away costs nothing."""
        for namespace in self.fleets:
            with contextlib.suppress(Exception):
                await self._send(namespace)

    async def consumed(self, namespace: str) -> float:
        """Seconds until one of the messages sent from now on is consumed; ``inf`` if none is."""
        began = time.monotonic()
        before = len(self.sent)
        while (took := time.monotonic() - began) < PATIENCE:
            await asyncio.sleep(0.1)
            ids = [
                task_id for task_id, name in list(self.sent.items())[before:] if name == namespace
            ]
            with contextlib.suppress(RedisError, OSError):
                if ids and await self._redis.exists(*(f"{namespace}:task:{i}" for i in ids)):
                    return took
        return float("inf")

    async def all_consumed(self) -> list[float]:
        """:meth:`consumed` of all workers at once."""
        return await asyncio.gather(*(self.consumed(name) for name in self.fleets))

    async def left(self, seconds: float) -> tuple[int, int]:
        """How many messages are never worked on: left in a queue, and lost."""
        await asyncio.sleep(seconds)
        queued = sum([await self._redis.llen(name) for name in self.fleets])
        async with self._redis.pipeline(transaction=False) as pipe:
            for task_id, namespace in self.sent.items():
                pipe.exists(f"{namespace}:task:{task_id}")
            return queued, (await pipe.execute()).count(0) - queued


async def run(args: argparse.Namespace, directory: Path) -> dict[str, object]:
    """Kill, start, and measure, ``args.rounds`` times."""
    seed = random.Random(args.seed)
    took: list[float] = []
    with Valkey(directory / "redis", appendfsync="always") as server:
        async with AsyncExitStack() as stack:
            proxy = await stack.enter_async_context(TcpProxy("127.0.0.1", server.port))
            bench = Bench(
                server, proxy.port if args.silence else server.port, directory, args.workers
            )
            for fleet in bench.fleets.values():
                await stack.enter_async_context(fleet)
            for _ in range(args.rounds):
                async with repeating(bench.send_some, 0.05):
                    await bench.all_consumed()
                    await asyncio.sleep(seed.uniform(0.5, 5))
                    if args.silence:
                        proxy.forget()
                    else:
                        server.kill()
                        await asyncio.sleep(seed.uniform(0.2, 8))
                        await asyncio.to_thread(server.start)
                    took += await bench.all_consumed()
            exits = sum(fleet.started - 1 for fleet in bench.fleets.values())
            causes = Counter(
                cause
                for fleet in bench.fleets.values()
                for cause in re.findall(r"Unrecoverable error: (\w+\(.*?\))", fleet.log_text())
            )
            queued, lost = await bench.left(args.rest)
    return {
        "celery": version("celery"),
        "kombu": version("kombu"),
        "redis-py": version("redis"),
        "faults x workers": args.rounds * args.workers,
        "exits": exits,
        f"later than {AGAIN:g} s": sum(AGAIN < seconds < PATIENCE for seconds in took),
        "never": took.count(float("inf")),
        "median s": round(sorted(took)[len(took) // 2], 1),
        "slowest s": round(max(took), 1),
        "sent": len(bench.sent),
        "left in the queue": queued,
        "lost": lost,
        "causes": dict(causes),
    }


def main() -> None:
    """Print one line of JSON."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--rest", type=float, default=30, help="seconds until a message is lost")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--silence", action="store_true", help="silent connections, not restarts")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    args = parse(parser)
    if args.quick:
        args.rounds, args.workers, args.rest = 1, 1, 5
    directory = Path(tempfile.mkdtemp(prefix="restarts-"))
    found = asyncio.run(run(args, directory))
    print(json.dumps(found), flush=True)
    keep(found, args.json)
    if args.keep:
        print(directory)
    else:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
