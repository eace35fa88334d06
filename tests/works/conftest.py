"""The fixture of the works under test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.works.house import House, housed


@pytest.fixture
async def house(redis: Redis, namespace: str) -> AsyncIterator[House]:
    async with housed(redis, namespace) as built:
        yield built
