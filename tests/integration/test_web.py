"""The HTTP API on a real Valkey and a real bucket; the figures it shows, and who may ask."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from playwright.async_api import async_playwright, expect
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from config.settings import load_settings
from tests.bench.page import fill
from tests.fleet import Fleet
from tests.support import BOUND, eventually, joined, needs
from worker.cli.web import make
from worker.errors import SettingsError
from worker.sandbox.simulator import Simulator
from worker.web import stream
from worker.web.connections import make_server

TOKEN = "a-token-of-the-tests"
METRICS = {
    "harvester_tasks", "harvester_polls", "harvester_poll_lag_seconds",
    "harvester_detection_lag_seconds", "harvester_files_stored", "harvester_bytes_stored",
    "harvester_copy_seconds", "harvester_url_life_left_seconds", "harvester_due",
    "harvester_due_lag_seconds", "harvester_leases_expired", "harvester_stale_writes",
    "harvester_circuit_open", "harvester_workers", "harvester_poll_price_seconds",
    "harvester_worker_info", "harvester_last_success_timestamp_seconds",
    "harvester_out_of_reach", "harvester_webhook_hosts_failing", "harvester_endings",
    "harvester_callbacks", "harvester_refused", "harvester_intake_entries",
}  # fmt: skip


@asynccontextmanager
async def serving(
    host: str = "127.0.0.1", *, base: str = "http://localhost:8080"
) -> AsyncIterator[httpx.AsyncClient]:
    """The application and a client of it, the way ``harvester web`` makes it."""
    app = make(load_settings(), host)
    began, over = asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, str]:
        if not began.is_set():
            began.set()
            return {"type": "lifespan.startup"}
        await over.wait()
        return {"type": "lifespan.shutdown"}

    started = asyncio.Event()

    async def send(message: dict[str, str]) -> None:
        assert "failed" not in message["type"]
        started.set()

    life = asyncio.create_task(app({"type": "lifespan", "state": {}}, receive, send))
    await started.wait()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base) as client:
            yield client
    finally:
        over.set()
        await life


@asynccontextmanager
async def listening() -> AsyncIterator[str]:
    """The application on a free port; gives its address."""
    server = make_server(make(load_settings(), "127.0.0.1"), host="127.0.0.1", port=0)
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    try:
        yield f"http://localhost:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await joined(task)


@pytest.fixture
async def web(settings: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving() as client:
        yield client


async def test_accepted_means_that_the_record_exists(
    web: httpx.AsyncClient, redis: Redis, namespace: str
) -> None:
    body = '{"task_ids": ["w1", "no/id", "w2"], "metadata": {"n": 12345678901234567890.50}}'
    answer = await web.post("/api/tasks", content=body)
    assert answer.status_code == 201
    assert answer.json()["tasks"] == [
        {"task_id": "w1", "new": True}, {"task_id": "w2", "new": True},
    ]  # fmt: skip
    assert [refused["value"] for refused in answer.json()["refused"]] == ["no/id"]
    assert await redis.hget(f"{namespace}:task:w1", "state") == "waiting"
    again = await web.post("/api/tasks", json={"task_ids": "w1"})
    assert (again.status_code, again.json()["tasks"]) == (200, [{"task_id": "w1", "new": False}])
    shown = await web.get("/api/tasks/w1")
    assert '"metadata":{"n":12345678901234567890.50}' in shown.text
    assert shown.json()["state"] == "waiting"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 422),
        ("[]", 422),
        ('{"task_ids": []}', 422),
        ('{"task_ids": ["../x"]}', 422),
        ('{"task_ids": ["a"], "metadata": "' + "x" * 2_200_000 + '"}', 413),
    ],
    ids=["empty", "list", "no ids", "bad id", "large"],
)
async def test_what_is_refused_is_a_problem_that_says_why(
    web: httpx.AsyncClient, body: str, status: int
) -> None:
    answer = await web.post("/api/tasks", content=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


async def test_bodies_that_arrive_at_once_take_bounded_memory(
    web: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.web.desk._BODIES", 10_000)
    arriving = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"task_ids": ["slow"], "metadata": {"a": "' + b"x" * 9000
        arriving.set()
        await over.wait()
        yield b'"}}'

    over = asyncio.Event()
    slow = asyncio.create_task(web.post("/api/tasks", content=slowly()))
    await arriving.wait()
    body = json.dumps({"task_ids": ["quick"], "metadata": {"a": "x" * 2000}})
    assert (await web.post("/api/tasks", content=body)).status_code == 503
    over.set()
    assert (await joined(slow)).status_code == 201
    assert (await web.post("/api/tasks", content=body)).status_code == 201


async def test_unknown_tasks_and_impossible_wishes(web: httpx.AsyncClient) -> None:
    await web.post("/api/tasks", json={"task_ids": ["w1"]})
    assert (await web.get("/api/tasks/nobody")).status_code == 404
    assert (await web.post("/api/tasks/nobody/retry")).status_code == 404
    assert (await web.post("/api/tasks/w1/retry")).status_code == 409
    assert (await web.get("/api/tasks/w1/urls")).status_code == 409
    assert (await web.post("/api/tasks/w1/cancel")).status_code == 202
    wrong = await web.get("/api/tasks", params={"state": "no", "limit": "many"})
    assert wrong.status_code == 422
    assert wrong.headers["content-type"] == "application/problem+json"
    assert "state.0: " in wrong.json()["detail"]
    assert "limit: " in wrong.json()["detail"]
    assert (await web.get("/api/tasks", params={"cursor": "x"})).status_code == 422
    assert (await web.get("/no/such")).headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("entry", ["now", "1-", "9" * 20, "1-٣"])
async def test_the_event_stream_begins_after_an_entry_id(
    web: httpx.AsyncClient, entry: str
) -> None:
    assert (await web.get("/api/events", params={"after": entry})).status_code == 422
    answer = await web.get("/api/events", headers={"Last-Event-ID": entry.encode()})
    assert answer.status_code == 422


async def test_pages_show_every_task_once_newest_first(web: httpx.AsyncClient) -> None:
    wanted = [f"w{n:02}" for n in range(25)]  # in order too where they share a millisecond
    for n, task_id in enumerate(wanted):
        label = "even" if n % 2 == 0 else "odd"
        await web.post("/api/tasks", json={"task_ids": [task_id], "label": label})
    await web.post("/api/tasks", json={"task_ids": [f"z{n}" for n in range(12)], "label": "odd"})

    async def pages(**params: str) -> list[str]:
        found: list[str] = []
        for _ in range(50):
            page = (await web.get("/api/tasks", params={"limit": "5", **params})).json()
            assert len(page["tasks"]) <= 5
            found += [task["task_id"] for task in page["tasks"]]
            if page["next"] is None:
                return found
            params["cursor"] = page["next"]
        raise AssertionError("pages without end")

    everything = await pages()
    assert len(everything) == 37
    assert everything[12:] == wanted[::-1]
    assert await pages(label="even") == wanted[::2][::-1]
    assert await pages(state="waiting") == everything
    assert await pages(state="failed") == []
    assert len(await pages(since="0")) == 37
    late = "9999999999999999:x"  # of a list with another bound
    assert await pages(until="1", cursor=late) == await pages(until="1", label="odd", cursor=late)
    assert await pages(until="1", cursor=late) == []


@settings_of(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    minutes=st.sampled_from([1, 5, 7, 1440]),
    ago=st.lists(st.integers(0, 500_000), min_size=1, max_size=30),
)
async def test_every_ending_is_counted_in_the_span_it_is_of(
    redis: Redis, namespace: str, web: httpx.AsyncClient, minutes: int, ago: list[int]
) -> None:
    seconds, _ = await redis.time()
    ended = {f"t{n}": int(seconds) * 1000 - before for n, before in enumerate(ago)}
    for state in ("stored", "partial", "failed"):
        await redis.delete(f"{namespace}:index:{state}")
        await redis.zadd(f"{namespace}:index:{state}", ended)
    answer = (await web.get("/api/endings", params={"minutes": minutes})).json()
    begin, step = answer["begin"], answer["step"]
    assert step == minutes * 1000
    assert begin <= answer["now"] - 59 * step < begin + step
    wanted = [0] * 60
    for at in ended.values():
        if begin <= at < begin + 60 * step:
            wanted[(at - begin) // step] += 1
    assert answer["counts"] == dict.fromkeys(("stored", "partial", "failed"), wanted)


async def test_what_is_tried_again_has_not_ended(
    web: httpx.AsyncClient, redis_url: str, namespace: str
) -> None:
    await fill(redis_url, 100, namespace=namespace)

    async def failed() -> int:
        return sum((await web.get("/api/endings")).json()["counts"]["failed"])

    assert await failed() == 8
    some = (await web.get("/api/tasks", params={"state": "failed"})).json()["tasks"][0]["task_id"]
    assert (await web.post(f"/api/tasks/{some}/retry")).status_code == 202
    assert await failed() == 7


@pytest.mark.parametrize("query", ["minutes=0", "minutes=43201", "minutes=x", "hours=1"])
async def test_a_span_that_is_refused_says_so(web: httpx.AsyncClient, query: str) -> None:
    answer = await web.get(f"/api/endings?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["detail"]


async def test_a_task_from_handing_in_to_its_pictures(
    web: httpx.AsyncClient,
    settings: dict[str, str],
    simulator: Simulator,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = simulator.submit({"simulate": {"duration": 0.5, "images": ["png"]}})
    bad = simulator.submit({"simulate": {"end": "failed"}})
    assert (await web.get("/readyz")).status_code == 503
    async with Fleet(settings, tmp_path_factory.mktemp("fleet"), size=1):
        await web.post("/api/tasks", json={"task_ids": [good, bad], "label": "poster"})
        record = await eventually(lambda: _final(web, good))
        await eventually(lambda: _final(web, bad))
        assert record["state"] == "stored"
        urls = (await web.get(f"/api/tasks/{good}/urls")).json()["files"]
        async with httpx.AsyncClient(timeout=BOUND) as client:
            picture = await client.get(urls[0]["url"])
        assert picture.status_code == 200
        assert len(picture.content) == record["files"][0]["bytes"]
        # where browsers reach the store elsewhere, addresses lead there and the page may load them
        outside = settings["AWS_ENDPOINT_URL_S3"].replace("127.0.0.1", "localhost")
        monkeypatch.setenv("HARVESTER_PRESIGN_ENDPOINT", f"{outside}/")
        async with serving() as other:
            urls = (await other.get(f"/api/tasks/{good}/urls")).json()["files"]
            assert urls[0]["url"].startswith(f"{outside}/")
            policy = (await other.get("/")).headers["content-security-policy"]
            assert f"img-src 'self' data: {outside};" in policy
        assert (await web.get("/readyz")).status_code == 200
        stats = (await web.get("/api/stats")).json()
        assert (stats["tasks"]["stored"], stats["tasks"]["failed"]) == (1, 1)
        assert [worker["alive"] for worker in stats["workers"]] == [True]
        await eventually(lambda: _counted(web), what="counters of a tick")
    text = (await web.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == METRICS
    stored = {s.labels["state"]: s.value for s in families["harvester_tasks"].samples}
    assert stored["stored"] == 1
    (files,) = families["harvester_files_stored"].samples
    assert (files.name, files.value) == ("harvester_files_stored_total", 1)
    copies = {s.name: s.value for s in families["harvester_copy_seconds"].samples
              if s.labels.get("le", "+Inf") == "+Inf"}  # fmt: skip
    assert copies["harvester_copy_seconds_count"] == 1
    listed = (await web.get("/api/tasks", params={"state": "failed"})).json()["tasks"]
    assert [task["task_id"] for task in listed] == [bad]
    assert (await web.post(f"/api/tasks/{bad}/retry")).status_code == 202


async def _final(web: httpx.AsyncClient, task_id: str) -> dict[str, object] | None:
    record = (await web.get(f"/api/tasks/{task_id}", params={"wait": 1})).json()
    return record if record["state"] in ("stored", "failed") else None


async def _counted(web: httpx.AsyncClient) -> bool:
    counters = (await web.get("/api/stats")).json()["counters"]
    return bool(counters.get("files_stored")) and any(n.startswith("polls:") for n in counters)


async def test_events_are_streamed_from_where_the_reader_left_off(
    settings: dict[str, str], redis: Redis, namespace: str
) -> None:
    first = await redis.xadd(f"{namespace}:events", {"task_id": "e1", "state": "stored"})
    second = await redis.xadd(f"{namespace}:events", {"task_id": "e2", "state": "failed"})
    async with listening() as base:
        async with (
            httpx.AsyncClient(base_url=base, timeout=BOUND) as client,
            client.stream("GET", "/api/events", headers={"Last-Event-ID": first}) as answer,
        ):
            assert answer.headers["content-type"].startswith("text/event-stream")
            seen: list[str] = []
            async for line in answer.aiter_lines():
                seen.append(line)
                if line == "event: stats":
                    break
        assert f"id: {second}" in seen
        assert json.loads(seen[seen.index("event: final") + 1][6:])["task_id"] == "e2"
        assert f"id: {first}" not in seen


async def test_silence_of_redis_is_said_and_costs_no_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "_SILENT", 0.01)
    goes_on, closed = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncGenerator[str]:
        try:
            yield "first"
            await goes_on.wait()
            yield "second"
            await asyncio.Event().wait()
        finally:
            closed.set()

    silent = "event: unavailable\n\n"
    said = stream._with_silence(source(), lambda: silent)
    assert await anext(said) == "first"
    assert [await anext(said) for _ in range(3)] == [silent] * 3
    goes_on.set()
    after = [await anext(said)]
    while after[-1] == silent:
        after.append(await anext(said))
    assert after[-1] == "second"
    assert await anext(said) == silent
    await said.aclose()
    assert closed.is_set()


# -- who may ask -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "X-Forwarded-Proto",
        "X_Forwarded_For", "X-Original-Forwarded-For", "X-Client-IP", "CF-Connecting-IP",
        "True-Client-IP", "X-Envoy-External-Address", "CDN-Loop", "Max-Forwards",
    ],
)  # fmt: skip
async def test_a_proxy_on_this_machine_opens_nothing(
    settings: dict[str, str], header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as web:
        refused = await web.get("/api/stats", headers={header: "198.51.100.7"})
        assert refused.status_code == 403
        assert "HARVESTER_WEB_TOKEN" in refused.json()["detail"]
        assert (await web.get("/api/stats")).status_code == 200
    monkeypatch.setenv("HARVESTER_WEB_TOKEN", "a-token-of-some-length")
    async with serving() as web:
        allowed = {header: "198.51.100.7", "Authorization": "Bearer a-token-of-some-length"}
        assert (await web.get("/api/stats", headers=allowed)).status_code == 200


async def test_beyond_loopback_a_token_is_needed(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="HARVESTER_WEB_TOKEN"):
        make(load_settings(), "0.0.0.0")
    monkeypatch.setenv("HARVESTER_WEB_TOKEN", TOKEN)
    async with serving("0.0.0.0", base="http://harvester.example") as web:
        for path in ("/api/tasks", "/api/stats", "/api/events", "/metrics"):
            answer = await web.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        wrong = await web.get("/api/stats", headers={"Authorization": f"Bearer {TOKEN}x"})
        assert wrong.status_code == 401
        right = await web.get("/api/stats", headers={"Authorization": f"Bearer {TOKEN}"})
        assert right.status_code == 200
        for path in ("/healthz", "/", "/tasks", "/tasks/w1", "/static/page.js"):
            assert (await web.get(path)).status_code == 200
        for path in ("/tasksx", "/tasks/../api/stats", "/static/../api/stats", "/api/endings"):
            assert (await web.get(path)).status_code == 401


async def test_pages_of_other_sites_are_kept_out(web: httpx.AsyncClient) -> None:
    rebound = await web.get("/api/stats", headers={"Host": "evil.example:8080"})
    assert rebound.status_code == 403
    posted = await web.post(
        "/api/tasks", json={"task_ids": ["w1"]}, headers={"Origin": "http://evil.example"}
    )
    assert posted.status_code == 403
    own = await web.post(
        "/api/tasks", json={"task_ids": ["w1"]}, headers={"Origin": "http://localhost:8080"}
    )
    assert own.status_code == 201


async def test_the_page_comes_with_a_strict_policy(web: httpx.AsyncClient) -> None:
    page = await web.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for address in ("/tasks", "/tasks/any.id:1", "/tasks?state=failed"):
        other = await web.get(address)
        assert (other.content, other.headers["content-security-policy"]) == (page.content, policy)
    for name in ("page.js", "page.css", "words.js"):
        part = await web.get(f"/static/{name}")
        assert (part.status_code, part.headers["cache-control"]) == (200, "no-cache")
    assert (await web.get("/tasks/a/b")).status_code == 404
    assert (await web.get("/openapi.json")).json()["paths"].keys() >= {"/api/tasks", "/metrics"}


async def test_redis_away_is_said(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    async with serving() as web:
        for path in ("/api/stats", "/readyz"):
            answer = await web.get(path)
            assert answer.status_code == 503
            assert "Redis" in answer.json()["detail"]
        for path in ("/api/stats", "/api/events", "/api/tasks/t1"):
            answer = await web.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            redis = answer.json()["services"]["redis"]
            assert redis["out_of_reach_since"] <= redis["trouble_at"]
            assert "out of reach" in redis["trouble"]
            assert redis["remedy"]
            assert redis["meanwhile"]
        answer = await web.get("/metrics")
        assert answer.status_code == 200
        assert 'harvester_out_of_reach{service="redis"} 1.0' in answer.text
        assert "harvester_tasks" not in answer.text
        assert (await web.get("/healthz")).status_code == 200


# -- the page in a browser -------------------------------------------------------------------------

expect.set_options(timeout=1000 * BOUND)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


@pytest.mark.page
@needs("chromium", CHROMIUM)
async def test_the_page_shows_what_happens_and_starts_tasks_again(
    settings: dict[str, str], simulator: Simulator, redis: Redis, namespace: str, tmp_path: Path
) -> None:
    good = simulator.submit({"simulate": {"images": ["png"]}})
    bad = simulator.submit({"simulate": {"end": "failed"}})
    async with listening() as base, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = await browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(base)
        await expect(page.locator("#count-waiting strong")).to_have_text("0")
        await expect(page.locator("#incidents")).to_contain_text("No worker is alive")
        async with Fleet(settings, tmp_path, size=1):
            async with httpx.AsyncClient(base_url=base, timeout=BOUND) as client:
                body = {"task_ids": [good, bad], "label": HOSTILE}
                assert (await client.post("/api/tasks", json=body)).status_code == 201
            await expect(page.locator("#count-stored strong")).to_have_text("1")
            await expect(page.locator("#count-failed strong")).to_have_text("1")
            await expect(page.locator("#list")).to_contain_text(HOSTILE)
            await page.locator("#failed button", has_text="Retry").click()
            run = f"{namespace}:task:{bad}", "run"
            await eventually(lambda: _equals(redis.hget(*run), "2"), what="the second run")
        await page.locator("#find").fill(good)
        await page.keyboard.press("Enter")
        picture = page.locator("#gallery img")
        await expect(picture).to_be_visible()
        await eventually(lambda: picture.evaluate("image => image.naturalWidth"), what="a picture")
        assert await page.title() == f"{good} · comfy-harvester"
        assert errors == []
        await browser.close()


async def _equals(value: Awaitable[str], wanted: str) -> bool:
    return await value == wanted
