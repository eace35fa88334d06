"""Server-sent events (WHATWG HTML, section 9.2): endings, and the fleet's stats."""

from __future__ import annotations

import asyncio
import json
import math
import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from worker.errors import RegistryUnavailable
from worker.registry import feed
from worker.web.desk import AtDesk, Desk, problem_answers
from worker.web.fleet import glance
from worker.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

_MOST = 200
"""The most streams of one process."""

ENTRY = "^[0-9]{1,19}(-[0-9]{1,19})?$"
"""Entry ids of the event stream, whose numbers have 64 bits."""

_STATS = 2.0  # seconds between two stats
_SILENT = 3.0  # seconds without an answer after which Redis counts as out of reach

routes = APIRouter()


@routes.get(
    "/api/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **problem_answers(422),
    },
)
async def follow_events(
    request: Request,
    desk: AtDesk,
    after: Annotated[
        str | None, Query(pattern=ENTRY, description="Entry id; default: from now on.")
    ] = None,
) -> Response:
    """Stream endings as server-sent events, and the stats every two seconds.

    ``Last-Event-ID`` continues after a lost connection.
    """
    if desk.streams >= _MOST:
        raise Problem(503, f"{_MOST} streams are open already")
    last = request.headers.get("last-event-id") or after
    if last is not None and not re.fullmatch(ENTRY, last):
        raise Problem(422, "Last-Event-ID is not an entry id of the event stream")
    start = last or await desk.registry.newest_event()
    return StreamingResponse(
        _with_silence(_events(desk, start), partial(_silent, desk)),
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


async def _events(desk: Desk, last: str) -> AsyncGenerator[str]:
    desk.streams += 1
    loop = asyncio.get_running_loop()
    due = loop.time()
    try:
        async for page in feed.follow(desk.registry, last, patience=math.inf):
            if page is None:
                yield _unavailable(desk)
            for entry, fields in page or ():
                yield f"id: {entry}\nevent: final\ndata: {json.dumps(fields)}\n\n"
            if loop.time() >= due:
                due = loop.time() + _STATS
                try:
                    yield _event("stats", glance(await desk.registry.overview()))
                except RegistryUnavailable:
                    yield _unavailable(desk)
    finally:
        desk.streams -= 1


def _silent(desk: Desk) -> str:
    desk.silent(_SILENT)
    return _unavailable(desk)


def _unavailable(desk: Desk) -> str:
    return _event("unavailable", desk.without_redis())


def _event(name: str, document: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(document)}\n\n"
