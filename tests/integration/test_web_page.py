"""The page in a browser: addresses, errors in their place, endings, outages, languages, and axe."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest
from playwright.async_api import Browser, Page, Route, async_playwright, expect
from redis.asyncio import Redis

from tests.bench.page import fill, record
from tests.integration.test_web import CHROMIUM, FLAGS, TOKEN, listening
from tests.integration.test_web_looks import too_wide
from tests.support import BOUND, needs
from worker.core.models import State
from worker.registry.registry import Registry
from worker.sandbox.servers import Valkey

pytestmark = [pytest.mark.page, needs("chromium", CHROMIUM)]
AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
DESK, PHONE = {"width": 1000, "height": 900}, {"width": 320, "height": 640}


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        await browser.close()


@pytest.fixture
async def registry(redis_url: str, namespace: str) -> AsyncIterator[Registry]:
    """The registry that the page's server reads, to write records as workers would."""
    redis = Redis.from_url(redis_url, decode_responses=True, protocol=2)
    registry = Registry(
        redis, namespace=namespace, lease=60, poll_rate=20, deadline=86_400,
        record_ttl=0, events_maxlen=1000,
    )  # fmt: skip
    yield registry
    await registry.close()


@pytest.fixture
async def base(settings: dict[str, str], redis_url: str, namespace: str) -> AsyncIterator[str]:
    """A served page of 100 tasks: 25 waiting, 65 stored, 2 partial, 8 failed."""
    await fill(redis_url, 100, namespace=namespace)
    async with listening() as address:
        yield address


@asynccontextmanager
async def tab(browser: Browser, address: str, **more: Any) -> AsyncIterator[Page]:
    """A page of a browser profile of its own; no error of a script goes unseen."""
    context = await browser.new_context(**more)
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        await page.goto(address)
        yield page
    finally:
        await context.close()
    assert errors == []


def rows(page: Page) -> Any:
    return page.locator("#list tbody tr")


async def lost(registry: Registry, task_id: str, **more: str) -> None:
    """A partial task: one file in the bucket, 70 lost."""
    made = record(0, State.PARTIAL, await registry.now())
    files = json.loads(made["files"]) + [
        {"name": f"images/{n}", "refs": [f"/images/{n}"], "error": f"answered 404 <b>{n}</b>"}
        for n in range(1, 71)
    ]
    wanted = {"task_id": task_id, "files": json.dumps(files), "reason": "files_unavailable", **more}
    assert await registry.restore(made | wanted)


# -- addresses -------------------------------------------------------------------------------------


async def test_every_filter_and_task_has_an_address(browser: Browser, base: str) -> None:
    async with tab(browser, base) as page:
        await page.locator("#count-failed a").click()
        await expect(page).to_have_url(f"{base}/tasks?state=failed")
        await expect(rows(page)).to_have_count(8)
        await expect(page.locator("#states input:checked")).to_have_value("failed")
        await expect(page.locator("#count-failed a")).to_have_attribute("aria-current", "true")
        first = page.locator("#list tbody a.id").first
        task_id = await first.inner_text()
        await first.click()
        await expect(page).to_have_url(f"{base}/tasks/{task_id}")
        for again in (True, False):
            await expect(page.locator("#task")).to_be_visible()
            await expect(page.locator("#task-facts")).to_contain_text("4711")
            await expect(rows(page)).to_have_count(8)
            if again:
                await page.reload()
        await page.keyboard.press("Escape")
        await expect(page).to_have_url(f"{base}/tasks?state=failed")
        await expect(page.locator("#task")).to_be_hidden()
        await page.go_forward()
        await expect(page.locator("#task-title")).to_have_text(task_id)
        await expect(page.locator("#task")).to_be_visible()
        for _ in range(2):
            await page.go_back()
        await expect(page).to_have_url(f"{base}/")
        await expect(page.locator("#h-flow")).to_be_visible()
    async with tab(browser, f"{base}/tasks/{task_id}") as page:  # as somebody has sent it
        await expect(page.locator("#task-facts")).to_contain_text("4711")
        await page.locator("#task-close").click()
        await expect(page).to_have_url(f"{base}/tasks")
        await page.go_back()
        await expect(page).to_have_url("about:blank")


@pytest.mark.parametrize(
    "path", ["%", "%E0%A4%A", "no such task", "<img src=x onerror=alert(1)>", "x" * 200]
)
async def test_an_address_of_no_task_says_so(browser: Browser, base: str, path: str) -> None:
    address = path if path.startswith("%") else quote(path)
    async with tab(browser, f"{base}/tasks/{address}") as page:
        await expect(page.locator("#task-title")).to_have_text(path)
        said = page.locator("#task").get_by_text("There is no task").or_(page.locator(".fault"))
        await expect(said).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(rows(page)).to_have_count(50)


async def test_a_reason_leads_to_its_list(browser: Browser, base: str) -> None:
    async with tab(browser, base) as page:
        await page.locator("#groups a", has_text="failed upstream").click()
        await expect(rows(page)).to_have_count(8)
        assert "reason=upstream_failed" in page.url
        await expect(page.locator("#h-list")).to_contain_text("failed upstream")
        await expect(page.locator("#reason")).to_have_value("upstream_failed")


async def test_filters_apply_when_they_are_asked_for(
    browser: Browser, base: str, registry: Registry
) -> None:
    async with tab(browser, f"{base}/tasks") as page:
        await expect(rows(page)).to_have_count(50)
        await page.locator("#label").fill("poster")
        await page.locator("#states").get_by_label("failed").check()
        await lost(registry, "newcomer")  # has the list refresh itself
        await expect(page.locator("#list")).to_contain_text("newcomer")
        await expect(rows(page)).to_have_count(50)
        await page.locator("#filter button").click()
        await expect(page.locator("#empty")).to_have_text("No task matches this filter.")
        assert page.url == f"{base}/tasks?state=failed&label=poster"


async def test_a_filter_that_is_refused_says_so_in_its_place(browser: Browser, base: str) -> None:
    async with tab(browser, f"{base}/tasks?state=lost") as page:
        await expect(page.locator("[data-place=list] .fault")).to_contain_text("state")
        await expect(page.locator("#list")).to_be_hidden()
        await expect(page.locator("#empty")).to_be_hidden()
        await page.locator("#filter a").click()
        await expect(rows(page)).to_have_count(50)


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
async def test_an_address_of_anything_breaks_nothing(
    browser: Browser, base: str, locale: str
) -> None:
    names = ("constructor", "__proto__", "toString", "{n}", "$&", "%", "<b>", "")
    async with tab(browser, base, locale=locale) as page:
        for name in names:
            for field in ("reason", "label", "error", "within", "view", "group", "state", "else"):
                await page.evaluate(
                    """address => { history.pushState(null, "", address);
                      dispatchEvent(new PopStateEvent("popstate")); }""",
                    f"/tasks?{field}={quote(name)}",
                )
        await page.evaluate("history.pushState(null, '', '/tasks?state=failed')")
        await page.evaluate("dispatchEvent(new PopStateEvent('popstate'))")
        await expect(rows(page)).to_have_count(8)


async def test_pictures_are_fetched_as_they_come_into_view(browser: Browser, base: str) -> None:
    async with tab(browser, "about:blank", viewport=PHONE) as page:
        asked: list[str] = []

        async def answer(route: Route) -> None:
            asked.append(route.request.url)
            picture = {"name": "images/0", "content_type": "image/svg+xml", "url": "data:,"}
            await route.fulfill(json={"files": [picture], "expires": 3600})

        await page.route("**/urls", answer)
        await page.goto(f"{base}/tasks?state=stored&view=pictures")
        await expect(page.locator("#pictures li")).to_have_count(50)
        await page.locator("#pictures li").first.scroll_into_view_if_needed()
        await expect(page.locator("#pictures .frame").first).to_have_text("image/svg+xml")
        assert 0 < len(asked) < 25
        await page.locator("#pictures li").last.scroll_into_view_if_needed()
        await expect(page.locator("#pictures .frame").last).to_have_text("image/svg+xml")


# -- a task ----------------------------------------------------------------------------------------


async def test_a_task_shows_what_was_lost_and_what_came_with_it(
    browser: Browser, base: str, registry: Registry
) -> None:
    metadata = json.dumps({"order": 4712, "customer": {"name": "<i>Ada</i>"}, "x" * 300: "y"})
    await lost(registry, "some-lost", label="poster <b>", metadata=metadata)
    async with tab(browser, f"{base}/tasks/some-lost") as page:
        facts = page.locator("#task-facts")
        for text in ("4712", '{"name":"<i>Ada</i>"}', "poster <b>", "files are gone"):
            await expect(facts).to_contain_text(text)
        losses = page.locator("#task-lost")
        await expect(losses).to_contain_text("70 files lost")
        await expect(losses).to_contain_text("answered 404 <b>1</b>")
        await expect(losses.locator("li")).to_have_count(60)
        await expect(losses.locator("li").first).to_be_hidden()
        await losses.locator("summary").click()
        await expect(losses.locator("li").first).to_be_visible()
        await expect(losses).to_contain_text("and 10 more")


async def test_the_dialog_follows_its_task(
    browser: Browser, base: str, redis: Redis, namespace: str
) -> None:
    key = f"{namespace}:task:w00000003"
    async with tab(browser, f"{base}/tasks/w00000003") as page:
        await expect(page.locator("#task-state")).to_contain_text("waiting")
        await redis.hset(key, mapping={"state": "copying", "updated_at": "1795518046000"})
        await expect(page.locator("#task-state")).to_contain_text("copying")
        await expect(page.locator("#task-actions [data-action=look]")).to_have_count(0)
        await redis.hset(
            key, mapping={"state": "failed", "reason": "poisoned", "finished_at": "1795518046000"}
        )
        await expect(page.locator("#task-state")).to_contain_text("failed")
        await expect(page.locator("#task-facts")).to_contain_text("poisoned")
        await expect(page.locator("#task-actions [data-action=retry]")).to_be_visible()


async def test_cancel_asks_first(browser: Browser, base: str, redis: Redis, namespace: str) -> None:
    async with tab(browser, f"{base}/tasks/w00000003") as page:
        sent: list[str] = []
        page.on("request", lambda request: request.method == "POST" and sent.append(request.url))
        cancel = page.locator("#task-actions [data-action=cancel]")
        for way in (page.keyboard.press("Escape"), page.locator("#ask-no").click()):
            await cancel.click()
            await expect(page.locator("#ask")).to_contain_text("w00000003")
            await way
            await expect(page.locator("#ask")).to_be_hidden()
            await expect(page.locator("#task")).to_be_visible()
            await expect(cancel).to_be_focused()
        assert sent == []
        await cancel.click()
        await page.locator("#ask-yes").click()
        await expect(page.locator("#task-actions")).to_contain_text("cancellation requested")
        assert sent == [f"{base}/api/tasks/w00000003/cancel"]


async def test_a_question_is_gone_with_what_it_was_about(browser: Browser, base: str) -> None:
    async with tab(browser, f"{base}/tasks?state=waiting") as page:
        await page.locator("#list a.id").first.click()
        await page.locator("#task-actions [data-action=cancel]").click()
        await expect(page.locator("#ask")).to_be_visible()
        await page.go_back()
        await expect(page.locator("#ask")).to_be_hidden()
        await expect(page.locator("#task")).to_be_hidden()
        await expect(rows(page)).to_have_count(25)


async def test_an_error_stays_where_it_happened_until_it_is_dismissed(
    browser: Browser, base: str, registry: Registry, namespace: str
) -> None:
    async with tab(browser, base) as page:
        first = page.locator("#failed tbody tr").first
        task_id = await first.locator("a.id").inner_text()
        refusal = {"title": "Conflict", "status": 409, "detail": "not now, <b>sorry</b>"}
        await page.route(
            f"**/api/tasks/{task_id}/retry", lambda route: route.fulfill(status=409, json=refusal)
        )
        await first.locator("button").click()
        fault = page.locator(f"[data-place='failed {task_id}'] .fault")
        await expect(fault).to_contain_text("not now, <b>sorry</b>")
        await registry.redis.hset(f"{namespace}:task:{task_id}", "error", "in other words")
        await lost(registry, "another")
        await expect(page.locator("#failed")).to_contain_text("in other words")
        await expect(page.locator("#failed")).to_contain_text("another")
        await expect(page.locator("#list")).to_contain_text("another")
        await expect(fault).to_be_visible()
        await fault.locator("button").click()
        await expect(page.locator(".fault")).to_have_count(0)


async def test_many_errors_keep_the_newest(browser: Browser, base: str) -> None:
    async with tab(browser, base) as page:
        await page.evaluate(
            """async () => {
              const { complain } = await import("/static/dom.js");
              for (let n = 0; n < 200; n += 1) complain(`spot ${n}`, new Error(`no ${n}`));
            }"""
        )
        await expect(page.locator(".fault")).to_have_count(50)
        await expect(page.locator(".fault").last).to_contain_text("no 199")


# -- many tasks ------------------------------------------------------------------------------------


async def bulk(page: Page) -> list[dict[str, list[str]]]:
    """Have the page see a server that counts groups and does 1,200 tasks in three calls."""
    sent: list[dict[str, list[str]]] = []
    group = {
        "state": "failed", "reason": "files_unavailable", "group": "g&1", "error": "<b>404</b>",
        "count": 1200, "newest": 1795518046000, "oldest": 1795518046000, "task_ids": ["a"],
    }  # fmt: skip

    async def groups(route: Route) -> None:
        await route.fulfill(json={"groups": [group], "read": 10_000, "of": 48_211, "until": 7})

    async def act(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        sent.append(query)
        step = int(query.get("cursor", ["0"])[0])
        done, after = (1200, None) if "dry_run" in query else ((500, 500, 197)[step], step + 1)
        await route.fulfill(
            json={
                "done": done, "not_done": {"running": 3} if step == 2 else {}, "task_ids": [],
                "read": 500, "until": 7, "next": str(after) if after and after < 3 else None,
            }
        )  # fmt: skip

    await page.route("**/api/groups?*", groups)
    await page.route("**/api/bulk/*", act)
    return sent


async def test_all_of_a_group_are_tried_again_once_somebody_has_said_so(
    browser: Browser, base: str
) -> None:
    async with tab(browser, "about:blank") as page:
        sent = await bulk(page)
        await page.goto(base)
        await expect(page.locator("#groups-note")).to_have_text("Of the newest 10,000:")
        await expect(page.locator("#groups")).to_contain_text("<b>404</b>")
        button = page.locator("#groups [data-bulk=retry]")
        await button.click()
        await expect(page.locator("#ask-title")).to_have_text("Retry 1,200 tasks?")
        await expect(page.locator("#ask-text")).to_contain_text("failed · files are gone · ")
        await page.keyboard.press("Escape")
        await expect(page.locator("#ask")).to_be_hidden()
        await button.click()
        await page.locator("#ask-yes").click()
        note = page.locator("[data-place=groups] .note")
        await expect(note).to_contain_text("1,197 tasks queued for retry · 3 could not be")
        chosen = {"state": ["failed"], "reason": ["files_unavailable"], "group": ["g&1"]}
        assert sent == [
            chosen | {"dry_run": ["true"]},
            chosen | {"dry_run": ["true"]},
            chosen | {"until": ["7"]},
            chosen | {"until": ["7"], "cursor": ["1"]},
            chosen | {"until": ["7"], "cursor": ["2"]},
        ]
        await page.locator("#groups a").click()
        assert parse_qs(urlsplit(page.url).query) == chosen
        await expect(page.locator("#list-actions button")).to_have_count(0)  # the list is empty
        await page.goto(f"{base}/tasks?state=waiting&label=poster")
        await page.locator("#list-actions [data-bulk=cancel]").click()
        await expect(page.locator("#ask-title")).to_have_text("Cancel 1,200 tasks?")
        assert sent[-1] == {"state": ["waiting"], "label": ["poster"], "dry_run": ["true"]}


async def test_tasks_that_failed_without_a_word_are_a_group_too(
    browser: Browser, base: str, registry: Registry
) -> None:
    spoke = record(0, State.FAILED, await registry.now()) | {"task_id": "spoke", "error": "boom"}
    assert await registry.restore(spoke)
    async with tab(browser, base) as page:
        group = page.locator("#groups li", has_text="Retry all (8)")
        await group.locator("[data-bulk=retry]").click()
        await expect(page.locator("#ask-title")).to_have_text("Retry 8 tasks?")
        await page.keyboard.press("Escape")
        await group.locator("a").click()
        await expect(page.locator("#h-list")).to_contain_text("one kind of error")
        await expect(rows(page)).to_have_count(8)


async def test_a_token_that_may_only_read_shows_no_buttons(
    browser: Browser, base: str, registry: Registry
) -> None:
    await lost(registry, "some-lost")
    async with httpx.AsyncClient(base_url=base, timeout=BOUND) as client:
        stats = (await client.get("/api/stats")).json() | {"may_act": False}
    said = f"event: stats\ndata: {json.dumps(stats)}\n\n"
    async with tab(browser, "about:blank") as page:
        await page.route("**/api/events", lambda route: route.fulfill(body=said))
        await page.route(
            "**/urls", lambda route: route.fulfill(status=403, json={"detail": "reading only"})
        )
        await page.goto(f"{base}/tasks/some-lost")
        await expect(page.locator("#gallery")).to_contain_text("images/0image/png")
        await expect(page.locator("#gallery a, #gallery img, .fault")).to_have_count(0)
        await expect(page.locator("#task-actions button")).to_be_hidden()


async def test_a_file_that_a_browser_cannot_reach_is_told_in_words(
    browser: Browser, base: str, registry: Registry
) -> None:
    """As at an endpoint that only workers know; see HARVESTER_PRESIGN_ENDPOINT."""
    await lost(registry, "some-lost")
    files = [
        {"name": "a", "content_type": kind, "url": "http://store.invalid:8333/media/a?X=1"}
        for kind in ("image/png", "video/mp4", "audio/wav")
    ]
    async with tab(browser, "about:blank") as page:
        answer = {"files": files, "expires": 3600}
        await page.route("**/urls", lambda route: route.fulfill(json=answer))
        await page.goto(f"{base}/tasks/some-lost")
        told = page.locator(
            "#gallery figure", has_text="could not be loaded from store.invalid:8333"
        )
        await expect(told).to_have_count(3)


# -- the fleet -------------------------------------------------------------------------------------


async def test_endings_are_counted_however_many_there_are(browser: Browser, base: str) -> None:
    async with tab(browser, base) as page:
        await expect(page.locator("#rates-text")).to_have_text(
            "last 5 minutes: 65 stored, 2 partial, 8 failed"
        )
        await page.locator("#span").select_option("10080")
        await expect(page.locator("#rates-text")).to_contain_text("last 7 days: 65 stored")


async def test_times_are_of_the_clock_of_redis(browser: Browser, base: str) -> None:
    async with tab(browser, "about:blank") as page:
        await page.add_init_script("const now = Date.now; Date.now = () => now() + 86400e3;")
        await page.goto(base)
        when = page.locator("#failed time").first
        await expect(when).to_have_text(re.compile("just now|sec|min"))
        assert await when.get_attribute("title")


async def test_redis_out_of_reach_greys_the_figures(
    browser: Browser, base: str, valkey: Valkey
) -> None:
    async with tab(browser, base) as page:
        await expect(page.locator("#count-failed strong")).to_have_text("8")
        ink = "node => getComputedStyle(node).color"
        fresh = await page.locator("#count-failed strong").evaluate(ink)
        valkey.kill()
        worst = page.locator(".incident.worst")
        await expect(worst).to_contain_text("Redis is out of reach")
        await expect(worst).to_contain_text("correct REDIS_URL")
        await expect(worst).to_contain_text("The figures below are from")
        await expect(page.locator("#live")).to_have_text("Redis is out of reach")
        await expect(page.locator("#count-failed strong")).to_have_text("8")
        assert await page.locator("#count-failed strong").evaluate(ink) != fresh
        assert await problems(page) == []
        async with tab(browser, base) as late:  # opened meanwhile
            await expect(late.locator(".incident.worst")).to_contain_text("correct REDIS_URL")
            await expect(late.locator("#counts")).to_be_hidden()
        valkey.start()
        await expect(page.locator("#live")).to_have_text("live")
        await expect(worst).not_to_contain_text("Redis")


async def test_silence_is_no_health(browser: Browser, base: str, valkey: Valkey) -> None:
    async with tab(browser, base) as page:
        await expect(page.locator("#live")).to_have_text("live")
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            await expect(page.locator(".incident.worst")).to_contain_text("Redis is out of reach")
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
        await expect(page.locator("#live")).to_have_text("live")


async def test_the_worst_incident_is_the_largest(
    browser: Browser, base: str, registry: Registry
) -> None:
    await registry.trip("upstream", kind="credentials", message="invalid <b>key</b>", probe=False)
    await registry.trip("store", kind="store", message="403", probe=False)
    async with tab(browser, base) as page:
        incidents = page.locator(".incident")
        await expect(incidents).to_have_count(3)
        await expect(incidents.first).to_contain_text("No worker is alive")
        await expect(incidents.nth(1)).to_contain_text("SPEEDPIX_APP_SECRET")
        await expect(incidents.nth(1)).to_contain_text("invalid <b>key</b>")
        await expect(incidents.nth(1).locator("time")).to_have_text(re.compile("just now|sec"))
        size = "node => parseFloat(getComputedStyle(node).fontSize)"
        heights = [await incidents.nth(n).locator("h2, h3").evaluate(size) for n in range(3)]
        assert heights[0] > max(heights[1:])
        kept = await incidents.first.element_handle()
        await page.wait_for_event("request", lambda request: "/api/" in request.url)
        assert await kept.evaluate("node => node.isConnected")  # is not read out again and again


NAMES = {
    "upstream": "The upstream does not answer",
    "store": "The store does not answer",
    "broker": "The broker does not answer",
    "webhooks": "No webhook gets through",
}


async def test_services_that_do_not_answer_are_incidents(
    browser: Browser, base: str, registry: Registry
) -> None:
    heard: list[str | int] = [
        word for name in NAMES for word in (name, "", 60_000, 0, f"no {name}")
    ]
    heard += ["@shop.example", "", 60_000, 0, "HTTP 500"]
    await registry._scripts.call("heard", "w:1", "1", *heard)
    async with tab(browser, base) as page:
        incidents = page.locator(".incident")
        await expect(incidents).to_have_count(len(NAMES))
        for name, title in NAMES.items():
            incident = page.locator(".incident", has_text=title)
            said = "shop.example: HTTP 500" if name == "webhooks" else f"no {name}"
            await expect(incident.locator(".detail")).to_have_text(said)
            await expect(incident).to_contain_text("Meanwhile")
        await expect(incidents.first.locator("time")).to_have_text(re.compile("min"))
        assert await problems(page) == []
        for name in NAMES:
            registry.reach.heard(name)
        registry.reach.heard("webhooks", "shop.example")
        await registry.tick("w:1")
        await expect(incidents).to_have_count(0)


async def test_a_wrong_token_says_so_and_is_not_tried_again(
    browser: Browser, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARVESTER_WEB_TOKEN", TOKEN)
    async with listening() as base, tab(browser, f"{base}/tasks?state=failed") as page:
        await expect(page.locator("#token")).to_be_focused()
        await expect(page.locator("#sign-in-fault")).to_be_empty()
        await expect(page.locator("#rest")).to_be_hidden()
        assert await problems(page) == []
        await page.clock.install()
        await page.reload()
        await expect(page.locator("#token")).to_be_focused()
        tried: list[str] = []
        page.on("request", lambda request: tried.append(request.url))
        await page.locator("#token").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("#sign-in-fault")).to_have_text("The token is wrong.")
        assert len(tried) == 1
        for wrong in ("密码", "two words", "x" * 5000):
            await page.locator("#token").fill(wrong)
            await page.keyboard.press("Enter")
            await expect(page.locator("#token")).to_be_focused()
            await expect(page.locator("#sign-in-fault")).to_have_text("The token is wrong.")
            await expect(page.locator("#incidents")).to_be_empty()
        tried.clear()
        await page.clock.run_for(60_000)  # a stream that is lost would be tried again by now
        assert tried == []
        await page.locator("#token").fill(TOKEN)
        await page.keyboard.press("Enter")
        await expect(page.locator("#empty")).to_be_visible()
        assert page.url.endswith("?state=failed")


# -- everybody can read it -------------------------------------------------------------------------


TICKING = """() => [...document.querySelectorAll("time.ago")]
  .filter((time) => time.closest("[aria-live]").getAttribute("aria-live") !== "off").length"""


async def problems(page: Page) -> list[str]:
    """What axe finds wrong; times that tick are not read out, and nothing is cut off."""
    assert await page.evaluate(TICKING) == 0
    assert await too_wide(page) <= 0
    await page.evaluate(AXE)
    found = await page.evaluate("axe.run({ resultTypes: ['violations'] })")
    return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found["violations"]]


@pytest.mark.parametrize(
    ("language", "scheme", "size"),
    [("en-GB", "light", DESK), ("en-GB", "dark", PHONE), ("zh-CN", "dark", DESK)],
    ids=["light", "phone", "chinese"],
)
async def test_axe_finds_nothing(
    browser: Browser, base: str, registry: Registry, language: str, scheme: Any, size: Any
) -> None:
    await lost(registry, "some-lost")
    await registry.trip("store", kind="store", message="403", probe=False)
    async with tab(browser, base, locale=language, color_scheme=scheme, viewport=size) as page:
        await expect(page.locator("html")).to_have_attribute("lang", re.compile(language[:2]))
        await expect(rows(page)).to_have_count(50)
        await expect(page.locator("#groups li")).to_have_count(3)
        await expect(page.locator(".incident")).to_have_count(2)
        assert await problems(page) == []
        await page.goto(f"{base}/tasks?state=stored&view=pictures")
        await expect(page.locator("#pictures li")).to_have_count(50)
        assert await problems(page) == []
        await page.goto(f"{base}/tasks/some-lost")
        await expect(page.locator("#task-lost li")).to_have_count(60)
        await page.locator("summary").last.click()
        assert await problems(page) == []
        await page.goto(f"{base}/tasks/w00000003")
        await page.locator("#task-actions [data-action=cancel]").click()
        await expect(page.locator("#ask")).to_be_visible()
        assert await problems(page) == []


async def test_everything_works_by_keyboard(browser: Browser, base: str) -> None:
    async with tab(browser, base) as page:
        await expect(rows(page)).to_have_count(50)

        async def reach(wanted: str) -> None:
            for _ in range(60):
                await page.keyboard.press("Tab")
                if await page.evaluate("text => document.activeElement.matches(text)", wanted):
                    return
            raise AssertionError(f"{wanted} is not reached")

        await reach(".skip")
        await page.keyboard.press("Enter")
        await expect(page.locator("#main")).to_be_focused()
        await reach("#count-failed a")
        await page.keyboard.press("Enter")
        await expect(page.locator("#h-list")).to_be_focused()
        await expect(rows(page)).to_have_count(8)
        await reach("#list a.id")
        opener = await page.evaluate("document.activeElement.textContent")
        await page.keyboard.press("Enter")
        await expect(page.locator("#task-title")).to_be_focused()
        await expect(page.locator("#task-title")).to_have_text(opener)
        await page.keyboard.press("Escape")
        await expect(page.locator("#list a.id").first).to_be_focused()


async def test_chinese_is_spoken_to_those_who_read_it(
    browser: Browser, base: str, registry: Registry
) -> None:
    await registry.trip("upstream", kind="clock", message="off", probe=False)
    async with tab(browser, base, locale="zh-CN") as page:
        await expect(page.locator("#count-waiting")).to_contain_text("等待中")
        await expect(page.locator("#groups")).to_contain_text("上游执行失败")
        await expect(page.locator("#failed time").first).to_contain_text("前")
        for said in ("上游认为 worker 的时钟不准", "用 NTP 校准", "照常接收 ID"):
            await expect(page.locator("#incidents")).to_contain_text(said)
    async with tab(browser, base, locale="fr-FR") as page:
        await expect(page.locator("#count-waiting")).to_contain_text("waiting")
