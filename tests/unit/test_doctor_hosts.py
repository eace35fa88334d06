"""What ``harvester doctor`` says of services that take connections and never answer."""

from __future__ import annotations

import asyncio

import pytest

from config.settings import Settings
from worker.cli import checks
from worker.cli.checks import Level, examine

PASSWORD = "tr0ub4dor-and-3"


@pytest.mark.parametrize("broker", ["redis", "amqp"])
async def test_each_timeout_names_the_host(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silence(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    held: list[asyncio.StreamWriter] = []
    servers = [await asyncio.start_server(silence, "127.0.0.1", 0) for _ in range(4)]
    redis, other, upstream, store = (
        f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers
    )
    monkeypatch.setattr(checks, "DEADLINE", 1.0)
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://{store}",
        "AWS_ACCESS_KEY_ID": "access",
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "AWS_REGION": "us-east-1",
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
        assert PASSWORD not in found[name].detail
