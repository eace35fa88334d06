"""What a label can expect while more is due than may be claimed: any labels, in any order."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from tests.model.harness import Server

LEASE = 60_000
COST = {"high": 0.5, "normal": 1.0, "low": 2.0}  # priority is a weight


@dataclass
class Wait:
    """A label whose first task waits: the turns of others until it is claimed."""

    fresh: bool
    turns: Counter[str] = field(default_factory=Counter)


class Turns(Server):
    """Tasks of one due set; those of a label have one priority."""

    def __init__(self, client: Redis, namespace: str, kind: str) -> None:
        super().__init__(client, namespace)
        self.kind = kind
        self.waiting: dict[str, set[str]] = {}
        self.waits: dict[str, Wait] = {}
        self.new: set[str] = set()
        self.priority: dict[str, str] = {}
        self._numbers = itertools.count()

    def arrive(self, label: str, priority: str, count: int) -> None:
        """New tasks that are due now."""
        priority = self.priority.setdefault(label, priority)
        ids = [f"t{next(self._numbers)}" for _ in range(count)]
        options = json.dumps({"callbacks": [], "priority": priority})
        self.call("submit", "{}", label, options, 0, 3_600_000, *ids)
        for task_id, token in self._claim("copy", 100).items():
            args = (task_id, token, "copy", self.kind, 0, "", 0, "", 0, 0, 0)
            assert self.call("save", *args) == "ok"
        if not self.waiting.get(label):
            self.new.add(label)
        self.waiting.setdefault(label, set()).update(ids)

    def serve(self, limit: int) -> None:
        """Claim, and see that nobody had more turns before another than there is a bound for."""
        for label in self.new:
            self.waits[label] = Wait(fresh=True)
        self.new.clear()
        waiting = sum(map(len, self.waiting.values()))
        got = list(self._claim(self.kind, limit))
        assert len(got) == min(limit, waiting)
        if len(got) == waiting:  # nobody waits for anybody
            self.waits.clear()
            self.waiting.clear()
            return
        for task_id in got:
            label = next(name for name, ids in self.waiting.items() if task_id in ids)
            self.waiting[label].remove(task_id)
            self._served(label)

    def _served(self, label: str) -> None:
        wait = self.waits.pop(label)
        mine = COST[self.priority[label]]
        for other, turns in wait.turns.items():
            ratio = mine / COST[self.priority[other]]
            # a label that goes on may meet one whose next turn is at the same place
            assert turns <= (ceil(ratio) if wait.fresh else int(ratio) + 1), (label, other)
        for each in self.waits.values():
            each.turns[label] += 1
        if self.waiting[label]:
            self.waits[label] = Wait(fresh=False)

    def _claim(self, kind: str, limit: int) -> dict[str, str]:
        token = f"token {next(self._numbers)}"
        rate = (1000, 1000) if kind == "poll" else ("", "")
        answer = self.call("claim", kind, token, limit, 0, 1000, LEASE, "none", "me", *rate, "")
        return {row[0]: token for row in answer[5:]}


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        yield client


# names that are also those of fields, keys or parts of them
_labels = st.sampled_from(["", "a", "b", "at", "waiting", "poll:a", "-1", "é"])
_steps = st.one_of(
    st.tuples(_labels, st.sampled_from(tuple(COST)), st.integers(1, 12)),
    st.integers(1, 3),
)


@pytest.mark.parametrize("kind", ["poll", "fetch"])
def test_no_label_has_more_turns_than_its_share_before_another(
    client: Redis, namespace: str, kind: str
) -> None:
    numbers = itertools.count(1)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=st.lists(_steps, min_size=10, max_size=60))
    def explore(steps: list[tuple[str, str, int] | int]) -> None:
        client.flushall()
        turns = Turns(client, f"{namespace}{next(numbers)}", kind)
        for step in steps:
            if isinstance(step, int):
                # without a rate the turns within one claim also depend on who got the first
                turns.serve(step if kind == "poll" else 1)
            else:
                turns.arrive(*step)
        while sum(map(len, turns.waiting.values())):
            turns.serve(3 if kind == "poll" else 1)
        left = turns.look()
        assert not [key for key in (*left.hashes, *left.sets) if key.startswith(("turn", "overd"))]

    explore()


def test_a_label_that_comes_again_goes_behind_one_that_waits(client: Redis, namespace: str) -> None:
    turns = Turns(client, namespace, "fetch")
    for label in ("-1", "a", "z"):
        turns.arrive(label, "normal", 1)
    turns.serve(1)
    turns.arrive("b", "normal", 1)
    while turns.waiting["a"]:
        turns.serve(1)
    turns.arrive("a", "normal", 1)
    while sum(map(len, turns.waiting.values())):
        turns.serve(1)
