"""Waiting until a replica has a write, before the caller gets its answer."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import structlog

from worker.errors import RegistryUnconfirmed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.registry.client import Client

log = structlog.get_logger("harvester.registry")

_WAIT_MS = 1000
_BELIEVED = 10.0  # seconds for which the last look for replicas holds
_LAG = 10  # seconds since a replica's last acknowledgement; replicas send one every second
_PATIENCE = 10.0  # seconds of consecutive unconfirmed calls
_PAUSE = 5.0  # most seconds between two calls that count as consecutive
_LEFT_ALONE = 60.0


class Replicas:
    """The replicas of a Redis that acknowledge writes.

    Programs that only read the replication stream (a migration, a backup) acknowledge nothing.
    """

    def __init__(self, redis: Client, key: str) -> None:
        self._redis = redis
        self._key = key
        self._any = False
        self._until = 0.0
        self._failing = 0.0
        self._failed = -math.inf

    async def confirm(self) -> None:
        """Wait until a replica has the last writes, if any replica acknowledges.

        ``WAIT`` only counts writes of its own connection, so a small write goes before it;
        replication keeps the order. Raises ``RegistryUnconfirmed`` if none confirms within 1 s.
        After ten seconds of that, replicas are ignored for a minute.
        """
        loop = asyncio.get_running_loop()
        if loop.time() >= self._until:
            self._any = await self._look(is_online)
        if not self._any:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._key, "1", px=60_000)
            pipe.execute_command("WAIT", 1, _WAIT_MS)
            _, confirmed = await pipe.execute()
        if confirmed:
            self._failed = -math.inf
            return
        self._any = await self._look(acknowledges)  # a new connection may not be a replica
        if not self._any:
            return
        now = loop.time()
        if now > self._failed + _PAUSE:
            self._failing = now
        self._failed = now
        if now < self._failing + _PATIENCE:
            self._until = now
            raise RegistryUnconfirmed(
                "the records exist, but no replica has confirmed them within a second: a failover "
                "may lose them. Submit again to be sure"
            )
        log.warning("replicas.silent", seconds=_LEFT_ALONE)
        self._any, self._until = False, now + _LEFT_ALONE

    async def _look(self, counts: Callable[[object], bool]) -> bool:
        info = await self._redis.info("replication")
        self._until = asyncio.get_running_loop().time() + _BELIEVED
        return any(map(counts, info.values()))


def is_online(replica: object) -> bool:
    """Whether a line of ``INFO replication`` describes a replica that is up to date."""
    if not isinstance(replica, dict) or replica.get("state") != "online":
        return False
    return 0 <= _number(replica, "lag") <= _LAG


def acknowledges(replica: object) -> bool:
    """Whether the replica has also confirmed something."""
    return isinstance(replica, dict) and is_online(replica) and _number(replica, "offset") > 0


def _number(replica: Mapping[str, Any], name: str) -> int:
    try:
        return int(replica.get(name, -1))
    except (TypeError, ValueError):
        return -1
