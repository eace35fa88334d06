"""What ``harvester doctor`` says of services that take connections and never answer."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
import httpx
import pytest
from aiohttp import web

from config.settings import Settings
from tests.support import BOUND
from worker.doctor import limits, proxies
from worker.doctor.examine import examine
from worker.doctor.finding import Level
from worker.http import make_client, make_session

PASSWORD = "tr0ub4dor-and-3"


@pytest.mark.parametrize("broker", ["redis", "amqp"])
async def test_each_timeout_names_the_host_and_unused_proxies(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silence(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    held: list[asyncio.StreamWriter] = []
    servers = [await asyncio.start_server(silence, "127.0.0.1", 0) for _ in range(4)]
    redis, other, upstream, store = (
        f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers
    )
    monkeypatch.setattr(limits, "DEADLINE", 1.0)
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://{store}",
        "AWS_ACCESS_KEY_ID": "access",
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "AWS_REGION": "us-east-1",
        "https_proxy": f"http://u:{PASSWORD}@proxy.example:3128",
    }.items():
        monkeypatch.setenv(name, value)
    settings = Settings(
        redis_url=f"redis://:{PASSWORD}@{redis}/0",
        celery_broker_url=f"{broker}://user:{PASSWORD}@{other}/0",
        speedpix_endpoint=f"http://{upstream}",
        speedpix_app_key="key",
        speedpix_app_secret=PASSWORD,
        bucket="media",
    )
    try:
        found = {finding.name: finding for finding in await examine(settings)}
    finally:
        for server in servers:
            server.close()
        for writer in held:
            writer.close()
    assert {name for name, each in found.items() if each.level is Level.UNREACHABLE} == {
        "Redis", "Broker", "Upstream", "Bucket", "Workers",
    }  # fmt: skip
    hosts = {"Redis": redis, "Workers": redis, "Broker": other, "Upstream": upstream}
    for name, host in (hosts | {"Bucket": store}).items():
        assert host in found[name].detail, found[name]
        assert "https_proxy is set, which is not used" in found[name].remedy
        assert PASSWORD not in f"{found[name]}"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"])
def test_proxies_are_named_without_their_addresses(name: str) -> None:
    said = proxies.remark({name: f"http://u:{PASSWORD}@proxy.example:3128", "NO_PROXY": "x"})
    assert said == f"{name} is set, which is not used: the fleet connects without a proxy."
    assert proxies.remark({name: " "}) == ""


async def test_no_client_uses_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="here")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/x"
    for name in ("http_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nobody listens there
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    def connector(context: ssl.SSLContext) -> aiohttp.BaseConnector:
        return aiohttp.TCPConnector(ssl=context)

    async with make_session(connector) as session, session.get(url) as response:
        assert await response.text() == "here"
    async with make_client(connector, timeout=httpx.Timeout(BOUND)) as client:
        assert (await client.get(url)).text == "here"
    await runner.cleanup()
