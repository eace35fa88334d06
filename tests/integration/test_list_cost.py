"""What commands that list ask of Redis: the same however many tasks there are, and no scan."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from redis import Redis
from redis.asyncio.connection import AbstractConnection
from typer.testing import CliRunner

from tests.bench.page import fill
from worker.cli.main import app
from worker.core.models import Reason

pytestmark = pytest.mark.usefixtures("elsewhere", "settings")

LIMIT = 5
LISTINGS = (
    ("list",),
    ("list", "--limit", f"{LIMIT}"),
    ("list", "--state", "stored", "--limit", f"{LIMIT}"),
    ("list", "--since", "1d", "--limit", f"{LIMIT}"),
    ("list", "--state", "failed", "--since", "1d", "--limit", f"{LIMIT}"),
    ("list", "--dead", "--limit", f"{LIMIT}"),
    ("list", "--dead", "--since", "1d", "--limit", f"{LIMIT}"),
    ("list", "--refused", "--limit", f"{LIMIT}"),
)


def poison(redis: Redis, namespace: str) -> None:
    """Make one in eight of the failed tasks one that crashed its worker."""
    with redis.pipeline(transaction=False) as pipe:
        for task_id in redis.zrange(f"{namespace}:index:failed", 0, -1):
            if task_id.endswith("92"):  # failed are those from 92 to 99 of each hundred
                pipe.hset(f"{namespace}:task:{task_id}", "reason", Reason.POISONED)
        pipe.execute()


def leaves(answer: Any) -> int:
    """How many single values an answer of Redis holds."""
    if isinstance(answer, dict):
        answer = [part for pair in answer.items() for part in pair]
    return sum(map(leaves, answer)) if isinstance(answer, list | tuple | set) else 1


class Spy:
    """Counts the answers that commands get, and the values in them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: tuple[int, int] = (0, 0)
        read = AbstractConnection.read_response

        async def counted(connection: AbstractConnection, *args: Any, **options: Any) -> Any:
            answer = await read(connection, *args, **options)
            self.asked = self.asked[0] + 1, self.asked[1] + leaves(answer)
            return answer

        monkeypatch.setattr(AbstractConnection, "read_response", counted)

    def run(self, *arguments: str) -> tuple[int, int]:
        self.asked = 0, 0
        ran = CliRunner().invoke(app, arguments)
        assert ran.exit_code == 0, ran.output
        return self.asked


def test_a_listing_costs_the_same_however_many_tasks_there_are(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    asked = []
    with Redis.from_url(redis_url, decode_responses=True) as client:
        for count in (1300, 6000):  # the fewest with a page of each kind
            fleet = f"{namespace}x{count}"
            asyncio.run(fill(redis_url, count, namespace=fleet))
            poison(client, fleet)
            monkeypatch.setenv("HARVESTER_NAMESPACE", fleet)
            spy.run(*LISTINGS[-1])  # has Redis learn the script
            asked.append({" ".join(listing): spy.run(*listing) for listing in LISTINGS})
    assert asked[0] == asked[1]
    assert all(answers > 0 for answers, _ in asked[0].values())


def test_a_listing_ends_as_soon_as_it_is_full(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(fill(redis_url, 1300, namespace=namespace))
    spy = Spy(monkeypatch)
    for order in ((), ("--since", "1d")):
        few = spy.run("list", *order, "--limit", "1")
        many = spy.run("list", *order, "--limit", "1000")
        assert few[1] < many[1] / 10


def test_what_is_listed_is_what_a_look_at_everything_finds(redis_url: str, namespace: str) -> None:
    def ids(*arguments: str) -> list[str]:
        ran = CliRunner().invoke(app, ["list", "--json", *arguments])
        assert ran.exit_code == 0, ran.output
        return [task["task_id"] for task in json.loads(ran.output)]

    asyncio.run(fill(redis_url, 1100, namespace=namespace))
    with Redis.from_url(redis_url, decode_responses=True) as client:
        poison(client, namespace)
        rows = [
            client.hgetall(f"{namespace}:task:{task_id}")
            for state in ("waiting", "stored", "partial", "failed")
            for task_id in client.zrange(f"{namespace}:index:{state}", 0, -1)
        ]
        at = {row["task_id"]: int(row["finished_at"] or row["submitted_at"]) for row in rows}
        oldest_first = [
            row["task_id"]
            for row in sorted(rows, key=lambda row: at[row["task_id"]])
            if row["finished_at"]
        ]
        dead = [row["task_id"] for row in rows if row["reason"] == Reason.POISONED]
        # an index may name a record that has just expired
        client.delete(*(f"{namespace}:task:{task_id}" for task_id in oldest_first[:3]))
    assert ids("--since", "1d") == oldest_first[3:]
    assert ids("--since", "1d", "--limit", "250") == oldest_first[3:253]
    assert ids("--dead", "--limit", "1000") == [i for i in dead[::-1] if i not in oldest_first[:3]]
    assert ids("--dead", "--since", "1d", "--limit", "7") == dead[:7]
    newest = [at[task_id] for task_id in ids("--limit", "150")]
    assert newest == sorted(at.values(), reverse=True)[:150]
