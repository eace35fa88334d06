"""Real servers and a simulated upstream for every test.

Each pytest-xdist worker is a separate process with its own servers.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis
import structlog
from redis.asyncio import Redis

from tests.support import BOUND, BucketEnv
from worker.registry.client import Client
from worker.sandbox.servers import SeaweedFS, Valkey
from worker.sandbox.simulator import Simulator

pytest_plugins = ["tests.bounds"]

# machines are shared: the time of one example means nothing
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")

_FOREIGN = ("AWS_", "HARVESTER_", "SPEEDPIX_", "REDIS_URL", "CELERY_BROKER_URL")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide credentials and settings of this machine from every test."""
    for name in list(os.environ):
        if name.startswith(_FOREIGN):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture
def kept_logging() -> Iterator[None]:
    """Restore logging after a test: handlers, levels and hooks are pytest's."""
    root = logging.getLogger()
    handlers, level, hook = list(root.handlers), root.level, sys.excepthook
    levels = {
        name: logger.level
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))
    logging.captureWarnings(False)
    sys.excepthook = hook
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_logging: None) -> None:
    """For commands: an empty working directory; logging is restored afterwards."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def patient_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extend the doctor's deadlines: a busy machine takes long to load boto3."""
    for name in ("DEADLINE", "CALL_SECONDS"):
        monkeypatch.setattr(f"worker.doctor.limits.{name}", BOUND)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One running Valkey for the whole run. Tests that stop or kill it restart it."""
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_url(valkey: Valkey) -> str:
    """URL of the emptied Valkey."""
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url


@pytest.fixture(name="redis")
async def redis_client(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the emptied Valkey, made like the registry's."""
    client = Client.from_url(redis_url, decode_responses=True, protocol=2, socket_timeout=BOUND)
    yield client
    await client.aclose()


@pytest.fixture
def namespace() -> str:
    """A ``HARVESTER_NAMESPACE`` that nobody else uses."""
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """One running SeaweedFS for the whole run. Tests that stop or kill it restart it."""
    server = SeaweedFS(tmp_path_factory.mktemp("seaweedfs"), "media")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def bucket(store_server: SeaweedFS) -> Iterator[BucketEnv]:
    """The real bucket. It is not emptied: use unique task ids or prefixes."""
    store_server.start()
    client = store_server.client()
    yield BucketEnv(
        endpoint=store_server.endpoint,
        access_key=store_server.access_key,
        secret_key=store_server.secret_key,
        bucket=store_server.bucket,
        region=store_server.region,
        client=client,
    )
    client.close()


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A fresh simulated upstream on a free port."""
    async with Simulator() as upstream:
        yield upstream
