"""Actions on many tasks: what they choose, what bounds them, and that they may be repeated."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import Result
from redis.asyncio import Redis
from typer.testing import CliRunner

from tests.integration.test_registry import make
from tests.integration.test_web import serving
from tests.support import eventually
from worker.cli.main import app
from worker.core.filters import Action
from worker.errors import RegistryUnavailable
from worker.registry.registry import Registry

Command = Callable[..., Awaitable[Result]]


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


@pytest.fixture
def command(elsewhere: None, settings: dict[str, str]) -> Command:
    async def run(*words: str, **options: Any) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, list(words), **options)

    return run


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
    until = said["until"]
    await tasks.fail_again(said["task_ids"])
    for _ in range(2):
        assert said["done"] == len(said["task_ids"]) == 500 or not said["next"]
        said = await act(web, "retry", state="failed", cursor=said["next"])
        await tasks.fail_again(said["task_ids"])
        assert said["until"] == until
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


async def test_tasks_that_ended_in_the_same_millisecond_are_each_done_once(
    web: httpx.AsyncClient, tasks: Tasks
) -> None:
    at = await tasks.registry.now() - 1000
    ids = [*await tasks.ended(700, at=at), *await tasks.ended(20, at=at, state="partial")]
    said = await act_on_all(web, "retry", state=["failed", "partial"], limit=150)
    assert sorted(i for each in said for i in each["task_ids"]) == sorted(ids)
    assert sum(each["done"] for each in said) == 720


@pytest.mark.parametrize("way", ["http", "command"])
async def test_what_a_person_or_the_upstream_meant_to_end_is_retried_only_when_named(
    web: httpx.AsyncClient, tasks: Tasks, command: Command, way: str
) -> None:
    broken = await tasks.ended(3)
    meant = [
        *await tasks.ended(1, reason="canceled"),
        *await tasks.ended(1, reason="content_rejected"),
    ]

    async def retry(**filters: list[str] | str) -> None:
        if way == "http":
            await act(web, "retry", **filters)
            return
        words = [
            word for name, given in filters.items()
            for each in ([given] if isinstance(given, str) else given)
            for word in (f"--{name}", each)
        ]  # fmt: skip
        assert (await command("retry", *words, "--yes")).exit_code == 0

    await retry(state="failed")
    assert (await tasks.runs(broken), await tasks.runs(meant)) == ({"2"}, {"1"})
    await retry(reason=["upstream_error", "canceled"])
    assert await tasks.runs(meant[:1]) == {"2"}
    assert await tasks.runs(meant[1:]) == {"1"}


@pytest.mark.parametrize(
    ("action", "params"),
    [
        ("retry", {}),
        ("retry", {"until": 5}),
        ("retry", {"labl": "x", "state": "failed"}),
        ("retry", {"state": "stored"}),
        ("cancel", {"state": ["waiting", "failed"]}),
        ("notify", {"state": "waiting"}),
        ("retry", {"state": "failed", "limit": 501}),
        ("retry", {"state": "failed", "cursor": "1:2"}),
        ("retry", {"state": "failed", "reason": "no_such"}),
    ],
)
async def test_a_wish_that_is_not_clear_changes_nothing(
    web: httpx.AsyncClient, tasks: Tasks, action: str, params: dict[str, Any]
) -> None:
    ids = await tasks.ended(2)
    answer = await web.post(f"/api/bulk/{action}", params=params)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert await tasks.states(ids) == {"failed"}


@pytest.mark.parametrize(
    "body",
    ["[]", "{}", '{"task_ids": []}', '{"task_ids": ["a/b"]}', '{"task_ids": ["a"], "more": 1}',
     '{"task_ids": "a"}', "x", "[" * 50_000, '{"task_ids": [' + '"a",' * 500 + '"a"]}'],
)  # fmt: skip
async def test_a_body_that_is_not_clear_changes_nothing(
    web: httpx.AsyncClient, tasks: Tasks, body: str
) -> None:
    answer = await web.post("/api/bulk/retry", content=body, params={"state": "failed"})
    assert answer.status_code == 422, answer.text
    large = await web.post("/api/bulk/retry", content=b" " * 200_000)
    assert large.status_code == 413


async def test_tasks_that_are_named_are_done_as_far_as_they_pass(
    web: httpx.AsyncClient, tasks: Tasks
) -> None:
    canceled = await tasks.ended(1, reason="canceled")
    failed = await tasks.ended(2, label="a")
    other = await tasks.ended(1, label="b")
    stored = await tasks.ended(1, state="stored", reason="")
    body = {"task_ids": [*canceled, *failed, *other, *stored, "nobody", failed[0]]}
    dry = (await web.post("/api/bulk/retry", json=body, params={"dry_run": True})).json()
    assert dry["done"] == 4
    said = (await web.post("/api/bulk/retry", json=body, params={"label": "a"})).json()
    assert sorted(said["task_ids"]) == sorted(failed)
    assert said["not_done"] == {"stored": 1, "unknown": 1}
    assert said["next"] is None
    said = (await web.post("/api/bulk/retry", json=body)).json()
    assert sorted(said["task_ids"]) == sorted([*canceled, *other])
    assert said["not_done"] == {"stored": 1, "unknown": 1, "waiting": 2}


async def test_a_dry_run_counts_what_is_then_done(web: httpx.AsyncClient, tasks: Tasks) -> None:
    await tasks.ended(130, label="a")
    await tasks.ended(40, label="b", state="partial", reason="files_unavailable")
    dry = await act(web, "retry", label="a", dry_run=True)
    assert (dry["done"], len(dry["task_ids"]), dry["next"]) == (130, 20, None)
    later = await tasks.ended(3, label="a", at=dry["until"] + 1)
    said = await act_on_all(web, "retry", label="a", until=dry["until"], limit=50)
    assert sum(each["done"] for each in said) == 130
    assert await tasks.states(later) == {"failed"}


async def test_what_fails_while_a_call_is_on_its_way_is_left_alone(tasks: Tasks) -> None:
    """The last look is the script's: a task may fail again between being chosen and being done."""
    (task_id,) = await tasks.ended(1)
    until = await tasks.registry.now()
    assert await tasks.registry.retry(task_id) == "ok"
    await tasks.fail_again([task_id])
    await tasks.registry.redis.hset(tasks.registry.key("work", task_id), "callbacks", "1")
    for action in (Action.RETRY, Action.NOTIFY):
        assert await tasks.registry.ask(action, [task_id], until=until) == {task_id: "changed"}
    await tasks.registry.retry(task_id)
    said = await tasks.registry.ask(Action.CANCEL, [task_id], until=until)
    assert said == {task_id: "changed"}  # its run began later
    later = await tasks.registry.now()
    assert await tasks.registry.ask(Action.CANCEL, [task_id], until=later) == {task_id: "ok"}


async def test_waiting_tasks_are_canceled_and_those_submitted_later_are_not(
    web: httpx.AsyncClient, tasks: Tasks
) -> None:
    await web.post("/api/tasks", json={"task_ids": [f"w{n}" for n in range(30)], "label": "a"})
    await web.post("/api/tasks", json={"task_ids": ["other"], "label": "b"})
    first = await act(web, "cancel", label="a", limit=10)
    await eventually(lambda: _later(tasks, first["until"]))
    await web.post("/api/tasks", json={"task_ids": ["late"], "label": "a"})
    said = [first, await act(web, "cancel", label="a", cursor=first["next"])]
    asked = {i for each in said for i in each["task_ids"]}
    assert asked == {f"w{n}" for n in range(30)}
    flags = {
        i: await tasks.registry.redis.hget(tasks.registry.key("work", i), "cancel")
        for i in (*asked, "other", "late")
    }
    assert {i for i, flag in flags.items() if flag} == asked


async def _later(tasks: Tasks, time: int) -> bool:
    return await tasks.registry.now() > time


async def test_a_call_that_notifies_may_be_repeated(web: httpx.AsyncClient, tasks: Tasks) -> None:
    ids = await tasks.ended(3, state="stored", reason="")
    await tasks.ended(1, state="stored", reason="")
    redis, key = tasks.registry.redis, tasks.registry.key
    for task_id in ids:
        await redis.hset(key("work", task_id), "callbacks", "1")
    said = await act(web, "notify", state="stored")
    assert (sorted(said["task_ids"]), said["not_done"]) == (ids, {"nobody": 1})
    assert sorted(await redis.zrange(key("due", "tell"), 0, -1)) == ids
    await redis.delete(key("due", "tell"))  # all of them are told
    again = await act(web, "notify", state="stored", until=said["until"])
    assert again["done"] == 3
    assert await redis.zrange(key("due", "tell"), 0, -1) == []
    notified = [int(await redis.hget(key("work", i), "notified") or 0) for i in ids]
    await eventually(lambda: _later(tasks, max(notified)))
    await act(web, "notify", state="stored")  # another action
    assert sorted(await redis.zrange(key("due", "tell"), 0, -1)) == ids


async def test_a_group_is_what_is_done_to_it(web: httpx.AsyncClient, tasks: Tasks) -> None:
    await tasks.ended(60, error="the upstream answered 503 about ID")
    await tasks.ended(25, error="the upstream answered 503")
    await tasks.ended(30, error="the bucket refuses ID.png: 12345 bytes", reason="storage_error")
    await tasks.ended(10, error="the bucket refuses ID.png: 99 bytes", reason="storage_error")
    found = (await web.get("/api/groups")).json()
    assert [group["count"] for group in found["groups"]] == [60, 40, 25]
    assert (found["read"], found["of"]) == (125, 125)
    for group in found["groups"]:
        filters = {name: group[name] for name in ("state", "reason", "group")}
        listed = (await web.get("/api/tasks", params={**filters, "limit": 200})).json()
        assert len(listed["tasks"]) == group["count"]
        assert [t["task_id"] for t in listed["tasks"]][:3] == group["task_ids"]
        assert listed["tasks"][0]["finished_at"] == group["newest"]
        assert listed["tasks"][-1]["finished_at"] == group["oldest"]
        said = await act_on_all(web, "retry", **filters, until=found["until"])
        assert sum(each["done"] for each in said) == group["count"]
    assert (await web.get("/api/groups")).json()["groups"] == []
    assert (await web.get("/api/groups", params={"stat": "x"})).status_code == 422


@pytest.mark.parametrize("ties", [False, True])
async def test_a_text_is_looked_for_among_a_bounded_number_of_tasks(
    web: httpx.AsyncClient, tasks: Tasks, command: Command, monkeypatch: pytest.MonkeyPatch,
    ties: bool,
) -> None:  # fmt: skip
    for module in ("worker.registry.selection", "worker.web.bulk", "worker.cli.bulk",
                   "worker.cli.filters"):  # fmt: skip
        monkeypatch.setattr(f"{module}.NEWEST", 300)
    at = await tasks.registry.now() - 1000 if ties else None
    await tasks.ended(400, error="the Upstream answered 503", at=at)
    found = (await web.get("/api/groups")).json()
    assert (found["read"], found["of"]) == (300, 400)
    assert found["groups"][0]["count"] == 300
    listed: list[str] = []
    page: dict[str, Any] = {"next": None}
    for _ in range(10):
        params = {"error": "upstream answered", "limit": 90}
        page = (await web.get("/api/tasks", params=params | _given(cursor=page["next"]))).json()
        listed += [task["task_id"] for task in page["tasks"]]
        if page["next"] is None:
            break
    assert len(set(listed)) == len(listed) == 300
    assert (await act(web, "retry", error="503", dry_run=True))["done"] == 300
    for words in (("list", "--json"), ("list", "--since", "1d", "--json"), ("export",)):
        limit = ("--limit", "1000") if words[0] == "list" else ()
        shown = await command(*words, *limit, "--error", "503")
        assert shown.stdout.count('"task_id"') == 300, words
        assert "newest 300 of 400" in shown.stderr
    shown = await command("retry", "--error", "503", "--dry-run")
    assert "300 tasks can be retried" in shown.stdout
    assert "newest 300 of 400" in shown.stdout
    said = await act_on_all(web, "retry", error="503", limit=70)
    assert sum(each["done"] for each in said) == 300


def _given(**params: object) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


async def test_filters_choose_what_a_look_at_every_record_finds(
    web: httpx.AsyncClient, tasks: Tasks, command: Command
) -> None:
    chance = random.Random(5)
    for _ in range(12):
        await tasks.ended(
            12,
            state=chance.choice(["failed", "partial"]),
            reason=chance.choice(["upstream_error", "canceled", "storage_error"]),
            error=chance.choice(["", "HTTP 503 of ID", "HTTP 404", "Gone: 503"]),
            label=chance.choice(["", "a", "b"]),
        )
    records = [
        record
        for state in ("failed", "partial")
        for record in await tasks.registry.records(
            await tasks.registry.redis.zrange(tasks.registry.key("index", state), 0, -1)
        )
        if record
    ]
    now = await tasks.registry.now()
    for _ in range(25):
        given = _given(
            state=chance.choice([None, ["failed"], ["partial", "failed"]]),
            reason=chance.choice([None, ["canceled"], ["storage_error", "canceled"]]),
            label=chance.choice([None, ["a"], ["", "b"]]),
            error=chance.choice([None, "503", "http"]),
            since=chance.choice([None, now - 100]),
            until=chance.choice([None, now - 20]),
        )
        wanted = {
            record["task_id"]
            for record in records
            if record["state"] in given.get("state", ["failed", "partial"])
            and record["reason"] in given.get("reason", [record["reason"]])
            and record["label"] in given.get("label", [record["label"]])
            and given.get("error", "").lower() in record["error"].lower()
            and given.get("since", 0) <= int(record["finished_at"]) <= given.get("until", now)
        }
        listed = (await web.get("/api/tasks", params={**given, "limit": 200})).json()["tasks"]
        assert {task["task_id"] for task in listed} == wanted, given
        words = [f"--limit={len(records)}"]
        for name, value in given.items():
            values = value if isinstance(value, list) else [value]
            times = name in ("since", "until")
            words += [f"--{name}={_iso(v) if times else v}" for v in values]
        shown = await command("list", "--json", *words)
        assert {task["task_id"] for task in json.loads(shown.stdout)} == wanted, given
        if given.keys() - {"until"}:
            dry = await act(web, "retry", **given, dry_run=True)
            left_out = {"canceled", "content_rejected"} - set(given.get("reason", ()))
            assert dry["done"] == sum(
                r["task_id"] in wanted and r["reason"] not in left_out for r in records
            ), given


def _iso(time: int) -> str:
    return datetime.fromtimestamp(time / 1000, UTC).isoformat(timespec="milliseconds")


# -- the commands --------------------------------------------------------------------------------


async def test_a_command_shows_what_it_would_do_and_does_that(
    tasks: Tasks, command: Command
) -> None:
    ids = [*await tasks.ended(800), *await tasks.ended(400, reason="storage_error")]
    await tasks.ended(5, reason="canceled")
    dry = await command("retry", "--state", "failed", "--dry-run")
    assert dry.exit_code == 0
    assert (
        "1,200 tasks can be retried: 800 failed upstream_error, 400 failed storage_error"
        in dry.stdout
    )
    assert "… and 1,190 more" in dry.stdout
    assert await tasks.runs(ids) == {"1"}
    refused = await command("retry", "--state", "failed")
    assert refused.exit_code == 2
    assert "add --yes" in refused.stderr
    assert await tasks.runs(ids) == {"1"}
    done = await command("retry", "--state", "failed", "--yes")
    assert done.exit_code == 0
    assert "1,200 retried" in done.stdout
    assert "1,200 of 1,200" in done.stderr
    assert await tasks.runs(ids) == {"2"}
    again = await command("retry", "--state", "failed", "--yes", "--json")
    assert json.loads(again.stdout)["matched"] == 0


async def test_a_command_reads_ids_from_a_file(
    tasks: Tasks, command: Command, tmp_path: Path
) -> None:
    ids = [*await tasks.ended(600), *await tasks.ended(1, reason="canceled")]
    file = tmp_path / "ids"
    file.write_text("# failed yesterday\n\n" + "\n".join([*ids, ids[0]]) + "\n")
    done = await command("retry", "--from-file", str(file), "--yes", "--json")
    said = json.loads(done.stdout)
    assert (done.exit_code, said["done"], said["not_done"]) == (0, 601, {})
    assert await tasks.runs(ids) == {"2"}
    again = await command("retry", "--from-file", str(file), "--yes", "--json")
    assert (again.exit_code, json.loads(again.stdout)["not_done"]) == (1, {"waiting": 601})
    file.write_text(f"nobody\n{'x' * 10_000}\n{ids[5]}\n")
    shown = await command("list", "--from-file", str(file), "--json")
    assert [task["task_id"] for task in json.loads(shown.stdout)] == [ids[5]]
    exported = await command("export", "--from-file", str(file), "--state", "waiting")
    assert [json.loads(line)["task_id"] for line in exported.stdout.splitlines()] == [ids[5]]
    asked = await command("cancel", "--from-file", "-", input=ids[5])
    assert (asked.exit_code, asked.stderr) == (2, "nothing was done: add --yes\n")
    done = await command("cancel", "--from-file", "-", "--yes", input=ids[5])
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "1 canceled")
    file.write_bytes(b"\xef\xbb\xbf" + ids[7].encode() + b"\r\n" + ids[8].encode())  # of Windows
    for source, given in ((str(file), None), ("-", file.read_text())):
        shown = await command("list", "--from-file", source, "--json", input=given)
        assert [task["task_id"] for task in json.loads(shown.stdout)] == [ids[7], ids[8]]
    missing = await command("retry", "--from-file", str(tmp_path / "none"), "--yes")
    assert missing.exit_code == 2


async def test_a_command_that_is_cut_off_says_where_to_go_on(
    tasks: Tasks, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await tasks.ended(1200)
    ask, calls = Registry.ask, []

    async def fails_later(self: Registry, *args: Any, **options: Any) -> dict[str, str]:
        calls.append(args)
        if len(calls) == 2:
            raise RegistryUnavailable("gone")
        return await ask(self, *args, **options)

    monkeypatch.setattr(Registry, "ask", fails_later)
    stopped = await command("retry", "--state", "failed", "--yes")
    assert stopped.exit_code == 3
    (said,) = re.findall(r"stopped after 500 of 1,200 tasks; continue with (.+)", stopped.stderr)
    retried = [i for i, state in (await tasks.registry.states(ids)).items() if state == "waiting"]
    await tasks.fail_again(retried)
    await command("retry", "--state", "failed", "--yes", *said.split())
    assert await tasks.runs(ids) == {"2"}


async def test_ids_and_filters_do_not_go_together(command: Command) -> None:
    for words in (
        "retry", "retry a --state failed", "cancel --state failed", "notify --state waiting",
        "retry --error=", "retry --since soon", "retry --state failed --json",
    ):  # fmt: skip
        assert (await command(*words.split())).exit_code == 2, words


async def test_a_task_that_something_else_has_overwritten_holds_up_no_other(
    web: httpx.AsyncClient, tasks: Tasks
) -> None:
    ids = await tasks.ended(5)
    redis, key = tasks.registry.redis, tasks.registry.key
    await redis.set(key("task", ids[1]), "something else")
    await redis.delete(key("work", ids[3]))
    await redis.set(key("work", ids[3]), "something else")
    said = await act(web, "retry", state="failed")
    assert sorted(said["task_ids"]) == [ids[0], ids[2], ids[4]]
    assert said["not_done"] == {"unknown": 1}  # the other one is no task any more
    assert (await web.get("/api/groups")).json()["groups"][0]["count"] == 1
