"""Priority and what bounds it, with the real scripts on a clock that the test turns."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator

import pytest
from redis import Redis

from tests.model.harness import Server

LEASE = 60_000
MOST_SHIFT = 120.0  # prelude.lua


class Fleet(Server):
    """A fleet that is only as fast as its rate."""

    def __init__(self, client: Redis, namespace: str, rate: int) -> None:
        super().__init__(client, namespace)
        self._redis = client
        self._tokens = itertools.count()
        self.rate = rate

    def sleep(self, seconds: float) -> None:
        """Let time pass for the scripts; keys do not age."""
        self.now = int(self._redis.incrby(f"{self.namespace}:test_clock", round(seconds * 1000)))

    def submit(self, priority: str | None, *ids: str) -> None:
        options = {"callbacks": []} | ({"priority": priority} if priority else {})
        self.call("submit", "{}", "label", json.dumps(options), 0, 3_600_000, *ids)

    def claim(self, kind: str, limit: int) -> list[tuple[str, str]]:
        """Ids and tokens, in the order of their turns."""
        token = f"token {next(self._tokens)}"
        rate = (self.rate, self.rate) if kind == "poll" else ("", "")
        answer = self.call("claim", kind, token, limit, 0, 1000, LEASE, "upstream", "me", *rate)
        return [(row[0], token) for row in answer[5:]]

    def put_back(
        self, task_id: str, token: str, *, was: str = "poll", to: str = "poll", seconds: float
    ) -> None:
        delay = round(seconds * 1000)
        assert self.call("save", task_id, token, was, to, delay, "", 1, "", 0, 0, 0) == "ok"

    def to_poll(self) -> None:
        """Pass the first look of all that are due for it."""
        while got := self.claim("copy", 100):
            for task_id, token in got:
                self.put_back(task_id, token, was="copy", seconds=0)


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        yield client


def test_high_goes_first_and_low_last_while_others_are_overdue(
    client: Redis, namespace: str
) -> None:
    fleet = Fleet(client, namespace, rate=10)
    fleet.submit(None, *(f"plain-{n}" for n in range(200)))
    fleet.to_poll()
    fleet.sleep(10)
    for priority in ("low", "normal", "high"):
        fleet.submit(priority, *(f"{priority}-{n}" for n in range(20)))
        fleet.to_poll()
    order = []
    while got := fleet.claim("poll", 100):
        order += [task_id.partition("-")[0] for task_id, _ in got]
        fleet.sleep(1)
    # among the few that the shift does not look at, high ones stand in between
    first, last = order[:40], order[-40:]
    assert first.count("high") == 20
    assert last == ["normal"] * 20 + ["low"] * 20


def test_first_looks_go_before_copies_that_wait(client: Redis, namespace: str) -> None:
    fleet = Fleet(client, namespace, rate=1000)
    fleet.submit(None, *(f"old-{n}" for n in range(100)))
    fleet.to_poll()
    for task_id, token in fleet.claim("poll", 100):
        fleet.put_back(task_id, token, to="copy", seconds=0)
    fleet.sleep(30)
    for priority in ("low", "normal", "high"):
        fleet.submit(priority, *(f"{priority}-{n}" for n in range(10)))
    order = [task_id.partition("-")[0] for task_id, _ in fleet.claim("copy", 1000)]
    # a low one has its turn with the plain copies, after those that wait longer
    assert sorted(order[:120]) == ["high"] * 10 + ["normal"] * 10 + ["old"] * 100
    assert order[:36].count("old") == 16
    assert order[120:] == ["low"] * 10


def test_without_a_backlog_nothing_is_shifted(client: Redis, namespace: str) -> None:
    fleet = Fleet(client, namespace, rate=100)
    for priority in ("high", None, "low"):
        fleet.submit(priority, f"{priority}-1")
    fleet.to_poll()
    fleet.sleep(5)
    for task_id, token in fleet.claim("poll", 10):
        fleet.put_back(task_id, token, seconds=7)
    assert {at for _, at in fleet.look().sets["due:poll"].items()} == {fleet.now + 7000}


@pytest.mark.parametrize("seed", range(3))
def test_nothing_starves_under_a_flood_of_high_priority(
    client: Redis, namespace: str, seed: int
) -> None:
    chance = random.Random(seed)
    fleet = Fleet(client, namespace, rate=10)
    sizes = {"high": 120, "normal": 20, "low": 10}  # the high ones alone want 12 times the rate
    for priority, size in sizes.items():
        fleet.submit(priority, *(f"{priority}-{n}" for n in range(size)))
    fleet.to_poll()
    longest_gap = {"high": 1.0, "normal": 5.0, "low": 5.0}
    looked = dict.fromkeys(fleet.look().sets["due:poll"], float(fleet.now))
    longest, calls = dict.fromkeys(sizes, 0.0), dict.fromkeys(sizes, 0)
    for _ in range(600):
        fleet.sleep(1)
        for task_id, token in fleet.claim("poll", 100):
            kind = task_id.partition("-")[0]
            calls[kind] += 1
            longest[kind] = max(longest[kind], (fleet.now - looked[task_id]) / 1000)
            looked[task_id] = fleet.now
            gap = longest_gap[kind] * chance.uniform(0.5, 1)
            fleet.put_back(task_id, token, seconds=gap)
    for task_id, at in looked.items():
        kind = task_id.partition("-")[0]
        longest[kind] = max(longest[kind], (fleet.now - at) / 1000)
    round_of_all = sum(sizes.values()) / fleet.rate
    assert longest["normal"] <= 5 + MOST_SHIFT + round_of_all
    assert longest["low"] <= 5 + 2 * MOST_SHIFT + round_of_all
    assert calls["high"] / sizes["high"] > 2 * calls["normal"] / sizes["normal"]
    assert min(calls.values()) > 0
