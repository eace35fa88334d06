"""Actions on many tasks, and groups of failed tasks.

A call changes 500 tasks at most and answers with a cursor for the rest: nothing runs between calls.
Redis' time at the first call bounds all calls of one action.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from worker.core.answers import ActionAnswer
from worker.core.filters import NEWEST, Action
from worker.core.models import State
from worker.core.redact import one_line
from worker.registry import selection
from worker.web import documents
from worker.web.desk import AtDesk, Desk, answer, answers
from worker.web.problems import Problem
from worker.web.queries import BulkQuery, GroupQuery

_READ = 2000  # most tasks that one call reads
_SAMPLE = 20
_MAX_BODY = 128 * 1024  # 500 of the longest ids, and the same in white space

routes = APIRouter()


@routes.get("/api/groups", responses=answers(documents.GroupList, 422))
async def list_groups(desk: AtDesk, query: Annotated[GroupQuery, Query()]) -> Response:
    """Group tasks by state, reason and kind of error, the largest group first; 50 at most.

    Without ``state``, these are failed and partial tasks. ``read`` of ``of`` tasks were checked.
    """
    filters = query.filters((State.PARTIAL, State.FAILED)).up_to(await desk.registry.now())
    groups, read = await selection.groups(desk.registry, filters)
    of = await selection.size(desk.registry, filters)
    return answer(
        {
            "groups": [asdict(group) for group in groups],
            "read": read,
            "of": max(of, read),
            "until": filters.until,
        }
    )


_ASKED: dict[str, Any] = {
    "responses": {**answers(documents.Bulk, 413, 422)},
    "openapi_extra": documents.body_of(documents.BulkIds, required=False),
}


@routes.post("/api/bulk/retry", **_ASKED)
async def retry_tasks(
    request: Request, desk: AtDesk, query: Annotated[BulkQuery, Query()]
) -> Response:
    """Retry failed and partial tasks that ended before the first call, 500 per call.

    Without ``reason``, tasks that were canceled or whose content was rejected are skipped, unless
    their ids are given.
    """
    return await _act(request, desk, Action.RETRY, query)


@routes.post("/api/bulk/cancel", **_ASKED)
async def cancel_tasks(
    request: Request, desk: AtDesk, query: Annotated[BulkQuery, Query()]
) -> Response:
    """Request the cancellation of waiting and copying tasks, 500 per call.

    Only tasks that began before the first call are canceled. Workers write the endings.
    """
    return await _act(request, desk, Action.CANCEL, query)


@routes.post("/api/bulk/notify", **_ASKED)
async def notify_tasks(
    request: Request, desk: AtDesk, query: Annotated[BulkQuery, Query()]
) -> Response:
    """Call the callbacks of final tasks that ended before the first call again, 500 per call."""
    return await _act(request, desk, Action.NOTIFY, query)


async def _act(request: Request, desk: Desk, action: Action, query: BulkQuery) -> Response:
    registry, ids = desk.registry, _ids(await desk.body(request, _MAX_BODY))
    if ids is None and not query.any:
        raise Problem(422, "give a filter, such as state, or task_ids")
    filters = query.filters_of(action, await registry.now(), named=ids is not None)
    not_done: Counter[str] = Counter()
    following = None
    if ids is not None:
        records, not_done = await selection.named(registry, filters, action, ids)
        read = len(ids)
    else:
        before, after = _cursor(query.cursor)
        most = NEWEST if query.dry_run else _READ
        limit = NEWEST if query.dry_run else query.limit
        page = await selection.newest(
            registry, filters, limit=limit, most=most, after=after, read=before
        )
        records, read = page.records, page.read
        if page.after is not None:
            so_far = before + read if filters.bounded else 0
            following = f"{filters.until}:{so_far}:{page.after[0]}:{page.after[1]}"
    done = [record["task_id"] for record in records]
    if not query.dry_run:
        said = await registry.ask(action, done, until=filters.until)
        done = [task_id for task_id, each in said.items() if each == ActionAnswer.OK]
        not_done.update(each for each in said.values() if each != ActionAnswer.OK)
    return answer(
        {
            "done": len(done),
            "not_done": not_done,
            "task_ids": done[:_SAMPLE] if query.dry_run else done,
            "read": read,
            "until": filters.until,
            "next": following,
        }
    )


def _cursor(text: str | None) -> tuple[int, tuple[int, str] | None]:
    """The number of tasks read before, if bounded, and the last one of them."""
    if text is None:
        return 0, None
    _, read, at, task_id = text.split(":", 3)
    return int(read), (int(at), task_id)


def _ids(body: bytes) -> list[str] | None:
    """The ids in a body, each once; ``None`` without a body. Raises ``Problem`` 422."""
    if not body:
        return None
    try:
        return list(dict.fromkeys(documents.BulkIds.model_validate_json(body).task_ids))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Problem(422, one_line(f"{where}: {first['msg']}", 500)) from None
