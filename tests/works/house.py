"""The works on the real registry, between doubles of the bucket and the upstream.

No engine and no waiting: a test takes one step of one task at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from redis.asyncio import Redis

from tests.doubles import MemoryStore, ScriptedGateway, done
from tests.filehost import Caller, Host, Script, hosted
from tests.integration.test_registry import make, submission
from worker.core import jsontext
from worker.core.layout import Layout
from worker.core.models import FINAL_STATES
from worker.core.schedule import Gaps
from worker.registry.records import DueSet
from worker.registry.registry import Registry
from worker.transfer.budget import Budget
from worker.transfer.copier import Copier
from worker.transfer.guard import Guard
from worker.transfer.source import Source
from worker.work.claim import Claim, Work
from worker.work.copy import CopyWork
from worker.work.endings import Endings
from worker.work.manifests import Manifests
from worker.work.poll import PollWork

T = "t1"
PRIVATE = "http://10.0.0.1/private.png"
PART = 64 * 1024
_SLOTS = 4
_STEPS = 60


def picture(width: int = 8) -> bytes:
    """A PNG; those of another width have other bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, 8), "teal").save(buffer, "PNG")
    return buffer.getvalue()


def clip(parts: int = 2) -> bytes:
    """An MP4 that takes so many parts."""
    return b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2".ljust(parts * PART, b"c")


def serving(body: bytes) -> Script:
    return lambda call: call.whole(body=body)


def refusing(status: str) -> Script:
    return lambda call: call.send(status, "Content-Length: 0")


GONE, BUSY = refusing("410 Gone"), refusing("503 Service Unavailable")


class House:
    """One fleet's memory, its bucket, its upstream, the file host, and the works."""

    def __init__(self, registry: Registry, host: Host, copier: Copier, store: MemoryStore) -> None:
        self.registry = registry
        self.store = store
        self.host = host
        self.gateway = ScriptedGateway()
        self.layout = Layout(bucket="memory", prefix="p/")
        self.manifests = Manifests(store, self.layout)
        self.pages: dict[str, list[Script]] = {}
        self.woken: list[DueSet] = []
        host.script = self._serve
        self._copier = copier
        self.arrange()

    def arrange(self, *, copy_deadline: float = 3600, grace: float = 0, **gaps: Any) -> None:
        """Make the works, with no gaps but these."""
        changed = {name: getattr(Gaps.none(), name) for name in Gaps.__dataclass_fields__} | gaps
        shared: dict[str, Any] = {
            "gaps": Gaps(**changed),
            "grace": grace,
            "bound": 30,
            "slots": _SLOTS,
            "wake": self.woken.append,
            "chance": lambda: 0.5,
        }
        registry, gateway, store = self.registry, self.gateway, self.store
        endings = Endings(self.manifests, self.layout, wake=self.woken.append)
        poll = PollWork(registry, gateway, **shared)
        copy, fetch = (
            CopyWork(
                registry, gateway, store, self._copier, endings,
                kind=kind, layout=self.layout, copy_deadline=copy_deadline, **shared,
            )
            for kind in (DueSet.COPY, DueSet.FETCH)
        )  # fmt: skip
        self.works: dict[DueSet, Work] = {DueSet.POLL: poll, DueSet.COPY: copy, DueSet.FETCH: fetch}

    # -- the file host ------------------------------------------------------------------------

    async def _serve(self, call: Caller) -> None:
        scripts = self.pages[call.path]
        await (scripts.pop(0) if len(scripts) > 1 else scripts[0])(call)

    def file(self, path: str, *scripts: Script) -> str:
        """The address of a file that is served like this; the last script is repeated."""
        self.pages[path] = list(scripts) or [serving(picture())]
        return self.host.url(path)

    def fetches(self, path: str) -> int:
        return sum(call.path == path for call in self.host.calls)

    # -- tasks --------------------------------------------------------------------------------

    async def submitted(self, task_id: str = T, **options: Any) -> None:
        text = jsontext.dumps({"callbacks": [], **options})
        await self.registry.submit([replace(submission(task_id), options=text)])

    async def waiting(self, task_id: str = T, **options: Any) -> None:
        """A task past its first look."""
        await self.submitted(task_id, **options)
        assert await self.step(DueSet.COPY) == "new"

    async def copying(self, *urls: str, task_id: str = T) -> None:
        """A task that succeeded upstream with these files."""
        await self.waiting(task_id)
        self.gateway.script(task_id, done(*urls))
        assert await self.step(DueSet.POLL) == "succeeded"

    async def claim(self, kind: DueSet) -> Claim:
        """Claim the one task of a kind, as if its time had come; an earlier claim has lapsed."""
        for _ in range(_STEPS):  # an owner that lives renews its claim now and then
            await self.let_time_pass()
            for each in self._kinds(kind):
                batch = await self.registry.claim(each, limit=10, in_hand=0, slots=_SLOTS)
                if batch.jobs:
                    (job,) = batch.jobs
                    return Claim(self.registry, job)
        raise AssertionError(f"nothing is due for {kind}")

    @staticmethod
    def _kinds(kind: DueSet) -> tuple[DueSet, ...]:
        """For the tests, all work with the bucket is one."""
        return (DueSet.COPY, DueSet.FETCH) if kind is DueSet.COPY else (kind,)

    async def work(self, claim: Claim) -> str:
        return await self.works[claim.job.kind](claim)

    async def step(self, kind: DueSet) -> str:
        """Claim the one task of a kind and work on it once."""
        return await self.work(await self.claim(kind))

    async def first_due(self, kind: DueSet) -> Claim:
        """Claim the first due task of a kind, of several; circuits let a probe through."""
        redis, key = self.registry.redis, self.registry.key
        for name in (await self.registry.overview()).circuits:
            await redis.hset(key("circuit", name), "probe_at", "0")
        await redis.delete(key("rate"))
        for each in self._kinds(kind):
            batch = await self.registry.claim(each, limit=1, in_hand=0, slots=_SLOTS)
            if batch.jobs:
                break
        (job,) = batch.jobs
        return Claim(self.registry, job)

    async def step_due(self, kind: DueSet) -> str:
        """Claim the first due task of a kind, of several, and work on it once."""
        return await self.work(await self.first_due(kind))

    async def to_the_end(self, task_id: str = T) -> dict[str, str]:
        """Step by step until the run has ended; the record."""
        for _ in range(_STEPS):
            record = await self.record(task_id)
            if record["state"] in FINAL_STATES:
                return record
            (kind,) = await self.due(task_id)
            await self.step(kind)
        raise AssertionError(f"still {record['state']} after {_STEPS} steps")

    async def let_time_pass(self) -> None:
        """Every task is due now, what is claimed included, and circuits let a probe through."""
        redis, key = self.registry.redis, self.registry.key
        for kind in DueSet:
            for task_id in await redis.zrange(key("due", kind), 0, -1):
                await redis.zadd(key("due", kind), {task_id: 0})
        for name in (await self.registry.overview()).circuits:
            await redis.hset(key("circuit", name), "probe_at", "0")
        await redis.delete(key("rate"))

    # -- what is there ------------------------------------------------------------------------

    async def record(self, task_id: str = T) -> dict[str, str]:
        return await self.registry.record(task_id) or {}

    async def notes(self, task_id: str = T) -> dict[str, str]:
        found: dict[str, str] = await self.registry.redis.hgetall(
            self.registry.key("work", task_id)
        )
        return found

    async def due(self, task_id: str = T) -> set[DueSet]:
        redis, key = self.registry.redis, self.registry.key
        found = {k for k in DueSet if await redis.zscore(key("due", k), task_id) is not None}
        return {DueSet.COPY if kind is DueSet.FETCH else kind for kind in found}

    def manifest(self, task_id: str = T) -> dict[str, Any] | None:
        there = self.store.objects.get(self.layout.manifest_key(task_id))
        return there and json.loads(there.body)

    def files(self, task_id: str = T) -> list[str]:
        """The keys of the task's objects."""
        folder = self.layout.folder(task_id, {})
        return sorted(key for key in self.store.objects if key.startswith(folder))

    def missing(self, listed: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of a record's files that are said to be stored and are not."""
        wrong = []
        for file in listed:
            if "key" in file:
                there = self.store.objects.get(file["key"])
                if there is None or hashlib.sha256(there.body).hexdigest() != file["sha256"]:
                    wrong.append(file)
        return wrong

    async def check_truth(self, task_id: str = T) -> None:
        """Neither the record nor the manifest names an object that is not there."""
        record = await self.record(task_id)
        assert self.missing(json.loads(record.get("files") or "[]")) == []
        if manifest := self.manifest(task_id):
            assert self.missing(manifest.get("files", [])) == []
        elif record["state"] in FINAL_STATES:
            raise AssertionError(f"{record['state']} without a manifest")


@contextlib.asynccontextmanager
async def housed(redis: Redis, namespace: str, **changes: Any) -> AsyncIterator[House]:
    registry = make(redis, namespace, poll_rate=100_000, **changes)
    guard = Guard(["*"], ["127.0.0.0/8"])
    store = MemoryStore()
    async with hosted(refusing("404 Not Found")) as host, guard.session() as session:
        source = Source(session, guard, max_file_bytes=100 * PART)
        copier = Copier(source, store, Budget(8 * PART), part_size=PART)
        yield House(registry, host, copier, store)
