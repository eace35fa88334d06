"""Outages played for real: what the API, a record, the metrics and the alerts say; their end."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from aiohttp import web as http
from redis.asyncio import Redis

from tests.faults.http_proxy import HttpProxy, Rule, Seen, Silence, honest, s3_error
from tests.faults.tcp_proxy import TcpProxy
from tests.fleet import Fleet
from tests.integration.test_web import serving
from tests.promtool import EVERY, PROMTOOL, assert_fires
from tests.support import eventually, needs, repeating
from worker.core.services import Service
from worker.errors import RegistryUnavailable
from worker.sandbox.simulator import Simulator

pytestmark = [pytest.mark.fleet, needs("promtool", PROMTOOL)]

SECRET = "whsec_bm90LWEtc2VjcmV0LW9mLWFueXRoaW5nLWVsc2U="
FOR = 12  # scrapes of an outage that goes on as it was recorded: six minutes


@dataclass(kw_only=True)
class Stage:
    """A worker and a web server that reach every service through something that can be hurt."""

    web: httpx.AsyncClient
    redis: Redis
    namespace: str
    simulator: Simulator
    upstream: HttpProxy
    store: HttpProxy
    broker: TcpProxy
    kept: TcpProxy
    hooks: HttpProxy
    began: float = field(default_factory=time.time)

    async def submit(self) -> None:
        """A task that ends soon, with a file and somebody to tell, and one that waits."""
        script = {"images": ["png"], "duration": 1}
        for more in ({}, {"duration": 600}):
            task_id = self.simulator.submit({"simulate": script | more})
            body = {"task_ids": task_id, "callback_url": f"{self.hooks.endpoint}/told"}
            with suppress(RegistryUnavailable):  # Redis may be full
                await self.redis.xadd(f"{self.namespace}:intake", {"body": json.dumps(body)})

    async def scrape(self) -> str:
        answer = await self.web.get("/metrics")
        assert answer.status_code == 200
        return answer.text

    async def services(self) -> dict[str, Any]:
        """As ``/api/stats`` has them, even while Redis does not answer."""
        services: dict[str, Any] = (await self.web.get("/api/stats")).json()["services"]
        return services

    async def out(self) -> set[str]:
        """The services that are out of reach."""
        found = await self.services()
        return {name for name, outlook in found.items() if outlook["out_of_reach_since"]}

    async def healthy(self) -> bool:
        found = await self.services()
        return (
            found.keys() == set(Service)
            and all(outlook["last_success"] for outlook in found.values())
            and not await self.out()
        )

    async def held_up(self) -> dict[str, Any] | None:
        """What any task that is not final says it waits for."""
        for state in ("waiting", "copying"):
            listed = await self.web.get("/api/tasks", params={"state": state})
            for task in listed.json()["tasks"]:
                record = (await self.web.get(f"/api/tasks/{task['task_id']}")).json()
                if held := record.get("held_up_by"):
                    return {**held, "last_error": record["last_error"]}
        return None


async def accepts(_: http.BaseRequest) -> http.StreamResponse:
    return http.Response()


@asynccontextmanager
async def receiver() -> AsyncIterator[str]:
    """The address of a server that accepts every webhook."""
    runner = http.ServerRunner(http.Server(accepts))
    await runner.setup()
    await http.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def stage(
    settings: dict[str, str],
    redis: Redis,
    namespace: str,
    simulator: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Stage]:
    address = urlsplit(settings["REDIS_URL"])
    host, port = str(address.hostname), int(address.port or 0)
    async with (
        HttpProxy(settings["SPEEDPIX_ENDPOINT"]) as upstream,
        HttpProxy(settings["AWS_ENDPOINT_URL_S3"]) as store,
        TcpProxy(host, port) as broker,
        TcpProxy(host, port) as kept,
        receiver() as target,
        HttpProxy(target) as hooks,
    ):
        changes = {
            "SPEEDPIX_ENDPOINT": upstream.endpoint,
            "AWS_ENDPOINT_URL_S3": store.endpoint,
            "CELERY_BROKER_URL": f"redis://127.0.0.1:{broker.port}/0",
            "REDIS_URL": f"redis://127.0.0.1:{kept.port}/0",
            "HARVESTER_WEBHOOK_SECRET": SECRET,
            "HARVESTER_WEBHOOK_ALLOW_PRIVATE": "127.0.0.1/32",
        }
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        async with Fleet(settings | changes, tmp_path, size=1), serving() as web:
            made = Stage(
                web=web, redis=redis, namespace=namespace, simulator=simulator,
                upstream=upstream, store=store, broker=broker, kept=kept, hooks=hooks,
            )  # fmt: skip
            async with repeating(made.submit, 0.5):
                await eventually(made.healthy, what="an answer from every service")
                yield made


async def fails(_: Seen, __: Any) -> http.StreamResponse:
    return http.Response(status=503, text="<html>no</html>", content_type="text/html")


async def freezes(_: Seen, __: Any) -> http.StreamResponse:
    return await Silence().keep()


async def is_full(seen: Seen, forward: Callable[[], Awaitable[http.Response]]) -> Any:
    return s3_error(507, "InsufficientStorage") if seen.method == "PUT" else await forward()


async def refuses_the_key(_: Seen, __: Any) -> http.StreamResponse:
    return s3_error(403, "InvalidAccessKeyId")


@asynccontextmanager
async def ruled(proxy: HttpProxy, rule: Rule) -> AsyncIterator[None]:
    proxy.rule = rule
    try:
        yield
    finally:
        proxy.rule = honest


@asynccontextmanager
async def cut(proxy: TcpProxy) -> AsyncIterator[None]:
    proxy.refuse = True
    proxy.reset_all()
    try:
        yield
    finally:
        proxy.heal()


@asynccontextmanager
async def frozen(proxy: TcpProxy) -> AsyncIterator[None]:
    proxy.blackhole = True
    try:
        yield
    finally:
        proxy.heal()


@asynccontextmanager
async def full(redis: Redis) -> AsyncIterator[None]:
    await redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await redis.config_set("maxmemory", 0)


HURT: Mapping[str, tuple[Service, Callable[[Stage], Any]]] = {
    "upstream-503": (Service.UPSTREAM, lambda stage: ruled(stage.upstream, fails)),
    "upstream-frozen": (Service.UPSTREAM, lambda stage: ruled(stage.upstream, freezes)),
    "store-503": (Service.STORE, lambda stage: ruled(stage.store, fails)),
    "store-frozen": (Service.STORE, lambda stage: ruled(stage.store, freezes)),
    "store-full": (Service.STORE, lambda stage: ruled(stage.store, is_full)),
    "store-key": (Service.STORE, lambda stage: ruled(stage.store, refuses_the_key)),
    "broker-away": (Service.BROKER, lambda stage: cut(stage.broker)),
    "broker-frozen": (Service.BROKER, lambda stage: frozen(stage.broker)),
    "redis-away": (Service.REDIS, lambda stage: cut(stage.kept)),
    "redis-frozen": (Service.REDIS, lambda stage: frozen(stage.kept)),
    "redis-full": (Service.REDIS, lambda stage: full(stage.redis)),
    "webhooks-503": (Service.WEBHOOKS, lambda stage: ruled(stage.hooks, fails)),
}


@pytest.mark.parametrize("name", HURT)
async def test_an_outage_shows_everywhere_and_ends(
    stage: Stage, name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    service, hurt = HURT[name]
    before = await stage.scrape()
    began = time.monotonic()
    async with hurt(stage):

        async def shows() -> bool:
            return service in await stage.out()

        await eventually(shows, what=f"an outage of {service}")
        record_property("seconds", round(time.monotonic() - began, 1))
        outlook = (await stage.services())[service]
        text = await stage.scrape()
        held = None
        if service in (Service.UPSTREAM, Service.STORE):
            held = await stage.held_up()
        hosts = (await stage.web.get("/api/stats")).json().get("webhook_hosts")
    assert outlook["last_success"] / 1000 == pytest.approx(time.time(), abs=120)
    assert all(outlook[name] for name in ("trouble", "trouble_at", "remedy", "meanwhile"))
    if service in (Service.UPSTREAM, Service.STORE):
        assert held is not None
        assert held["service"] == service
        assert held["last_error"].startswith(f"waiting for the {service}: ")
    if service is Service.WEBHOOKS:
        assert [host["host"] for host in hosts] == [urlsplit(stage.hooks.endpoint).netloc]
    fires = {"HarvesterOutOfReach": str(service)}
    minutes = FOR
    if name == "store-key":
        fires["HarvesterCircuitOpen"] = "store"
    elif service is Service.WEBHOOKS:
        fires, minutes = {"HarvesterWebhooksFail": ""}, 16 * 60 // EVERY
    elif name in ("redis-away", "redis-frozen"):
        minutes = 4
    if name == "redis-full":  # a worker that cannot write cannot tick either
        text = text.replace("harvester_workers 1.0", "harvester_workers 0.0")
        fires["HarvesterWithoutWorkers"] = ""
    quiet = [_at_rest(before)] * 4
    assert_fires(tmp_path, quiet, {}, began=stage.began)
    assert_fires(tmp_path, [*quiet, *[_at_rest(text)] * minutes], fires, began=stage.began)

    async def over() -> bool:
        return not await stage.out()

    await eventually(over, what="the end of the outage")


def _at_rest(scrape: str) -> str:
    """A scrape without what this machine, busy with tests, is late with."""
    return (
        "\n".join(
            line
            for line in scrape.splitlines()
            if not line.startswith("harvester_due_lag_seconds{")
        )
        + "\n"
    )


async def test_a_wrong_secret(
    settings: dict[str, str], redis: Redis, namespace: str, simulator: Simulator, tmp_path: Path
) -> None:
    task_id = simulator.submit({"simulate": {"images": ["png"]}})
    await redis.xadd(f"{namespace}:intake", {"body": json.dumps({"task_ids": task_id})})
    wrong = settings | {"SPEEDPIX_APP_SECRET": "mistyped"}
    async with Fleet(wrong, tmp_path, size=1), serving() as web:

        async def upstream() -> Any:
            found = (await web.get("/api/stats")).json()["services"]["upstream"]
            return found if found["out_of_reach_since"] else None

        await eventually(upstream, what="an outage of the upstream")
        found = await upstream()
        assert found["kind"] == "credentials"
        assert "SPEEDPIX_APP_SECRET" in found["remedy"]
        record = (await web.get(f"/api/tasks/{task_id}")).json()
        assert record["held_up_by"]["service"] == "upstream"
