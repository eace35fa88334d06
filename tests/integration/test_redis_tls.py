"""The whole job over ``rediss://``: records, intake stream, events and Celery's broker.

TLS is terminated in front of Valkey, whose embedded build speaks none; where Debian's
``redis-server`` is installed, by the server itself as well.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlencode

import pytest
import trustme
from celery import Celery
from kombu.exceptions import OperationalError
from redis.asyncio import Redis

from config.celery import celery_config
from config.settings import Settings, load_settings
from tests.faults.tcp_proxy import TcpProxy
from tests.fleet import Fleet, all_final, environ, verify
from tests.support import BucketEnv, needs
from worker.doctor.examine import examine
from worker.doctor.finding import Level
from worker.errors import RegistryUnavailable
from worker.sandbox.servers import Valkey
from worker.sandbox.simulator import Simulator
from worker.wiring import make_redis

pytestmark = [pytest.mark.brokers, pytest.mark.usefixtures("patient_doctor")]

REDIS_SERVER = shutil.which("redis-server")


class Papers:
    """A CA of the test's own, what it has signed, and a stranger's."""

    def __init__(self, directory: Path) -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        self.ca, self.cert, self.key, self.other_ca = (
            directory / name for name in ("ca.pem", "cert.pem", "key.pem", "other.pem")
        )
        issued = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(self.ca)
        stranger.cert_pem.write_to_path(self.other_ca)
        issued.private_key_pem.write_to_path(self.key)
        for pem in issued.cert_chain_pems:
            pem.write_to_path(self.cert, append=True)

    def server_context(self) -> ssl.SSLContext:
        """A server that asks its clients for a certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def url(self, host: str, port: int, ca: Path | None = None) -> str:
        """A ``REDIS_URL`` with a client certificate."""
        options = {
            "ssl_ca_certs": ca or self.ca,
            "ssl_certfile": self.cert,
            "ssl_keyfile": self.key,
        }
        return f"rediss://{host}:{port}/0?{urlencode(options, safe='/')}"


class TlsRedis(Valkey):
    """Debian's Redis, on a plain port for the fixtures and one that speaks TLS."""

    def __init__(self, directory: Path, papers: Papers) -> None:
        super().__init__(directory)
        self._papers = papers

    @property
    def tls_port(self) -> int:
        return self._ports[1]

    def _binary(self) -> Path:
        assert REDIS_SERVER
        return Path(REDIS_SERVER)

    def _choose_ports(self) -> tuple[int, ...]:
        return (*super()._choose_ports(), *super()._choose_ports())

    def _arguments(self) -> list[str]:
        return [
            *super()._arguments(),
            "--tls-port", str(self.tls_port),
            "--tls-ca-cert-file", str(self._papers.ca),
            "--tls-cert-file", str(self._papers.cert),
            "--tls-key-file", str(self._papers.key),
        ]  # fmt: skip


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path)


@pytest.fixture(
    params=["terminated", pytest.param("served", marks=needs("redis-server", REDIS_SERVER))]
)
async def port(
    request: pytest.FixtureRequest, papers: Papers, tmp_path: Path
) -> AsyncIterator[int]:
    """Where a Redis is spoken to over TLS, with a certificate of the client."""
    async with AsyncExitStack() as stack:
        if request.param == "served":
            yield stack.enter_context(TlsRedis(tmp_path / "redis", papers)).tls_port
        else:
            plain = stack.enter_context(Valkey(tmp_path / "redis"))
            proxy = TcpProxy("127.0.0.1", plain.port, papers.server_context())
            yield (await stack.enter_async_context(proxy)).port


def settings(url: str) -> Settings:
    return load_settings(
        speedpix_app_key="k", speedpix_app_secret="s", bucket="media", redis_url=url
    )


async def refuses(url: str) -> None:
    """Neither the registry nor the broker connects."""
    async with make_redis(settings(url).redis_url) as client:
        with pytest.raises(RegistryUnavailable) as refused:
            await client.ping()
    assert "certificate" in str(refused.value.__cause__)
    with pytest.raises(OperationalError, match="certificate"):
        await send(settings(url), "t1")


async def send(chosen: Settings, *task_ids: str) -> None:
    """Hand in over Celery, from a thread: the proxy runs on this loop."""

    def submit() -> None:
        with Celery("another", set_as_current=False) as app:
            app.config_from_object(celery_config(chosen))
            app.send_task("harvester.submit", args=[task_ids], retry=False)

    await asyncio.to_thread(submit)


async def test_certificates_are_checked(papers: Papers, port: int) -> None:
    await refuses(papers.url("127.0.0.1", port, ca=papers.other_ca))  # signed by a stranger
    await refuses(papers.url("localhost", port))  # made out to another name


async def test_the_whole_job_over_tls(
    papers: Papers,
    port: int,
    simulator: Simulator,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = environ(simulator, papers.url("127.0.0.1", port), bucket, namespace)
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    chosen = load_settings()
    ids = [simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(4)]
    redis: Redis
    async with make_redis(chosen.redis_url) as redis, Fleet(given, tmp_path, size=1):
        await send(chosen, *ids)
        await all_final(redis, namespace, ids)
        found = {finding.name: finding for finding in await examine(chosen)}
        assert (found["Redis"].level, found["Broker"].level) == (Level.GOOD, Level.GOOD)
        await verify(simulator, redis, bucket, namespace, ids)
