"""What a look at the page asks of Redis: the same however many tasks there are, and no scan."""

from __future__ import annotations

import httpx
from redis.asyncio import Redis

from tests.bench.page import fill
from tests.integration.test_web import serving

SCANS = {"keys", "scan", "sscan", "hscan", "zscan", "sort", "randomkey"}


async def look(web: httpx.AsyncClient) -> None:
    """All that the page asks for, a page further down and a label included."""
    page = (await web.get("/api/tasks", params={"limit": "20"})).json()
    assert len(page["tasks"]) == 20
    for query in (
        {"cursor": page["next"]},
        {"state": ["failed", "partial"], "limit": "10"},
        {"state": "stored", "label": "flow-3", "limit": "1"},
    ):
        assert (await web.get("/api/tasks", params=query)).json()["tasks"]
    for path in (
        "/",
        "/api/stats",
        "/api/endings",
        "/metrics",
        f"/api/tasks/{page['tasks'][0]['task_id']}",
    ):
        assert (await web.get(path)).status_code == 200


async def commands(redis: Redis, web: httpx.AsyncClient) -> dict[str, int]:
    """How often each command is run for one look."""
    await look(web)  # what the connections cost when they are new
    await redis.config_resetstat()
    await look(web)
    stats = await redis.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): figures["calls"] for name, figures in stats.items()}
    return {name: count for name, count in calls.items() if not name.startswith(("config", "info"))}


async def test_a_look_costs_the_same_however_many_tasks_there_are(
    settings: dict[str, str], redis: Redis, redis_url: str, namespace: str
) -> None:
    asked = []
    async with serving() as web:
        for count in (600, 6000):
            await fill(redis_url, count, namespace=namespace)
            asked.append(await commands(redis, web))
    assert asked[0] == asked[1]
    assert not SCANS & asked[0].keys()
