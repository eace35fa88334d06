"""Calls of the upstream, of which the fleet has so many a second, and circuits."""

from __future__ import annotations

from typing import Any

from worker.registry.base import Base


class Calls(Base):
    """What may be called, and what calls have shown of a service."""

    async def take_call(self, token: str) -> tuple[float, bool, bool]:
        """Reserve one upstream call; repeated with its ``token`` it reserves no other.

        Returns the seconds to wait first, whether it may be made, and whether it is the probe of an
        open circuit.
        """
        wait, refused, probe = await self._scripts.call("take", self.poll_rate, self._burst, token)
        return int(wait) / 1000, not refused, bool(probe)

    async def suspect(self, task_id: str, token: str) -> str:
        """Note that a call about an id was refused, with no word on whose account.

        Repeated with its ``token`` it answers the same, and notes nothing more.

        Returns ``id`` if other ids had usable answers since its last refusal, ``upstream`` if three
        ids were refused and none had one, else ``unknown``.
        """
        verdict: str = await self._scripts.call("suspect", task_id, token)
        return verdict

    async def since_usable(self, service: str) -> float | None:
        """Seconds since ``upstream`` or ``store`` last gave a usable answer; ``None`` if never."""
        at: Any = await self.redis.hget(self.key("services"), service)
        return None if at is None else (await self.now() - int(at)) / 1000

    async def throttle(self) -> None:
        """Halve the fleet's rate of upstream calls."""
        await self._scripts.call("throttle", self.poll_rate, self._burst)

    async def trip(self, circuit: str, *, kind: str, message: str, probe: bool) -> bool:
        """Open a circuit (or lengthen its gap after a failed probe); whether it was closed."""
        return bool(await self._scripts.call("trip", circuit, kind, message, int(probe)))

    async def postpone(self, circuit: str) -> None:
        """Note that a probe proved nothing: the next one comes after the same gap."""
        await self._scripts.call("postpone", circuit)

    async def close_circuit(self, circuit: str) -> bool:
        """Close a circuit after a success; whether it was open."""
        return bool(await self._scripts.call("close", circuit))
