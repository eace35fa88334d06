"""Names that nobody answers for and webhooks that nobody answers, next to good tasks."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.faults.kit import CALM, Scene, size
from tests.filehost import Caller, hosted
from tests.fleet import Fleet
from tests.nameserver import nameserver
from tests.support import eventually
from worker.work.shares import LINGERS

PROGRAM = ("-m", "tests.faults.hurt_worker")
GOOD = 30
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OF_ONE_HOST = 64
FILES = 24  # hosts of files at once, which a fleet of two has slots for


class Receiver:
    """Takes webhooks, one for each path, and notes when; ``silent`` ones until :meth:`speak`."""

    def __init__(self, *, silent: bool = False) -> None:
        self.told: dict[str, float] = {}
        self._speaks = asyncio.Event()
        self.speak = self._speaks.set
        if not silent:
            self.speak()

    async def serve(self, call: Caller) -> None:
        await self._speaks.wait()
        self.told.setdefault(call.path.strip("/"), time.time())
        await call.send("200 OK", "Content-Length: 0", "Connection: close")


@asynccontextmanager
async def receiving(*, silent: bool = False) -> AsyncIterator[tuple[Receiver, int]]:
    """A receiver and its port."""
    receiver = Receiver(silent=silent)
    async with hosted(receiver.serve) as host:
        try:
            yield receiver, host.port
        finally:
            receiver.speak()


class Row:
    """Good tasks, half of them with a webhook, next to harmless tasks and to others."""

    def __init__(self, scene: Scene, receiver: Receiver, hook: str) -> None:
        self._scene = scene
        self._receiver = receiver
        self._hook = hook

    async def p95(self, next_to: Sequence[tuple[str, str]] = ()) -> float:
        """Seconds until 95 of a hundred good tasks are final and told.

        ``next_to`` are ids with the addresses of their webhooks.
        """
        scene = self._scene
        good = scene.plant([{"simulate": {"images": ["png"]}}] * GOOD)
        told = good[::2]
        hooks = [(task_id, f"{self._hook}/{task_id}") for task_id in told] + list(next_to)
        random.Random(len(hooks)).shuffle(hooks)
        for task_id, hook in hooks:
            await scene.hand_in([task_id], callback_url=hook)
        await scene.hand_in(good[1::2])
        await scene.all_final(good)
        await eventually(lambda: self._receiver.told.keys() >= set(told), what="webhooks")
        took = []
        for task_id in good:
            key = f"{scene.namespace}:task:{task_id}"
            begun, ended = await scene.redis.hmget(key, "submitted_at", "finished_at")
            end = self._receiver.told.get(task_id, int(ended) / 1000)
            took.append(end - int(begun) / 1000)
        return sorted(took)[len(took) * 95 // 100]

    async def usual(self, count: int) -> float:
        """The same next to so many harmless tasks with webhooks, once the workers have started."""
        await self.p95()
        ids = self._scene.plant([{"simulate": {"images": ["png"]}}] * count)
        return await self.p95([(task_id, f"{self._hook}/{task_id}") for task_id in ids])

    async def all_told(self, ids: Sequence[str]) -> None:
        """Wait until every callback of some tasks is settled, and none of them given up."""

        async def settled() -> bool:
            return not await self._scene.redis.zcard(f"{self._scene.namespace}:due:tell")

        await eventually(settled, what="callbacks")
        for task_id in ids:
            text = await self._scene.redis.hget(f"{self._scene.namespace}:task:{task_id}", "told")
            assert [(e["last_error"], e["channel"]) for e in json.loads(text)] == [("", "webhook")]


def fleet(scene: Scene, **more: str) -> Fleet:
    return scene.fleet(
        program=PROGRAM,
        HARVESTER_WEBHOOK_SECRET=SECRET,
        HARVESTER_WEBHOOK_ALLOW_PRIVATE="127.0.0.1/32",
        **more,
    )


async def judged(
    scene: Scene, row: str, fault: str, workers: Fleet, usual: float, took: float
) -> None:
    assert workers.started == len(workers.processes), "a worker has died"
    assert not [line for line in workers.log_lines() if line.get("event") == "job.overdue"]
    # a loaded machine only reports it
    assert usual > CALM or took <= 2 * usual + LINGERS + 2, (took, usual)
    notes = f"p95 of good tasks and webhooks {took:.1f} s, next to harmless ones {usual:.1f} s"
    await scene.judge(row, fault, notes=notes)


async def test_names_that_nobody_answers_for(scene: Scene) -> None:
    """Row 29: of webhooks and of files; the fleet's own services are found by names as well."""
    known = {"good.example"}

    def answer(name: str) -> list[str] | None:
        return ["127.0.0.1"] if name in known else None

    def named(env: dict[str, str]) -> dict[str, str]:
        keys = ("SPEEDPIX_ENDPOINT", "AWS_ENDPOINT_URL_S3", "REDIS_URL")
        return env | {key: env[key].replace("127.0.0.1", "localhost") for key in keys}

    async with receiving() as (receiver, port), nameserver(answer) as names:
        row = Row(scene, receiver, f"http://good.example:{port}")
        workers = fleet(scene, HURT_NAMES=names.address)
        workers.environ = named(workers.environ)
        async with workers:
            await workers.ready()
            dead = [f"{number}.dead.example" for number in range(size(120, 200))]
            usual = await row.usual(len(dead))
            theirs = int(scene.simulator.endpoint.rpartition(":")[2])
            scripts = [
                {
                    "images": [
                        {"file": "png", "expect": "stored"}
                        | ({"origin": f"http://{name}:{theirs}"} if n < FILES else {})
                    ]
                }
                for n, name in enumerate(dead)
            ]
            ids = scene.plant([{"simulate": script} for script in scripts])
            hooks = [f"http://{name}:{port}/{i}" for name, i in zip(dead, ids, strict=True)]
            async with scene.watched():
                took = await row.p95(list(zip(ids, hooks, strict=True)))
                assert not receiver.told.keys() & set(ids)
                known |= set(dead)
                await scene.all_final()
                await row.all_told(ids)
            await judged(scene, "29", "names that nobody answers for", workers, usual, took)
        assert set(ids) <= receiver.told.keys()


async def test_webhooks_that_nobody_answers(scene: Scene) -> None:
    """Row 30: many of one host, and some each of many hosts."""
    async with (
        receiving() as (receiver, port),
        receiving(silent=True) as (silent, its_port),
    ):
        row = Row(scene, receiver, f"http://127.0.0.1:{port}")
        hosts = [f"127.0.0.1:{its_port}"] * OF_ONE_HOST
        # names that lead to one machine are different hosts
        hosts += [f"{n}.example:{its_port}" for n in range(size(20, 90)) for _ in range(2)]
        async with nameserver(lambda _: ["127.0.0.1"]) as names:
            workers = fleet(scene, HURT_NAMES=names.address)
            async with workers:
                await workers.ready()
                usual = await row.usual(len(hosts))
                ids = scene.plant([{"simulate": {"images": ["png"]}}] * len(hosts))
                hooks = [f"http://{host}/{i}" for host, i in zip(hosts, ids, strict=True)]
                async with scene.watched():
                    took = await row.p95(list(zip(ids, hooks, strict=True)))
                    await scene.all_final()
                    assert not silent.told
                    took = max(took, await row.p95())  # while all of them are being called
                    silent.speak()
                    await row.all_told(ids)
                await judged(scene, "30", "webhooks that nobody answers", workers, usual, took)
        assert silent.told.keys() == set(ids)
