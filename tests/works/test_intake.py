"""The intake stream: entries come one by one, whatever they hold and whatever workers die of."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from tests.integration.test_registry import make
from worker.core.submission import MAX_BODY_BYTES, Policy
from worker.errors import RegistryUnavailable
from worker.registry.intake import STRIKES, Entry
from worker.registry.registry import Registry
from worker.work.intake import Intake

LAST = f"{2**64 - 1}-{2**64 - 1}"


class Way:
    """One worker's way in: what it accepts, and the stream that it reads."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.stream = registry.key("intake")
        self.worker = self.another()

    def another(self) -> Intake:
        """A worker that knows nothing of what others have in hand."""
        return Intake(self.registry, Policy(), wake=lambda _: None)

    async def add(self, *fields: tuple[bytes, bytes], entry_id: str = "*") -> str:
        words = [part for pair in fields for part in pair]
        return str(await self.registry.redis.execute_command("XADD", self.stream, entry_id, *words))

    async def body(self, body: bytes) -> str:
        return await self.add((b"body", body))

    async def ids(self, *ids: str) -> str:
        return await self.body(json.dumps({"task_ids": ids}).encode())

    async def lie(self) -> None:
        """What is in hand has been so for long."""
        pending: Any = await self.registry.redis.xpending_range(
            self.stream, "harvester", "-", "+", 100
        )
        for entry in pending:
            await self.registry.redis.execute_command(
                "XCLAIM", self.stream, "harvester", "fleet", 0, entry["message_id"],
                "IDLE", 60_000, "JUSTID",
            )  # fmt: skip

    async def take(self) -> Entry:
        entry = await self.registry.intake.take()
        assert isinstance(entry, Entry), entry
        return entry

    async def strikes(self) -> int:
        return int(await self.registry.redis.hlen(f"{self.stream}:strikes"))

    async def left(self) -> int:
        return int(await self.registry.redis.xlen(self.stream))

    async def accepted(self, *ids: str) -> bool:
        return all((await self.registry.states(ids)).values())

    async def reasons(self) -> list[str]:
        return [entry["reason"] for entry in await self.registry.refused()]


@pytest.fixture
async def way(redis: Redis, namespace: str) -> Way:
    return Way(make(redis, namespace))


async def test_entries_written_before_the_first_worker_are_taken_and_removed(way: Way) -> None:
    await way.ids("a", "b")
    assert await way.worker.drain_stream() == 1
    assert await way.worker.drain_stream() == 0
    assert await way.accepted("a", "b")
    assert (await way.left(), await way.strikes()) == (0, 0)


@pytest.mark.parametrize(
    "body",
    [
        b'{"task_ids": ["a\xff"]}',
        b"\xff\xfe",
        # as text the last byte would make another escape of the one before
        b'{"task_ids": ["bad"], "metadata": {"k": "\\\xff"}}',
        b'{"task_ids": ["bad"], "metadata": {"k": "\xed\xa0\x80"}}',
        b"",
        b"[" * 100_000,
        b'{"task_ids": ["bad"]}' + b" " * MAX_BODY_BYTES,
    ],
)
async def test_a_bad_entry_is_refused_and_its_neighbours_are_not(way: Way, body: bytes) -> None:
    await way.ids("before")
    await way.body(body)
    await way.ids("after")
    assert await way.worker.drain_stream() == 3
    assert await way.accepted("before", "after")
    assert not await way.accepted("bad")
    assert len(await way.reasons()) == 1
    assert (await way.left(), await way.strikes()) == (0, 0)


async def test_what_is_too_large_stays_in_redis(way: Way) -> None:
    await way.add(*((b"body", b"x" * 15 * 1024 * 1024) for _ in range(8)))
    await way.add((b"body", b"{}"), (b"more", b"x" * 4 * 1024 * 1024))
    await way.ids("good")
    for _ in range(2):
        entry = await way.take()
        assert (entry.verdict, entry.body) == ("large", None)
    assert await way.strikes() == 0  # nothing of them was read
    await way.lie()
    assert await way.worker.drain_stream() == 3
    assert await way.accepted("good")
    assert set(await way.reasons()) == {f"larger than {MAX_BODY_BYTES:,} bytes"}


async def test_other_fields_are_tolerated(way: Way) -> None:
    await way.add((b"trace", b"\xff"), (b"body", b'{"task_ids": "a"}'), (b"z", b""))
    await way.add((b"other", b"field"))
    assert await way.worker.drain_stream() == 2
    assert await way.accepted("a")
    assert len(await way.reasons()) == 1


async def test_an_entry_that_workers_die_of_is_refused_unread(way: Way) -> None:
    """Each death leaves a strike; the third worker's successor does not read it."""
    bad = await way.ids("deadly")
    for strikes in range(STRIKES):
        entry = await way.take()  # and the worker dies
        assert (entry.id, entry.strikes, entry.body is not None) == (bad, strikes, True)
        await way.ids(f"good{strikes}")
        assert await way.another().drain_stream() == 1  # which others are read meanwhile
        await way.lie()
    assert await way.another().drain_stream() == 1
    assert await way.reasons() == [f"{STRIKES} workers died while processing this entry"]
    assert not await way.accepted("deadly")
    assert (await way.left(), await way.strikes()) == (0, 0)


class Refusing:
    """Redis that fails at one step of an intake."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def __call__(self, *_: Any, **__: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    "error", [RegistryUnavailable("full"), RuntimeError("a defect"), KeyboardInterrupt()]
)
async def test_no_way_out_but_death_leaves_a_strike(
    way: Way, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    await way.ids("a")
    for _ in range(2 * STRIKES):
        with monkeypatch.context() as patch:
            patch.setattr(way.registry, "submit", Refusing(error))
            with pytest.raises(type(error)):
                await way.worker.drain_stream()
        assert await way.strikes() == 0
        await way.lie()
    assert await way.worker.drain_stream() == 1
    assert await way.accepted("a")


async def test_a_strike_that_redis_does_not_take_back_is_taken_back_later(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    await way.ids("a")
    gone = Refusing(RegistryUnavailable("away"))
    for _ in range(2 * STRIKES):
        with monkeypatch.context() as patch:
            patch.setattr(way.registry, "submit", gone)
            patch.setattr(way.registry.intake, "give_back", gone)
            with pytest.raises(RegistryUnavailable):
                await way.worker.drain_stream()
        assert await way.strikes() == 1
        assert await way.worker.drain_stream() == 0
        assert await way.strikes() == 0
        await way.lie()
    assert await way.worker.drain_stream() == 1


async def test_a_full_redis_leaves_no_strike(way: Way, redis: Redis) -> None:
    await way.ids("a")
    before = await redis.config_get("maxmemory")
    await redis.config_set("maxmemory", 1)
    try:
        for _ in range(2 * STRIKES):
            with pytest.raises(RegistryUnavailable):
                await way.worker.drain_stream()
            assert await way.strikes() == 0
            await way.lie()
    finally:
        await redis.config_set("maxmemory", before["maxmemory"])
    await way.lie()
    assert await way.worker.drain_stream() == 1
    assert await way.accepted("a")


async def test_an_answer_that_is_lost_leaves_no_strike(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command was carried out; repeated, it gives the same entry and no second strike."""
    await way.ids("a")
    await way.ids("b")
    carried_out = way.registry.redis.execute_command
    answers = iter([True, False, False, False, False])

    async def lose(*args: Any, **options: Any) -> Any:
        answer = await carried_out(*args, **options)
        if args[0] == "EVALSHA" and next(answers):
            raise RegistryUnavailable("the answer is lost")
        return answer

    monkeypatch.setattr(way.registry.redis, "execute_command", lose)
    with pytest.raises(RegistryUnavailable):
        await way.registry.intake.take()
    again = await way.take()
    assert (again.strikes, again.body) == (0, b'{"task_ids": ["a"]}')
    assert (await way.take()).body == b'{"task_ids": ["b"]}'
    await way.registry.intake.settle([again.id])
    assert await way.strikes() == 1  # b's


async def test_the_highest_id_does_not_close_the_stream(way: Way) -> None:
    await way.ids("a")
    await way.add((b"body", b'{"task_ids": "b"}'), entry_id=LAST)
    with pytest.raises(RegistryUnavailable, match="last possible ID"):
        await way.ids("c")
    assert await way.registry.intake.is_closed()
    assert await way.worker.drain_stream() == 2  # and then it is empty
    assert not await way.registry.intake.is_closed()
    await way.ids("c")
    assert await way.worker.drain_stream() == 1
    assert await way.accepted("a", "b", "c")


async def test_a_closed_stream_is_not_made_again_while_an_entry_is_in_hand(way: Way) -> None:
    await way.add((b"body", b'{"task_ids": "a"}'), entry_id=LAST)
    entry = await way.take()
    assert await way.another().drain_stream() == 0
    assert await way.left() == 1
    await way.lie()
    assert await way.another().drain_stream() == 1
    assert await way.accepted("a")
    assert entry.id == LAST


async def test_without_the_right_to_see_it_work_goes_on(
    way: Way, redis: Redis, redis_url: str
) -> None:
    user, password = f"u{secrets.token_hex(4)}", "p"
    await redis.execute_command(
        "ACL", "SETUSER", user, "on", f">{password}", "~*", "&*", "+@all", "-xinfo"
    )
    try:
        url = redis_url.replace("://", f"://{user}:{password}@", 1)
        if "@" in redis_url:
            url = f"redis://{user}:{password}@{redis_url.rpartition('@')[2]}"
        async with Redis.from_url(url, decode_responses=True, protocol=2) as client:
            limited = Way(make(client, way.registry.namespace))
            await limited.ids("a")
            assert await limited.worker.drain_stream() == 1
            assert await limited.registry.intake.take() == "blind"
    finally:
        await redis.execute_command("ACL", "DELUSER", user)


async def test_a_trimmed_entry_is_passed_over(way: Way, redis: Redis) -> None:
    first = await way.ids("a")
    await way.take()
    await way.ids("b")
    await redis.xdel(way.stream, first)
    await way.lie()
    assert await way.worker.drain_stream() == 1
    assert await way.accepted("b")


async def test_the_release_before_reads_the_same_group(way: Way, redis: Redis) -> None:
    """What it takes and leaves comes to this one, and the other way round."""
    await way.ids("a")
    await way.take()
    await way.lie()
    _, entries, _ = await redis.xautoclaim(way.stream, "harvester", "fleet", 30_000, count=4)
    assert [fields for _, fields in entries] == [{"body": '{"task_ids": ["a"]}'}]
    await way.lie()
    assert await way.worker.drain_stream() == 1
    await way.ids("b")
    await redis.xreadgroup("harvester", "fleet", {way.stream: ">"}, count=4)
    assert await way.worker.drain_stream() == 0
    await way.lie()
    assert await way.worker.drain_stream() == 1
    assert await way.accepted("a", "b")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    junk=st.lists(
        st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=200)), min_size=1, max_size=4)
        | st.binary(max_size=200).map(lambda body: [(b"body", body)]),
        max_size=6,
    ),
    mark=st.uuids().map(str),
)
async def test_whatever_lies_between_them_good_entries_are_accepted(
    way: Way, junk: list[list[tuple[bytes, bytes]]], mark: str
) -> None:
    for number, fields in enumerate(junk):
        await way.add(*fields)
        await way.ids(f"{mark}-{number}")
    while await way.worker.drain_stream():
        pass
    assert await way.accepted(*(f"{mark}-{number}" for number in range(len(junk))))
    assert (await way.left(), await way.strikes()) == (0, 0)


# -- the list of refusals ---------------------------------------------------------------------


@given(
    junk=st.lists(
        st.binary(max_size=300)
        | st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ).map(lambda value: json.dumps(value).encode())
        | st.fixed_dictionaries(
            {},
            optional={
                "at": st.integers() | st.text() | st.none() | st.floats(),
                "what": st.text() | st.lists(st.text()),
                "value": st.text() | st.integers(),
            },
        ).map(lambda value: json.dumps(value).encode()),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_list_of_refusals_is_read_whatever_it_holds(way: Way, junk: list[bytes]) -> None:
    redis, key = way.registry.redis, way.registry.key("refused")
    await redis.delete(key)
    odd = [b"\xff\xfe", b"[" * 10_000, b"9" * 5000, b"x" * 1_000_000, b'{"at": 1e999}', b"NaN"]
    await redis.rpush(key, *junk, *odd)
    found = await way.registry.refused()
    assert len(found) == len(junk) + len(odd)
    for entry in found:
        assert type(entry.pop("at")) is int
        assert set(entry) == {"source", "what", "value", "reason"}
        assert all(isinstance(text, str) and len(text) <= 500 for text in entry.values())


async def test_a_key_of_another_type_in_place_of_the_list_is_said(way: Way) -> None:
    await way.registry.redis.set(way.registry.key("refused"), "x")
    with pytest.raises(RegistryUnavailable, match="WRONGTYPE"):
        await way.registry.refused()
