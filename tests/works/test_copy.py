"""What becomes of files: keys, addresses, refusals, cancels, left-over uploads."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import time
from typing import Any

import pytest
from PIL import Image
from redis.asyncio import Redis

from tests import doubles
from tests.doubles import Said, done, not_found, pending
from tests.filehost import Caller, Script
from tests.support import eventually
from tests.works.house import BUSY, GONE, PART, PRIVATE, House, T, clip, picture, serving
from worker.core.machine import REFUSALS
from worker.errors import StoreBlocked, StoreRefused, StoreUnavailable
from worker.http import host_of
from worker.registry.clock import Clock
from worker.registry.records import DueSet
from worker.work import shares
from worker.work.copy import CopyWork


def files(record: dict[str, str]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(record["files"])
    return listed


def sha256(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(buffer, "JPEG")
    return buffer.getvalue()


async def huge(call: Caller) -> None:
    await call.send("200 OK", "Content-Length: 999999999")


# -- keys and uploads -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "outcome"), [(StoreBlocked("no"), "blocked"), (StoreUnavailable("away"), "stored")]
)
async def test_a_key_once_reserved_is_used_for_ever(
    house: House, error: Exception, outcome: str
) -> None:
    """By the next claim, and by the next try of the same one."""
    await house.copying(house.file("/0", serving(picture()), serving(jpeg())))
    house.store.on("put", error)
    assert await house.step(DueSet.COPY) == outcome
    record = await house.to_the_end()
    (file,) = files(record)
    assert file["key"].endswith(".png")
    assert file["content_type"] == "image/jpeg"
    assert house.files() == [file["key"]]


async def test_uploads_of_an_earlier_claim_are_aborted_and_those_of_other_tasks_are_not(
    house: House,
) -> None:
    await house.copying(house.file("/0", serving(clip())))
    folder = house.layout.folder(T, {})
    house.store.on("create_upload", StoreUnavailable("the answer is lost"), after=True, times=2)
    assert await house.step(DueSet.COPY) == "again"
    others = ["p/t10/a", "p/t/a", folder.removesuffix("/"), f"q/{folder}a"]
    for key in others:
        await house.store.create_upload(key, content_type="a/b")
    assert len(await house.store.list_uploads(folder)) == 2
    assert await house.step(DueSet.COPY) == "stored"
    assert sorted(opened.upload.key for opened in house.store.uploads.values()) == sorted(others)


async def test_an_upload_whose_abort_failed_is_aborted_when_the_file_is_stored(
    house: House,
) -> None:
    await house.copying(house.file("/0", serving(clip())))
    house.store.on("upload_part", StoreUnavailable("away"))
    house.store.on("abort", StoreUnavailable("away"))
    assert await house.step(DueSet.COPY) == "stored"
    assert house.store.uploads == {}


async def test_uploads_of_files_that_are_given_up_are_aborted(house: House) -> None:
    await house.copying(house.file("/0", serving(clip())))
    lost = StoreRefused("the answer is lost")
    house.store.on("create_upload", lost, after=True, times=REFUSALS)
    record = await house.to_the_end()
    assert (record["state"], record["reason"]) == ("failed", "storage_error")
    assert house.store.uploads == {}


@pytest.mark.parametrize("call", ["list_uploads", "abort"])
@pytest.mark.parametrize("error", [StoreRefused, StoreBlocked, StoreUnavailable])
async def test_clearing_up_holds_nothing_up(
    house: House, call: str, error: type[Exception]
) -> None:
    await house.copying(house.file("/0", serving(clip())), house.file("/1", GONE))
    house.store.on("create_upload", StoreUnavailable("the answer is lost"), after=True, times=2)
    house.store.on(call, error("no"), times=99)
    assert (await house.to_the_end())["state"] == "partial"


async def test_clearing_up_takes_its_time_and_no_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.work.copy._CLEARING", 0.01)
    await house.copying(house.file("/0", GONE))
    house.store.on("list_uploads", asyncio.Event().wait, times=99)
    assert (await house.to_the_end())["state"] == "failed"


async def test_uploads_are_looked_for_by_their_very_keys_too(house: House) -> None:
    """Some stores list those of a key only if they are asked for that key."""
    await house.copying(house.file("/0", serving(clip())))
    house.store.on("create_upload", StoreUnavailable("the answer is lost"), after=True, times=2)
    assert await house.step(DueSet.COPY) == "again"
    key = (await house.notes())["key:0"]
    asked = [each for call, each in house.store.log if call == "list_uploads"]
    assert key not in asked
    assert await house.step(DueSet.COPY) == "stored"
    assert [each for call, each in house.store.log if call == "list_uploads"].count(key) == 1


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [(), (0.0,), (0.0, 0.0, 0.0)])
async def test_a_file_that_is_gone_gets_as_many_fresh_addresses_as_there_are_gaps(
    house: House, fresh: tuple[float, ...]
) -> None:
    house.arrange(fresh=fresh)
    await house.copying(house.file("/0", GONE))
    record = await house.to_the_end()
    assert (record["state"], record["reason"]) == ("failed", "files_unavailable")
    assert "410" in files(record)[0]["error"]
    assert house.gateway.calls[T] == 1 + len(fresh)
    assert house.fetches("/0") == 1 + len(fresh)


async def test_a_fresh_address_waits_for_its_gap(house: House) -> None:
    house.arrange(fresh=(0.0, 15.0))
    await house.copying(house.file("/0", GONE, GONE, serving(picture())))
    assert await house.step(DueSet.COPY) == "again"
    redis, key = house.registry.redis, house.registry.key("due", "fetch")
    assert 14_000 < await redis.zscore(key, T) - await house.registry.now() <= 15_000
    assert await house.step(DueSet.COPY) == "again"
    assert (house.fetches("/0"), house.gateway.calls[T]) == (2, 2)


async def test_an_address_that_is_about_to_expire_is_not_tried(house: House) -> None:
    soon = int(time.time()) + 10
    old, new = house.file("/old"), house.file("/new")
    house.pages[f"/old?Expires={soon}"] = house.pages["/old"]
    await house.copying(f"{old}?Expires={soon}")
    house.gateway.script(T, done(new))
    assert await house.step(DueSet.COPY) == "stored"
    assert [call.path for call in house.host.calls] == ["/new"]


async def test_a_dead_address_is_tried_once_while_the_upstream_gives_no_other(
    house: House,
) -> None:
    url = house.file("/0", GONE, serving(picture()))
    await house.copying(url)
    house.gateway.script(T, *[doubles.unavailable()] * 5, done(url))
    for _ in range(3):
        assert await house.step(DueSet.COPY) == "again"
    assert house.fetches("/0") == 1
    assert (await house.to_the_end())["state"] == "stored"
    assert house.fetches("/0") == 2


IN_VAIN = {
    "unavailable": doubles.unavailable(),
    "throttled": doubles.throttled(),
    "blocked": doubles.blocked(),
    "running": pending(),
    "doubtful": doubles.doubtful(),
    "unknown for a while": not_found(),
}


@pytest.mark.parametrize("name", IN_VAIN)
async def test_an_upstream_that_gives_no_address_for_a_while_loses_no_file(
    house: House, name: str
) -> None:
    house.arrange(grace=600)
    url = house.file("/0", GONE, serving(picture()))
    await house.copying(url)
    house.gateway.script(T, *[IN_VAIN[name]] * 12, done(url))
    assert (await house.to_the_end())["state"] == "stored"
    assert house.gateway.calls[T] == 14


@pytest.mark.parametrize("name", IN_VAIN)
async def test_past_the_deadline_only_an_upstream_that_answers_ends_a_file(
    house: House, name: str
) -> None:
    house.arrange(grace=600, copy_deadline=-1)
    url = house.file("/0", GONE)
    await house.copying(url)
    house.gateway.script(T, IN_VAIN[name])
    if isinstance(IN_VAIN[name], Exception):
        for _ in range(10):
            assert await house.step(DueSet.COPY) == "again"
    else:
        assert await house.step(DueSet.COPY) == "failed"
        assert (await house.record())["reason"] == "files_unavailable"


@pytest.mark.parametrize("said", [not_found(), done()], ids=["the task", "the file"])
async def test_a_file_that_is_not_named_any_more_is_gone(house: House, said: Said) -> None:
    await house.copying(house.file("/0", GONE))
    house.gateway.script(T, said)
    record = await house.to_the_end()
    assert record["reason"] == "files_unavailable"
    assert "no longer names" in files(record)[0]["error"]
    assert house.fetches("/0") == 1


async def test_an_address_that_works_is_kept_when_the_upstream_forgets_the_task(
    house: House,
) -> None:
    stumbling = house.file("/1", BUSY, BUSY, serving(picture()))
    await house.copying(house.file("/0", GONE), stumbling)
    house.gateway.script(T, not_found())
    record = await house.to_the_end()
    assert record["state"] == "partial"
    assert ["key" in file for file in files(record)] == [False, True]


# -- what ends a file, and what does not ------------------------------------------------------


async def test_a_store_that_is_away_never_ends_a_file(house: House) -> None:
    house.arrange(copy_deadline=-1)
    await house.copying(house.file("/0"))
    house.store.on("put", StoreUnavailable("away"), times=40)
    for _ in range(20):
        assert await house.step(DueSet.COPY) == "again"
    assert await house.step(DueSet.COPY) == "stored"


async def test_past_the_deadline_a_host_that_fails_ends_a_file(house: House) -> None:
    await house.copying(house.file("/0", BUSY))
    for _ in range(10):
        assert await house.step(DueSet.COPY) == "again"
    house.arrange(copy_deadline=-1)
    assert await house.step(DueSet.COPY) == "failed"
    assert (await house.record())["reason"] == "files_unavailable"


async def test_an_object_that_the_store_refuses_is_given_up_alone(house: House) -> None:
    await house.copying(house.file("/0"), house.file("/1"))
    house.store.on("put", StoreRefused("not this"), key="*/0.png", times=99)
    record = await house.to_the_end()
    assert (record["state"], record["reason"]) == ("partial", "storage_error")
    assert house.store.log.count(("put", files(record)[1]["key"])) == 1
    assert ["key" in file for file in files(record)] == [False, True]


@pytest.mark.parametrize("sent", [GONE, huge], ids=["gone", "rejected"])
async def test_a_clock_that_has_just_stepped_loses_no_file(house: House, sent: Script) -> None:
    await house.copying(house.file("/0", sent))
    house.registry.clock = stepped = Clock()
    for at in (0, 90_000_000):
        stepped.heard(at, stepped.begin())
    for _ in range(3):
        assert await house.step(DueSet.COPY) == "again"
    house.registry.clock = Clock(settled=0)
    assert (await house.to_the_end())["state"] == "failed"


@pytest.mark.parametrize("call", ["put", "create_upload", "upload_part", "complete"])
async def test_a_store_that_refuses_every_object_ends_no_task(house: House, call: str) -> None:
    """An account that is suspended, or a policy that forbids to write, says so of each object."""
    await house.copying(house.file("/0"), house.file("/1", serving(clip())))
    house.store.on(call, StoreRefused("denied"), times=99)
    house.store.on("put", StoreRefused("denied"), key="*/.doctor/probe", times=99)
    for _ in range(2 * REFUSALS):
        assert await house.step(DueSet.COPY) in ("blocked", "again")
    house.store.relent()
    assert (await house.to_the_end())["state"] == "stored"


async def test_rejected_files_do_not_hold_up_the_others(house: House) -> None:
    away = house.file("/away", lambda call: call.send("302 Found", f"Location: {PRIVATE}"))
    await house.copying(
        PRIVATE, "ftp://a/b", house.file("/huge", huge), house.file("/ok"), away, house.file("/too")
    )
    assert await house.step(DueSet.COPY) == "partial"
    record = await house.record()
    assert record["reason"] == "files_rejected"
    assert ["key" in file for file in files(record)] == [False, False, False, True, False, True]
    assert house.gateway.calls[T] == 1


async def test_files_that_take_parts_or_not_arrive_whole(house: House) -> None:
    bodies = [picture(), clip(1), clip(2), clip(2)[:-1], clip(3) + b"x"]
    urls = [house.file(f"/{n}", serving(body)) for n, body in enumerate(bodies)]
    await house.copying(*urls)
    assert await house.step(DueSet.COPY) == "stored"
    stored = files(await house.record())
    assert [house.store.objects[file["key"]].body for file in stored] == bodies
    assert [file["bytes"] for file in stored] == [len(body) for body in bodies]


# -- cancel and retry -------------------------------------------------------------------------


async def test_a_cancel_during_a_slow_copy_keeps_what_is_stored(house: House) -> None:
    async def slow(call: Any) -> None:
        await call.send("200 OK", f"Content-Length: {2 * PART}", body=clip()[: PART + 9])
        await hanging.wait()

    hanging = asyncio.Event()
    await house.copying(house.file("/0"), house.file("/1", slow))
    claim = await house.claim(DueSet.COPY)
    working = asyncio.create_task(house.work(claim))

    async def halfway() -> bool:
        return "file:0" in await house.notes() and bool(house.store.uploads)

    await eventually(halfway)
    assert await house.registry.cancel(T) == "ok"
    assert await house.registry.renew([claim.job]) == {T: "cancel"}
    claim.cancel.set()  # as the engine does, which renews
    assert await working == "partial"
    hanging.set()
    record = await house.record()
    assert (record["state"], record["reason"]) == ("partial", "canceled")
    assert ["key" in file for file in files(record)] == [True, False]
    assert house.files() == [files(record)[0]["key"]]
    assert house.store.uploads == {}
    await house.check_truth()


async def test_a_file_whose_cancellation_was_swallowed_writes_nothing_more(house: House) -> None:
    async def swallow() -> None:
        (key,) = [value for name, value in (await house.notes()).items() if name == "key:0"]
        await house.store.put(key, b"other", content_type="text/plain", sha256=sha256(b"other"))
        claim.cancel.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Future()

    await house.copying(house.file("/0"))
    claim = await house.claim(DueSet.COPY)
    house.store.on("put", swallow)
    assert await house.work(claim) == "failed"
    (key,) = house.files()
    assert house.store.objects[key].body == b"other"  # not replaced by the file
    assert (await house.record())["reason"] == "canceled"


async def test_a_cancel_is_heard_at_the_next_note(house: House) -> None:
    async def cancel() -> None:
        assert await house.registry.cancel(T) == "ok"

    await house.copying(house.file("/0"), house.file("/1", BUSY))
    house.store.on("put", cancel)
    await house.step(DueSet.COPY)
    record = await house.record()
    assert (record["state"], record["reason"]) == ("partial", "canceled")


async def test_a_cancel_that_comes_when_all_is_stored_changes_nothing(house: House) -> None:
    async def cancel() -> None:
        assert await house.registry.cancel(T) == "ok"

    await house.copying(house.file("/0"))
    house.store.on("put_document", cancel)
    assert await house.step(DueSet.COPY) == "stored"
    assert "cancel" not in await house.notes()


async def test_a_retry_keeps_what_is_stored(house: House, redis: Redis) -> None:
    urls = house.file("/0"), house.file("/1", *[GONE] * 4, serving(picture(9)))
    await house.copying(*urls)
    before = files(await house.to_the_end())
    assert ["key" in file for file in before] == [True, False]
    assert await house.registry.retry(T) == "ok"
    record = await house.to_the_end()
    assert (record["state"], record["run"]) == ("stored", "2")
    assert files(record)[0] == before[0]
    assert house.fetches("/0") == 1
    events = await redis.xrange(house.registry.key("events"))
    assert [event["state"] for _, event in events] == ["partial", "stored"]
    manifest = house.manifest()
    assert manifest is not None
    assert (manifest["state"], manifest["run"]) == ("stored", 2)
    assert manifest["polls"] == int(record["polls"]) == house.gateway.calls[T]


# -- slow hosts -------------------------------------------------------------------------------


def dribbled(body: bytes, pieces: int, pause: float = 0.05) -> Script:
    """Sends a file in so many pieces, with a pause before each."""

    async def script(call: Caller) -> None:
        with contextlib.suppress(ConnectionError):
            await call.send("200 OK", f"Content-Length: {len(body)}")
            size = -(-len(body) // pieces)
            for start in range(0, len(body), size):
                await asyncio.sleep(pause)
                call.writer.write(body[start : start + size])
                await call.writer.drain()

    return script


async def test_a_slow_host_makes_room_while_others_wait(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "FLOOR_SECONDS", 0.2)
    await house.copying(house.file("/slow", dribbled(picture(), 2000)))
    claim = await house.claim(DueSet.COPY)
    await house.copying(house.file("/other"), task_id="t2")
    assert await house.work(claim) == "again"
    notes = await house.notes()
    trial = json.loads(notes["try:0"])["trial"]
    assert "other tasks wait" in trial["error"]
    assert trial["faults"] == trial["gone"] == trial["refusals"] == 0
    assert notes["slow:0"] == "1"


async def test_a_slow_host_has_twice_the_time_when_its_turn_comes_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it comes to its end even where others always wait."""
    monkeypatch.setattr(shares, "FLOOR_SECONDS", 0.2)
    await house.copying(house.file("/slow", dribbled(picture(), 16)))
    words = []
    while "stored" not in words and len(words) < 6:
        claim = await house.claim(DueSet.COPY)
        await house.registry.redis.zadd(house.registry.key("due", "fetch"), {"other": 0})
        words.append(await house.work(claim))
    assert set(words) == {"again", "stored"}


async def test_a_slow_host_is_given_up_at_the_deadline_only_if_others_wait(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "FLOOR_SECONDS", 0.2)
    house.arrange(copy_deadline=0)
    await house.copying(house.file("/slow", dribbled(picture(), 16)))
    assert await house.step(DueSet.COPY) == "stored"
    await house.copying(house.file("/slow2", dribbled(picture(), 2000)), task_id="t2")
    claim = await house.claim(DueSet.COPY)
    await house.copying(house.file("/other"), task_id="t3")
    assert await house.work(claim) == "failed"
    assert (await house.record("t2"))["reason"] == "files_unavailable"


@pytest.mark.parametrize("status", ["503 Busy", "429 Slow Down"])
async def test_a_host_is_left_alone_as_long_as_it_asks(house: House, status: str) -> None:
    async def busy(call: Caller) -> None:
        await call.send(status, "Retry-After: 40", "Content-Length: 0")

    await house.copying(house.file("/0", busy, serving(picture())))
    assert await house.step(DueSet.COPY) == "again"
    redis, key = house.registry.redis, house.registry.key("due", "fetch")
    assert 35_000 < await redis.zscore(key, T) - await house.registry.now() <= 40_000


def without_length(body: bytes) -> Script:
    return lambda call: call.send("200 OK", body=body)


async def test_a_file_that_the_close_of_its_connection_ends_is_stored_after_a_second_look(
    house: House,
) -> None:
    for name, body in (("/small", picture()), ("/large", clip(3))):
        await house.copying(house.file(name, without_length(body)), task_id=name[1:])
        assert await house.step(DueSet.COPY) == "stored"
        assert house.fetches(name) == 2


async def test_a_file_that_the_close_of_its_connection_cuts_is_not_stored(house: House) -> None:
    for name, body in (("/small", picture()), ("/large", clip(3))):
        cut, whole = without_length(body[:-9]), without_length(body)
        await house.copying(house.file(name, cut, whole), task_id=name[1:])
        assert await house.step(DueSet.COPY) == "stored"
        (stored,) = files(await house.record(name[1:]))
        assert stored["bytes"] == len(body)
        assert house.fetches(name) == 4  # twice cut and whole, then twice whole


async def test_a_host_that_has_its_share_makes_room(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks are given back untouched; those of other hosts go on."""
    monkeypatch.setattr(shares, "LINGERS", 0.0)
    work = house.works[DueSet.FETCH]
    assert isinstance(work, CopyWork)
    await house.copying(house.file("/0"))
    with contextlib.ExitStack() as held:
        for _ in range(work.slots):
            if work._shares.fits(host_of(house.host.url())):
                held.enter_context(work._shares.taken(host_of(house.host.url())))
        assert await house.step(DueSet.COPY) == "crowded"
        assert house.fetches("/0") == 0
        assert not any(name.startswith(("try:", "slow:")) for name in await house.notes())
        other = house.host.url("/1").replace("127.0.0.1", "127.0.0.2")
        assert work._shares.fits(host_of(other))
    assert await house.step(DueSet.COPY) == "stored"


async def test_a_slow_host_that_nobody_waits_for_has_its_time(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "FLOOR_SECONDS", 0.1)
    await house.copying(house.file("/slow", dribbled(picture(), 12)))
    assert await house.step(DueSet.COPY) == "stored"


async def test_a_host_above_the_floor_never_makes_room(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "FLOOR_SECONDS", 0.1)
    monkeypatch.setattr(shares, "FLOOR", 10)
    await house.copying(house.file("/slow", dribbled(picture(64), 12)))
    claim = await house.claim(DueSet.COPY)
    await house.copying(house.file("/other"), task_id="t2")
    assert await house.work(claim) == "stored"
