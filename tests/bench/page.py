"""What the page and the API cost with many records in Redis.

Run with ``make bench-page``. Fills a Valkey of its own through the registry's own scripts, serves
it with ``harvester web`` in a process of its own, and asks over the loopback interface.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import async_playwright
from redis.asyncio import Redis

from tests.bench.options import keep, options, parse
from worker.core.models import State
from worker.core.submission import Policy, read_submission
from worker.registry.registry import Registry
from worker.sandbox.servers import Valkey

STATES = {State.WAITING: 25, State.STORED: 65, State.PARTIAL: 2, State.FAILED: 8}  # of a hundred
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
AT_ONCE = 100
LISTED = """() => new Promise((resolve) => {
  const look = () => document.querySelectorAll("#list tbody tr").length >= 50
    ? resolve(performance.now()) : requestAnimationFrame(look);
  look();
})"""
FETCHED = """() => [...performance.getEntriesByType("navigation"),
  ...performance.getEntriesByType("resource")]
  .map((entry) => [new URL(entry.name).pathname, entry.transferSize])"""


def record(number: int, state: State, at: int) -> dict[str, str]:
    """A final record as a manifest gives it back, with one file."""
    task_id = f"r{number:08}"
    file = {
        "name": "images/0", "refs": ["/images/0"], "key": f"{task_id}/images/0.png",
        "uri": f"s3://media/{task_id}/images/0.png", "bytes": 1_234_567, "sha256": "0" * 64,
        "content_type": "image/png", "width": 1024, "height": 1024, "stored_at": at,
    }  # fmt: skip
    files = [] if state is State.FAILED else [file]
    return {
        "schema": "1", "task_id": task_id, "run": "1", "state": str(state), "error": "",
        "reason": "upstream_failed" if state is State.FAILED else "", "label": f"flow-{number % 7}",
        "metadata": '{"order":4711}', "options": '{"callbacks":[]}',
        "submitted_at": str(at - 60_000), "updated_at": str(at), "finished_at": str(at),
        "polls": "12", "upstream": '{"status":"succeeded"}', "files": json.dumps(files),
        "result": json.dumps({"images": [f["uri"] for f in files]}),
        "manifest": f"manifests/{task_id}.json",
    }  # fmt: skip


async def fill(url: str, count: int, *, namespace: str = "harvester") -> None:
    """Write ``count`` records, ending now and each a millisecond before the next."""
    # many connect at once, which takes its time on a busy machine
    redis = Redis.from_url(
        url, decode_responses=True, protocol=2, socket_timeout=60, socket_connect_timeout=60
    )
    registry = Registry(
        redis, namespace=namespace, lease=60, poll_rate=20, deadline=86_400,
        record_ttl=0, events_maxlen=100_000,
    )  # fmt: skip
    now = await registry.now()
    states = [state for state, share in STATES.items() for _ in range(share)]
    final = [(n, states[n % 100]) for n in range(count) if states[n % 100].final]
    for start in range(0, len(final), AT_ONCE):
        batch = final[start : start + AT_ONCE]
        await asyncio.gather(
            *(registry.restore(record(n, state, now - count + n)) for n, state in batch)
        )
    waiting = [f"w{n:08}" for n in range(count - len(final))]
    for start in range(0, len(waiting), AT_ONCE):
        accepted, _ = read_submission(
            waiting[start : start + AT_ONCE], {"label": "poster"}, Policy()
        )
        await registry.submit(accepted)
    await registry.close()


def serve(url: str, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """``harvester web`` on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "PATH": os.environ["PATH"], "REDIS_URL": url, "HARVESTER_BUCKET": "media",
        "SPEEDPIX_APP_KEY": "bench", "SPEEDPIX_APP_SECRET": "bench",
        "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
    }  # fmt: skip
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "worker.cli.main", "web", "--port", str(port)],
            env=settings, cwd=Path(__file__).parents[2], stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return server, f"http://127.0.0.1:{port}"


async def ready(base: str) -> None:
    """Wait until the server answers."""
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        for _ in range(600):
            try:
                await client.get("/healthz")
            except httpx.TransportError:
                await asyncio.sleep(0.1)
            else:
                return
    raise SystemExit("harvester web does not start")


async def requests(base: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds and bytes of each request, medians and 99th percentiles."""
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        deep: str | None = None
        for _ in range(40):
            params = {"limit": "200"} | ({"cursor": deep} if deep else {})
            deep = (await client.get("/api/tasks", params=params)).json()["next"]
            if deep is None:
                break
        asked = {
            "/": "/",
            "/api/stats": "/api/stats",
            "/api/tasks": "/api/tasks?limit=50",
            "/api/tasks, 8,000 tasks down": f"/api/tasks?limit=50&cursor={deep}" if deep else "",
            "/api/tasks, one state": "/api/tasks?limit=50&state=failed",
            "/api/tasks, one label": "/api/tasks?limit=50&label=flow-3&state=stored",
            "/metrics": "/metrics",
        }
        found: dict[str, dict[str, float]] = {}
        for name, path in asked.items():
            if not path:
                continue
            took: list[float] = []
            for _ in range(rounds):
                start = time.perf_counter()
                answer = await client.get(path)
                took.append((time.perf_counter() - start) * 1000)
                answer.raise_for_status()
            took.sort()
            found[name] = {
                "median_ms": round(statistics.median(took), 1),
                "p99_ms": round(took[int(len(took) * 0.99)], 1),
                "bytes": len(answer.content),
            }
        return found


async def page(base: str, rounds: int) -> dict[str, Any] | None:
    """The page in Chromium, with an empty cache each time; ``None`` without Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        return None
    loads: list[tuple[float, float]] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        for _ in range(rounds):
            context = await browser.new_context()
            tab = await context.new_page()
            await tab.goto(base, wait_until="load")
            listed = await tab.evaluate(LISTED)
            load = await tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
            fetched = await tab.evaluate(FETCHED)
            loads.append((load, listed))
            await context.close()
        await browser.close()
    return {
        "load_ms": round(statistics.median(load for load, _ in loads), 1),
        "listed_ms": round(statistics.median(listed for _, listed in loads), 1),
        "bytes": sum(size for _, size in fetched),
    }


async def measure(count: int, rounds: int) -> dict[str, Any]:
    """Everything with ``count`` records."""
    with tempfile.TemporaryDirectory() as folder, Valkey(Path(folder) / "valkey") as valkey:
        await fill(valkey.url, count)
        server, base = serve(valkey.url, Path(folder) / "web.log")
        try:
            await ready(base)
            return {
                "records": count,
                "page": await page(base, max(3, rounds // 10)),
                "requests": await requests(base, rounds),
            }
        finally:
            server.terminate()
            server.wait(30)


def main() -> None:
    """Print a table, and write it as JSON if a file was named."""
    parser = options(__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--rounds", type=int, default=100)
    chosen = parse(parser)
    if chosen.quick:
        chosen.records, chosen.rounds = [300], 5
    results = [asyncio.run(measure(count, chosen.rounds)) for count in chosen.records]
    for result in results:
        print(f"\n{result['records']:,} records")
        if result["page"]:
            shown = result["page"]
            print(
                f"  page in Chromium: load {shown['load_ms']} ms, "
                f"list shown {shown['listed_ms']} ms, {shown['bytes']:,} bytes transferred"
            )
        for name, cost in result["requests"].items():
            print(
                f"  {name:32} {cost['median_ms']:7.1f} ms  p99 {cost['p99_ms']:7.1f} ms  "
                f"{int(cost['bytes']):>8,} bytes"
            )
    keep(results, chosen.json)


if __name__ == "__main__":
    main()
