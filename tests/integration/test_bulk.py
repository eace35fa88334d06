"""Actions on many tasks: what they choose, what bounds them, and that they may be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.integration.test_registry import make
from tests.integration.test_web import serving
from worker.registry.registry import Registry


class Tasks:
    """Tasks that ended as told, written by the registry's own scripts."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.count = 0

    async def ended(
        self, count: int, *, state: str = "failed", reason: str = "upstream_error",
        error: str = "", label: str = "", at: int | None = None,
    ) -> list[str]:  # fmt: skip
        """Ids of ``count`` tasks that ended so, the oldest first, up to now or at a time."""
        now = await self.registry.now()
        ids = [f"{state[0]}{self.count + n:06}" for n in range(count)]
        self.count += count
        for start in range(0, count, 50):
            await asyncio.gather(
                *(
                    self.registry.restore(
                        record(task_id, at or now - count + n, state, reason, error, label)
                    )
                    for n, task_id in enumerate(ids[start : start + 50], start)
                )
            )
        return ids

    async def fail_again(self, ids: list[str]) -> None:
        """As if workers had failed these retried tasks at once, a moment later."""
        redis, key = self.registry.redis, self.registry.key
        at = await self.registry.now() + 5
        for task_id in ids:
            await redis.hset(
                key("task", task_id),
                mapping={"state": "failed", "reason": "upstream_error", "finished_at": at},
            )
            await redis.zrem(key("index", "waiting"), task_id)
            await redis.zadd(key("index", "failed"), {task_id: at})

    async def states(self, ids: list[str]) -> set[str]:
        return set(map(str, (await self.registry.states(ids)).values()))

    async def runs(self, ids: list[str]) -> set[str]:
        return {str(f and f["run"]) for f in await self.registry.fields(ids, ("run",))}


def record(
    task_id: str, at: int, state: str, reason: str, error: str, label: str
) -> dict[str, str]:
    return {
        "schema": "1", "task_id": task_id, "run": "1", "state": state, "reason": reason,
        "error": error.replace("ID", task_id), "label": label, "metadata": "{}",
        "options": '{"callbacks":[]}', "submitted_at": str(at - 1000), "updated_at": str(at),
        "finished_at": str(at), "polls": "3", "upstream": "{}", "files": "[]", "result": "{}",
        "manifest": f"m/{task_id}.json",
    }  # fmt: skip


@pytest.fixture
async def tasks(redis: Redis, namespace: str) -> Tasks:
    return Tasks(make(redis, namespace))


@pytest.fixture
async def web(settings: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving() as client:
        yield client


async def act(web: httpx.AsyncClient, action: str, **params: Any) -> dict[str, Any]:
    answer = await web.post(f"/api/bulk/{action}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def act_on_all(web: httpx.AsyncClient, action: str, **params: Any) -> list[dict[str, Any]]:
    said = [await act(web, action, **params)]
    while said[-1]["next"]:
        assert len(said) < 100, "cursors without end"
        said.append(await act(web, action, **params, cursor=said[-1]["next"]))
    return said


async def test_what_fails_again_is_not_retried_for_ever(
    web: httpx.AsyncClient, tasks: Tasks
) -> None:
    ids = await tasks.ended(1200)
    said = await act(web, "retry", state="failed")
    await tasks.fail_again(said["task_ids"])
    for _ in range(2):
        assert said["done"] == len(said["task_ids"]) == 500 or not said["next"]
        said = await act(web, "retry", state="failed", cursor=said["next"])
        await tasks.fail_again(said["task_ids"])
    assert said["next"] is None
    assert await tasks.runs(ids) == {"2"}


async def test_a_call_may_be_repeated(web: httpx.AsyncClient, tasks: Tasks) -> None:
    ids = await tasks.ended(30)
    first = await act(web, "retry", state="failed", limit=10)
    for _ in range(3):  # its answer is lost, and the tasks fail again meanwhile
        await tasks.fail_again(first["task_ids"])
        again = await act(web, "retry", state="failed", limit=10, cursor=first["next"])
        await tasks.fail_again(again["task_ids"])
    await act_on_all(web, "retry", state="failed", cursor=first["next"])
    assert await tasks.runs(ids) == {"2"}
