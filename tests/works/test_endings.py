"""The end of a run: objects first, then the manifest, then the record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from tests.doubles import done
from tests.works.house import GONE, House, T, clip, picture, serving
from worker.core.manifest import SCHEMA
from worker.core.models import FINAL_STATES
from worker.errors import LeaseLost, StoreBlocked, StoreRefused, StoreUnavailable
from worker.registry.records import DueSet

Trouble = Callable[[House], Exception | Callable[[], Awaitable[object]]]


async def begun(house: House, task_id: str) -> None:
    """A new task with a file of one part and one of several; its first look is still to come."""
    house.gateway.script(
        task_id, done(house.file("/0"), house.file("/1", serving(clip())), result={"seed": 7})
    )
    await house.submitted(task_id)


async def moments(house: House) -> list[tuple[str, str, int]]:
    """Every call of the store that a whole run makes: method, key as a glob, how many go before."""
    await begun(house, T)
    await house.to_the_end()
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for call, key in house.store.log:
        place = (call, key.replace(f"/{T}", "/{}"))
        found.append((*place, seen[place]))
        seen[place] += 1
    return found


def lapsing(house: House) -> Callable[[], Awaitable[object]]:
    """Another worker claims the task meanwhile."""
    return lambda: house.claim(DueSet.COPY)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "trouble",
    [
        lambda _: StoreUnavailable("away"),
        lambda _: StoreBlocked("no"),
        lambda _: StoreRefused("not this"),
        lambda _: ZeroDivisionError(),
        lapsing,
    ],
    ids=["unavailable", "blocked", "refused", "crash", "lapse"],
)
async def test_whatever_fails_nothing_names_an_object_that_is_not_there(
    house: House, trouble: Trouble, after: bool
) -> None:
    """Each call of the store fails in turn, before or after its effect, and the run goes on."""
    places = await moments(house)
    assert {call for call, _, _ in places} == {
        "get", "put", "head", "create_upload", "upload_part", "complete", "put_document",
    }  # fmt: skip
    for number, (call, key, before) in enumerate(places):
        task_id = f"n{number}"
        await begun(house, task_id)
        met: list[str] = []

        async def truth(task_id: str = task_id) -> None:
            await house.check_truth(task_id)

        async def note(met: list[str] = met) -> None:
            met.append("here")

        mine = key.format(task_id)
        house.store.on("*", truth, after=True, times=10_000)
        house.store.on(call, note, key=mine, after=after, skip=before)
        house.store.on(call, trouble(house), key=mine, after=after, skip=before)
        record: dict[str, str] = {}
        while record.get("state") not in FINAL_STATES:
            try:
                record = await house.to_the_end(task_id)
            except (LeaseLost, ZeroDivisionError):
                assert met == ["here"]
                house.store.relent()
                house.store.on("*", truth, after=True, times=10_000)
        house.store.relent()
        assert met == ["here"], mine
        assert record["state"] == "stored"
        assert house.files(task_id) == [file["key"] for file in json.loads(record["files"])]
        assert len(house.files(task_id)) == 2
        manifest = house.manifest(task_id)
        assert manifest is not None
        assert manifest["polls"] == int(record["polls"]) == house.gateway.calls[task_id] == 1
        assert house.store.uploads == {}
        await house.check_truth(task_id)


async def test_objects_come_first_then_the_manifest_then_the_record(
    house: House, redis: Redis
) -> None:
    async def not_final() -> None:
        assert (await house.record())["state"] == "copying"
        assert await redis.xlen(house.registry.key("events")) == 0

    await house.copying(house.file("/0"), house.file("/1"))
    house.store.on("*", not_final, after=True, times=100)
    assert await house.step(DueSet.COPY) == "stored"
    calls = [call for call, key in house.store.log if call.startswith("put")]
    assert calls == ["put", "put", "put_document"]
    assert house.woken[-1] is DueSet.TELL
    ((_, event),) = await redis.xrange(house.registry.key("events"))
    record = await house.record()
    assert (event["task_id"], event["state"]) == (T, "stored")
    assert event["at"] == record["finished_at"]


async def test_record_and_manifest_say_the_same(house: House) -> None:
    await house.waiting()
    house.gateway.script(
        T, done(house.file("/0"), house.file("/1", GONE), result={"seed": 123456789012345678901})
    )
    record = await house.to_the_end()
    manifest = house.manifest()
    assert manifest is not None
    assert manifest["schema"] == SCHEMA
    for name in ("state", "reason", "error", "manifest", "label", "task_id"):
        assert manifest[name] == record[name], name
    for name in ("files", "result", "metadata", "options", "upstream"):
        assert manifest[name] == json.loads(record[name]), name
    for name in ("polls", "run", "submitted_at", "finished_at"):
        assert manifest[name] == int(record[name]), name
    assert '"seed":123456789012345678901' in record["result"]
    assert '"exact":1.10' in record["metadata"]


# -- a manifest that is there already ---------------------------------------------------------


async def ended_before(house: House, *urls: str) -> bytes:
    """A run that ended; its record is lost. The bytes of its manifest."""
    await house.copying(*urls)
    await house.to_the_end()
    await house.registry.redis.flushall()
    return house.store.objects[house.layout.manifest_key(T)].body


async def test_a_manifest_never_gets_poorer(house: House) -> None:
    house.arrange(fresh=())
    rich = await ended_before(house, house.file("/0"), house.file("/1"), house.file("/2", GONE))
    assert (house.manifest() or {})["state"] == "partial"
    house.file("/1", GONE)
    await house.copying(*(house.host.url(path) for path in ("/0", "/1", "/2")))
    assert (await house.to_the_end())["state"] == "partial"
    assert house.store.objects[house.layout.manifest_key(T)].body == rich


@pytest.mark.parametrize("second", [GONE, serving(picture())], ids=["as rich", "richer"])
async def test_a_manifest_is_replaced_by_one_that_is_as_rich(house: House, second: object) -> None:
    house.arrange(fresh=())
    old = await ended_before(house, house.file("/0"), house.file("/1", GONE))
    house.file("/1", second)
    await house.copying(house.host.url("/0"), house.host.url("/1"))
    record = await house.to_the_end()
    manifest = house.manifest()
    assert manifest is not None
    assert manifest["state"] == record["state"]
    assert (
        manifest["submitted_at"] == int(record["submitted_at"]) != json.loads(old)["submitted_at"]
    )


@pytest.mark.parametrize(
    "body", [b"", b"no JSON", b'{"schema": 1}', b'{"schema": 1, "task_id": "t2"}', b"[" * 5000]
)
async def test_a_manifest_that_cannot_be_read_counts_as_none(house: House, body: bytes) -> None:
    await house.store.put_document(house.layout.manifest_key(T), body, task_id=T)
    await house.copying(house.file("/0"))
    assert await house.step(DueSet.COPY) == "stored"
    assert (house.manifest() or {})["state"] == "stored"


async def test_a_manifest_that_does_not_read_back_ends_nothing(house: House) -> None:
    async def damage() -> None:
        house.store.objects[house.layout.manifest_key(T)].body += b" "

    await house.copying(house.file("/0"))
    house.store.on("put_document", damage, after=True, times=2)
    for _ in range(2):
        assert await house.step(DueSet.COPY) == "unavailable"
        assert (await house.record())["state"] == "copying"
    assert await house.step(DueSet.COPY) == "stored"
    assert house.store.log.count(("put", house.files()[0])) == 1


async def test_a_stored_manifest_restores_the_record_without_a_call(
    house: House, redis: Redis
) -> None:
    await house.copying(house.file("/0"))
    await house.step(DueSet.COPY)
    first = await house.record()
    await redis.flushall()
    await house.submitted()
    assert await house.step(DueSet.COPY) == "restored"
    again = await house.record()
    assert again["restored"] == "true"
    for name in ("files", "result", "manifest", "metadata", "run", "finished_at", "upstream"):
        assert again[name] == first[name], name
    assert house.gateway.calls[T] == 1
    ((_, event),) = await redis.xrange(house.registry.key("events"))
    assert (event["state"], event["restored"]) == ("stored", "true")


@pytest.mark.parametrize("call", ["claim", "head", "get"])
async def test_an_owner_that_was_late_writes_nothing_to_the_bucket(house: House, call: str) -> None:
    """Its claim lapses before it begins, after its file is stored, after the manifest is read."""
    await house.copying(house.file("/0"))
    late = await house.claim(DueSet.COPY)
    if call == "claim":
        await house.claim(DueSet.COPY)
    else:
        house.store.on(call, lambda: house.claim(DueSet.COPY), after=True)
    with pytest.raises(LeaseLost):
        await house.work(late)
    written = [call for call, _ in house.store.log if call.startswith("put")]
    assert written == ([] if call == "claim" else ["put"])
    assert (await house.record())["state"] == "copying"
