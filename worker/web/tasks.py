"""The routes about tasks: submit, list, read, fetch addresses, and ask for one to be done again."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from worker.core import jsontext, manifest
from worker.core.answers import ActionAnswer, why
from worker.core.looks import TEXTS, Look
from worker.core.models import State
from worker.core.submission import MAX_BODY_BYTES, read_body, read_submission, traced
from worker.registry.selection import newest
from worker.web import documents
from worker.web.desk import AtDesk, Desk, TaskId, answer, answers, problem_answers
from worker.web.problems import Problem
from worker.web.queries import ListQuery

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCANNED = 1000  # most records that one list request reads
_SUMMARY = (
    "task_id", "state", "reason", "error", "label", "run", "submitted_at", "finished_at", "files",
    "updated_at", "last_error", "last_error_at",
)  # fmt: skip
_LOOK = 0.25  # seconds between two reads of a task that a request waits for
_LONGEST_WAIT = 60
_MAX_EXPIRES = 604_800  # Signature V4 allows no longer

routes = APIRouter()


@routes.post(
    "/api/tasks",
    status_code=201,
    openapi_extra=documents.body_of(documents.Submission, required=True),
    responses={
        200: {"description": "All were already known", "model": documents.Accepted},
        201: {"description": "The records exist", "model": documents.Accepted},
        **problem_answers(413, 422),
    },
)
async def submit_tasks(request: Request, desk: AtDesk) -> Response:
    """Submit task ids. A 2xx answer means that the records of ``tasks`` exist."""
    task_ids, options = read_body(await desk.body(request, MAX_BODY_BYTES))
    options = traced(options, request.headers.get("traceparent"))
    accepted, refusals = read_submission(task_ids, options, desk.policy)
    new, too_many = await desk.registry.submit(accepted)
    refused = [asdict(refusal) for refusal in (*refusals, *too_many)]
    await desk.registry.count_refused(len(refused), source="http")
    if not new:
        raise Problem(422, "nothing was accepted", refused=refused)
    tasks = [{"task_id": task_id, "new": is_new} for task_id, is_new in new.items()]
    return answer({"tasks": tasks, "refused": refused}, 201 if any(new.values()) else 200)


@routes.get("/api/tasks", responses=answers(documents.Page, 422))
async def list_tasks(desk: AtDesk, query: Annotated[ListQuery, Query()]) -> Response:
    """List tasks, newest first: by their end, or by their submission if they have not ended.

    A page may hold fewer than ``limit`` tasks although ``next`` is not null.
    """
    filters = query.filters()
    read, after = _cursor(query.cursor)
    selected = await newest(
        desk.registry, filters, limit=query.limit, most=_SCANNED, after=after, read=read,
        names=_SUMMARY,
    )  # fmt: skip
    next_page = None
    if selected.after is not None:
        before = f"{read + selected.read}~" if filters.bounded else ""
        next_page = f"{before}{selected.after[0]}:{selected.after[1]}"
    return answer({"tasks": [_summary(record) for record in selected.records], "next": next_page})


@routes.get("/api/tasks/{task_id}", responses=answers(documents.Record, 404, 422))
async def get_task(
    request: Request,
    desk: AtDesk,
    task_id: TaskId,
    wait: Annotated[
        int,
        Query(ge=0, le=_LONGEST_WAIT, description="Seconds to wait until the task is final."),
    ] = 0,
) -> Response:
    """Get the record of a task; with ``wait``, once the task is final or the time is over."""
    until = time.monotonic() + wait
    while True:
        record = await _record(desk, task_id)
        over = State(record["state"]).final or time.monotonic() >= until
        if over or await request.is_disconnected():
            return answer(manifest.public(record, await desk.registry.held_up(task_id)))
        await asyncio.sleep(_LOOK)


@routes.get("/api/tasks/{task_id}/urls", responses=answers(documents.Links, 404, 409, 422))
async def get_urls(
    desk: AtDesk,
    task_id: TaskId,
    expires: Annotated[int, Query(ge=1, le=_MAX_EXPIRES, description="Seconds.")] = 3600,
) -> Response:
    """Get presigned addresses of the stored files, valid for ``expires`` seconds."""
    record = await _record(desk, task_id)
    files = [f for f in manifest.public(record).get("files", []) if "key" in f]
    if not files:
        raise Problem(409, f"{task_id} is {record['state']} and has no stored files")
    made = await desk.store.presign_files(files, expires=expires)
    return answer({"files": made, "expires": expires})


_ASKED: dict[int | str, dict[str, Any]] = {
    202: {"model": documents.Granted}, **problem_answers(404, 409, 422),
}  # fmt: skip


@routes.post("/api/tasks/{task_id}/retry", status_code=202, responses=_ASKED)
async def retry_task(desk: AtDesk, task_id: TaskId) -> Response:
    """Retry a failed or partial task, as a new run."""
    return _done(task_id, await desk.registry.retry(task_id))


@routes.post("/api/tasks/{task_id}/cancel", status_code=202, responses=_ASKED)
async def cancel_task(desk: AtDesk, task_id: TaskId) -> Response:
    """Request the cancellation of a task; a worker carries it out."""
    return _done(task_id, await desk.registry.cancel(task_id))


@routes.post("/api/tasks/{task_id}/notify", status_code=202, responses=_ASKED)
async def notify_task(desk: AtDesk, task_id: TaskId) -> Response:
    """Call the callbacks of a final task again, with the same webhook-id."""
    return _done(task_id, await desk.registry.notify(task_id))


@routes.post(
    "/api/tasks/{task_id}/look",
    status_code=202,
    responses={202: {"model": documents.Looked}, **problem_answers(404, 409, 422)},
)
async def look_at_task(desk: AtDesk, task_id: TaskId) -> Response:
    """Poll a waiting task at once, within a quarter of the rate."""
    said = (await desk.registry.look([task_id]))[task_id]
    if not said.granted:
        raise Problem(404 if said is Look.UNKNOWN else 409, f"{task_id} {TEXTS[said]}")
    return answer({"task_id": task_id, "look": said}, 202)


async def _record(desk: Desk, task_id: str) -> dict[str, str]:
    record = await desk.registry.record(task_id)
    if record is None:
        raise Problem(404, f"{task_id} {why(ActionAnswer.UNKNOWN)}")
    return record


def _cursor(text: str | None) -> tuple[int, tuple[int, str] | None]:
    """The number of tasks read before, if bounded, and the last one of them."""
    if text is None:
        return 0, None
    place, _, task_id = text.partition(":")
    read, _, at = place.rpartition("~")
    return int(read or 0), (int(at), task_id)


def _summary(record: Mapping[str, str]) -> dict[str, Any]:
    files = jsontext.loads(record.get("files") or "[]", max_bytes=manifest.MAX_BYTES)
    return {
        "task_id": record["task_id"],
        "state": record["state"],
        "reason": record.get("reason", ""),
        "error": record.get("error", ""),
        "label": record.get("label", ""),
        "run": int(record.get("run", 1)),
        "submitted_at": int(record["submitted_at"]),
        "finished_at": int(record["finished_at"]) if record.get("finished_at") else None,
        "files": len(files),
        "files_stored": sum("key" in file for file in files),
        **manifest.last_error(record),
    }


def _done(task_id: str, said: str) -> Response:
    if said == ActionAnswer.OK:
        return answer({"task_id": task_id, "done": True}, 202)
    raise Problem(404 if said == ActionAnswer.UNKNOWN else 409, f"{task_id} {why(said)}")
