"""What polls do to tasks, circuits, the fleet's rate and what it has learned."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests import doubles
from tests.doubles import done, not_found, pending
from tests.works.house import GONE, House, T
from worker.core import schedule
from worker.errors import StoreBlocked, StoreUnavailable
from worker.registry.clock import Clock
from worker.registry.records import DueSet

OUTAGES = {
    "throttled": doubles.throttled(),
    "unavailable": doubles.unavailable(),
    "blocked": doubles.blocked(),
}


@pytest.mark.parametrize("name", OUTAGES)
async def test_outages_end_nothing_even_past_the_deadline(house: House, name: str) -> None:
    await house.waiting(deadline=0.001)
    house.gateway.script(T, *[OUTAGES[name]] * 12, done(house.file("/0")))
    for _ in range(12):
        assert await house.step(DueSet.POLL) == name
        assert (await house.record())["state"] == "waiting"
    record = await house.to_the_end()
    assert (record["state"], record["polls"]) == ("stored", "13")
    assert "faults" not in await house.notes()


async def test_a_deadline_ends_a_task_only_after_an_answer(house: House) -> None:
    await house.waiting(deadline=0.001)
    house.gateway.script(T, doubles.unavailable(), pending())
    assert await house.step(DueSet.POLL) == "unavailable"
    assert await house.step(DueSet.POLL) == "ended"
    record = await house.to_the_end()
    assert (record["state"], record["reason"]) == ("failed", "deadline_exceeded")
    assert "running" in record["upstream"]


@pytest.mark.parametrize("answer", [pending(), not_found()], ids=["pending", "not found"])
async def test_a_clock_that_has_just_stepped_ends_nothing(house: House, answer: Any) -> None:
    await house.waiting(deadline=0.001)
    house.gateway.script(T, answer, answer, answer)
    house.registry.clock = stepped = Clock()
    for at in (0, 90_000_000):
        stepped.heard(at, stepped.begin())
    assert await house.step(DueSet.POLL) in ("pending", "unsure")
    house.registry.clock = Clock(settled=0)
    await house.registry.now()
    assert await house.step(DueSet.POLL) == "ended"


async def test_an_unknown_task_is_believed_after_its_grace(house: House) -> None:
    house.arrange(grace=600)
    await house.waiting()
    house.gateway.script(T, not_found())
    assert await house.step(DueSet.POLL) == "unsure"
    house.arrange(grace=0)
    assert await house.step(DueSet.POLL) == "ended"
    record = await house.to_the_end()
    assert (record["state"], record["reason"]) == ("failed", "unknown_task")


async def test_doubts_are_counted_until_an_answer_can_be_used(house: House) -> None:
    await house.waiting()
    house.gateway.script(T, *[doubles.doubtful()] * 9, pending())
    for number in range(1, 10):
        assert await house.step(DueSet.POLL) == "unsure"
        assert (await house.notes())["doubts"] == str(number)
    assert await house.step(DueSet.POLL) == "pending"
    assert not {"doubts", "doubted_at"} & set(await house.notes())


async def test_throttling_slows_down_the_whole_fleet(house: House) -> None:
    await house.waiting()
    house.gateway.script(T, doubles.throttled())
    await house.step(DueSet.POLL)
    assert (await house.registry.overview()).rate_factor == pytest.approx(0.5, abs=0.01)


async def gap(house: House, name: str = "upstream") -> str:
    """The gap of an open circuit; the next probe may go when it is over."""
    circuit = (await house.registry.overview()).circuits[name]
    # where nobody said what became of the last one, it would have to wait for longer
    assert int(circuit["probe_at"]) <= await house.registry.now() + int(circuit["gap"])
    return circuit["gap"]


async def test_a_circuit_opens_lets_probes_through_and_closes(house: House) -> None:
    async def claimed() -> int:
        batch = await house.registry.claim(DueSet.POLL, limit=9, in_hand=0, slots=9)
        return len(batch.jobs)

    await house.waiting()
    blocked = doubles.blocked()
    house.gateway.script(T, blocked, blocked, doubles.unavailable(), pending())
    assert await house.step(DueSet.POLL) == "blocked"
    assert (await house.registry.overview()).circuits["upstream"]["kind"] == "credentials"
    assert (await gap(house), await claimed()) == ("5000", 0)
    assert await house.step(DueSet.POLL) == "blocked"
    assert (await gap(house), await claimed()) == ("10000", 0)
    assert await house.step(DueSet.POLL) == "unavailable"  # proves nothing
    assert (await gap(house), await claimed()) == ("10000", 0)
    assert await house.step(DueSet.POLL) == "pending"
    assert (await house.registry.overview()).circuits == {}


async def test_a_stores_circuit_closes_with_the_first_step_that_works(house: House) -> None:
    await house.copying(house.file("/0"))
    house.store.on("put", StoreBlocked("no"), times=2)
    house.store.on("put_document", StoreUnavailable("away"))
    for outcome in ("blocked", "blocked", "unavailable"):  # the last one proves nothing
        assert await house.step(DueSet.COPY) == outcome
    assert await gap(house, "store") == "10000"
    assert await house.step(DueSet.COPY) == "stored"
    assert (await house.registry.overview()).circuits == {}


async def test_a_copy_probes_the_upstream_where_no_poll_can(house: House) -> None:
    url = house.file("/0", GONE)
    await house.copying(url)
    house.gateway.script(T, doubles.blocked(), doubles.unavailable(), done(house.file("/1")))
    await house.registry.trip("upstream", kind="credentials", message="no", probe=False)
    for _ in range(2):
        assert await house.step(DueSet.COPY) == "again"
        assert await gap(house) == "5000"
    assert await house.step(DueSet.COPY) == "stored"
    assert (await house.registry.overview()).circuits == {}


async def test_durations_are_learned_and_decide_when_to_ask(house: House) -> None:
    """Tasks of a label take 3 s upstream: the next one is left alone for most of that."""

    async def after(said: Any, task_id: str) -> tuple[float, float]:
        """When the next look comes, in seconds after this one and after the submission."""
        await house.waiting(task_id)
        house.gateway.script(task_id, said)
        assert await house.step(DueSet.POLL) == "pending"
        registry = house.registry
        due: Any = await registry.redis.zscore(registry.key("due", "poll"), task_id)
        await registry.redis.zrem(registry.key("due", "poll"), task_id)  # the next has its turn
        record = await house.record(task_id)
        return tuple((due - int(record[name])) / 1000 for name in ("updated_at", "submitted_at"))

    unknown, _ = await after(pending(), "before")
    for number in range(5):
        task_id = f"t{number}"
        await house.waiting(task_id)
        notes = house.registry.key("work", task_id)
        now = await house.registry.now()
        await house.registry.redis.hset(
            notes, mapping={"asked_from": now - 3000, "seen_at": now - 2990}
        )
        began, ended = now / 1000 - 2, now / 1000
        said = done(taskBeginTime=f"{began:.3f}", taskEndTime=f"{ended:.3f}")
        house.gateway.script(task_id, said)
        assert await house.step(DueSet.POLL) == "succeeded"
        await house.to_the_end(task_id)
    known = await house.registry.durations("poster")
    assert (known.total.total, known.queued.total, known.running.total) == (5, 5, 5)
    assert known.total.quantile(0.5) == pytest.approx(3, rel=0.1)
    assert known.running.quantile(0.5) == pytest.approx(2, rel=0.1)
    house.arrange()  # another process: this one believes for some seconds what it knew
    _, expected = await after(pending(), "after")
    begun = pending(taskBeginTime=f"{time.time() - 1.5:.3f}")
    running, _ = await after(begun, "running")
    assert unknown == schedule.SHORTEST
    assert 2 < expected < 3.3
    assert running <= schedule.SHORTEST


async def test_a_retry_teaches_nothing(house: House) -> None:
    await house.waiting()
    house.gateway.script(T, doubles.failed())
    await house.to_the_end()
    assert await house.registry.retry(T) == "ok"
    house.gateway.script(T, done())
    assert await house.step(DueSet.POLL) == "succeeded"
    assert (await house.registry.durations("poster")).total.total == 0
