"""Records come back from the manifests, and only those that are gone."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from tests.doubles import done, failed
from tests.works.house import GONE, House
from worker.core.models import FINAL_STATES
from worker.errors import RegistryUnavailable, StoreUnavailable
from worker.registry.records import DueSet
from worker.work.rebuild import Rebuilt, rebuild

IDS = ("t1", "t2", "t3", "t4")


async def everything(house: House) -> tuple[Any, ...]:
    registry = house.registry
    indexes = [
        await registry.redis.zrange(registry.key("index", state), 0, -1, withscores=True)
        for state in sorted(FINAL_STATES)
    ]
    return await registry.records(IDS), indexes


@pytest.fixture
async def ended(house: House) -> tuple[Any, ...]:
    """Tasks that ended in every way; what Redis holds of them."""
    house.arrange(fresh=())
    ends = (
        done(house.file("/0")),
        done(house.file("/0"), house.file("/1", GONE)),
        failed(),
        done(result={"seed": 12345678901234567890, "scale": 1.5}),
    )
    for task_id, said in zip(IDS, ends, strict=True):
        await house.waiting(task_id)
        house.gateway.script(task_id, said)
        await house.to_the_end(task_id)
    found = await everything(house)
    assert {record["state"] for record in found[0]} == set(FINAL_STATES)
    return found


async def test_records_and_indexes_are_as_before(
    house: House, redis: Redis, ended: tuple[Any, ...]
) -> None:
    await redis.flushall()
    seen: list[int] = []
    found = await rebuild(
        house.registry, house.manifests, seen=lambda so_far: seen.append(so_far.restored)
    )
    assert found == Rebuilt(restored=4)
    assert seen == [1, 2, 3, 4]
    assert await everything(house) == ended
    for task_id in IDS:
        assert await house.due(task_id) == set()
        assert await redis.ttl(house.registry.key("task", task_id)) > 0
    assert await redis.xlen(house.registry.key("events")) == 0  # nothing is told a second time
    assert await rebuild(house.registry, house.manifests) == Rebuilt(known=4)


async def test_a_record_that_is_there_is_left_as_it_is(
    house: House, redis: Redis, ended: tuple[Any, ...]
) -> None:
    await redis.flushall()
    await house.submitted("t2")
    assert await rebuild(house.registry, house.manifests) == Rebuilt(restored=3, known=1)
    assert (await house.record("t2"))["state"] == "waiting"
    assert await house.due("t2") == {DueSet.COPY}


async def test_what_cannot_be_read_is_named_and_holds_up_nothing(
    house: House, redis: Redis, ended: tuple[Any, ...]
) -> None:
    await redis.flushall()
    key = house.layout.manifest_key
    for task_id, body in (("broken", b"{}"), ("newer", b'{"schema": 99}')):
        await house.store.put_document(key(task_id), body, task_id=task_id)
    await house.store.put_document("p/manifests/.json", b"{}", task_id="")  # no task's
    found = await rebuild(house.registry, house.manifests)
    assert (found.restored, found.known) == (4, 0)
    assert [where for where, _ in sorted(found.unreadable)] == [key("broken"), key("newer")]


async def test_a_manifest_that_goes_meanwhile_is_passed_over(
    house: House, redis: Redis, ended: tuple[Any, ...]
) -> None:
    async def remove() -> None:
        house.store.objects.pop(house.layout.manifest_key("t1"))

    await redis.flushall()
    house.store.on("get", remove, key="*/t1.json")
    assert await rebuild(house.registry, house.manifests) == Rebuilt(restored=3)


@pytest.mark.parametrize("call", ["keys", "get"])
async def test_the_stores_errors_come_out_as_themselves(
    house: House, ended: tuple[Any, ...], call: str
) -> None:
    house.store.on(call, StoreUnavailable("away"))
    with pytest.raises(StoreUnavailable, match="away"):
        await rebuild(house.registry, house.manifests)


async def test_redis_errors_come_out_as_themselves(
    house: House, redis: Redis, ended: tuple[Any, ...]
) -> None:
    await redis.flushall()
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(RegistryUnavailable):
            await rebuild(house.registry, house.manifests)
    finally:
        await redis.config_set("maxmemory", "0")
