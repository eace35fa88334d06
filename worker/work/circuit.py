"""Circuits: what to do when nothing can succeed until an operator acts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from worker.engine import insist

if TYPE_CHECKING:
    from worker.registry.registry import Registry

log = structlog.get_logger("harvester.circuit")


async def report_blocked(
    registry: Registry, circuit: str, kind: str, message: str, probe: bool
) -> None:
    """Open the circuit, and say so loudly once a minute for the whole fleet."""
    await insist(lambda: registry.trip(circuit, kind=kind, message=message, probe=probe))
    if await insist(lambda: registry.say_once(f"circuit:{circuit}")):
        log.error("circuit.open", circuit=circuit, kind=kind, error=message)
