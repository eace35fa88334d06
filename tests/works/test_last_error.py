"""A task that is not final says why it could not go on, until it could."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import doubles
from tests.doubles import done, not_found, pending
from tests.works.house import BUSY, GONE, House, T, picture, serving
from worker.core import manifest
from worker.core.models import State
from worker.core.schedule import Backoff
from worker.engine import Drain, Pace
from worker.errors import StoreBlocked, StoreUnavailable, UpstreamUnavailable
from worker.registry.records import DueSet

SIGNED = "https://h.example/a.png?Expires=1&OSSAccessKeyId=key&Signature=secret"
FAILURES: dict[str, tuple[Any, str]] = {
    "throttled": (doubles.throttled(), "throttles"),
    "unavailable": (doubles.unavailable(), ""),
    "blocked": (doubles.blocked(), ""),
    "refused": (doubles.bare(), ""),
    "doubtful": (doubles.doubtful(), ""),
    "not found": (not_found(), ""),
    "unsure": (doubles._reply(status=10, data={"status": "succeeded", "images": None}), "null"),
}


async def shown(house: House, task_id: str = T) -> dict[str, Any]:
    return manifest.public(await house.record(task_id))


async def said(house: House) -> str:
    """What the record says went wrong; empty if nothing is there."""
    record, found = await house.record(), await shown(house)
    there = {"last_error", "last_error_at"} & set(record)
    assert there == {"last_error", "last_error_at"} & set(found)
    assert len(there) in (0, 2)
    if there:
        assert found["last_error_at"] == int(record["last_error_at"])
        assert int(record["submitted_at"]) <= found["last_error_at"] <= await house.registry.now()
        assert record["last_error"]
    return record.get("last_error", "")


@pytest.mark.parametrize("name", FAILURES)
async def test_a_poll_that_fails_says_why_until_one_succeeds(house: House, name: str) -> None:
    answer, word = FAILURES[name]
    house.arrange(grace=3600)
    await house.waiting()
    assert await said(house) == ""
    house.gateway.script(T, answer, pending(), answer, done(house.file("/0")))
    await house.step(DueSet.POLL)
    assert word in await said(house) != ""
    await house.step(DueSet.POLL)
    assert await said(house) == ""
    await house.step(DueSet.POLL)
    assert await said(house) != ""
    assert (await house.to_the_end())["state"] == "stored"
    assert await said(house) == ""


async def test_an_ending_leaves_none(house: House) -> None:
    house.arrange(grace=3600)
    await house.waiting()
    house.gateway.script(T, doubles.unavailable(), doubles.failed())
    await house.step(DueSet.POLL)
    assert await said(house) != ""
    assert (await house.to_the_end())["state"] == "failed"
    assert await said(house) == ""


async def test_it_is_one_line_without_secrets_and_bounded(house: House) -> None:
    await house.waiting()
    house.gateway.script(T, UpstreamUnavailable(f"a\nb\x1b[31m {SIGNED} " + "x" * 5000))
    await house.step(DueSet.POLL)
    error = await said(house)
    assert error.startswith("a b ")
    assert "secret" not in error
    assert error.isprintable()
    assert len(error) <= 500


async def test_a_file_that_fails_says_which_and_why_until_it_is_stored(house: House) -> None:
    await house.copying(
        house.file("/0", *[BUSY] * 4, serving(picture(8))), house.file("/1", serving(picture(9)))
    )
    for _ in range(2):
        assert await house.step(DueSet.FETCH) == "again"
        assert (await said(house)).startswith("images/0: ")
        assert "503" in await said(house)
    await house.to_the_end()
    assert await said(house) == ""


async def test_a_file_that_was_stored_leaves_the_word_to_one_that_was_not(house: House) -> None:
    house.arrange(file=Backoff(first=3600, longest=3600))
    await house.copying(house.file("/0", BUSY), house.file("/1", BUSY, serving(picture(9))))
    assert await house.step(DueSet.FETCH) == "again"
    now = await house.registry.now()
    note = json.loads((await house.notes())["try:1"])
    await house.registry.redis.hset(
        house.registry.key("work", T), "try:1", json.dumps(note | {"at": now - 1})
    )
    assert await house.step(DueSet.FETCH) == "again"
    assert "file:1" in await house.notes()
    assert (await said(house)).startswith("images/0: ")


async def test_a_copy_that_goes_on_without_trouble_says_nothing(house: House) -> None:
    house.arrange(fresh=(0.0, 3600.0, 3600.0))
    await house.copying(house.file("/0", GONE, serving(picture(8))), house.file("/1", BUSY))
    house.gateway.script(T, done(house.host.url("/0"), house.host.url("/1")))
    assert await house.step(DueSet.FETCH) == "again"
    assert (await said(house)).startswith("images/1: ")  # the first one came with a fresh address


@pytest.mark.parametrize("error", [StoreUnavailable("no room"), StoreBlocked("no rights")])
async def test_a_first_look_that_fails_says_why(house: House, error: Exception) -> None:
    await house.submitted()
    house.store.on("get", error)
    await house.step(DueSet.COPY)
    assert await said(house) == str(error)
    assert await house.step(DueSet.COPY) == "new"
    assert await said(house) == ""


async def test_a_store_that_takes_no_manifest_says_why(house: House) -> None:
    await house.copying(house.file("/0"))
    house.store.on("put*", StoreUnavailable("no room"), key=house.layout.manifest_key(T))
    assert await house.step(DueSet.FETCH) == "unavailable"
    assert await said(house) == "no room"
    await house.to_the_end()
    assert await said(house) == ""


async def test_work_that_crashes_says_so(house: House) -> None:
    await house.waiting()
    house.gateway.script(T, KeyError("a detail of the code"))
    drain = Drain(house.registry, house.works[DueSet.POLL], Pace())
    claim = await house.claim(DueSet.POLL)
    drain._start(claim)
    await drain._in_hand[T].task
    assert await said(house) == "the work on the task crashed: KeyError"


async def test_a_stop_in_the_middle_keeps_what_went_wrong(house: House) -> None:
    await house.waiting()
    claim = await house.claim(DueSet.POLL)
    claim.failed("broke off")
    await house.registry.release([claim.job], unsaved={T: claim.unsaved})
    assert await said(house) == "broke off"


async def test_whoever_lost_the_claim_writes_nothing(house: House) -> None:
    await house.waiting()
    late = await house.claim(DueSet.POLL)
    late.failed("too late")
    mine = await house.claim(DueSet.POLL)
    await house.registry.release([late.job], unsaved={T: late.unsaved})
    assert await said(house) == ""
    await house.registry.release([mine.job])


async def test_a_retry_begins_without(house: House) -> None:
    await house.waiting()
    house.gateway.script(T, doubles.failed())
    await house.to_the_end()
    # as a worker of the release before leaves it
    await house.registry.redis.hset(
        house.registry.key("task", T), mapping={"last_error": "old", "last_error_at": "99"}
    )
    assert "last_error" not in await shown(house)
    assert await house.registry.retry(T) == "ok"
    assert await said(house) == ""


async def test_an_answer_that_a_worker_of_the_release_before_saved_overcomes_it(
    house: House,
) -> None:
    await house.waiting()
    house.gateway.script(T, doubles.unavailable())
    await house.step(DueSet.POLL)
    assert "last_error" in await shown(house)
    job = (await house.claim(DueSet.POLL)).job
    await house.registry.save(job, to=DueSet.POLL)  # without a word about errors
    await house.registry.redis.hincrby(house.registry.key("task", T), "updated_at", 1)
    assert "last_error" in await house.record()
    assert "last_error" not in await shown(house)
    house.gateway.script(T, pending())
    await house.step(DueSet.POLL)
    assert await said(house) == ""


async def test_most_polls_write_no_word_about_errors(house: House) -> None:
    await house.waiting()
    claim = await house.claim(DueSet.POLL)
    claim.recovered()
    assert claim.unsaved.error is None


# -- circuits -----------------------------------------------------------------------------------


async def test_a_task_that_an_open_circuit_holds_up_says_what_the_circuit_says(
    house: House,
) -> None:
    await house.waiting("polled")
    await house.submitted("new")
    registry = house.registry
    assert await registry.held_up("polled") is None
    await registry.trip("upstream", kind="credentials", message="no such key", probe=False)
    held = await registry.held_up("polled")
    found = manifest.public(await house.record("polled"), held)
    assert found["last_error"] == "waiting for the upstream: no such key"
    assert held is not None
    assert found["last_error_at"] == held.since
    assert found["held_up_by"] == {
        "service": "upstream", "since": held.since, "trouble": "no such key"
    }  # fmt: skip
    assert await registry.held_up("new") is None  # its first look is at the bucket
    await registry.trip("store", kind="store", message="no bucket", probe=False)
    held = await registry.held_up("new")
    assert held is not None
    assert held.service == "store"
    assert "no bucket" in str(manifest.public(await house.record("new"), held)["last_error"])
    await registry.redis.zadd(registry.key("due", "fetch"), {"copied": 0})
    held = await registry.held_up("copied")
    assert held is not None
    assert held.service == "store"
    assert await registry.held_up("unknown") is None
    await registry.close_circuit("upstream")
    assert await registry.held_up("polled") is None


# -- what is shown ------------------------------------------------------------------------------

_times = st.integers(1, 10**13)


@given(
    state=st.sampled_from(list(State)),
    updated=_times,
    at=_times,
    error=st.text(string.printable, min_size=1),
)
def test_only_what_still_holds_is_shown(state: State, updated: int, at: int, error: str) -> None:
    record = {
        "state": state,
        "updated_at": str(updated),
        "last_error": error,
        "last_error_at": str(at),
    }
    found = manifest.last_error(record)
    holds = state is State.COPYING or (state is State.WAITING and at >= updated)
    assert found == ({"last_error": error, "last_error_at": at} if holds else {})
