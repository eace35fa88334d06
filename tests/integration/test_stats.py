"""``harvester stats`` on a real Valkey."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from rich.console import Console

from tests.fleet import idle_environ
from tests.integration.test_registry import claim_one, make, submission
from tests.support import BOUND, ROOT
from worker.cli.stats import draw, sparkline
from worker.core.durations import Durations, Histogram, Lesson, bucket
from worker.core.models import State
from worker.core.services import Outlook, Service
from worker.doctor.finding import Level
from worker.doctor.fleet import rate
from worker.registry.records import DueSet
from worker.registry.registry import Registry
from worker.registry.stats import Stats, read_stats


@pytest.fixture
def registry(redis: Redis, namespace: str) -> Registry:
    return make(redis, namespace)


async def test_an_idle_fleet(registry: Registry) -> None:
    found = await read_stats(registry)
    assert set(found.states.values()) == {0}
    assert (found.calls_a_task, found.detection_lag) == (None, None)
    assert found.rate == found.rate_limit == registry.poll_rate
    json.dumps(found.document())


async def test_what_the_fleet_did_is_shown(registry: Registry) -> None:
    await registry.submit([submission("t1")])
    await registry.save(await claim_one(registry, DueSet.COPY), to=DueSet.POLL)
    lesson = Lesson(fields=(f"total:{bucket(45)}",), lag=0.5)
    await registry.save(
        await claim_one(registry, DueSet.POLL),
        to=DueSet.COPY, delay=-5, state=State.COPYING, calls=2, learned=lesson,
    )  # fmt: skip
    await registry.submit([submission("t2")])
    await registry.throttle()
    found = await read_stats(registry)
    assert found.states["waiting"] == found.states["copying"] == 1
    assert found.labels == {"poster": {"waiting": 1, "copying": 1}}
    assert found.due == {"poll": 0, "copy": 2, "fetch": 0, "tell": 0}
    assert found.late["copy"] >= 5
    assert (found.calls, found.calls_a_task, found.detection_lag) == (2, 2, 0.5)
    assert found.rate == pytest.approx(registry.poll_rate / 2, rel=0.2)
    document = json.loads(json.dumps(found.document()))
    assert document["durations"]["poster"]["total"]["p50"] == pytest.approx(45, rel=0.1)
    shown = StringIO()
    Console(width=100, file=shown).print(draw(found, found))
    assert "1 waiting · 1 copying" in shown.getvalue()
    assert "poster" in shown.getvalue()


async def test_the_fleet_is_read_in_two_round_trips(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.submit([replace(submission(f"t{n}"), label=f"l{n % 3}") for n in range(9)])
    await registry.claim(DueSet.COPY, limit=1, in_hand=0, slots=1)
    trips, send = 0, AbstractConnection.send_packed_command

    async def sending(self: Any, *args: Any, **options: Any) -> None:
        nonlocal trips
        trips += 1
        await send(self, *args, **options)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", sending)
    found = await registry.overview()
    assert len(found.lines) == 3
    assert trips == 2
    await registry.held_up("t1")
    assert trips == 3


async def test_labels_that_are_behind_are_shown(registry: Registry) -> None:
    for label, count in (("", 4), ("[bold]many", 30), *((f"l{n:03}", 2) for n in range(150))):
        ids = [f"{label[-4:]}-{n}" for n in range(count)]
        await registry.submit([replace(submission(i), label=label) for i in ids])
        for job in (await registry.claim(DueSet.COPY, limit=100, in_hand=0, slots=100)).jobs:
            await registry.save(job, to=DueSet.POLL, delay=-7)
    # 334 are due, and a claim takes no more than 100
    await registry.claim(DueSet.POLL, limit=1, in_hand=0, slots=1)
    found = await read_stats(registry)
    assert found.due["poll"] == 333
    assert found.late["poll"] >= 7
    assert len(found.behind) == 10
    assert all(line.kind is DueSet.POLL and line.late >= 7 for line in found.behind)
    document = json.loads(json.dumps(found.document()))
    assert document["behind"][0].keys() == {"set", "label", "count", "late"}
    shown = StringIO()
    Console(width=100, file=shown).print(draw(found))
    assert shown.getvalue().count("wait for their turn") == 5
    # with no worker left they come due by themselves, and each is counted once
    due = registry.key("due", "poll")
    await registry.redis.zadd(due, dict.fromkeys(await registry.redis.zrange(due, 0, -1), 1))
    assert (await read_stats(registry)).due["poll"] == 334


async def test_who_has_no_free_slot_puts_in_line_and_sees_that_others_wait(
    registry: Registry,
) -> None:
    await registry.submit([submission(f"t{n}") for n in range(5)])
    batch = await registry.claim(DueSet.COPY, limit=0, in_hand=1, slots=1)
    assert not batch.jobs
    assert await registry.overdue(DueSet.COPY) == 5
    assert (await read_stats(registry)).due["copy"] == 5
    due = await registry.redis.zrange(registry.key("due", "copy"), 0, -1, withscores=True)
    assert {score % 1 for _, score in due} == {0.5}
    assert len((await registry.claim(DueSet.COPY, limit=5, in_hand=0, slots=5)).jobs) == 5
    assert await registry.overdue(DueSet.COPY) == 0


def test_a_histogram_fits_its_line() -> None:
    assert sparkline(Histogram({})) == ""
    wide = Histogram({number: 1.0 + number % 3 for number in range(190)})
    assert len(sparkline(wide)) < 70


async def test_a_rate_that_is_too_low_is_warned_of(registry: Registry) -> None:
    quiet = replace(await read_stats(registry), rate=20)

    def waiting(count: int, **changes: Any) -> Stats:
        return replace(quiet, states=quiet.states | {"waiting": count}, **changes)

    assert rate(waiting(1200)).level is Level.GOOD
    assert rate(waiting(1300)).level is Level.WARNING
    assert rate(waiting(1000, url_life_left=60)).level is Level.GOOD
    assert rate(waiting(1000, url_life_left=40)).level is Level.WARNING
    empty = Histogram({})
    few = Durations(total=Histogram({bucket(30): 19}), queued=empty, running=empty)
    assert rate(waiting(1000, durations={"clip": few})).level is Level.GOOD
    known = Durations(total=Histogram({bucket(30): 20}), queued=empty, running=empty)
    hasty = waiting(1000, durations={"clip": known})
    assert "half of the tasks labelled clip take less than 3" in rate(hasty).detail
    shown = StringIO()
    Console(width=100, file=shown).print(draw(hasty))
    assert "labelled clip" in shown.getvalue()


async def test_no_rate_is_blamed_for_an_upstream_that_does_not_answer(registry: Registry) -> None:
    quiet = await read_stats(registry)
    busy = replace(quiet, rate=20, states=quiet.states | {"waiting": 10_000})
    assert rate(busy).level is Level.WARNING  # nothing was asked yet
    asked = replace(busy, calls=100)
    assert rate(asked).level is Level.GOOD

    def heard(seconds: int, service: Service = Service.UPSTREAM, **outage: Any) -> Stats:
        last = asked.at - seconds * 1000
        upstream = Outlook(service=Service.UPSTREAM, last_success=last)
        changed = Outlook(service=service, last_success=last, **outage)
        return replace(asked, services={Service.UPSTREAM: upstream, service: changed})

    assert rate(heard(59)).level is Level.WARNING
    assert rate(heard(61)).level is Level.GOOD
    assert rate(heard(1, since=asked.at, trouble="the key is refused")).level is Level.GOOD
    store = heard(1, Service.STORE, since=asked.at, trouble="the key is refused")
    assert rate(store).level is Level.WARNING
    await registry.redis.hset(registry.key("services"), "upstream", await registry.now() - 90_000)
    found = await read_stats(registry)
    assert found.services[Service.UPSTREAM].last_success <= found.at - 90_000  # type: ignore[operator]


async def test_outages_and_hosts_that_fail_are_shown(registry: Registry) -> None:
    now = await registry.now()
    fields = {"store:since": now - 90_000, "store:at": now, "store:said": "[bold]507"}
    await registry.redis.hset(registry.key("services"), mapping=fields)
    failing = {f"h{n}.example": f"{now - n * 60_000} {now} HTTP 500" for n in range(1, 31)}
    await registry.redis.hset(registry.key("webhooks"), mapping=failing)
    await registry.redis.xadd(registry.key("intake"), {"body": "{}"})
    found = await read_stats(registry)
    document = json.loads(json.dumps(found.document()))
    assert document["services"].keys() == set(Service)
    store = document["services"]["store"]
    assert (store["out_of_reach_since"], store["trouble"]) == (now - 90_000, "[bold]507")
    named = [host["host"] for host in document["webhook_hosts"]]
    assert named == [f"h{number}.example" for number in range(30, 10, -1)]
    assert document["webhook_hosts_failing"] == 30
    assert document["intake"] == 1
    output = StringIO()
    Console(width=200, file=output).print(draw(found))
    assert "1 min 30 s: [bold]507" in output.getvalue()
    assert store["meanwhile"] in output.getvalue()
    assert "h30.example has failed for 30 min: HTTP 500" in output.getvalue()


async def test_few_files_say_nothing_of_one_in_twenty(registry: Registry) -> None:
    for _ in range(99):
        registry.tally.observe("url_life_left", 5.0)
    await registry.tick("w")
    assert (await read_stats(registry)).url_life_left is None


async def test_how_long_addresses_would_have_worked_is_told(registry: Registry) -> None:
    for seconds in [5.0, *([700.0] * 99)]:
        registry.tally.observe("url_life_left", seconds)
    await registry.tick("w")
    left = (await read_stats(registry)).url_life_left
    assert left is not None
    assert 300 < left <= 900


async def test_watched_as_json_there_is_a_line_each_time(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    environ = {**idle_environ(redis_url, namespace), "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker.cli.main", "stats", "--watch", "--json",
        cwd=tmp_path, env=environ, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for _ in range(2):
            line = await asyncio.wait_for(process.stdout.readline(), BOUND)
            assert json.loads(line)["states"]["stored"] == 0
    finally:
        process.kill()
        await process.wait()
