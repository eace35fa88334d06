"""Looks: what they bring forward, what they leave alone, and what bounds them.

The real scripts run on a clock that the test turns.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from tests.integration.test_priority import LEASE, Fleet
from worker.core.looks import Look
from worker.core.submission import MAX_IDS

RATE = 10
SHARE = RATE / 4
FAULTS = {"a fault": ("faults", "3"), "a doubt": ("doubts", "2")}


class Looking(Fleet):
    """A fleet that is asked for looks."""

    def ask(self, *ids: str) -> list[str]:
        answers: list[str] = self.call("look", self.rate, max(1, self.rate / 4), *ids)
        assert len(answers) == len(ids)
        assert {Look(answer) for answer in answers} <= set(Look)
        return answers

    def due(self, kind: str = "poll") -> dict[str, int]:
        """Milliseconds from now until each task of a due set is due."""
        return {i: at - self.now for i, at in self.look().sets.get(f"due:{kind}", {}).items()}

    def waiting(self, *ids: str, seconds: float = 30, priority: str | None = None) -> None:
        """Tasks that were polled once, due again after so many seconds."""
        self.submit(priority, *ids)
        self.to_poll()
        rate, self.rate = self.rate, 100_000
        self._redis.hdel(f"{self.namespace}:rate", "tokens")
        for task_id, token in self.claim("poll", 1000):
            self.put_back(task_id, token, seconds=seconds)
        self.rate = rate
        assert set(ids) <= self.due().keys()

    def polled(self, task_id: str) -> str:
        """Claim this one task, which is due; its token."""
        return dict(self.claim("poll", 1000))[task_id]

    def notes(self, task_id: str) -> dict[str, str]:
        return self.look().work().get(task_id, {})

    def keep(self, task_id: str, token: str, seconds: float, *work: str, to: str = "poll") -> None:
        """End a claim with a step that notes ``work``."""
        delay = round(seconds * 1000)
        args = (task_id, token, "poll", to, delay, "", 1, "", 0, 0, 0)
        assert self.call("save", *args, *work) == "ok"


@pytest.fixture
def fleet(redis_url: str, namespace: str) -> Iterator[Looking]:
    with Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        yield Looking(client, namespace, RATE)


def names(count: int) -> list[str]:
    return [f"t{n}" for n in range(count)]


def test_a_waiting_task_is_due_at_once(fleet: Looking) -> None:
    fleet.waiting("a", "b", seconds=30)
    assert fleet.ask("a") == ["looked"]
    assert fleet.due() == {"a": 0, "b": 30_000}


def test_a_call_that_is_sent_twice_does_what_it_did_once(fleet: Looking) -> None:
    fleet.waiting("claimed", seconds=0)
    fleet.polled("claimed")
    fleet.waiting(*names(20), seconds=30)
    answers = fleet.ask("claimed", *names(20))
    assert answers[0] == "claimed"
    before = fleet.look()
    assert fleet.ask("claimed", *names(20)) == answers
    assert fleet.look() == before


def test_a_claimed_task_is_noted_and_its_score_stays(fleet: Looking) -> None:
    fleet.waiting("a", seconds=0)
    token = fleet.polled("a")
    assert fleet.ask("a") == ["claimed"]
    assert fleet.due() == {"a": LEASE}
    fleet.sleep(3)
    fleet.keep("a", token, 30)
    assert fleet.due() == {"a": 0}
    assert "look" not in fleet.notes("a")
    fleet.keep("a", fleet.polled("a"), 30)  # once
    assert fleet.due() == {"a": 30_000}


@pytest.mark.parametrize("name", FAULTS)
def test_a_gap_after_trouble_is_not_cut_short(fleet: Looking, name: str) -> None:
    fleet.waiting("a", seconds=0)
    fleet.keep("a", fleet.polled("a"), 30, *FAULTS[name])
    assert fleet.ask("a") == ["backing_off"]
    assert fleet.due() == {"a": 30_000}
    fleet.sleep(30)
    assert fleet.ask("a") == ["looked"]  # it is due
    token = fleet.polled("a")
    assert fleet.ask("a") == ["claimed"]
    fleet.keep("a", token, 30, *FAULTS[name])
    assert fleet.due() == {"a": 30_000}
    assert "look" not in fleet.notes("a")


@pytest.mark.parametrize("name", FAULTS)
def test_a_look_during_a_claim_counts_once_the_trouble_is_over(fleet: Looking, name: str) -> None:
    fleet.waiting("a", seconds=0)
    fleet.keep("a", fleet.polled("a"), 0, *FAULTS[name])
    token = fleet.polled("a")
    assert fleet.ask("a") == ["claimed"]
    fleet.keep("a", token, 30, FAULTS[name][0], "")
    assert fleet.due() == {"a": 0}


def test_the_pause_after_a_crash_is_not_cut_short(fleet: Looking) -> None:
    fleet.waiting("a", seconds=0)
    fleet.call("release", "poll", fleet.polled("a"), 30_000, "a", 1, "crashed", 0)
    assert fleet.ask("a") == ["backing_off"]
    assert fleet.due() == {"a": 30_000}
    fleet.sleep(30)
    fleet.keep("a", fleet.polled("a"), 30)
    assert fleet.ask("a") == ["looked"]
    assert fleet.due() == {"a": 0}


def test_a_claim_that_lapsed_is_due_already(fleet: Looking) -> None:
    fleet.waiting("a", seconds=0)
    fleet.polled("a")
    fleet.sleep(LEASE / 1000 + 1)
    before = fleet.look()
    assert fleet.ask("a") == ["looked"]
    assert fleet.look() == before


def test_what_is_not_waiting_is_left_alone(fleet: Looking) -> None:
    fleet.waiting("copying", "canceled", "gone", seconds=0)
    fleet.submit(None, "stored", "failed", "new")
    for task_id, token in fleet.claim("copy", 100):
        if task_id != "new":
            state = task_id
            fleet.call("finish", task_id, token, state, "", fleet.now, 0, 100, 0, 0)
    for task_id, token in fleet.claim("poll", 100):
        if task_id == "copying":
            args = (task_id, token, "poll", "copy", 5000, "copying", 1, "", 0, 0, 0)
            assert fleet.call("save", *args) == "ok"
        else:
            fleet.put_back(task_id, token, seconds=30)
    fleet.call("cancel", "canceled")
    fleet.delete_record("gone")
    ids = ["copying", "stored", "failed", "gone", "never", "new", "canceled", "", "x" * 300]
    before = fleet.look()
    # a new one is claimed for its first look, and is asked about at once afterwards anyway
    assert fleet.ask(*ids)[:5] == ["copying", "final", "final", "unknown", "unknown"]
    assert fleet.ask("new", "canceled", "", "x" * 300) == ["claimed", "looked"] + ["unknown"] * 2
    after = fleet.look()
    assert after.sets == before.sets
    assert after.tasks() == before.tasks()


def test_a_key_that_something_else_has_written_hurts_no_other(
    fleet: Looking, redis_url: str, namespace: str
) -> None:
    fleet.waiting("a", "b", "c", seconds=30)
    with Redis.from_url(redis_url) as client:
        for key in (f"{namespace}:task:a", f"{namespace}:work:b"):
            client.delete(key)
            client.set(key, "something else")
    assert fleet.ask("a", "b", "c") == ["unknown", "unknown", "looked"]
    assert fleet.due()["c"] == 0


@pytest.mark.parametrize("end", ["stored", "failed"])
def test_a_note_does_not_outlive_its_run(fleet: Looking, end: str) -> None:
    fleet.waiting("a", seconds=0)
    token = fleet.polled("a")
    assert fleet.ask("a") == ["claimed"]
    fleet.call("finish", "a", token, end, "", fleet.now, 0, 100, 0, 0)
    assert "look" not in fleet.notes("a")


# -- the share ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 10, 400])
def test_a_call_for_many_takes_a_quarter_of_the_rate(fleet: Looking, rate: int) -> None:
    fleet.rate = rate
    ids = names(MAX_IDS)
    fleet.waiting(*ids, seconds=60)
    assert set(fleet.ask(*ids)) == {"looked"}
    moved = sorted(at for at in fleet.due().values() if at < 60_000)
    assert moved
    for start in moved:
        window = [at for at in moved if start <= at < start + 1000]
        assert len(window) <= rate / 4 + 1
    assert len(moved) == pytest.approx(min(MAX_IDS, 60 * rate / 4), abs=1)


def test_throttling_makes_the_share_smaller(fleet: Looking) -> None:
    fleet.waiting(*names(10), seconds=60)
    fleet.call("throttle", RATE, SHARE)
    fleet.ask(*names(10))
    assert sorted(fleet.due().values())[:3] == [0, 800, 1600]  # half of the rate


def test_looks_at_claimed_tasks_do_not_push_the_row_away(fleet: Looking) -> None:
    """Each claim can be noted once, and more is claimed than the share of looks allows."""
    fleet.waiting(*names(50), seconds=0)
    for _ in range(100):
        for task_id, token in fleet.claim("poll", 50):
            assert fleet.ask(task_id) == ["claimed"]
            fleet.put_back(task_id, token, seconds=0)
        fleet.sleep(1)
    row = int(fleet.look().hashes["rate"]["looks"])
    assert 0 < row - fleet.now <= 66_000 + 4000 / RATE


@pytest.mark.parametrize("seed", range(3))
def test_a_flood_of_looks_starves_nobody(fleet: Looking, seed: int) -> None:
    """More polls are wanted than there are calls, and a third of the tasks are looked at always."""
    chance = random.Random(seed)
    flood, others = names(50), [f"other{n}" for n in range(100)]
    fleet.waiting(*flood, *others, seconds=1)
    calls = dict.fromkeys([*flood, *others], 0)
    seen = dict.fromkeys(calls, fleet.now)
    longest = 0.0
    for _ in range(400):
        fleet.sleep(1)
        fleet.ask(*flood)
        got = fleet.claim("poll", 100)
        for task_id, token in got:
            calls[task_id] += 1
            if task_id in others:
                longest = max(longest, (fleet.now - seen[task_id]) / 1000)
            seen[task_id] = fleet.now
            fleet.ask(*flood)  # while they are claimed as well
            fleet.put_back(task_id, token, seconds=5 * chance.uniform(0.5, 1))
    assert longest <= 5 + 1 + len(calls) / (0.75 * RATE)
    share = sum(calls[task_id] for task_id in flood) / sum(calls.values())
    assert share <= 1 / 3 + 1 / 4


def test_a_look_goes_before_nothing_that_is_overdue(fleet: Looking) -> None:
    for priority in ("low", "normal"):
        fleet.waiting(priority, seconds=60, priority=priority)
    fleet.waiting(*names(40), seconds=1)
    fleet.sleep(20)
    assert set(fleet.ask("normal", "low")) == {"looked"}
    order: list[str] = []
    while got := fleet.claim("poll", 100):
        order += [task_id for task_id, _ in got]
        fleet.sleep(1)
    assert set(order[:40]) == set(names(40))
    assert set(order[40:]) == {"normal", "low"}


def test_an_open_circuit_is_not_passed_by(fleet: Looking) -> None:
    fleet.waiting(*names(5), seconds=30)
    fleet.call("trip", "upstream", "credentials", "no", 0)
    assert set(fleet.ask(*names(5))) == {"looked"}
    assert fleet.claim("poll", 100) == []
    fleet.sleep(5)
    assert len(fleet.claim("poll", 100)) == 1  # the probe


def test_a_clock_that_steps_back_does_not_hold_looks_up(fleet: Looking) -> None:
    fleet.waiting(*names(100), seconds=60)
    fleet.ask(*names(100))
    fleet.sleep(-3600)
    fleet.call("clock", LEASE, 0)
    fleet.waiting("a", seconds=60)
    fleet.ask("a")
    assert fleet.due()["a"] <= 4000 / RATE


_step = st.one_of(
    st.tuples(st.just("ask"), st.lists(st.sampled_from(names(6)), min_size=1, max_size=6)),
    st.tuples(st.just("claim"), st.integers(1, 6)),
    st.tuples(st.just("save"), st.sampled_from(["", "faults", "doubts"]), st.integers(0, 60)),
    st.tuples(st.just("release"), st.integers(0, 30)),
    st.tuples(st.just("sleep"), st.integers(0, 20)),
)


# each example has a namespace of its own
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(_step, max_size=30))
def test_no_order_of_steps_asks_later_or_cuts_a_gap_short(
    redis_url: str, steps: list[tuple[Any, ...]]
) -> None:
    with Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        space = f"looks-{random.randrange(10**12)}"
        fleet = Looking(client, space, RATE)
        try:
            fleet.waiting(*names(6), seconds=20)
            _take(fleet, steps)
        finally:
            for key in client.scan_iter(f"{space}:*", 1000):
                client.delete(key)


def _take(fleet: Looking, steps: list[tuple[Any, ...]]) -> None:
    held: list[tuple[str, str]] = []
    for what, *how in steps:
        before, notes = fleet.look().sets["due:poll"], fleet.look().work()
        if what == "ask":
            answers = dict(zip(how[0], fleet.ask(*how[0]), strict=True))
            after = fleet.look().sets["due:poll"]
            for task_id, at in after.items():
                assert at <= before[task_id]
                assert at >= min(before[task_id], fleet.now)
                if answers.get(task_id) in ("claimed", "backing_off", None):
                    assert at == before[task_id]
                if {"faults", "doubts"} & notes[task_id].keys() and before[task_id] > fleet.now:
                    assert at == before[task_id]
        elif what == "claim":
            held += fleet.claim("poll", how[0])
        elif what == "save" and held:
            task_id, token = held.pop(0)
            owned = notes[task_id].get("token") == token
            work = [how[0], "1"] if how[0] else ["faults", "", "doubts", ""]
            args = (task_id, token, "poll", "poll", how[1] * 1000, "", 1, "", 0, 0, 0)
            fleet.call("save", *args, *work)
            if owned:
                at = fleet.look().sets["due:poll"][task_id]
                assert fleet.now <= at <= fleet.now + how[1] * 1000
                if how[0]:
                    assert at == fleet.now + how[1] * 1000
                assert "look" not in fleet.notes(task_id)
        elif what == "release" and held:
            task_id, token = held.pop(0)
            fleet.call("release", "poll", token, how[0] * 1000, task_id, 0, "", 0)
        elif what == "sleep":
            fleet.sleep(how[0])
