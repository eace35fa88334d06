"""Whose turn comes first, and what bounds it: the real scripts on a clock that the test turns."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest
from redis import Redis

from tests.model.harness import SHIFT, Server

LEASE = 60_000
MOST_SHIFT = SHIFT / 1000


class Fleet(Server):
    """A fleet that is only as fast as its rate."""

    def __init__(self, client: Redis, namespace: str, rate: int) -> None:
        super().__init__(client, namespace)
        self._redis = client
        self.behind: dict[str, float] = {}
        self._tokens = itertools.count()
        self.rate = rate

    def sleep(self, seconds: float) -> None:
        """Let time pass for the scripts; keys do not age."""
        self.now = int(self._redis.incrby(f"{self.namespace}:test_clock", round(seconds * 1000)))

    def submit(self, priority: str | None, *ids: str, label: str = "label") -> None:
        options = {"callbacks": []} | ({"priority": priority} if priority else {})
        self.call("submit", "{}", label, json.dumps(options), 0, 3_600_000, *ids)

    def claim(
        self, kind: str, limit: int, shares: Mapping[str, float] | None = None
    ) -> list[tuple[str, str]]:
        """Ids and tokens, in the order of their turns."""
        token = f"token {next(self._tokens)}"
        rate = (self.rate, self.rate) if kind == "poll" else ("", "")
        words = [word for share in (shares or {}).items() for word in share]
        answer = self.call(
            "claim", kind, token, limit, 0, 1000, LEASE, "upstream", "me", *rate, "", *words
        )
        self.behind = {row[0]: int(row[4]) / 1000 for row in answer[5:]}
        return [(row[0], token) for row in answer[5:]]

    def put_back(
        self,
        task_id: str,
        token: str,
        *,
        was: str = "poll",
        to: str = "poll",
        state: str = "",
        seconds: float,
    ) -> None:
        delay = round(seconds * 1000)
        assert self.call("save", task_id, token, was, to, delay, state, 1, "", 0, 0, 0) == "ok"

    def fair_keys(self) -> set[str]:
        """The keys that only what waits for its turn needs."""
        names = self._redis.keys(f"{self.namespace}:*")
        parts = {name.removeprefix(f"{self.namespace}:") for name in names}
        return {part for part in parts if part.startswith(("turn", "overdue"))}

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
        fleet.sleep(0.2)
    assert order == ["high"] * 20 + ["plain"] * 200 + ["normal"] * 20 + ["low"] * 20


def test_dying_addresses_go_first_within_their_label(client: Redis, namespace: str) -> None:
    fleet = Fleet(client, namespace, rate=1000)
    ids = [f"t-{n}" for n in range(40)]
    fleet.submit(None, *ids)
    for task_id, token in fleet.claim("copy", 100):
        delay = -60 * int(task_id.partition("-")[2])
        fleet.put_back(task_id, token, was="copy", to="fetch", state="copying", seconds=delay)
    order = []
    while got := fleet.claim("fetch", 3):
        order += [task_id for task_id, _ in got]
    assert order == ids[::-1]


def test_without_a_backlog_nothing_is_shifted(client: Redis, namespace: str) -> None:
    fleet = Fleet(client, namespace, rate=100)
    for priority in ("high", None, "low"):
        fleet.submit(priority, f"{priority}-1")
    fleet.to_poll()
    fleet.sleep(5)
    for task_id, token in fleet.claim("poll", 10):
        fleet.put_back(task_id, token, seconds=7)
    assert {at for _, at in fleet.look().sets["due:poll"].items()} == {fleet.now + 7000}
    assert not fleet.fair_keys()


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


def test_a_flood_of_endless_ids_holds_up_no_other_label(client: Redis, namespace: str) -> None:
    fleet = Fleet(client, namespace, rate=20)
    for start in range(0, 3000, 500):
        fleet.submit(None, *(f"endless-{n}" for n in range(start, start + 500)), label="endless")
    fleet.to_poll()

    def ask(seconds: float) -> list[str]:
        asked = []
        for _ in range(round(seconds * 4)):
            fleet.sleep(0.25)
            for task_id, token in fleet.claim("poll", 100):
                asked.append(task_id)
                fleet.put_back(task_id, token, seconds=1)
        return asked

    assert len(ask(20)) == pytest.approx(400, rel=0.05)
    fleet.submit(None, *(f"short-{n}" for n in range(10)), label="short")
    fleet.to_poll()
    asked = ask(5)
    first = {task_id: asked.index(task_id) for task_id in asked if task_id.startswith("short")}
    assert len(first) == 10
    assert max(first.values()) <= 20  # a second's calls: they had every other one
    # endless ids go on with all that the others leave
    assert Counter(task_id.partition("-")[0] for task_id in asked)["endless"] >= 45


@pytest.mark.parametrize("kind", ["poll", "fetch"])
def test_labels_share_equally_and_priority_is_a_weight(
    client: Redis, namespace: str, kind: str
) -> None:
    fleet = Fleet(client, namespace, rate=100)
    for label, priority in {"a": None, "b": None, "": "high", "c": "low"}.items():
        # a label may want far more than another
        size = 400 if label == "a" else 150
        fleet.submit(priority, *(f"{label}-{n}" for n in range(size)), label=label)
    while got := fleet.claim("copy", 1000):
        for task_id, token in got:
            fleet.put_back(task_id, token, was="copy", to=kind, state="copying", seconds=0)
    asked: Counter[str] = Counter()
    while sum(asked.values()) < 180:
        fleet.sleep(0.05)
        asked.update(task_id.partition("-")[0] for task_id, _ in fleet.claim(kind, 1))
    assert asked["a"] == pytest.approx(asked["b"], abs=1)
    assert asked[""] == pytest.approx(2 * asked["a"], abs=2)
    assert asked["a"] == pytest.approx(2 * asked["c"], abs=2)


def test_a_label_alone_gets_all_as_soon_as_it_is_alone(client: Redis, namespace: str) -> None:
    fleet = Fleet(client, namespace, rate=20)
    for label in ("a", "b"):
        fleet.submit(None, *(f"{label}-{n}" for n in range(100)), label=label)
    fleet.to_poll()
    fleet.sleep(1)
    assert len(fleet.claim("poll", 100)) == 20
    for task_id in [f"b-{n}" for n in range(100)]:
        fleet.call("cancel", task_id)
    asked = []
    fleet.sleep(0.25)
    while got := fleet.claim("poll", 100):
        assert len(got) == 5
        asked += [task_id for task_id, _ in got]
        fleet.sleep(0.25)
    assert len(asked) == 90
    assert {task_id.partition("-")[0] for task_id in asked} == {"a"}
    assert not fleet.fair_keys()


def test_a_slot_goes_to_the_label_that_has_the_fewest(client: Redis, namespace: str) -> None:
    fleet = Fleet(client, namespace, rate=1000)
    for label in ("large", "small"):
        fleet.submit(None, *(f"{label}-{n}" for n in range(40)), label=label)
    for task_id, token in fleet.claim("copy", 100):
        fleet.put_back(task_id, token, was="copy", to="fetch", state="copying", seconds=0)
    assert [i.partition("-")[0] for i, _ in fleet.claim("fetch", 12, {"large": 4})] == [
        *["small"] * 4, *["large", "small"] * 4
    ]  # fmt: skip
    # files that take long keep their slots; each that comes free goes to the others
    for _ in range(10):
        shares = {"large": 8.0, "small": 7.0}
        assert [i.partition("-")[0] for i, _ in fleet.claim("fetch", 1, shares)] == ["small"]


def test_one_label_far_behind_makes_no_call_of_another_dear(client: Redis, namespace: str) -> None:
    fleet = Fleet(client, namespace, rate=20)
    fleet.submit(None, *(f"many-{n}" for n in range(400)), label="many")
    fleet.submit(None, "few-0", "few-1", label="few")
    fleet.to_poll()
    fleet.sleep(1)
    fleet.claim("poll", 100)
    many, few = (
        max(t for i, t in fleet.behind.items() if i.startswith(f"{name}-"))
        for name in ("many", "few")
    )
    assert many == pytest.approx(400 / 20, rel=0.05)
    assert few == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("harm", ["overwritten", "deleted", "all deleted"])
def test_a_line_that_is_lost_loses_no_task(client: Redis, namespace: str, harm: str) -> None:
    fleet = Fleet(client, namespace, rate=20)
    for label in ("a", "b"):
        fleet.submit(None, *(f"{label}-{n}" for n in range(30)), label=label)
    fleet.to_poll()
    fleet.sleep(1)
    asked = set()

    def ask() -> None:
        for task_id, token in fleet.claim("poll", 100):
            assert task_id not in asked
            asked.add(task_id)
            fleet.put_back(task_id, token, seconds=3600)

    ask()
    line = f"{namespace}:overdue:poll:a"
    if harm == "overwritten":
        client.set(line, "something else")
    else:
        client.delete(line, *(f"{namespace}:{name}" for name in fleet.fair_keys() if "all" in harm))
    for _ in range(70):
        fleet.sleep(1)
        ask()
        if len(asked) == 60:
            break
    assert len(asked) == 60
    assert not [key for key in fleet.fair_keys() if key.startswith("turn")]
