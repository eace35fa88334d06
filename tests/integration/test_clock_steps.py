"""A clock of Redis that steps: by the scripts themselves, on a clock that the test turns."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from tests.model.harness import Server, on_test_clock
from worker.core.services import REPLIES, STORE_READS, Service
from worker.registry.scripts import source

LEASE = 60_000
HOUR, DAY = 3_600_000, 86_400_000
CIRCUITS = {"poll": "upstream", "copy": "store", "tell": "tell"}
OPTIONS = '{"callbacks":[]}'


class Steps(Server):
    """A namespace whose clock can be set to any time."""

    def __init__(self, client: Redis, namespace: str) -> None:
        super().__init__(client, namespace)
        self.client = client
        self.tokens = 0

    def step(self, by: int) -> None:
        """Set the clock; nothing that has a time to live ages by it."""
        self.now = int(self.client.incrby(f"{self.namespace}:test_clock", by))

    def claim(self, kind: str, *, expected: int | str = "", limit: int = 100) -> list[Any]:
        self.tokens += 1
        rate = (1000, 250) if kind == "poll" else ("", "")
        return self.call(  # type: ignore[no-any-return]
            "claim", kind, f"token{self.tokens}", limit, 0, 1000, LEASE, CIRCUITS[kind], "w",
            *rate, expected,
        )  # fmt: skip

    def ids(self, kind: str) -> list[str]:
        return sorted(row[0] for row in self.claim(kind)[5:])

    def repair(self, seen: int = 0) -> int:
        return int(self.call("clock", LEASE, seen))

    def submit(self, *ids: str) -> None:
        self.call("submit", "{}", "", OPTIONS, 0, HOUR, *ids)

    def due(self, kind: str) -> dict[str, int]:
        found = self.client.zrange(f"{self.namespace}:due:{kind}", 0, -1, withscores=True)
        return {task_id: int(score) for task_id, score in found}

    def notes(self, task_id: str) -> dict[str, str]:
        return self.client.hgetall(f"{self.namespace}:work:{task_id}")

    def save(self, task_id: str, kind: str, to: str, delay: int, *work: str) -> str:
        token = self.notes(task_id)["token"]
        return str(self.call("save", task_id, token, kind, to, delay, "", 0, "", 0, 0, 0, *work))


@pytest.fixture
def steps(redis_url: str, namespace: str) -> Iterator[Steps]:
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield Steps(client, namespace)


def waiting(steps: Steps, *ids: str, delay: int = 30_000) -> None:
    """Tasks past their first look, to be polled after ``delay``."""
    steps.submit(*ids)
    steps.claim("copy", limit=len(ids))
    for task_id in ids:
        assert steps.save(task_id, "copy", "poll", delay) == "ok"


def test_the_test_turns_the_clock_of_every_script() -> None:
    assert "'TIME'" not in on_test_clock(source("clock"))


@pytest.mark.parametrize("by", [-600_000, -HOUR, -DAY])
def test_after_a_step_back_nothing_waits_longer(steps: Steps, by: int) -> None:
    waiting(steps, "a", "b")
    steps.submit("new")
    steps.step(by)
    assert int(steps.claim("poll")[1]) == -1  # not by a clock that nobody has looked at
    assert steps.repair() == by
    assert steps.repair() == 0
    assert set(steps.due("poll").values()) == {steps.now + 30_000}
    assert steps.ids("copy") == ["new"]
    steps.advance(30)
    assert steps.ids("poll") == ["a", "b"]


def test_a_clock_that_runs_ahead_for_eight_seconds_leaves_nothing_behind(steps: Steps) -> None:
    waiting(steps, "before", "between")
    steps.step(DAY)
    assert int(steps.claim("poll", expected=steps.now - DAY)[1]) == -1
    assert steps.repair(DAY) == DAY
    assert steps.ids("poll") == ["before", "between"]
    assert steps.save("between", "poll", "poll", 40_000) == "ok"
    steps.submit("meanwhile")
    steps.step(8000 - DAY)
    assert int(steps.claim("poll", expected=steps.now)[1]) == -1
    assert steps.repair() <= 8000 - DAY
    assert steps.due("poll")["between"] <= steps.now + 40_000
    assert steps.due("poll")["before"] == steps.now + LEASE  # claimed, and kept
    assert steps.ids("copy") == ["meanwhile"]
    asked, deadline = (int(steps.notes("meanwhile")[n]) for n in ("asked_from", "deadline_at"))
    assert (asked, deadline - asked) == (steps.now, HOUR)


@pytest.mark.parametrize("by", [-HOUR, HOUR])
def test_a_claim_is_kept_and_no_lapse_counts_for_two_leases(steps: Steps, by: int) -> None:
    waiting(steps, "a", delay=0)
    assert steps.ids("poll") == ["a"]
    steps.step(by)
    steps.repair(by)
    assert steps.ids("poll") == []  # its owner has the whole lease
    assert steps.call("renew", "poll", steps.notes("a")["token"], LEASE, "a") == ["ok"]
    steps.advance(70)  # it dies
    assert steps.ids("poll") == ["a"]
    assert steps.notes("a")["cap"] == "1000"
    assert steps.look().hashes.get("counters", {}).get("leases_expired") is None
    steps.advance(130)
    assert steps.ids("poll") == ["a"]
    assert steps.notes("a")["cap"] == "500"


def test_a_worker_that_saw_no_step_changes_nothing(steps: Steps) -> None:
    waiting(steps, "a")
    before = steps.look()
    assert steps.repair() == 0
    assert steps.look() == before
    steps.advance(3600)  # a fleet that was away has seen nothing either
    assert int(steps.claim("copy")[1]) >= 0
    assert steps.repair() == 0


def test_the_rate_flows_again(steps: Steps) -> None:
    waiting(steps, *(f"t{n:03}" for n in range(300)), delay=0)
    assert len(steps.ids("poll")) == 100
    assert len(steps.ids("poll")) == 100
    assert len(steps.ids("poll")) == 50  # the burst is used up
    steps.step(-HOUR)
    steps.repair()
    steps.advance(10)
    assert len(steps.ids("poll")) == 50


@pytest.mark.parametrize("name", ["upstream", "store"])
def test_a_probe_comes_in_time(steps: Steps, name: str) -> None:
    kind = "poll" if name == "upstream" else "copy"
    waiting(steps, "a", delay=0)
    steps.submit("b")
    steps.call("trip", name, "credentials", "no", 0)
    steps.step(-DAY)
    steps.repair()
    assert steps.claim(kind)[1] == "5000"
    steps.advance(10)
    assert len(steps.claim(kind)[5:]) == 1


def test_times_within_notes_are_set_back(steps: Steps) -> None:
    waiting(steps, "a")
    at = steps.now + 30_000
    steps.advance(30)
    steps.claim("poll")
    trial = json.dumps({"trial": {"error": '"at": 99999999999999'}, "at": at + 90_000})
    notes = ("try:0", trial, "seen_at", str(at), "doubted_at", str(at), "succeeded_at", str(at))
    assert steps.save("a", "poll", "copy", 60_000, *notes) == "ok"
    steps.step(-HOUR)
    steps.repair()
    found = steps.notes("a")
    assert json.loads(found["try:0"]) == {
        "trial": {"error": '"at": 99999999999999'},
        "at": at + 90_000 - HOUR,
    }
    assert {found[name] for name in ("seen_at", "doubted_at", "succeeded_at")} == {str(steps.now)}


def test_times_of_callbacks_are_set_back(steps: Steps) -> None:
    told = json.dumps([{"id": "x", "last_error": 'a "next_at": 1', "next_at": steps.now + DAY}])
    steps.client.hset(f"{steps.namespace}:task:a", mapping={"state": "stored", "told": told})
    steps.client.zadd(f"{steps.namespace}:due:tell", {"a": steps.now + DAY})
    steps.claim("tell")
    steps.step(-HOUR)
    steps.repair()
    (entry,) = json.loads(steps.client.hget(f"{steps.namespace}:task:a", "told") or "")
    assert entry["next_at"] == steps.now + DAY
    assert entry["last_error"] == 'a "next_at": 1'
    assert steps.due("tell") == {"a": steps.now + DAY}


@pytest.mark.parametrize("set_name", ["workers", "suspects", "expiring"])
def test_other_times_do_not_stay_in_the_future(steps: Steps, set_name: str) -> None:
    steps.claim("copy")
    steps.client.zadd(f"{steps.namespace}:{set_name}", {"a": steps.now, "b": steps.now - DAY})
    services = f"{steps.namespace}:services"
    for name in (*Service, STORE_READS, REPLIES):
        for part in ("", ":since", ":at"):
            steps.client.hset(services, f"{name}{part}", steps.now)
    steps.client.hset(f"{steps.namespace}:webhooks", "a.example", f"{steps.now} {steps.now} no")
    steps.step(-HOUR)
    steps.repair()
    found = steps.client.zrange(f"{steps.namespace}:{set_name}", 0, -1, withscores=True)
    assert dict(found) == {"a": steps.now, "b": steps.now + HOUR - DAY}
    assert set(steps.client.hvals(services)) == {str(steps.now)}
    assert not steps.client.exists(f"{steps.namespace}:webhooks")


def test_the_time_that_an_entry_is_in_hand_begins_again(steps: Steps) -> None:
    """It would not come back for as long as the step was, were its worker dead."""
    stream, bounds = f"{steps.namespace}:intake", (30_000, 100, 100, 3)
    steps.claim("copy")
    steps.client.xadd(stream, {"body": "{}"})
    assert steps.call("intake", "token", *bounds)[0] == "body"
    (entry,) = steps.client.xpending_range(stream, "harvester", "-", "+", 1)
    lain = ("harvester", "w", 0, entry["message_id"], "IDLE", 3_600_000)
    steps.client.execute_command("XCLAIM", stream, *lain)
    steps.step(-HOUR)
    steps.repair()
    assert steps.call("intake", "another", *bounds)[0] == "empty"


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_whatever_the_clock_does_every_task_has_its_turn(steps: Steps, seed: int) -> None:
    """Steps in both directions between steps of a fleet; then the clock behaves."""
    chance = random.Random(seed)
    steps = Steps(steps.client, f"{steps.namespace}.{seed}")
    ids = [f"t{n}" for n in range(8)]
    waiting(steps, *ids[:4])
    steps.submit(*ids[4:])
    real = 0  # by which the clock is off

    def claim(kind: str) -> list[str]:
        answer = steps.claim(kind, expected=steps.now - real)
        if int(answer[1]) == -1:
            steps.repair(real)
            answer = steps.claim(kind)
        return [row[0] for row in answer[5:]]

    for _ in range(20):
        real = chance.choice([0, 0, -HOUR, HOUR, DAY, -DAY, 5000, -5000])
        steps.step(real)
        for kind in ("poll", "copy"):
            for task_id in claim(kind):
                if chance.random() < 0.7:
                    to, delay = chance.choice(["poll", "copy"]), chance.choice([0, 1000, 60_000])
                    assert steps.save(task_id, kind, to, delay) == "ok"
        real = 0
        steps.advance(10 * chance.randint(0, 3))
    seen: set[str] = set()
    for _ in range(8):  # the longest delay and a lease, and some
        steps.advance(20)
        seen |= {*claim("poll"), *claim("copy")}
    assert seen == set(ids)
