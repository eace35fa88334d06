"""The page as operators see it: light, dark, on a phone, and a task with its gallery.

Each picture is looked at for what cannot be right, and kept in ``SCREENSHOTS`` if that is set, as
``make screenshots`` does.
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.async_api import Page, async_playwright, expect
from redis.asyncio import Redis

from tests.bench.page import fill
from tests.fleet import Fleet, all_final
from tests.integration.test_web import CHROMIUM, FLAGS, listening
from tests.support import BOUND, needs
from worker.registry.registry import Registry
from worker.sandbox.simulator import Simulator

pytestmark = [pytest.mark.page, needs("chromium", CHROMIUM)]
DESK, PHONE = {"width": 1000, "height": 1240}, {"width": 390, "height": 844}
LED_AWAY = {"fault": "redirect_to", "times": "ever"}  # to a private address
TASKS = {
    "poster": {"images": [{"file": "png", "width": 640, "height": 420}] * 2},
    "portrait": {"images": [{"file": "jpeg", "width": 420, "height": 560}]},
    "storyboard": {
        "result": {
            "scenes": [
                {"still": {"file": "webp", "width": 320, "height": 180}, "clip": {"file": "mp4"}},
                {"still": {"file": "png", "width": 320, "height": 180}},
            ],
            "voice": {"file": "wav"},
            "all": {"file": "zip"},
        }
    },
    "trailer": {"end": "failed"},
    "avatar": {"end": "content_refused"},
    "lookbook": {"images": ["png", {"file": "png", "faults": [LED_AWAY]}]},
    "slow one": {"end": "never"},
}


async def too_wide(page: Page) -> int:
    """By how many pixels the page must be scrolled sideways."""
    return int(
        await page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
    )


async def keep(page: Page, name: str, *, full: bool = False) -> None:
    """Take the picture, and look at it as far as a machine can."""
    assert await too_wide(page) == 0
    picture = await page.screenshot(full_page=full, animations="disabled")
    if (folder := os.environ.get("SCREENSHOTS")) and name != "task-chinese":
        target = Path(folder) / f"{name}.png"
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        # the page's few colours fit a palette, which makes it a third as large
        (image if "task" in name else image.quantize(256)).save(target, optimize=True)
        assert target.stat().st_size < 150_000


@asynccontextmanager
async def at_work(
    settings: dict[str, str], simulator: Simulator, redis: Redis, namespace: str, tmp_path: Path
) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """A fleet with tasks of all kinds; the page's address, and the ids by label."""
    ids = {name: simulator.submit({"simulate": script}) for name, script in TASKS.items()}
    busy = [simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(40)]
    async with listening() as base, Fleet(settings, tmp_path, size=2):
        async with httpx.AsyncClient(base_url=base, timeout=BOUND) as client:
            await client.post("/api/tasks", json={"task_ids": busy, "label": "thumbnails"})
            for label, task_id in ids.items():
                body = {"task_ids": [task_id], "label": label, "metadata": {"order": 4711}}
                assert (await client.post("/api/tasks", json=body)).status_code == 201
        ended = [task_id for label, task_id in ids.items() if label != "slow one"]
        await all_final(redis, namespace, ended + busy)
        yield base, ids


async def test_the_page_in_light_dark_and_on_a_phone(
    settings: dict[str, str], simulator: Simulator, redis: Redis, namespace: str, tmp_path: Path
) -> None:
    async with (
        at_work(settings, simulator, redis, namespace, tmp_path) as (base, ids),
        async_playwright() as playwright,
    ):
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for name, scheme, size, language in (
            ("page-light", "light", DESK, "en-GB"),
            ("page-dark", "dark", DESK, "en-GB"),
            ("page-chinese", "light", DESK, "zh-CN"),
            ("page-phone", "light", PHONE, "en-GB"),
        ):
            page = await browser.new_page(color_scheme=scheme, viewport=size, locale=language)
            await page.goto(base)
            await expect(page.locator("#list tbody tr")).to_have_count(47)
            await expect(page.locator("#groups")).to_contain_text("upstream_failed")
            await expect(page.locator("#workers tbody tr")).to_have_count(2)
            await expect(page.locator("#rates-text")).to_contain_text("43")
            await keep(page, name)
            if size is PHONE:
                await page.locator("#h-failed").evaluate("title => title.scrollIntoView()")
                await keep(page, f"{name}-below")
            await page.set_viewport_size({**size, "height": 800})
            await page.locator("#find").fill(ids["storyboard"])
            await page.keyboard.press("Enter")
            pictures = page.locator("#gallery img")
            await expect(pictures).to_have_count(2)
            for number in range(2):
                await pictures.nth(number).scroll_into_view_if_needed()
                await expect(pictures.nth(number)).to_have_js_property("complete", True)
                assert await pictures.nth(number).evaluate("image => image.naturalWidth") == 320
            await expect(page.locator("#gallery video")).to_have_count(1)
            await expect(page.locator("#gallery audio")).to_have_count(1)
            await page.locator("#task").evaluate("dialog => { dialog.scrollTop = 0; }")
            await keep(page, name.replace("page", "task"))
            await page.keyboard.press("Escape")
            await expect(page.locator("#task")).to_be_hidden()
            await expect(page).to_have_url(f"{base}/")
            await page.goto(f"{base}/tasks?state=stored&state=partial&view=pictures")
            shown = page.locator("#pictures img")
            await expect(shown.nth(3)).to_have_js_property("complete", True)
            if name == "page-light":
                await keep(page, "gallery-light")
            await page.close()
        await browser.close()


async def test_the_page_in_an_outage(
    settings: dict[str, str], redis_url: str, redis: Redis, namespace: str
) -> None:
    await fill(redis_url, 1000, namespace=namespace)
    registry = Registry(
        redis, namespace=namespace, lease=60, poll_rate=20, deadline=86_400,
        record_ttl=0, events_maxlen=1000,
    )  # fmt: skip
    await redis.zadd(f"{namespace}:workers", {"web-1:7": (await registry.now()) + 3_600_000})
    await registry.trip(
        "upstream", kind="credentials", message="401: the signature is invalid", probe=False
    )
    async with listening() as base, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = await browser.new_page(viewport={**DESK, "height": 700})
        await page.goto(base)
        await expect(page.locator(".incident")).to_contain_text("SPEEDPIX_APP_KEY")
        await expect(page.locator("#groups li")).to_have_count(2)
        await keep(page, "page-outage")
        await browser.close()
