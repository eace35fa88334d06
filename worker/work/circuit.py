"""Circuits: open while no call can succeed until an operator acts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from worker.work.claim import insist

if TYPE_CHECKING:
    from worker.registry.registry import Registry

log = structlog.get_logger("harvester.circuit")


class Circuit:
    """The circuit called ``name``, as one job uses it."""

    def __init__(self, registry: Registry, name: str) -> None:
        self._registry = registry
        self._name = name

    async def blocked(self, kind: str, error: Exception, *, probe: bool) -> None:
        """Open the circuit; the fleet logs an error about it once a minute."""
        await insist(
            lambda: self._registry.trip(self._name, kind=kind, message=str(error), probe=probe)
        )
        if await insist(lambda: self._registry.say_once(f"circuit:{self._name}")):
            log.error("circuit.open", circuit=self._name, kind=kind, error=str(error))

    async def unproven(self, *, probe: bool) -> None:
        """After an inconclusive probe, send the next one after the same gap."""
        if probe:
            await insist(lambda: self._registry.postpone(self._name))

    async def proven(self, *, probe: bool) -> None:
        """Close the circuit after a probe that succeeded."""
        if probe and await insist(lambda: self._registry.close_circuit(self._name)):
            log.warning("circuit.closed", circuit=self._name)
