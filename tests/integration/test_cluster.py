"""Redis Cluster, which neither the scripts nor Celery can use, is refused with a clear word."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import load_settings
from tests.support import BOUND
from worker.doctor.examine import examine
from worker.doctor.finding import Level
from worker.errors import SettingsError
from worker.sandbox.servers import Valkey
from worker.wiring import refuse_unfit_redis

pytestmark = [pytest.mark.brokers, pytest.mark.usefixtures("patient_doctor")]


class Cluster(Valkey):
    """A Valkey that is a cluster of its own."""

    def _arguments(self) -> list[str]:
        return [*super()._arguments(), "--cluster-enabled", "yes"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as server:
        yield server.url


def given(redis_url: str, broker_url: str) -> dict[str, str]:
    return {
        "SPEEDPIX_ENDPOINT": "http://127.0.0.1:1",
        "SPEEDPIX_APP_KEY": "key",
        "SPEEDPIX_APP_SECRET": "secret",
        "HARVESTER_BUCKET": "media",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "REDIS_URL": redis_url,
        "CELERY_BROKER_URL": broker_url,
    }


@pytest.mark.parametrize("variable", ["REDIS_URL", "CELERY_BROKER_URL"])
async def test_it_is_refused_by_name(
    cluster: str, redis_url: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = {"REDIS_URL": redis_url, "CELERY_BROKER_URL": redis_url, variable: cluster}
    for name, text in given(urls["REDIS_URL"], urls["CELERY_BROKER_URL"]).items():
        monkeypatch.setenv(name, text)
    settings = load_settings()
    with pytest.raises(SettingsError, match=f"^{variable}: this Redis is a cluster.*Sentinel"):
        await refuse_unfit_redis(settings)
    named = "Redis" if variable == "REDIS_URL" else "Broker"
    found = {finding.name: finding for finding in await examine(settings)}
    assert found[named].level is Level.WRONG
    assert "cluster" in found[named].detail


async def test_a_worker_does_not_start_on_it(cluster: str, tmp_path: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "celery", "-A", "worker.app", "worker"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]),
             **given(cluster, cluster)},
        cwd=tmp_path, capture_output=True, text=True, timeout=BOUND, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "this Redis is a cluster" in done.stderr
