"""Upkeep: ticks of workers, lost tasks, old records, and checks of Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from worker.core.models import State
from worker.errors import RegistryUnavailable, RegistryUnfit
from worker.registry.base import Base, flat, pairs
from worker.registry.client import WRONG_TYPE, outage

if TYPE_CHECKING:
    from collections.abc import Mapping

_RECONCILED = 500
_RECONCILE_STEPS = 20


class Upkeep(Base):
    """The registry's maintenance."""

    async def tick(self, worker: str) -> list[str]:
        """Note that a worker lives, with its reports; remove silent workers and old records.

        Returns the keys of another type that were removed, to begin again.
        """
        await self.now()
        begun_again = pairs(await self._scripts.call("check", 1))
        counts, heard = self.tally.take(), self.reach.take()
        try:
            words = [word for report in heard for word in report]
            await self._scripts.call("heard", worker, self._version, *words)
            heard = []
            async with self.redis.pipeline(transaction=False) as pipe:
                for name, by in counts.items():
                    pipe.hincrby(self.key("counters"), name, by)
                await pipe.execute()
        except RegistryUnavailable:
            self.tally.put_back(counts)
            self.reach.put_back(heard)
            raise
        if self.clock.settled:
            await self._scripts.call("sweep", 500)
        return list(begun_again)

    async def reconcile(self) -> int:
        """Queue tasks that are in no due set; returns how many there were.

        One worker of the fleet does this at a time, at most once a minute and for at most 10,000
        tasks of a state; the next call continues from there.
        """
        if not await self.say_once("reconcile"):
            return 0
        count = 0
        for state in (State.WAITING, State.COPYING):
            place: Any = await self.redis.get(self.key("reconciled", state))
            rank = int(place) if place and place.isdecimal() else 0
            for _ in range(_RECONCILE_STEPS):
                looked_at, back = map(
                    int, await self._scripts.call("reconcile", state, rank, _RECONCILED)
                )
                count += back
                rank = rank + looked_at if looked_at == _RECONCILED else 0
                if not rank:
                    break
            await self.redis.set(self.key("reconciled", state), rank, ex=3600)
        return count

    async def leave(self, worker: str) -> None:
        """Remove a worker that exits."""
        await self.redis.zrem(self.key("workers"), worker)

    async def purge(self, task_id: str, finished_at: str) -> str:
        """Remove an unchanged final task; returns ``ok``, ``changed``, ``telling`` or its state."""
        said: str = await self._scripts.call("purge", task_id, finished_at)
        return said

    async def restore(self, record: Mapping[str, str]) -> bool:
        """Write a final record back from its manifest; returns whether there was none."""
        return bool(
            await self._scripts.call("restore", record["task_id"], self._ttl, *flat(record))
        )

    async def check(self) -> dict[str, str]:
        """The keys that the fleet cannot use: of another type (empty text), or with Redis' refusal.

        Raises ``RegistryUnavailable`` if Redis accepts no writes now.
        """
        unusable = pairs(await self._scripts.call("check"))
        for key, said in unusable.items():
            known = outage(ResponseError(said))
            if WRONG_TYPE not in said and not isinstance(known, RegistryUnfit):
                raise known or RegistryUnavailable(f"Redis answers: {said}")
            unusable[key] = "" if WRONG_TYPE in said else said
        return unusable

    async def set_aside(self, *, seconds: float) -> list[str]:
        """The tasks set aside in the last ``seconds``: others have overwritten their keys."""
        since = await self.now() - round(seconds * 1000)
        ids: Any = await self.redis.zrangebyscore(self.key("aside"), since, "+inf")
        return list(ids)

    async def info(self) -> dict[str, Any]:
        """The server's ``INFO``."""
        info: dict[str, Any] = await self.redis.info()
        return info
