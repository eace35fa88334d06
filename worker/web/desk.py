"""What the routes share: connections, reading bodies, and answering."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request
from fastapi import Path as InPath
from starlette.responses import Response

from worker.core import jsontext
from worker.core.services import Service
from worker.errors import RegistryUnavailable
from worker.web import documents, problems
from worker.web.problems import Problem

if TYPE_CHECKING:
    from pydantic import BaseModel

    from worker.core.services import Outlook
    from worker.core.submission import Policy
    from worker.registry.records import Overview
    from worker.registry.registry import Registry
    from worker.transfer.store import ObjectStore

_PATIENCE = 4.0  # seconds to wait for Redis' answer
_BODIES = 64 * 1024 * 1024  # bytes of bodies that may arrive at once

TaskId = Annotated[str, InPath(min_length=1, max_length=128, description="Task id.")]


@dataclass(kw_only=True)
class Desk:
    """What the routes work with; made on the loop.

    ``streams`` are open now; ``received`` are bytes of bodies that have begun to arrive.
    """

    registry: Registry
    store: ObjectStore
    policy: Policy
    probe_key: str
    store_seen: float = -math.inf
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    looked: float = -math.inf
    fault: str = ""
    streams: int = 0
    received: int = 0

    async def overview(self) -> Overview:
        """The fleet; ``RegistryUnavailable`` if Redis takes so long that clients would give up."""
        reading = asyncio.ensure_future(self.registry.overview())
        await asyncio.wait([reading], timeout=_PATIENCE)
        if reading.done():
            return reading.result()
        reading.cancel()
        raise self.silent(_PATIENCE)

    def silent(self, seconds: float) -> RegistryUnavailable:
        """Note that Redis has not answered for so long; returns the error that says so."""
        error = RegistryUnavailable(f"Redis did not answer within {seconds:.0f} s")
        self.registry.reach.failed(Service.REDIS, error)
        return error

    def redis_alone(self) -> Outlook:
        """What is known of Redis while it does not answer."""
        return self.registry.reach.outlook(Service.REDIS, round(time.time() * 1000))

    def without_redis(self) -> dict[str, Any]:
        """The members of a document that report that Redis is out of reach."""
        return {"services": {Service.REDIS: self.redis_alone().document()}}

    async def body(self, request: Request, most: int) -> bytes:
        """A request's body.

        Raises ``Problem`` 413 as soon as it is larger than ``most``, and 503 if there are too many
        at once.
        """
        read = bytearray()
        try:
            async for chunk in request.stream():
                read += chunk
                self.received += len(chunk)
                if len(read) > most:
                    raise Problem(413, f"the body is larger than {most} bytes")
                if self.received > _BODIES:
                    raise Problem(503, "too many bodies arrive at once")
            return bytes(read)
        finally:
            self.received -= len(read)

    async def close(self) -> None:
        """Close the connections."""
        await self.store.close()
        await self.registry.close()


async def _desk(request: Request) -> Desk:  # FastAPI would run it in a thread without async
    desk: Desk = request.app.state.desk
    return desk


AtDesk = Annotated[Desk, Depends(_desk)]


def answer(value: Any, status: int = 200) -> Response:
    """A JSON answer that keeps every digit."""
    return Response(jsontext.dumps(value), status, media_type="application/json")


_PROBLEM = {"content": {problems.MEDIA_TYPE: {"schema": documents.reference(documents.Problem)}}}


def problem_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problems with these statuses, for the OpenAPI document."""
    texts = {
        401: "No token, or a wrong one",
        403: "Not from this machine, or from another site",
        404: "Unknown task",
        409: "Not possible in the task's state",
        413: "Too large",
        422: "Part of the request is refused",
        503: "Redis or the store is out of reach",
    }
    return {status: {"description": texts[status], **_PROBLEM} for status in statuses}


def answers(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """A good answer and problems, for the OpenAPI document."""
    return {200: {"model": model}, **problem_answers(*statuses)}
