"""A ``traceparent`` from each way of submitting to the log, the reply and the webhook."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web as http
from celery import Celery
from redis.asyncio import Redis

from tests.fleet import Fleet
from tests.integration.test_web import serving
from tests.support import eventually
from worker.core.trace import of_record
from worker.sandbox.simulator import Simulator

SECRET = "whsec_bm90LWEtc2VjcmV0LW9mLWFueXRoaW5nLWVsc2U="


def parent(number: int) -> str:
    return f"00-{number:032x}-00f067aa0ba902b7-01"


@pytest.fixture
async def told() -> AsyncIterator[tuple[str, list[Any]]]:
    """The address of a receiver of webhooks, and the headers that it got."""
    got: list[Any] = []

    async def accept(request: http.BaseRequest) -> http.StreamResponse:
        got.append(request.headers)
        return http.Response()

    runner = http.ServerRunner(http.Server(accept))
    await runner.setup()
    await http.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}/", got
    await runner.cleanup()


async def test_a_trace_is_kept_and_carried_on(
    settings: dict[str, str],
    redis: Redis,
    namespace: str,
    simulator: Simulator,
    told: tuple[str, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, got = told
    queue = f"{namespace}-shop"
    changes = {
        "HARVESTER_WEBHOOK_SECRET": SECRET,
        "HARVESTER_WEBHOOK_ALLOW_PRIVATE": "127.0.0.1/32",
        "HARVESTER_REPLY_ALLOW": f"{queue}/shop.ready",
    }
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    ids = [simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(4)]
    options = {"callback_url": url, "reply_task": "shop.ready", "reply_queue": queue}

    def send() -> None:
        with Celery("another", broker=settings["REDIS_URL"]) as app:
            headers = {"traceparent": parent(1)}
            app.send_task("harvester.submit", [ids[0]], options, queue=namespace, headers=headers)

    async with Fleet(settings | changes, tmp_path, size=1) as fleet, serving() as web:
        await asyncio.to_thread(send)
        for task_id, fields in (
            (ids[1], {"traceparent": parent(2)}),
            (ids[3], {"traceparent": "x" * 9000}),
        ):
            body = json.dumps({"task_ids": task_id, **options})
            await redis.xadd(f"{namespace}:intake", {"body": body, **fields})
        answer = await web.post(
            "/api/tasks", json={"task_ids": ids[2], **options}, headers={"traceparent": parent(3)}
        )
        assert answer.status_code == 201

        async def all_told() -> bool:
            return len(got) >= len(ids) and await redis.llen(queue) >= len(ids)

        await eventually(all_told, what="webhooks and replies")
        replies = [json.loads(item) for item in await redis.lrange(queue, 0, -1)]
        records = [await redis.hgetall(f"{namespace}:task:{task_id}") for task_id in ids]
        lines = fleet.log_lines()
    await redis.delete(queue)
    wanted = [parent(1), parent(2), parent(3), ""]
    assert [of_record(record) for record in records] == wanted
    assert sorted(headers.get("traceparent", "") for headers in got) == sorted(wanted)
    assert sorted(reply["headers"].get("traceparent", "") for reply in replies) == sorted(wanted)
    for task_id, value in zip(ids, wanted, strict=True):
        about = [line for line in lines if line.get("task_id") == task_id]
        assert {"task.succeeded_upstream", "task.final", "task.told"} <= {x["event"] for x in about}
        assert {line.get("trace_id", "") for line in about} == {value[3:35]}
    accepted = {x.get("trace_id") for x in lines if x.get("event") == "intake.accepted"}
    assert accepted == {wanted[0][3:35], wanted[1][3:35], None}
