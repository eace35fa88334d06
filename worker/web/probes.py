"""The probes of an orchestrator, which need no token."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter
from starlette.responses import Response

from worker.errors import RegistryUnavailable, StoreError
from worker.web import documents
from worker.web.desk import AtDesk, Desk, answer, answers
from worker.web.problems import Problem

_LOOKED_FOR = 1.0  # seconds for which the probe's answer is cached: anyone may request it
_READY_FOR = 10.0  # seconds for which a look at the store is believed

routes = APIRouter()


@routes.get("/healthz", responses=answers(documents.Health))
async def get_health() -> Response:
    """Check that this process answers."""
    return answer({"alive": True})


@routes.get("/readyz", responses=answers(documents.Readiness, 503))
async def get_readiness(desk: AtDesk) -> Response:
    """Check that Redis and the store answer, and that a worker has ticked within 15 s."""
    async with desk.looking:
        if time.monotonic() - desk.looked >= _LOOKED_FOR:
            faults = await asyncio.gather(_fleet_fault(desk), _store_fault(desk))
            desk.fault = "; ".join(filter(None, faults))
            desk.looked = time.monotonic()
        fault = desk.fault
    if fault:
        raise Problem(503, fault)
    return answer({"ready": True})


async def _fleet_fault(desk: Desk) -> str:
    try:
        fleet = await desk.overview()
    except RegistryUnavailable as error:
        return str(error)
    return "" if fleet.alive else "no worker has ticked recently"


async def _store_fault(desk: Desk) -> str:
    """Why the store does not answer; empty if it does. Needs no more rights than a manifest."""
    if time.monotonic() - desk.store_seen < _READY_FOR:
        return ""
    try:
        async with asyncio.timeout(5):
            await desk.store.get(desk.probe_key, max_bytes=1024)
    except (StoreError, TimeoutError) as error:
        said = str(error) or "no answer within 5 s"
        return f"store: {said}"
    desk.store_seen = time.monotonic()
    return ""
