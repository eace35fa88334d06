"""Whether a replica has what was written, before anybody is told that it is kept."""

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
_BELIEVED = 10.0  # seconds for which it is believed whether there are replicas
_LAG = 10  # seconds since the last acknowledgement of a replica, which sends one every second
_PATIENCE = 10.0  # seconds of calls that nobody confirms, one after the other
_PAUSE = 5.0  # seconds between two calls, at most, that are one after the other
_LEFT_ALONE = 60.0


class Replicas:
    """The replicas of a Redis that acknowledge what they get.

    What only reads along (a migration, a backup) is connected as well, and confirms nothing.
    """

    def __init__(self, redis: Client, key: str) -> None:
        self._redis = redis
        self._key = key
        self._any = False
        self._until = 0.0
        self._failing = 0.0
        self._failed = -math.inf

    async def confirm(self) -> None:
        """Wait until a replica has what was written, if one acknowledges at all.

        ``WAIT`` counts what its own connection has written, so one small write goes before it;
        replication keeps the order. Raises ``RegistryUnconfirmed`` if none confirms within 1 s.
        After ten seconds of that the replicas are left alone for a minute.
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
        self._any = await self._look(acknowledges)  # one that has just come may yet show what it is
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
    """Whether a line of ``INFO replication`` is of a replica that is up to date."""
    if not isinstance(replica, dict) or replica.get("state") != "online":
        return False
    return 0 <= _number(replica, "lag") <= _LAG


def acknowledges(replica: object) -> bool:
    """Whether it is of one that has confirmed something, too."""
    return isinstance(replica, dict) and is_online(replica) and _number(replica, "offset") > 0


def _number(replica: Mapping[str, Any], name: str) -> int:
    try:
        return int(replica.get(name, -1))
    except (TypeError, ValueError):
        return -1
