"""A look over each way in, on real servers and a real worker; what a waiting task then shows."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery
from click.testing import Result
from redis.asyncio import Redis
from typer.testing import CliRunner

from tests.fleet import Fleet
from tests.integration.test_registry import claim, make, submission
from tests.integration.test_web import serving
from tests.support import eventually
from worker.cli.main import app
from worker.core.models import State
from worker.core.submission import MAX_IDS
from worker.registry.records import DueSet
from worker.registry.registry import Registry
from worker.sandbox.simulator import Simulator

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
async def web(settings: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving() as client:
        yield client


async def run(*arguments: str) -> Result:
    """A command in this process."""
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, list(arguments)))


@pytest.fixture
async def tasks(redis: Redis, namespace: str, settings: dict[str, str]) -> Registry:
    """A task of each kind that a look can meet."""
    registry = make(redis, namespace)
    ids = ("waiting", "busy", "troubled", "copying", "ended")
    await registry.submit([submission(task_id) for task_id in ids])
    for job in await claim(registry, DueSet.COPY):
        await registry.save(job, to=DueSet.POLL)
    for job in await claim(registry, DueSet.POLL):
        if job.task_id == "waiting":
            await registry.save(job, to=DueSet.POLL, delay=60)
        elif job.task_id == "troubled":
            await registry.save(
                job, to=DueSet.POLL, delay=60, work={"faults": "1"}, error="no answer in time"
            )
        elif job.task_id == "copying":
            await registry.save(job, to=DueSet.FETCH, state=State.COPYING)
        elif job.task_id == "ended":
            now = await registry.now()
            await registry.finish(
                job, state=State.FAILED, reason="canceled", finished_at=now, record={"files": "[]"}
            )
    return registry


ANSWERS = {
    "waiting": "looked",
    "busy": "claimed",
    "troubled": "backing_off",
    "copying": "copying",
    "ended": "final",
    "nobody": "unknown",
}


async def test_the_command_says_what_comes_of_each(tasks: Registry) -> None:
    found = await run("look", "--json", *ANSWERS)
    assert json.loads(found.stdout) == {"looks": ANSWERS}
    assert found.exit_code == 1
    good = await run("look", "waiting", "busy", "waiting")
    assert good.exit_code == 0
    assert [line.split("\t")[0] for line in good.stdout.splitlines()] == ["waiting", "busy"]
    bad = await run("look", "ended", "nobody")
    assert (bad.exit_code, bad.stdout) == (1, "")
    assert len(bad.stderr.splitlines()) == 2


async def test_the_command_takes_no_more_than_a_thousand(tasks: Registry) -> None:
    many = await run("look", *(f"t{n}" for n in range(MAX_IDS + 1)))
    assert many.exit_code == 2
    assert "1,000" in many.stderr
    assert (await run("look", *(f"t{n}" for n in range(MAX_IDS)))).exit_code == 1
    assert (await run("look")).exit_code == 2


async def test_the_api_grants_what_can_be(tasks: Registry, web: httpx.AsyncClient) -> None:
    statuses = {"looked": 202, "claimed": 202, "unknown": 404}
    for task_id, said in ANSWERS.items():
        answer = await web.post(f"/api/tasks/{task_id}/look")
        assert answer.status_code == statuses.get(said, 409), said
        if answer.status_code == 202:
            assert answer.json() == {"task_id": task_id, "look": said}
        else:
            assert task_id in answer.json()["detail"]
    document: dict[str, Any] = (await web.get("/openapi.json")).json()
    assert set(document["paths"]["/api/tasks/{task_id}/look"]) == {"post"}


async def test_what_keeps_a_task_waiting_is_shown(tasks: Registry, web: httpx.AsyncClient) -> None:
    record = (await web.get("/api/tasks/troubled")).json()
    assert record["last_error"] == "no answer in time"
    assert record["last_error_at"] == record["updated_at"]
    assert "last_error" not in (await web.get("/api/tasks/waiting")).json()
    listed = {task["task_id"]: task for task in (await web.get("/api/tasks")).json()["tasks"]}
    assert listed["troubled"]["last_error"] == "no answer in time"
    assert {name for name, task in listed.items() if "last_error" in task} == {"troubled"}
    assert "last error  no answer in time" in (await run("status", "troubled")).stdout
    assert "last error" not in (await run("status", "waiting")).stdout


async def test_what_an_open_circuit_says_is_shown_with_each_task_it_holds_up(
    tasks: Registry, web: httpx.AsyncClient
) -> None:
    await tasks.trip("upstream", kind="credentials", message="the key is refused", probe=False)
    for task_id in ("waiting", "troubled"):
        record = (await web.get(f"/api/tasks/{task_id}")).json()
        assert record["last_error"] == "waiting for the upstream: the key is refused"
        assert record["last_error_at"] > 1e12
        shown = json.loads((await run("status", task_id, "--json")).stdout)
        assert shown["last_error"] == record["last_error"]
        assert "the key is refused" in (await run("status", task_id)).stdout
    for task_id in ("copying", "ended"):
        assert "last_error" not in (await web.get(f"/api/tasks/{task_id}")).json()


async def test_a_celery_message_brings_a_poll_forward(
    simulator: Simulator, settings: dict[str, str], redis: Redis, namespace: str, tmp_path: Path
) -> None:
    ids = [simulator.submit({"simulate": {"duration": 3600}}) for _ in range(2)]
    registry = make(redis, namespace)
    await registry.submit([submission(task_id, expected_seconds=3600) for task_id in ids])

    async def put_off(task_id: str) -> bool:
        at = await redis.zscore(f"{namespace}:due:poll", task_id)
        polls = await redis.hget(f"{namespace}:task:{task_id}", "polls")
        claimed = await redis.hexists(f"{namespace}:work:{task_id}", "token")
        return polls == "1" and not claimed and at is not None

    async def polled_again() -> bool:
        return await redis.hget(f"{namespace}:task:{ids[0]}", "polls") == "2"

    async def refused() -> list[str]:
        return [json.loads(e)["what"] for e in await redis.lrange(f"{namespace}:refused", 0, -1)]

    sender = Celery(broker=settings["REDIS_URL"])
    async with Fleet(settings, tmp_path, size=1):
        for task_id in ids:
            await eventually(lambda task_id=task_id: put_off(task_id), what="a first poll")
        before = await redis.zscore(f"{namespace}:due:poll", ids[0])
        bad: list[Any] = [[], ["no/id", ids[0]], ["x"] * (MAX_IDS + 1), {"a": 1}]
        for given in bad:
            await asyncio.to_thread(
                sender.send_task, "harvester.look", args=[given], queue=namespace
            )
        await eventually(polled_again, what="the poll that was asked for")
        assert before > await registry.now()  # its own time has not come yet
        assert await redis.hget(f"{namespace}:task:{ids[1]}", "polls") == "1"

        async def all_refused() -> bool:
            return (await refused()).count("look") == len(bad)

        await eventually(all_refused, what="the refusals")
    sender.close()


def test_a_look_that_redis_does_not_take_is_dropped_and_said(tmp_path: Path) -> None:
    program = (
        "from worker import tasks; from worker.app import engine; "
        "tasks.look.run([['a', 'b']], {}, []); engine().stop(); engine().join(30)"
    )
    variables = {
        "PATH": os.environ["PATH"], "REDIS_URL": "redis://127.0.0.1:1/0", "SPEEDPIX_APP_KEY": "k",
        "SPEEDPIX_APP_SECRET": "s", "HARVESTER_BUCKET": "b", "HARVESTER_LOG_FORMAT": "json",
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", program], env=variables, cwd=tmp_path, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in ran.stderr.splitlines() if line.startswith("{")]
    (lost,) = [line for line in lines if line["event"] == "look.lost"]
    assert (lost["ids"], lost["level"]) == (2, "info")
