"""What all parts of the registry share: the Redis client, keys, time and scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.reach import Reach
from worker.registry.clock import Clock
from worker.registry.intake import Stream
from worker.registry.replicas import Replicas
from worker.registry.scripts import Scripts
from worker.registry.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.registry.client import Client

CHUNK = 100
"""The number of tasks that are read or written in one round trip."""


def pairs(flat: Sequence[str]) -> dict[str, str]:
    """A hash from the alternating fields and values that a script returns."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def flat(fields: Mapping[str, str]) -> list[str]:
    """The alternating fields and values of a hash, as a script takes them."""
    return [part for pair in fields.items() for part in pair]


class Base:
    """The base of every part of the registry.

    ``lease``, ``deadline`` and ``record_ttl`` are in seconds, ``poll_rate`` in calls a second.
    ``owner`` names the claiming process for people, and ``version`` is the release that it runs.
    """

    def __init__(
        self,
        redis: Client,
        *,
        namespace: str,
        lease: float,
        poll_rate: float,
        deadline: float,
        record_ttl: int,
        events_maxlen: int,
        owner: str = "",
        version: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.redis = redis
        self.namespace = namespace
        self.lease = lease
        self.poll_rate = poll_rate
        # at most a quarter of a second's calls at once, so that the limit holds in each second
        self._burst = max(1.0, poll_rate / 4)
        self._deadline = deadline
        self._ttl = record_ttl * 1000
        self._events_maxlen = events_maxlen
        self.owner = owner
        self._version = version
        self.clock = clock or Clock()
        self.tally = Tally()
        self.reach = Reach()
        self._scripts = Scripts(redis, namespace)
        self.intake = Stream(redis, self._scripts, namespace)
        self._replicas = Replicas(redis, self.key("said", "replicated"))

    def key(self, *parts: str) -> str:
        """The Redis key ``namespace:part:…``."""
        return ":".join((self.namespace, *parts))

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()

    async def now(self) -> int:
        """Redis time in Unix milliseconds."""
        begun = self.clock.begin()
        return self.heard(await self.redis.time(), begun)

    def heard(self, time: tuple[int, int], begun: float) -> int:
        """Redis time in Unix milliseconds, from the answer to a ``TIME`` asked at ``begun``."""
        now = time[0] * 1000 + time[1] // 1000
        self.clock.heard(now, begun)
        return now

    @property
    def _lease_ms(self) -> int:
        return round(self.lease * 1000)

    async def say_once(self, event: str, *, seconds: int = 60) -> bool:
        """Whether ``event`` should be reported: nobody has within the last ``seconds``."""
        return await self.once(self.key("said", event), seconds=seconds)

    async def once(self, key: str, *, seconds: int) -> bool:
        """Whether nobody else had this answer for ``key`` within the last ``seconds``."""
        return bool(await self._scripts.call("once", key, seconds * 1000))
