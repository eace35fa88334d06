"""Fixtures that integration tests of commands and of the web share."""

from __future__ import annotations

import pytest

from tests.fleet import environ
from tests.support import BucketEnv
from worker.sandbox.simulator import Simulator


@pytest.fixture
def settings(
    simulator: Simulator,
    redis_url: str,
    bucket: BucketEnv,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, str]:
    """Set the environment of commands and workers."""
    chosen = environ(simulator, redis_url, bucket, namespace, HARVESTER_UNKNOWN_TASK_GRACE="0")
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    return chosen
