"""Every way out of a claim leaves calls, notes, due sets and token as they should be."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis

from tests import doubles
from tests.doubles import Said, done, pending
from tests.support import ROOT, eventually
from tests.works.house import BUSY, GONE, PRIVATE, House, T, picture, serving
from worker.core.models import FINAL_STATES
from worker.engine import Drain, Pace
from worker.errors import LeaseLost, StoreBlocked, StoreError, StoreRefused, StoreUnavailable
from worker.registry.records import DueSet
from worker.work.claim import insist
from worker.work.copy import CopyWork

Go = Callable[[House], Awaitable[str]]


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way out of a claim: how it goes, its word, and what is to be seen afterwards."""

    kind: DueSet
    word: str
    due: DueSet | None
    noted: tuple[str, ...]
    go: Go


WAYS: dict[str, Way] = {}


def way(
    kind: DueSet,
    word: str,
    due: DueSet | None = None,
    *,
    noted: tuple[str, ...] = (),
    name: str = "",
) -> Callable[[Go], Go]:
    """``due`` is the set where the task should be; ``None`` says that its run has ended."""

    def add(go: Go) -> Go:
        key = ": ".join(filter(None, (kind, word, name)))
        assert key not in WAYS
        WAYS[key] = Way(kind=kind, word=word, due=due, noted=noted, go=go)
        return go

    return add


# -- polls ------------------------------------------------------------------------------------


def answered(said: Said) -> Go:
    async def go(house: House) -> str:
        await house.waiting()
        house.gateway.script(T, said, pending())
        return await house.step(DueSet.POLL)

    return go


way(DueSet.POLL, "pending", DueSet.POLL, noted=("seen_at",))(answered(pending()))
way(DueSet.POLL, "unsure", DueSet.POLL, noted=("doubts",))(answered(doubles.doubtful()))
way(DueSet.POLL, "succeeded", DueSet.COPY, noted=("data",))(answered(done()))
way(DueSet.POLL, "ended", DueSet.COPY, noted=("ending",))(answered(doubles.failed()))
way(DueSet.POLL, "throttled", DueSet.POLL, noted=("faults",))(answered(doubles.throttled()))
way(DueSet.POLL, "unavailable", DueSet.POLL, noted=("faults",))(answered(doubles.unavailable()))
way(DueSet.POLL, "blocked", DueSet.POLL)(answered(doubles.blocked()))
way(DueSet.POLL, "refused", DueSet.POLL, noted=("faults",))(answered(doubles.bare()))


@way(DueSet.POLL, "canceled", DueSet.COPY, noted=("cancel",))
async def _(house: House) -> str:
    await house.waiting()
    await house.claim(DueSet.POLL)
    assert await house.registry.cancel(T) == "ok"  # only flagged: its owner lives, as it seems
    return await house.step(DueSet.POLL)


@way(DueSet.POLL, "poisoned", DueSet.COPY, noted=("ending",))
async def _(house: House) -> str:
    await house.waiting()
    await poison(house)
    return await house.step(DueSet.POLL)


async def poison(house: House) -> None:
    await house.registry.redis.hset(house.registry.key("work", T), "lapses", "6")


@way(DueSet.POLL, "pending", DueSet.COPY, noted=("cancel",), name="canceled meanwhile")
async def _(house: House) -> str:
    async def cancel() -> doubles.Answer:
        assert await house.registry.cancel(T) == "ok"
        return pending()

    return await answered(cancel)(house)


# -- copies -----------------------------------------------------------------------------------

BURDEN = ("try:0", "lost:1", "try:2")


async def burdened(house: House, *then: Said) -> None:
    """A task whose first claim asks for fresh addresses, and has gathered notes before."""
    urls = house.file("/0", GONE, serving(picture())), PRIVATE, house.file("/2", BUSY)
    await house.copying(*urls)
    house.pages["/2"] = [BUSY, BUSY, serving(picture())]
    if then:
        house.gateway.script(T, *then, done(*urls))


async def dying(house: House, *others: str) -> None:
    """A task whose only claim asks for one fresh address in vain, and then ends the run."""
    house.arrange(fresh=(0.0,))
    await house.copying(house.file("/0", GONE), *others)


@way(DueSet.COPY, "new", DueSet.POLL)
async def _(house: House) -> str:
    await house.submitted()
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "new", DueSet.COPY, noted=("cancel",), name="canceled meanwhile")
async def _(house: House) -> str:
    async def cancel() -> None:
        assert await house.registry.cancel(T) == "ok"

    await house.submitted()
    house.store.on("get", cancel)
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "again", DueSet.COPY, noted=BURDEN)
async def _(house: House) -> str:
    await burdened(house)
    house.pages["/0"] = [GONE, BUSY, serving(picture())]
    return await house.step(DueSet.COPY)


for said in (doubles.throttled(), doubles.unavailable(), doubles.blocked(), pending()):

    @way(DueSet.COPY, "again", DueSet.COPY, noted=BURDEN, name=f"no address: {type(said).__name__}")
    async def _(house: House, said: Said = said) -> str:
        await burdened(house, said)
        return await house.step(DueSet.COPY)


@way(DueSet.COPY, "blocked", DueSet.COPY, noted=BURDEN)
async def _(house: House) -> str:
    await burdened(house)
    house.store.on("put", StoreBlocked("no"))
    return await house.step(DueSet.COPY)


def at_the_manifest(error: StoreError, call: str, *, after: bool = False, skip: int = 0) -> Go:
    async def go(house: House) -> str:
        await dying(house)
        house.store.on(call, error, key="*/manifests/*", after=after, skip=skip)
        return await house.step(DueSet.COPY)

    return go


for error, word, noted in (
    (StoreBlocked("no"), "blocked", ("lost:0",)),
    (StoreUnavailable("away"), "unavailable", ("lost:0", "faults")),
    (StoreRefused("not this"), "unavailable", ("lost:0", "faults")),
):
    for moment, go in {
        "before it is read": at_the_manifest(error, "get"),
        "before it is written": at_the_manifest(error, "put_document"),
        "after it is written": at_the_manifest(error, "put_document", after=True),
        "before it is read back": at_the_manifest(error, "get", skip=1),
    }.items():
        name = f"manifest, {moment}, {type(error).__name__}"
        way(DueSet.COPY, word, DueSet.COPY, noted=noted, name=name)(go)


@way(DueSet.COPY, "unavailable", DueSet.COPY, noted=("faults",), name="first look")
async def _(house: House) -> str:
    await house.submitted()
    house.store.on("get", StoreUnavailable("away"))
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "newer", DueSet.COPY, noted=("lost:0",))
async def _(house: House) -> str:
    await dying(house)
    await newer_manifest(house)
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "newer", DueSet.COPY, name="first look")
async def _(house: House) -> str:
    await house.submitted()
    await newer_manifest(house)
    return await house.step(DueSet.COPY)


async def newer_manifest(house: House) -> None:
    body = json.dumps({"schema": 99, "task_id": T}).encode()
    await house.store.put_document(house.layout.manifest_key(T), body, task_id=T)


@way(DueSet.COPY, "handed on", DueSet.COPY, name="from a worker that knows no other set")
async def _(house: House) -> str:
    await house.copying(house.file("/0"))
    redis, key = house.registry.redis, house.registry.key
    await redis.zrem(key("due", "fetch"), T)
    await redis.zadd(key("due", "copy"), {T: 0})
    word = await house.step(DueSet.COPY)
    assert await redis.zscore(key("due", "fetch"), T) is not None
    return word


@way(DueSet.COPY, "crowded", DueSet.COPY)
async def _(house: House) -> str:
    await house.copying(house.file("/0"))
    work = house.works[DueSet.FETCH]
    assert isinstance(work, CopyWork)
    answers = iter([False])
    work._shares.fits = lambda host: next(answers, True)  # type: ignore[method-assign]
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "stored")
async def _(house: House) -> str:
    await house.copying(house.file("/0", GONE, serving(picture())))
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "partial")
async def _(house: House) -> str:
    await dying(house, house.file("/1"))
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "failed")
async def _(house: House) -> str:
    await dying(house)
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "stored", DueSet.TELL, name="with a callback")
async def _(house: House) -> str:
    callback = {"channel": "reply", "task": "a.b", "queue": "q"}
    await house.waiting(callbacks=[callback])
    house.gateway.script(T, done(house.file("/0")))
    await house.step(DueSet.POLL)
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "restored", name="first look")
async def _(house: House) -> str:
    await house.copying(house.file("/0"))
    assert await house.step(DueSet.COPY) == "stored"
    await house.registry.redis.flushall()
    await house.submitted()
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "restored", name="at the end, by another submission")
async def _(house: House) -> str:
    await house.copying(house.file("/0"))
    assert await house.step(DueSet.COPY) == "stored"
    await house.registry.redis.flushall()
    manifest = house.store.objects.pop(house.layout.manifest_key(T))
    await dying(house)
    house.store.objects[house.layout.manifest_key(T)] = manifest
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "restored", name="at the end, by the same submission")
async def _(house: House) -> str:
    await house.copying(house.file("/0"))
    house.store.on("put_document", lambda: house.claim(DueSet.COPY), after=True)
    with pytest.raises(LeaseLost):
        await house.step(DueSet.COPY)
    await house.registry.redis.hdel(house.registry.key("work", T), "file:0")
    assert await house.registry.cancel(T) == "ok"
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "failed", name="canceled before")
async def _(house: House) -> str:
    await house.waiting()
    house.gateway.script(T, pending())
    await house.step(DueSet.POLL)
    assert await house.registry.cancel(T) == "ok"
    return await house.step(DueSet.COPY)


@way(DueSet.COPY, "failed", name="canceled while fresh addresses are asked for")
async def _(house: House) -> str:
    async def cancel() -> doubles.Answer:
        claim.cancel.set()
        return await asyncio.Future()

    await burdened(house, cancel)
    claim = await house.claim(DueSet.COPY)
    return await house.work(claim)


@way(DueSet.COPY, "failed", name="poisoned")
async def _(house: House) -> str:
    await house.copying(house.file("/0"))
    await poison(house)
    return await house.step(DueSet.COPY)


# -- what they leave --------------------------------------------------------------------------


async def check(
    house: House, due: DueSet | None, noted: tuple[str, ...] = (), *, uncounted: int = 0
) -> None:
    record, notes = await house.record(), await house.notes()
    assert int(record["polls"]) == house.gateway.calls[T] - uncounted
    assert await house.due() == ({due} if due else set())
    assert "token" not in notes
    assert set(noted) <= set(notes)
    await house.check_truth()
    if record["state"] in FINAL_STATES and "restored" not in record:
        manifest = house.manifest()
        assert manifest is not None
        assert (manifest["state"], manifest["polls"]) == (record["state"], int(record["polls"]))


async def check_the_rest(house: House, *, uncounted: int = 0) -> None:
    """The run goes on to its end, and its record still counts every call."""
    house.store.relent()
    manifest = house.manifest()
    if manifest and manifest["schema"] == 99:
        del house.store.objects[house.layout.manifest_key(T)]
    if (await house.record())["state"] == "waiting":
        house.gateway.script(T, done(house.file("/late")))
    await house.to_the_end()
    await check(house, None, uncounted=uncounted)
    assert house.store.uploads == {}


@pytest.mark.parametrize("name", WAYS)
async def test_a_way_out(house: House, name: str) -> None:
    taken = WAYS[name]
    assert await taken.go(house) == taken.word
    await check(house, taken.due, taken.noted)
    final = (await house.record())["state"] in FINAL_STATES
    assert final == (taken.due in (None, DueSet.TELL))
    if not final:
        await check_the_rest(house)


def words(*names: str) -> set[str]:
    """The words that the works in these files can return."""
    found: set[str] = set()

    def add(value: ast.expr | None) -> None:
        match value:
            case ast.Constant(value=str(word)):
                found.add(word)
            case ast.IfExp():
                add(value.body)
                add(value.orelse)
            case ast.Attribute(attr="state"):
                found.update(FINAL_STATES)
            case ast.Await(value=ast.Call(func=ast.Attribute(attr="_failed"), args=[_, word, *_])):
                add(word)

    for name in names:
        for node in ast.walk(ast.parse((ROOT / "worker" / name).read_text())):
            match node:
                case ast.Return(value=value) | ast.keyword(arg="outcome", value=value):
                    add(value)
                case ast.Assign(targets=[ast.Name(id="outcome")], value=value):
                    add(value)
    return found


def test_no_way_out_is_missing() -> None:
    taken = {kind: {w.word for w in WAYS.values() if w.kind is kind} for kind in DueSet}
    assert words("work/poll.py", "core/polling.py") == taken[DueSet.POLL]
    assert words("work/copy.py", "work/endings.py") == taken[DueSet.COPY]


# -- what workers that know no set of files leave -----------------------------------------------


async def test_a_task_that_also_stands_where_files_are_moved_is_worked_on_there(
    house: House,
) -> None:
    """Their search for lost tasks puts it into the other set as well, even while it is claimed."""
    await house.copying(house.file("/0"))
    redis, key = house.registry.redis, house.registry.key
    claim = await house.claim(DueSet.FETCH)
    await redis.zadd(key("due", "copy"), {T: 0})
    batch = await house.registry.claim(DueSet.COPY, limit=10, in_hand=0, slots=4)
    assert not batch.jobs
    assert await redis.zscore(key("due", "copy"), T) is None
    assert await house.work(claim) == "stored"


async def test_a_task_that_they_have_ended_is_not_worked_on_again(house: House) -> None:
    await house.copying(house.file("/0"))
    assert await house.step(DueSet.COPY) == "stored"
    redis, key = house.registry.redis, house.registry.key
    await redis.zadd(key("due", "fetch"), {T: 0})
    before = await house.record()
    batch = await house.registry.claim(DueSet.FETCH, limit=10, in_hand=0, slots=4)
    assert not batch.jobs
    assert await redis.zscore(key("due", "fetch"), T) is None
    assert await house.record() == before


# -- the engine's -----------------------------------------------------------------------------

BOTH = pytest.mark.parametrize(
    ("kind", "noted"), [(DueSet.POLL, ()), (DueSet.COPY, ("try:0", "try:1", "try:2"))]
)


async def called_back(house: House, kind: DueSet, act: Callable[[], Awaitable[object]]) -> None:
    """A task for which ``act`` happens while the upstream is asked."""

    async def say() -> doubles.Answer:
        await act()
        return pending()

    if kind is DueSet.COPY:
        await burdened(house, say)
    else:
        await house.waiting()
        house.gateway.script(T, say, pending())


@contextlib.asynccontextmanager
async def drained(house: House, kind: DueSet) -> AsyncIterator[Drain]:
    """A drain works while the block runs; it is stopped then."""
    # it claims once and looks again only when it is woken
    kind = DueSet.FETCH if kind is DueSet.COPY else kind
    drain = Drain(house.registry, house.works[kind], Pace(tick=600))
    await house.let_time_pass()
    running = asyncio.create_task(drain.run())
    try:
        yield drain
    finally:
        await drain.stop(5)
        await running


async def idle(drain: Drain) -> None:
    await eventually(lambda: not drain._in_hand, what="the end of the work in hand")


@BOTH
async def test_a_crash(house: House, kind: DueSet, noted: tuple[str, ...]) -> None:
    async def crash() -> None:
        crashed.set()
        raise ZeroDivisionError

    crashed = asyncio.Event()
    await called_back(house, kind, crash)
    async with drained(house, kind) as drain:
        await crashed.wait()
        await idle(drain)
    await check(house, kind, noted)
    await check_the_rest(house)


@BOTH
async def test_a_stop(house: House, kind: DueSet, noted: tuple[str, ...]) -> None:
    async def hang() -> None:
        hanging.set()
        await asyncio.Future()

    hanging = asyncio.Event()
    await called_back(house, kind, hang)
    async with drained(house, kind):
        await hanging.wait()
    await check(house, kind, noted)
    assert "lapses" not in {n for n, v in (await house.notes()).items() if v != "0"}
    await check_the_rest(house)


@BOTH
async def test_a_lost_lease(house: House, kind: DueSet, noted: tuple[str, ...]) -> None:
    async def lapse() -> None:
        others.append(await house.claim(kind))
        lost.set()

    others, lost = [], asyncio.Event()
    await called_back(house, kind, lapse)
    before = await house.record()
    async with drained(house, kind) as drain:
        await lost.wait()
        await idle(drain)
    notes = await house.notes()
    assert await house.record() == before  # nothing is written by an owner that was late
    assert notes["token"] == others[0].job.token
    assert not set(noted) & set(notes)
    assert await house.due() == {kind}
    await house.work(others[0])
    await check_the_rest(house, uncounted=1)


@BOTH
async def test_a_redis_that_takes_no_writes(
    house: House,
    redis: Redis,
    kind: DueSet,
    noted: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fill() -> None:
        await redis.config_set("maxmemory", "1")
        full.set()

    full = asyncio.Event()
    monkeypatch.setitem(insist.__kwdefaults__, "seconds", 0.0)
    await called_back(house, kind, fill)
    before = await house.record()
    try:
        async with drained(house, kind) as drain:
            await full.wait()
            await idle(drain)
    finally:
        await redis.config_set("maxmemory", "0")
    assert await house.record() == before
    assert not set(noted) & set(await house.notes())
    assert await house.due() == {kind}
    await check_the_rest(house, uncounted=1)
