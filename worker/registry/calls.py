"""The fleet's rate of upstream calls, and its circuits."""

from __future__ import annotations

from typing import Any

from worker.registry.base import Base


class Calls(Base):
    """Which calls may be made, and what they have shown about a service."""

    async def take_call(self, token: str) -> tuple[float, bool, bool]:
        """Reserve one upstream call; a repetition with the same ``token`` reserves no other.

        Returns the seconds to wait first, whether the call may be made, and whether it is the probe
        of an open circuit.
        """
        wait, refused, probe = await self._scripts.call("take", self.poll_rate, self._burst, token)
        return int(wait) / 1000, not refused, bool(probe)

    async def suspect(self, task_id: str, token: str) -> str:
        """Note that a call about an id was refused, and the refusal may concern all calls.

        A repetition with the same ``token`` answers the same, and notes nothing more.

        Returns ``id`` if other ids had usable answers since this one's last refusal, ``upstream``
        if three ids were refused without a usable answer between, else ``unknown``.
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
        """Open a circuit, or lengthen its gap after a failed probe; whether it was closed."""
        return bool(await self._scripts.call("trip", circuit, kind, message, int(probe)))

    async def postpone(self, circuit: str) -> None:
        """Note that a probe was inconclusive: the next one comes after the same gap."""
        await self._scripts.call("postpone", circuit)

    async def close_circuit(self, circuit: str) -> bool:
        """Close a circuit after a success; returns whether it was open."""
        return bool(await self._scripts.call("close", circuit))
