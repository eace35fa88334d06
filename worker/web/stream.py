"""Server-sent events (WHATWG HTML, section 9.2): endings, and the fleet's stats."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from worker.core.services import Service
from worker.errors import RegistryUnavailable
from worker.registry import feed
from worker.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from worker.registry.records import Overview
    from worker.registry.registry import Registry

_MOST = 200
"""The most streams of one process."""

ENTRY = "^[0-9]{1,19}(-[0-9]{1,19})?$"
"""Entry ids of the event stream, whose numbers have 64 bits."""

_STATS = 2.0  # seconds between two stats
_SILENT = 3.0  # seconds without an answer after which Redis counts as out of reach
_open = 0


async def respond(
    registry: Registry,
    last: str | None,
    glance: Callable[[Overview], dict[str, Any]],
    unavailable: Callable[[], dict[str, Any]],
) -> StreamingResponse:
    """A stream that begins after the entry ``last``, or now; ``Problem`` if there are too many.

    ``unavailable`` is the document to send while Redis does not answer.
    """
    if _open >= _MOST:
        raise Problem(503, f"{_MOST} streams are open already")
    if last is not None and not re.fullmatch(ENTRY, last):
        raise Problem(422, "Last-Event-ID is not an entry id of the event stream")
    start = last or await registry.newest_event()

    def silent() -> str:
        registry.reach.failed(Service.REDIS, f"Redis did not answer within {_SILENT:.0f} s")
        return _event("unavailable", unavailable())

    return StreamingResponse(
        _with_silence(_events(registry, start, glance, unavailable), silent),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _with_silence(
    source: AsyncGenerator[str], silent: Callable[[], str]
) -> AsyncGenerator[str]:
    """Yield the items of ``source``, and ``silent()`` while there are none.

    A frozen Redis, or one behind a link that drops everything, raises no error for long.
    """
    pending = asyncio.ensure_future(anext(source))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=_SILENT)
            if not done:
                yield silent()
                continue
            yield pending.result()
            pending = asyncio.ensure_future(anext(source))
    finally:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        await source.aclose()


async def _events(
    registry: Registry,
    last: str,
    glance: Callable[[Overview], dict[str, Any]],
    unavailable: Callable[[], dict[str, Any]],
) -> AsyncGenerator[str]:
    global _open  # noqa: PLW0603  a process has one loop
    _open += 1
    loop = asyncio.get_running_loop()
    due = loop.time()
    try:
        async for page in feed.follow(registry, last, patience=math.inf):
            if page is None:
                yield _event("unavailable", unavailable())
            for entry, fields in page or ():
                yield f"id: {entry}\nevent: final\ndata: {json.dumps(fields)}\n\n"
            if loop.time() >= due:
                due = loop.time() + _STATS
                try:
                    yield _event("stats", glance(await registry.overview()))
                except RegistryUnavailable:
                    yield _event("unavailable", unavailable())
    finally:
        _open -= 1


def _event(name: str, document: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(document)}\n\n"
