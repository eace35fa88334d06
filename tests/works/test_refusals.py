"""Refusals that may be of one id or of every call: whom they are held against."""

from __future__ import annotations

import pytest

from tests import doubles
from tests.doubles import not_found, pending
from tests.works.house import GONE, House, T, picture, serving
from worker.core.models import FINAL_STATES
from worker.registry.records import DueSet


async def ids(house: House, *names: str) -> None:
    for name in names:
        await house.waiting(name)


async def poll(house: House, task_id: str) -> str:
    """Poll this one task."""
    redis, key = house.registry.redis, house.registry.key
    for other in await redis.zrange(key("due", "poll"), 0, -1):
        await redis.zadd(key("due", "poll"), {other: 0 if other == task_id else 1e15})
    return await house.step_due(DueSet.POLL)


async def long_ago(house: House) -> None:
    """What was noted of refusals and answers happened two seconds earlier."""
    redis, key = house.registry.redis, house.registry.key
    for name, at in await redis.zrange(key("suspects"), 0, -1, withscores=True):
        await redis.zadd(key("suspects"), {name: at - 2000})
    for name, at in (await redis.hgetall(key("services"))).items():
        await redis.hset(key("services"), name, int(at) - 2000)


async def is_open(house: House) -> bool:
    return "upstream" in (await house.registry.overview()).circuits


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
async def test_a_small_fleet_with_a_wrong_endpoint_ends_no_task(
    house: House, names: tuple[str, ...]
) -> None:
    await ids(house, *names)
    for name in names:
        house.gateway.script(name, doubles.bare())
    for _ in range(20):
        for name in names:
            assert await poll(house, name) == "refused"
            await long_ago(house)
    for name in names:
        record = await house.record(name)
        assert record["state"] == "waiting"
        assert "doubts" not in await house.notes(name)
    assert not await is_open(house)


async def test_three_refused_ids_open_the_circuit_and_end_no_task(house: House) -> None:
    await ids(house, "a", "b", "c")
    for name in ("a", "b", "c"):
        house.gateway.script(name, doubles.bare(), pending())
        assert await poll(house, name) == "refused"
    assert not await is_open(house)  # three at once are one reading
    await long_ago(house)
    house.gateway.script("a", doubles.bare(), pending())
    assert await poll(house, "a") == "refused"
    assert await is_open(house)
    assert {(await house.record(name))["state"] for name in ("a", "b", "c")} == {"waiting"}
    assert await poll(house, "b") == "pending"  # the probe
    assert not await is_open(house)


async def test_an_id_is_doubted_only_after_another_one_had_a_usable_answer(house: House) -> None:
    await ids(house, "bad", "good")
    house.gateway.script("bad", doubles.bare())
    house.gateway.script("good", pending())
    assert await poll(house, "bad") == "refused"
    await long_ago(house)
    assert await poll(house, "bad") == "refused"
    await long_ago(house)
    assert await poll(house, "good") == "pending"
    assert await poll(house, "bad") == "unsure"
    assert (await house.notes("bad"))["doubts"] == "1"
    await long_ago(house)
    assert await poll(house, "bad") == "refused"  # nobody has spoken for the upstream since
    assert (await house.notes("bad"))["doubts"] == "1"


async def test_a_record_restored_from_an_old_manifest_can_be_doubted(house: House) -> None:
    await ids(house, "bad", "good")
    # a manifest need not tell what the upstream said last
    await house.registry.redis.hdel(house.registry.key("task", "bad"), "upstream")
    house.gateway.script("bad", doubles.bare())
    house.gateway.script("good", pending())
    assert await poll(house, "bad") == "refused"
    await long_ago(house)
    assert await poll(house, "good") == "pending"
    assert await poll(house, "bad") == "unsure"


@pytest.mark.parametrize("said", [doubles.failed(), not_found(), pending()])
async def test_every_answer_that_is_understood_speaks_for_the_upstream(
    house: House, said: doubles.Answer
) -> None:
    house.arrange(grace=3600)
    await ids(house, "bad", "good")
    house.gateway.script("bad", doubles.bare())
    house.gateway.script("good", said)
    assert await poll(house, "bad") == "refused"
    await long_ago(house)
    await poll(house, "good")
    assert await poll(house, "bad") == "unsure"


async def test_an_answer_that_is_not_understood_speaks_for_nobody(house: House) -> None:
    await ids(house, "bad", "odd")
    house.gateway.script("bad", doubles.bare())
    house.gateway.script("odd", doubles.doubtful())
    assert await poll(house, "bad") == "refused"
    await long_ago(house)
    assert await poll(house, "odd") == "unsure"
    assert await poll(house, "bad") == "refused"


async def test_ids_that_are_refused_do_not_stop_the_others(house: House) -> None:
    bad = [f"bad{n}" for n in range(10)]
    await ids(house, *bad, "good")
    for name in bad:
        house.gateway.script(name, doubles.bare())
    house.gateway.script("good", pending())
    for _ in range(3):
        for name in bad:
            assert await poll(house, "good") == "pending"
            await long_ago(house)
            assert await poll(house, name) in ("refused", "unsure")
            assert not await is_open(house)


async def test_the_probe_passes_over_ids_that_may_be_the_cause(house: House) -> None:
    await ids(house, "a", "b", "c", "good")
    redis, key = house.registry.redis, house.registry.key
    await redis.zadd(key("suspects"), {"a": 1, "b": 2})
    await redis.hset(key("work", "c"), "doubts", "1")
    await house.registry.trip("upstream", kind="request", message="no", probe=False)
    claim = await house.first_due(DueSet.POLL)
    assert (claim.job.task_id, claim.job.probe) == ("good", True)


async def test_the_probe_takes_turns_where_all_may_be_the_cause(house: House) -> None:
    names = ("a", "b", "c")
    await ids(house, *names)
    for name in names:
        house.gateway.script(name, doubles.bare())
        await poll(house, name)
    await house.registry.trip("upstream", kind="request", message="no", probe=False)
    redis, key = house.registry.redis, house.registry.key
    for place, name in enumerate(names):
        await redis.zadd(key("due", "poll"), {name: place})
    probed = []
    for _ in range(6):
        await redis.hset(key("circuit", "upstream"), "probe_at", "0")
        await redis.delete(key("rate"))
        batch = await house.registry.claim(DueSet.POLL, limit=10, in_hand=0, slots=4)
        (job,) = batch.jobs
        assert job.probe
        probed.append(job.task_id)
        await house.registry.release([job])
    assert sorted(probed[:3]) == sorted(probed[3:]) == list(names)


async def test_a_refused_refresh_opens_no_circuit(house: House) -> None:
    for number in range(4):
        name = f"t{number}"
        await house.copying(house.file(f"/{number}", GONE, serving(picture())), task_id=name)
        house.gateway.script(name, doubles.bare() if number else doubles.blocked())
        assert await house.step_due(DueSet.COPY) == "again"
        await long_ago(house)
        assert not await is_open(house)
        await house.registry.redis.zrem(house.registry.key("due", "copy"), name)  # no more steps


async def test_a_final_task_is_no_suspect_any_more(house: House) -> None:
    await house.waiting()
    house.gateway.script(T, doubles.bare())
    assert await house.step(DueSet.POLL) == "refused"
    assert await house.registry.cancel(T) == "ok"
    record = await house.to_the_end()
    assert record["state"] in FINAL_STATES
    assert not await house.registry.redis.exists(house.registry.key("suspects"))
