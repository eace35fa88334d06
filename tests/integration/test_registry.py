"""The registry's scripts against a real Valkey."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support import eventually
from worker.core.durations import Lesson
from worker.core.models import Refusal, State
from worker.core.submission import Submission
from worker.errors import LeaseLost, RegistryUnavailable
from worker.registry.client import Client
from worker.registry.clock import Clock
from worker.registry.records import DueSet, Job, Unsaved
from worker.registry.registry import Registry
from worker.registry.replicas import acknowledges
from worker.registry.scripts import NAMES, source
from worker.sandbox.servers import Valkey


@pytest.fixture
def registry(redis: Redis, namespace: str) -> Registry:
    return make(redis, namespace)


def make(redis: Redis, namespace: str, **changes: Any) -> Registry:
    settings: dict[str, Any] = {
        "lease": 60,
        "poll_rate": 1000,
        "deadline": 3600,
        "record_ttl": 3600,
        "events_maxlen": 1000,
        "clock": Clock(settled=0),
    }
    return Registry(redis, namespace=namespace, **(settings | changes))


async def due(registry: Registry) -> dict[DueSet, int]:
    """How many tasks stand in each due set, due or not."""
    return {kind: await registry.redis.zcard(registry.key("due", kind)) for kind in DueSet}


def submission(task_id: str = "t1", **options: Any) -> Submission:
    return Submission(
        task_id=task_id,
        metadata='{"order":42,"exact":1.10}',
        label="poster",
        options=json.dumps({"callbacks": [], **options}),
    )


async def claim(registry: Registry, kind: DueSet, **changes: int) -> list[Job]:
    bounds = {"limit": 100, "in_hand": 0, "slots": 100} | changes
    return list((await registry.claim(kind, **bounds)).jobs)


async def claim_one(registry: Registry, kind: DueSet) -> Job:
    (job,) = await claim(registry, kind)
    return job


async def finish(registry: Registry, job: Job, state: State = State.STORED) -> None:
    await registry.finish(
        job,
        state=state,
        reason="" if state is State.STORED else "canceled",
        finished_at=await registry.now(),
        record={"files": "[]", "error": ""},
    )


async def waiting(registry: Registry, task_id: str = "t1") -> Job:
    """A task past its first look, claimed for its first poll."""
    await registry.submit([submission(task_id)])
    await registry.save(await claim_one(registry, DueSet.COPY), to=DueSet.POLL)
    return await claim_one(registry, DueSet.POLL)


# -- submit -----------------------------------------------------------------------------------


async def test_submit_makes_a_record_and_a_due_entry(registry: Registry) -> None:
    assert await registry.submit([submission()]) == ({"t1": True}, [])
    record = await registry.record("t1")
    assert record is not None
    assert record["schema"] == "1"
    assert record["state"] == "waiting"
    assert record["metadata"] == '{"order":42,"exact":1.10}'
    assert record["run"] == "1"
    assert abs(int(record["submitted_at"]) - await registry.now()) < 60_000
    assert await due(registry) == {DueSet.POLL: 0, DueSet.COPY: 1, DueSet.FETCH: 0, DueSet.TELL: 0}
    assert (await registry.counts())[State.WAITING] == 1


async def test_a_known_id_is_left_as_it_is(registry: Registry) -> None:
    await registry.submit([submission()])
    before = await registry.record("t1")
    again = replace(submission(), metadata="{}", label="other")
    assert await registry.submit([again, submission("t2")]) == ({"t1": False, "t2": True}, [])
    assert await registry.record("t1") == before


async def test_many_ids_in_one_message(registry: Registry) -> None:
    new, _ = await registry.submit([submission(f"t{n}") for n in range(1000)])
    assert sum(new.values()) == 1000
    assert (await due(registry))[DueSet.COPY] == 1000


async def test_a_new_callback_of_a_known_id_is_added(registry: Registry) -> None:
    first = {"channel": "webhook", "target": "https://a.example/1"}
    second = {"channel": "webhook", "target": "https://a.example/2"}
    await registry.submit([submission(callbacks=[first])])
    await registry.submit([submission(callbacks=[first, second])])
    await registry.submit([submission(callbacks=[second])])
    record = await registry.record("t1")
    assert record is not None
    assert json.loads(record["options"])["callbacks"] == [first, second]


async def test_too_many_callbacks_are_refused_for_that_id_alone(registry: Registry) -> None:
    hooks = [{"channel": "webhook", "target": f"https://a.example/{n}"} for n in range(9)]
    await registry.submit([submission(callbacks=hooks[:8])])
    new, refused = await registry.submit(
        [submission("t1", callbacks=hooks[8:]), submission("t2", callbacks=hooks[8:])]
    )
    assert new == {"t1": False, "t2": True}
    assert [(refusal.what, refusal.value) for refusal in refused] == [("callback", "t1")]


async def test_a_callback_added_to_a_final_task_is_told(registry: Registry, redis: Redis) -> None:
    await finish(registry, await waiting(registry))
    assert await redis.ttl(registry.key("task", "t1")) > 0
    await registry.submit(
        [submission(callbacks=[{"channel": "webhook", "target": "https://a.example"}])]
    )
    assert await redis.ttl(registry.key("task", "t1")) == -1
    job = await claim_one(registry, DueSet.TELL)
    await registry.told(job, told='[{"id":"x"}]', settled=True, delay=0, callbacks=1)
    assert await redis.ttl(registry.key("task", "t1")) > 0
    assert (await due(registry))[DueSet.TELL] == 0


async def test_refusals_are_kept_newest_first_and_bounded(registry: Registry) -> None:
    for n in range(3):
        await registry.refuse(
            [Refusal(what="task_id", value=str(n * 500 + i), reason="no") for i in range(500)],
            source="celery",
        )
    kept = await registry.refused()
    assert len(kept) == 1000
    assert kept[0]["value"] == "1499"
    assert kept[0]["source"] == "celery"


# -- claims -----------------------------------------------------------------------------------


async def test_two_claims_never_share_a_task(registry: Registry) -> None:
    await registry.submit([submission(f"t{n}") for n in range(200)])
    claims = await asyncio.gather(*(claim(registry, DueSet.COPY, limit=30) for _ in range(10)))
    ids = [job.task_id for jobs in claims for job in jobs]
    assert len(ids) == len(set(ids)) == 200


async def test_a_claim_is_kept_until_its_lease_lapses(redis: Redis, namespace: str) -> None:
    registry = make(redis, namespace)
    await registry.submit([submission()])
    first = await claim_one(registry, DueSet.COPY)
    assert await claim(registry, DueSet.COPY) == []
    lapse = registry.key("due", DueSet.COPY), "t1"
    assert await redis.zscore(*lapse) == first.claimed_at + 60_000
    await redis.zadd(lapse[0], {lapse[1]: await registry.now()})
    second = await claim(registry, DueSet.COPY)
    assert second[0].token != first.token
    with pytest.raises(LeaseLost):
        await registry.save(first, to=DueSet.POLL)
    await registry.save(second[0], to=DueSet.POLL)


async def test_an_unchanged_token_still_owns_after_its_lease(redis: Redis, namespace: str) -> None:
    registry = make(redis, namespace, lease=0.05)
    await registry.submit([submission()])
    job = await claim_one(registry, DueSet.COPY)
    await asyncio.sleep(0.1)
    assert await registry.renew([job]) == {"t1": "ok"}
    await registry.save(job, to=DueSet.POLL)


async def test_a_repeated_claim_returns_its_first_answer(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.submit([submission(f"t{n}") for n in range(10)])
    monkeypatch.setattr("secrets.token_hex", lambda _: "same")
    first = await claim(registry, DueSet.COPY, limit=3)
    again = await claim(registry, DueSet.COPY, limit=3)
    assert [job.task_id for job in again] == [job.task_id for job in first]
    assert again[0].record == first[0].record


async def test_a_repeated_save_and_finish_answer_as_the_first(registry: Registry) -> None:
    job = await waiting(registry)
    await registry.save(job, to=DueSet.COPY, state=State.COPYING)
    await registry.save(job, to=DueSet.COPY, state=State.COPYING)
    job = await claim_one(registry, DueSet.COPY)
    await finish(registry, job)
    await finish(registry, job)
    assert await registry.redis.xlen(registry.key("events")) == 1


async def test_a_crash_halves_company_and_only_a_lonely_crash_counts(
    redis: Redis, namespace: str
) -> None:
    registry = make(redis, namespace, lease=0.05)
    await registry.submit([submission(f"t{n}") for n in range(8)])
    seen = []
    for _ in range(5):
        jobs = await eventually(lambda: claim(registry, DueSet.COPY, limit=8, slots=8))
        seen.append((len(jobs), max(job.note("lapses") for job in jobs)))
        # the claim is left to lapse, as by kill -9
        await asyncio.sleep(0.06)
    assert seen[0] == (8, 0)
    assert seen[1] == (4, 0)
    assert all(size <= 4 for size, _ in seen[1:])


async def test_a_task_that_crashes_alone_is_counted(redis: Redis, namespace: str) -> None:
    registry = make(redis, namespace, lease=0.02)
    await registry.submit([submission()])
    lapses = []
    for _ in range(7):
        (job,) = await eventually(lambda: claim(registry, DueSet.COPY, slots=4))
        lapses.append(job.note("lapses"))
    assert lapses == [0, 0, 0, 1, 2, 3, 4]


async def test_handing_back_is_no_crash(registry: Registry) -> None:
    await registry.submit([submission()])
    for _ in range(10):
        job = await claim_one(registry, DueSet.COPY)
        assert job.note("lapses") == 0
        assert job.cap == 100
        await registry.release([job])


async def test_what_a_release_brings_is_counted_once_however_often_it_is_sent(
    registry: Registry, redis: Redis
) -> None:
    job = await waiting(registry)
    other = await waiting(registry, "t2")
    unsaved = {"t1": Unsaved(calls=2, notes={"faults": "1"})}
    for _ in range(2):
        await registry.release([job, replace(other, token=job.token)], unsaved=unsaved)
    assert (await registry.record("t1") or {})["polls"] == "2"
    again = await claim_one(registry, DueSet.POLL)
    assert again.note("faults") == 1
    await registry.save(again, to=DueSet.POLL, calls=1, work={"faults": ""})
    await registry.release([job], unsaved=unsaved)  # sent again later still
    assert (await registry.record("t1") or {})["polls"] == "3"
    assert (await claim_one(registry, DueSet.POLL)).note("faults") == 0
    assert await redis.hget(registry.key("counters"), "calls") == "3"
    assert (await registry.record("t2") or {})["polls"] == "0"


async def test_a_release_makes_no_record_of_a_task_that_was_deleted(
    registry: Registry, redis: Redis
) -> None:
    job = await waiting(registry)
    await redis.delete(registry.key("task", "t1"))
    await registry.release([job], unsaved={"t1": Unsaved(calls=2, notes={"faults": "1"})})
    assert await registry.record("t1") is None
    assert await claim(registry, DueSet.POLL) == []
    assert await redis.keys(registry.key("*:t1")) == []


async def test_a_capped_task_waits_until_fewer_are_in_hand(redis: Redis, namespace: str) -> None:
    registry = make(redis, namespace, lease=0.02)
    await registry.submit([submission()])
    await claim_one(registry, DueSet.COPY)
    await asyncio.sleep(0.03)
    answer = await registry.claim(DueSet.COPY, limit=5, in_hand=60, slots=100)
    assert answer.jobs == ()
    assert answer.held == 50
    assert len(await claim(registry, DueSet.COPY, in_hand=49)) == 1


async def test_a_record_that_is_gone_leaves_no_due_entry(registry: Registry, redis: Redis) -> None:
    await registry.submit([submission()])
    await redis.delete(registry.key("task", "t1"))
    assert await claim(registry, DueSet.COPY) == []
    assert (await due(registry))[DueSet.COPY] == 0


async def test_saving_writes_notes_and_moves_between_due_sets(registry: Registry) -> None:
    job = await waiting(registry)
    await registry.save(
        job,
        to=DueSet.COPY,
        state=State.COPYING,
        calls=1,
        record={"upstream": '{"status":"succeeded"}'},
        work={"data": '{"images":[]}', "asked_from": ""},
    )
    record = await registry.record("t1")
    assert record is not None
    assert record["state"] == "copying"
    assert record["polls"] == "1"
    assert record["upstream"] == '{"status":"succeeded"}'
    assert await due(registry) == {DueSet.POLL: 0, DueSet.COPY: 1, DueSet.FETCH: 0, DueSet.TELL: 0}
    counts = await registry.counts()
    assert (counts[State.WAITING], counts[State.COPYING]) == (0, 1)
    job = await claim_one(registry, DueSet.COPY)
    assert job.work["data"] == '{"images":[]}'
    assert "asked_from" not in job.work


async def test_a_delay_is_kept(registry: Registry) -> None:
    job = await waiting(registry)
    await registry.save(job, to=DueSet.POLL, delay=30)
    answer = await registry.claim(DueSet.POLL, limit=10, in_hand=0, slots=10)
    assert answer.jobs == ()
    assert 1 < answer.wait <= 30


async def test_durations_are_learned_once_and_fade(registry: Registry) -> None:
    assert (await registry.durations("poster")).total.total == 0
    job = await waiting(registry)
    for _ in range(2):  # a client library may send it twice
        await registry.save(
            job, to=DueSet.COPY, learned=Lesson(fields=("total:60", "running:50"), lag=0.25)
        )
    found = await registry.durations("poster")
    assert found.total.weights == {60: 1}
    assert found.running.weights == {50: 1}
    assert (await registry.overview()).counters == {
        "found": 1,
        "found_calls": 0,
        "found_lag_ms": 250,
    }
    await registry.redis.hset(registry.key("durations", "poster"), "count", "511")
    again = Lesson(fields=("total:61",), lag=0)
    await registry.save(await claim_one(registry, DueSet.COPY), to=DueSet.COPY, learned=again)
    found = await registry.durations("poster")
    assert found.total.weights == {60: 0.5, 61: 0.5}
    assert (await registry.durations("other")).total.total == 0


async def test_several_workers_together_stay_under_the_rate(
    registry: Registry, namespace: str
) -> None:
    rate, seconds = 100, 3
    await registry.submit([submission(f"t{n}") for n in range(2 * rate * seconds)])
    for job in [job for _ in range(6) for job in await claim(registry, DueSet.COPY)]:
        await registry.save(job, to=DueSet.POLL)
    workers = [make(registry.redis, namespace, poll_rate=rate) for _ in range(4)]
    until = await registry.now() + seconds * 1000
    calls: list[int] = []

    async def poll(worker: Registry) -> None:
        while await worker.now() < until:
            answer = await worker.claim(DueSet.POLL, limit=100, in_hand=0, slots=100)
            calls.extend(job.claimed_at for job in answer.jobs)
            await asyncio.sleep(min(answer.wait, 0.05))

    await asyncio.gather(*map(poll, workers))
    burst = rate / 4
    for start in calls:
        for window in (250, 1000, 2500):
            within = sum(start <= at < start + window for at in calls)
            assert within <= rate * window / 1000 + burst + 1
    assert len(calls) >= rate  # whatever the machine does meanwhile, it is used


# -- progress and endings ---------------------------------------------------------------------


async def test_an_object_key_is_fixed_by_the_first_note(registry: Registry) -> None:
    await registry.submit([submission()])
    job = await claim_one(registry, DueSet.COPY)
    assert (await registry.progress(job, "key:0", "a.png"))[0] == "a.png"
    assert (await registry.progress(job, "key:0", "b.jpg"))[0] == "a.png"
    await registry.release([job])
    job = await claim_one(registry, DueSet.COPY)
    assert job.work["key:0"] == "a.png"
    assert (await registry.progress(job, "key:0", "c.gif"))[0] == "a.png"


async def test_finishing_is_one_step(registry: Registry, redis: Redis) -> None:
    job = await waiting(registry)
    await finish(registry, job)
    record = await registry.record("t1")
    assert record is not None
    assert record["state"] == "stored"
    assert record["finished_at"] == record["updated_at"] != ""
    assert await due(registry) == {DueSet.POLL: 0, DueSet.COPY: 0, DueSet.FETCH: 0, DueSet.TELL: 0}
    assert (await registry.counts())[State.STORED] == 1
    ((_, event),) = await redis.xrange(registry.key("events"))
    assert event == {
        "task_id": "t1", "run": "1", "state": "stored", "reason": "", "label": "poster",
        "at": record["finished_at"],
    }  # fmt: skip


async def test_a_stale_owner_cannot_finish(redis: Redis, namespace: str) -> None:
    registry = make(redis, namespace, lease=0.05)
    await registry.submit([submission()])
    stale = await claim_one(registry, DueSet.COPY)
    fresh = await eventually(lambda: claim(registry, DueSet.COPY))
    with pytest.raises(LeaseLost):
        await finish(registry, stale, State.FAILED)
    with pytest.raises(LeaseLost):
        await registry.progress(stale, "file:0", "{}")
    assert await registry.renew([stale]) == {"t1": "lost"}
    await finish(registry, fresh[0])
    assert (await registry.states(["t1"]))["t1"] is State.STORED
    assert await redis.xlen(registry.key("events")) == 1


async def test_a_reader_never_sees_half_an_ending(registry: Registry) -> None:
    job = await waiting(registry)
    seen = []

    async def read() -> None:
        while True:
            record = await registry.record("t1")
            assert record is not None
            seen.append((record["state"], "files" in record))
            if record["state"] == "stored":
                return

    reader = asyncio.create_task(read())
    await eventually(lambda: seen)
    await finish(registry, job)
    await reader
    assert set(seen) == {("waiting", False), ("stored", True)}


async def test_expired_records_leave_their_indexes(redis: Redis, namespace: str) -> None:
    registry = make(redis, namespace, record_ttl=1)
    await finish(registry, await waiting(registry))
    assert (await registry.counts())[State.STORED] == 1

    async def swept() -> bool:
        await registry.tick("w")
        return (await registry.counts())[State.STORED] == 0

    await eventually(swept)
    assert await registry.record("t1") is None
    left = {key.partition(":")[2] for key in await redis.keys(f"{namespace}:*")}
    assert left <= {"events", "counters", "workers", "rate", "services", "clock", "versions"} | {
        key for key in left if key.startswith("claim:")
    }


async def test_without_a_ttl_records_stay(redis: Redis, namespace: str) -> None:
    registry = make(redis, namespace, record_ttl=0)
    await finish(registry, await waiting(registry))
    assert await redis.ttl(registry.key("task", "t1")) == -1


# -- retry and cancel -------------------------------------------------------------------------


async def test_retry_opens_a_new_run_and_keeps_what_is_stored(
    registry: Registry, redis: Redis
) -> None:
    await registry.submit([submission()])
    job = await claim_one(registry, DueSet.COPY)
    await registry.progress(job, "key:0", "a.png")
    await registry.progress(job, "file:0", '{"stored":1}')
    await registry.progress(job, "lost:1", "{}")
    await finish(registry, job, State.PARTIAL)
    assert await registry.retry("t1") == "ok"
    record = await registry.record("t1")
    assert record is not None
    assert (record["run"], record["state"], record["reason"]) == ("2", "waiting", "")
    assert "files" not in record
    assert await redis.ttl(registry.key("task", "t1")) == -1
    job = await claim_one(registry, DueSet.POLL)
    assert job.work["key:0"] == "a.png"
    assert "file:0" in job.work
    assert "lost:1" not in job.work
    assert (await registry.counts())[State.PARTIAL] == 0


async def test_retry_refuses_what_is_not_lost(registry: Registry) -> None:
    assert await registry.retry("t1") == "unknown"
    job = await waiting(registry)
    assert await registry.retry("t1") == "waiting"
    await finish(registry, job)
    assert await registry.retry("t1") == "stored"


async def test_retry_voids_the_tell_of_the_run_before(registry: Registry) -> None:
    await registry.submit([submission(callbacks=[{"channel": "webhook", "target": "https://a.b"}])])
    await finish(registry, await claim_one(registry, DueSet.COPY), State.FAILED)
    telling = await claim_one(registry, DueSet.TELL)
    await registry.retry("t1")
    with pytest.raises(LeaseLost):
        await registry.told(telling, told="[]", settled=True, delay=0, callbacks=1)
    assert (await due(registry))[DueSet.TELL] == 0


async def test_cancel_of_an_unclaimed_task_is_due_at_once(registry: Registry) -> None:
    job = await waiting(registry)
    await registry.save(job, to=DueSet.POLL, delay=1000)
    assert await registry.cancel("t1") == "ok"
    job = await claim_one(registry, DueSet.COPY)
    assert job.work["cancel"] == "1"
    assert (await due(registry))[DueSet.POLL] == 0


async def test_cancel_of_a_claimed_task_reaches_its_owner(registry: Registry) -> None:
    job = await waiting(registry)
    assert await registry.cancel("t1") == "ok"
    assert await registry.renew([job]) == {"t1": "cancel"}
    await registry.save(job, to=DueSet.POLL, delay=1000)
    assert (await claim_one(registry, DueSet.COPY)).work["cancel"] == "1"


async def test_cancel_says_what_is_final_or_unknown(registry: Registry) -> None:
    assert await registry.cancel("nobody") == "unknown"
    await finish(registry, await waiting(registry))
    assert await registry.cancel("t1") == "stored"


async def test_notify_tells_again_and_keeps_the_record_meanwhile(
    registry: Registry, redis: Redis
) -> None:
    assert await registry.notify("t1") == "unknown"
    await registry.submit([submission(callbacks=[{"channel": "webhook", "target": "https://a.b"}])])
    assert await registry.notify("t1") == "waiting"
    await finish(registry, await claim_one(registry, DueSet.COPY))
    telling = await claim_one(registry, DueSet.TELL)
    await registry.told(telling, told='[{"id":"x"}]', settled=True, delay=0, callbacks=1)
    assert await registry.notify("t1") == "ok"
    assert await redis.ttl(registry.key("task", "t1")) == -1
    again = await claim_one(registry, DueSet.TELL)
    assert again.record["told"] == "[]"
    await finish(registry, await waiting(registry, "t2"))
    assert await registry.notify("t2") == "nobody"


async def test_a_repeated_retry_opens_one_run(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await finish(registry, await waiting(registry), State.FAILED)
    monkeypatch.setattr("secrets.token_hex", lambda _: "same")
    assert await registry.retry("t1") == "ok"
    assert await registry.retry("t1") == "ok"
    record = await registry.record("t1")
    assert record is not None
    assert record["run"] == "2"


async def test_a_task_that_stands_nowhere_is_put_back(registry: Registry, redis: Redis) -> None:
    await registry.submit([submission(f"t{n}") for n in range(1200)])
    job = await claim_one_of(registry)
    await registry.save(job, to=DueSet.POLL)
    await redis.delete(registry.key("due", "copy"), registry.key("due", "poll"))
    await redis.zadd(registry.key("index", "copying"), {"nobody": 1})
    assert await registry.reconcile() == 1200
    assert (await due(registry))[DueSet.COPY] == 1200
    assert await redis.zcard(registry.key("index", "copying")) == 0
    assert await registry.reconcile() == 0  # not again within the minute


async def claim_one_of(registry: Registry) -> Job:
    (job,) = await claim(registry, DueSet.COPY, limit=1)
    return job


async def test_with_replicas_intake_answers_after_one_has_confirmed(
    redis: Redis, registry: Registry, valkey: Valkey, tmp_path: Path
) -> None:
    with Valkey(tmp_path) as replica:
        copy = Redis.from_url(replica.url, decode_responses=True, protocol=2)
        await copy.replicaof("127.0.0.1", valkey.port)

        async def linked() -> bool:
            return any(map(acknowledges, (await redis.info("replication")).values()))

        await eventually(linked)
        await registry.submit([submission()])
        assert await copy.hget(registry.key("task", "t1"), "state") == "waiting"
        replica_pid = replica.pid
        os.kill(replica_pid, signal.SIGSTOP)
        try:
            with pytest.raises(RegistryUnavailable, match="no replica"):
                await registry.submit([submission("t2")])
        finally:
            os.kill(replica_pid, signal.SIGCONT)
        await copy.replicaof("NO", "ONE")
        await copy.aclose()
    assert (await registry.submit([submission("t2")]))[0] == {"t2": False}


async def test_saves_of_a_moment_go_together_and_each_has_its_own_answer(
    registry: Registry, redis: Redis
) -> None:
    await registry.submit([submission(f"t{n}") for n in range(150)])
    for jobs in (await claim(registry, DueSet.COPY), await claim(registry, DueSet.COPY)):
        await asyncio.gather(*(registry.save(job, to=DueSet.POLL) for job in jobs))
    jobs = await claim(registry, DueSet.POLL, limit=100)
    stale, gone, *rest = jobs
    await redis.hset(registry.key("work", stale.task_id), "token", "of another claim")
    await redis.script_flush()
    before = await redis.info("stats")
    going = asyncio.create_task(registry.save(gone, to=DueSet.POLL, delay=60))
    await asyncio.sleep(0)
    going.cancel()
    answers = await asyncio.gather(
        *(registry.save(job, to=DueSet.POLL, delay=60, calls=1) for job in [stale, *rest]),
        return_exceptions=True,
    )
    after = await redis.info("stats")
    assert isinstance(answers[0], LeaseLost)
    assert answers[1:] == [None] * len(rest)
    assert after["total_reads_processed"] - before["total_reads_processed"] < 20
    polls = [await redis.hget(registry.key("task", job.task_id), "polls") for job in rest]
    assert set(polls) == {"1"}
    assert (await due(registry))[DueSet.POLL] == 150


async def test_every_save_hears_of_an_outage(registry: Registry, valkey: Valkey) -> None:
    await registry.submit([submission(f"t{n}") for n in range(5)])
    jobs = await claim(registry, DueSet.COPY)
    valkey.kill()
    answers = await asyncio.gather(
        *(registry.save(job, to=DueSet.POLL) for job in jobs), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [RegistryUnavailable] * 5
    valkey.start()
    await asyncio.gather(*(registry.save(job, to=DueSet.POLL) for job in jobs))
    assert (await due(registry))[DueSet.POLL] == 5


# -- rate and circuits ------------------------------------------------------------------------


async def test_polls_are_claimed_under_the_rate(redis: Redis, namespace: str) -> None:
    registry = make(redis, namespace, poll_rate=20)
    await registry.submit([submission(f"t{n}") for n in range(30)])
    for job in await claim(registry, DueSet.COPY):
        await registry.save(job, to=DueSet.POLL)
    answer = await registry.claim(DueSet.POLL, limit=100, in_hand=0, slots=100)
    assert len(answer.jobs) == 5
    began = answer.jobs[0].claimed_at
    answer = await registry.claim(DueSet.POLL, limit=100, in_hand=0, slots=100)
    assert len(answer.jobs) <= (await registry.now() - began) * 20 / 1000 + 1
    assert 0 <= answer.wait <= 0.06


async def test_throttling_halves_the_rate_once_a_second(redis: Redis, namespace: str) -> None:
    registry = make(redis, namespace, poll_rate=20)
    for _ in range(5):
        await registry.throttle()
    assert float(await redis.hget(registry.key("rate"), "factor") or 0) == 0.5


async def test_calls_for_fresh_addresses_borrow_no_more_than_a_burst(
    redis: Redis, namespace: str
) -> None:
    registry = make(redis, namespace, poll_rate=20)
    began = await registry.now()
    answers = [await registry.take_call(f"t{n}") for n in range(20)]
    refilled = (await registry.now() - began) * 20 / 1000
    assert 10 <= sum(allowed for _, allowed, _ in answers) <= 11 + refilled
    assert max(wait for wait, allowed, _ in answers if allowed) <= 0.3


async def test_a_call_sent_twice_by_the_client_library_is_taken_and_judged_once(
    redis: Redis, namespace: str
) -> None:
    registry = make(redis, namespace, poll_rate=1)
    first = await registry.take_call("once")
    tokens = await redis.hget(registry.key("rate"), "tokens")
    assert await registry.take_call("once") == first
    assert await redis.hget(registry.key("rate"), "tokens") == tokens

    assert await registry.suspect("bad", "1") == "unknown"
    await redis.hset(registry.key("services"), "upstream", str(await registry.now() + 1))
    await asyncio.sleep(0.01)
    assert await registry.suspect("bad", "2") == "id"
    assert await registry.suspect("bad", "2") == "id"
    assert await registry.suspect("bad", "3") == "unknown"


async def test_an_open_circuit_lets_one_call_for_fresh_addresses_through(
    registry: Registry, redis: Redis
) -> None:
    await registry.trip("upstream", kind="credentials", message="no", probe=False)
    assert (await registry.take_call("a"))[1:] == (False, False)
    await redis.hset(registry.key("circuit", "upstream"), "probe_at", "1")
    assert await registry.take_call("b") == (0, True, True)
    assert (await registry.take_call("c"))[1:] == (False, False)
    await registry.close_circuit("upstream")
    assert (await registry.take_call("d"))[1:] == (True, False)


async def test_an_open_circuit_lets_one_prober_through(registry: Registry, redis: Redis) -> None:
    await registry.submit([submission(f"t{n}") for n in range(5)])
    assert await registry.trip("store", kind="store", message="no", probe=False)
    assert not await registry.trip("store", kind="store", message="no", probe=False)
    answer = await registry.claim(DueSet.COPY, limit=5, in_hand=0, slots=5)
    assert answer.jobs == ()
    assert 0 < answer.wait <= 5
    assert (await registry.overview()).circuits["store"]["message"] == "no"
    await redis.hset(registry.key("circuit", "store"), "probe_at", "1")
    (probe,) = await claim(registry, DueSet.COPY)
    assert probe.probe
    assert await claim(registry, DueSet.COPY) == []
    await registry.trip("store", kind="store", message="no", probe=True)
    assert (await registry.overview()).circuits["store"]["gap"] == "10000"
    await registry.postpone("store")
    assert (await registry.overview()).circuits["store"]["gap"] == "10000"
    assert await registry.close_circuit("store")
    assert not await registry.close_circuit("store")
    assert len(await claim(registry, DueSet.COPY)) == 4


async def test_a_loud_line_is_said_once(registry: Registry) -> None:
    said = await asyncio.gather(*(registry.say_once("x") for _ in range(20)))
    assert sum(said) == 1


# -- two versions side by side ----------------------------------------------------------------


async def test_a_record_of_a_newer_schema_is_handed_back_unharmed(
    registry: Registry, redis: Redis, namespace: str
) -> None:
    await registry.submit([submission("new"), submission("old")])
    await redis.hset(f"{namespace}:task:new", "schema", "2")
    claimed = await registry.claim(DueSet.COPY, limit=10, in_hand=0, slots=10)
    assert [job.task_id for job in claimed.jobs] == ["old"]
    assert claimed.newer == 1
    notes = await redis.hgetall(f"{namespace}:work:new")
    assert "token" not in notes
    due = await redis.zscore(f"{namespace}:due:copy", "new")
    assert 0 < due - await registry.now() <= 5000  # not the whole lease


# -- purge ------------------------------------------------------------------------------------


async def ended(registry: Registry, task_id: str, state: State = State.STORED) -> str:
    """A task that is final; when it ended, as its record says."""
    await registry.submit([submission(task_id)])
    await finish(registry, await claim_one(registry, DueSet.COPY), state)
    record = await registry.record(task_id)
    assert record is not None
    return record["finished_at"]


async def test_purge_leaves_nothing_and_the_id_is_new_again(
    registry: Registry, redis: Redis, namespace: str
) -> None:
    finished_at = await ended(registry, "t1")
    assert await registry.purge("t1", finished_at) == "ok"
    assert await registry.purge("t1", finished_at) == "ok"  # the client may send it twice
    assert [key async for key in redis.scan_iter(f"{namespace}:*:t1")] == []
    assert (await registry.counts())[State.STORED] == 0
    assert await redis.zcard(f"{namespace}:expiring") == 0
    assert (await registry.submit([submission("t1")]))[0] == {"t1": True}


async def test_purge_refuses_what_is_not_over(
    registry: Registry, redis: Redis, namespace: str
) -> None:
    await registry.submit([submission("open")])
    assert await registry.purge("open", "") == "waiting"
    await finish(registry, await claim_one(registry, DueSet.COPY))
    assert await registry.purge("open", "1") == "changed"
    called = {"channel": "webhook", "target": "https://example.com/"}
    await registry.submit([submission("told", callbacks=[called])])
    await finish(registry, await claim_one(registry, DueSet.COPY))
    record = await registry.record("told")
    assert record is not None
    assert await registry.purge("told", record["finished_at"]) == "telling"
    assert await redis.exists(f"{namespace}:task:open", f"{namespace}:task:told") == 2


async def test_pages_hold_every_id_once(registry: Registry, redis: Redis, namespace: str) -> None:
    # more than a page with one score, and pages that end among equal scores
    scores = {f"t{n:03}": 1000 if n < 250 else 1000 + n // 7 for n in range(500)}
    await redis.zadd(f"{namespace}:index:stored", scores)
    found = [i async for page in registry.pages(State.STORED) for i in page]
    assert found == sorted(scores)
    some = [i async for page in registry.pages(State.STORED, since=1001, until=1040) for i in page]
    assert some == [i for i, score in scores.items() if 1001 <= score <= 1040]
    last = registry.pages(State.STORED, since=1001, until=1040, newest_first=True, size=7)
    pages = [page async for page in last]
    assert [i for page in pages for i in page] == some[::-1]
    assert {len(page) for page in pages[:-1]} == {7}


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("leaving", [slice(3), slice(-3, None)], ids=["first", "last"])
async def test_pages_miss_nothing_that_stays(
    registry: Registry, redis: Redis, namespace: str, newest_first: bool, leaving: slice
) -> None:
    key = f"{namespace}:index:waiting"
    scores = {f"t{n:02}": 1000 if 5 <= n < 45 else n * 100 for n in range(50)}
    await redis.zadd(key, scores)
    pages = registry.pages(State.WAITING, newest_first=newest_first, size=10)
    found: list[str] = []
    async for page in pages:
        found += page
        await redis.zrem(key, *page[leaving])
    everything = sorted(scores, key=lambda i: (scores[i], i), reverse=newest_first)
    assert found == everything


async def test_a_script_that_is_gone_again_is_an_outage(
    registry: Registry, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def loaded_elsewhere(_script: str) -> str:  # on a primary that has just failed over
        await asyncio.sleep(0)
        return "0" * 40

    await redis.script_flush()
    monkeypatch.setattr(registry.redis, "script_load", loaded_elsewhere)
    with pytest.raises(RegistryUnavailable, match="script"):
        await registry.cancel("t1")


# -- Redis itself -----------------------------------------------------------------------------


async def test_a_dead_server_is_named() -> None:
    registry = make(Client(port=1, retry=None), "nobody")
    with pytest.raises(RegistryUnavailable, match="out of reach"):
        await registry.record("t1")


async def test_a_full_server_accepts_nothing_by_halves(registry: Registry, redis: Redis) -> None:
    await registry.submit([submission("before")])
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(RegistryUnavailable, match="takes no writes"):
            await registry.submit([submission("t1")])
        assert await registry.record("t1") is None
        assert (await due(registry))[DueSet.COPY] == 1
    finally:
        await redis.config_set("maxmemory", "0")
    assert await registry.submit([submission("t1")]) == ({"t1": True}, [])


@pytest.mark.parametrize("name", NAMES)
def test_every_script_states_its_purpose(name: str) -> None:
    body = source(name).split("string.format('%.6f', factor))")[-1]
    assert "-- ARGV: ns" in body
