"""What a fleet learns of its store: one probes, all know."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.test_registry import make
from tests.store_standin import BUCKET, NOT_IMPLEMENTED, STORES, StandIn, refused, standing_in
from tests.support import eventually
from worker.registry.registry import Registry
from worker.transfer.capabilities import NAMES, Facts, Seen
from worker.transfer.store import ObjectStore
from worker.work.learning import Learning, key_of

WEEK = 7 * 86400
DIGEST = hashlib.sha256(b"x").digest()


@dataclass
class Fleet:
    registry: Registry
    there: StandIn

    @contextlib.asynccontextmanager
    async def worker(self, **options: Any) -> AsyncIterator[ObjectStore]:
        store = ObjectStore(BUCKET, **options)
        learning = Learning(self.registry, store, prefix="p/", soon=0.05)
        try:
            yield store
        finally:
            await learning.close()
            await store.close()

    async def kept(self, store: ObjectStore) -> dict[str, str]:
        text: Any = await self.registry.redis.get(await key_of(self.registry, store))
        return json.loads(text or "{}")


@pytest.fixture
async def fleet(
    redis: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Fleet]:
    async with standing_in(STORES["r2"], monkeypatch) as there:
        yield Fleet(make(redis, namespace), there)


async def known(store: ObjectStore) -> None:
    await eventually(lambda: not store.facts.unknown, what="facts")


async def test_one_worker_probes_for_all(fleet: Fleet) -> None:
    async with fleet.worker() as first, fleet.worker() as second, fleet.worker() as third:
        for store in (first, second, third):
            await known(store)
        assert first.facts == second.facts == third.facts
        assert fleet.there.seen.count("list") == 0
        assert fleet.there.seen.count("create") == 3
        key = await key_of(fleet.registry, first)
        assert WEEK - 600 < await fleet.registry.redis.ttl(key) <= WEEK


async def test_what_a_dead_prober_left_open_is_aborted(fleet: Fleet) -> None:
    for key in ("p/.doctor/probe", "p/.doctor/probe2", "p/t1/images/0.png"):
        store = ObjectStore(BUCKET)
        await store.create_upload(key, content_type="a/b")
        await store.close()
    async with fleet.worker():
        await eventually(lambda: len(fleet.there.uploads) == 2)
    assert "p/.doctor/probe" not in {opened.key for opened in fleet.there.uploads.values()}


async def test_another_bucket_or_other_options_are_another_store(fleet: Fleet) -> None:
    async with fleet.worker() as one:
        keys = {await key_of(fleet.registry, one)}
        for other in (
            ObjectStore("other"),
            ObjectStore(BUCKET, put_options={"CacheControl": "no-store"}),
        ):
            keys.add(await key_of(fleet.registry, other))
            await other.close()
    assert len(keys) == 3


async def test_what_is_not_known_is_looked_for_again_soon(fleet: Fleet) -> None:
    fleet.there.fault = lambda step, _: refused((503, "SlowDown", "")) if step == "create" else None
    async with fleet.worker() as store:
        key = await key_of(fleet.registry, store)
        await eventually(lambda: fleet.registry.redis.exists(key))
        assert store.facts.unknown
        assert await fleet.registry.redis.ttl(key) <= 600
        fleet.there.fault = lambda *_: None
        await fleet.registry.redis.delete(key, f"{key}:lock")  # as time does
        await known(store)


async def test_a_store_that_is_away_is_asked_once_a_minute(fleet: Fleet) -> None:
    fleet.there.fault = lambda *_: refused((503, "SlowDown", ""))
    async with fleet.worker() as store, fleet.worker():
        lock = f"{await key_of(fleet.registry, store)}:lock"
        await eventually(lambda: fleet.there.seen)
        for _ in range(20):
            await asyncio.sleep(0)
            await fleet.registry.redis.ping()
        assert await fleet.registry.redis.ttl(lock) > 0
        assert fleet.there.seen == ["put"]
        assert store.facts == Facts()


async def test_a_surprise_is_told_to_the_others(fleet: Fleet) -> None:
    async with fleet.worker() as store:
        await known(store)
        # the lock holds: what the work saw is kept without a probe
        fleet.there.fault = lambda step, request: (
            refused(NOT_IMPLEMENTED)
            if step == "put" and "if-none-match" in request.headers
            else None
        )
        await store.put("k", b"x", content_type="a/b", sha256=DIGEST)

        async def told() -> bool:
            return (await fleet.kept(store)).get("put_condition") == "refused"

        await eventually(told)
    async with fleet.worker() as another:
        await known(another)
        assert another.facts.put_condition is Seen.REFUSED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "7",
        "list",
        '{"put_md5": 7, "listing": ["x"]}',
        "[" * 9000,
        '{"x": "honoured"}',
    ],
)
async def test_what_something_else_wrote_is_not_believed(fleet: Fleet, text: str) -> None:
    """Nor does it last: the fleet probes, and writes what it sees."""
    assert Facts.from_json(text) == Facts()
    async with fleet.worker() as store:
        await known(store)
        key = await key_of(fleet.registry, store)
        await fleet.registry.redis.delete(key, f"{key}:lock")
        if text == "list":
            await fleet.registry.redis.rpush(key, text)  # type: ignore[misc]  # redis-py's types
        else:
            await fleet.registry.redis.set(key, text)
    async with fleet.worker() as another:
        await known(another)
        assert another.facts == store.facts
        assert await fleet.kept(another)


def test_facts_are_read_as_they_were_written() -> None:
    for seen in Seen:
        facts = Facts(**dict.fromkeys(NAMES, seen))
        assert Facts.from_json(facts.to_json()) == facts
