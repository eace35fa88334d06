"""Server-sent events (WHATWG HTML, section 9.2): endings as they come, and the fleet's stats."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from worker.errors import RegistryUnavailable
from worker.registry import feed
from worker.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from worker.registry.records import Overview
    from worker.registry.registry import Registry

_MOST = 200
"""Connections that one process keeps open."""

ENTRY = "^[0-9]{1,19}(-[0-9]{1,19})?$"
"""Entry ids of the event stream, in which Redis has numbers of 64 bits."""

_STATS = 2.0  # seconds between two stats
_SILENT = 3.0  # seconds without a word from Redis after which it counts as out of reach
_UNAVAILABLE = "event: unavailable\ndata: {}\n\n"
_open = 0


async def respond(
    registry: Registry, last: str | None, glance: Callable[[Overview], dict[str, Any]]
) -> StreamingResponse:
    """A stream that begins after the entry ``last``, or now. Raises ``Problem`` if too many."""
    if _open >= _MOST:
        raise Problem(503, f"{_MOST} streams are open already")
    if last is not None and not re.fullmatch(ENTRY, last):
        raise Problem(422, "Last-Event-ID is not an entry id of the event stream")
    start = last or await registry.newest_event()
    return StreamingResponse(
        _outspoken(_events(registry, start, glance)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _outspoken(source: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """What ``source`` yields, and that Redis is out of reach while it yields nothing.

    A Redis that is frozen, or behind a link that swallows everything, gives no error for long.
    """
    pending = asyncio.ensure_future(anext(source))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=_SILENT)
            if not done:
                yield _UNAVAILABLE
                continue
            yield pending.result()
            pending = asyncio.ensure_future(anext(source))
    finally:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        await source.aclose()


async def _events(
    registry: Registry, last: str, glance: Callable[[Overview], dict[str, Any]]
) -> AsyncGenerator[str]:
    global _open  # noqa: PLW0603  a process has one loop
    _open += 1
    loop = asyncio.get_running_loop()
    due = loop.time()
    try:
        async for page in feed.follow(registry, last, patience=math.inf):
            if page is None:
                yield _UNAVAILABLE
            for entry, fields in page or ():
                yield f"id: {entry}\nevent: final\ndata: {json.dumps(fields)}\n\n"
            if loop.time() >= due:
                due = loop.time() + _STATS
                try:
                    stats = json.dumps(glance(await registry.overview()))
                except RegistryUnavailable:
                    yield _UNAVAILABLE
                else:
                    yield f"event: stats\ndata: {stats}\n\n"
    finally:
        _open -= 1
