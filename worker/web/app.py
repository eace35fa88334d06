"""The HTTP API, the page and the metrics, as one ASGI application.

It holds no state and does none of the fleet's work: it reads Redis, and changes it with the same
scripts as the command line. Any number of processes may serve it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.security import HTTPBearer
from starlette.responses import HTMLResponse, Response, StreamingResponse

from worker.core import jsontext, manifest, services
from worker.core.answers import ActionAnswer, why
from worker.core.looks import TEXTS, Look
from worker.core.models import State
from worker.core.schedule import price
from worker.core.submission import MAX_BODY_BYTES, read_body, read_submission, traced
from worker.errors import RegistryUnavailable, StoreError
from worker.registry import endings
from worker.registry.records import whole
from worker.registry.selection import newest
from worker.web import bulk, documents, metrics, page, problems, reference, stream
from worker.web.access import Access, Tokens, may_act
from worker.web.desk import READY_FOR, AtDesk, Desk, TaskId, answer, answers, body, problem_answers
from worker.web.problems import Problem
from worker.web.queries import ListQuery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from fastapi.routing import APIRoute

    from worker.registry.records import Overview

_SCANNED = 1000  # most records that one list request reads
_SUMMARY = (
    "task_id", "state", "reason", "error", "label", "run", "submitted_at", "finished_at", "files",
    "updated_at", "last_error", "last_error_at",
)  # fmt: skip
_LOOK = 0.25  # seconds between two reads of a task that a request waits for
_LONGEST_WAIT = 60
_MAX_EXPIRES = 604_800  # Signature V4 allows no longer
_LOOKED_FOR = 1.0  # seconds for which the probe's answer is cached: anyone may request it


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; FastAPI caches it."""
        made = self.openapi_schema is not None
        document = super().openapi()
        if not made:
            documents.complete(document)
        return document


def make_app(open_desk: Callable[[], Desk], *, tokens: Tokens, version: str) -> Any:
    """The application. ``open_desk`` runs on the loop; ``tokens`` may be empty on loopback."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.desk = open_desk()
        yield
        await app.state.desk.close()

    app = _Api(
        title="comfy-harvester",
        version=version,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # fields with a default may be absent from answers too
        separate_input_output_schemas=False,
        generate_unique_id_function=_operation,
        description="Submit SpeedPix ComfyUI task ids, and follow them until their files are "
        "stored. Errors are RFC 9457 problem details.",
    )
    problems.install(app)
    for routes in _routes(with_token=bool(tokens)):
        app.include_router(routes)
    page.install(app)
    return Access(app, tokens)


def _routes(*, with_token: bool) -> tuple[Any, Any]:  # noqa: PLR0915  a list of routes
    # Access checks the token before any route; this is for the OpenAPI document
    bearer = [Depends(HTTPBearer(auto_error=False, description="HARVESTER_WEB_TOKEN"))]
    routes = APIRouter(
        responses=problem_answers(401, 403, 503), dependencies=bearer if with_token else None
    )
    probes = APIRouter()

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
        task_ids, options = read_body(await body(request, MAX_BODY_BYTES))
        options = traced(options, request.headers.get("traceparent"))
        accepted, refusals = read_submission(task_ids, options, desk.policy)
        new, too_many = await desk.registry.submit(accepted)
        refused = [
            {"what": r.what, "value": r.value, "reason": r.reason} for r in (*refusals, *too_many)
        ]
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
        return answer(
            {"tasks": [_summary(record) for record in selected.records], "next": next_page}
        )

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
            record = await desk.registry.record(task_id)
            if record is None:
                raise Problem(404, f"{task_id} was not found")
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
        record = await desk.registry.record(task_id)
        if record is None:
            raise Problem(404, f"{task_id} was not found")
        files = [f for f in manifest.public(record).get("files", []) if "key" in f]
        if not files:
            raise Problem(409, f"{task_id} is {record['state']} and has no stored files")
        made = await desk.store.presign_files(files, expires=expires)
        return answer({"files": made, "expires": expires})

    asked = {202: {"model": documents.Granted}, **problem_answers(404, 409, 422)}

    @routes.post("/api/tasks/{task_id}/retry", status_code=202, responses=asked)
    async def retry_task(desk: AtDesk, task_id: TaskId) -> Response:
        """Retry a failed or partial task, as a new run."""
        return _done(task_id, await desk.registry.retry(task_id))

    @routes.post("/api/tasks/{task_id}/cancel", status_code=202, responses=asked)
    async def cancel_task(desk: AtDesk, task_id: TaskId) -> Response:
        """Request the cancellation of a task; a worker carries it out."""
        return _done(task_id, await desk.registry.cancel(task_id))

    @routes.post("/api/tasks/{task_id}/notify", status_code=202, responses=asked)
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

    @routes.get("/api/stats", responses=answers(documents.Fleet))
    async def get_stats(request: Request, desk: AtDesk) -> Response:
        """Get the state of the fleet."""
        try:
            fleet = glance(await desk.overview())
        except RegistryUnavailable as error:
            raise Problem(503, str(error), **desk.without_redis()) from error
        return answer({**fleet, "may_act": may_act(request.scope)})

    @routes.get("/api/endings", responses=answers(documents.Endings, 422))
    async def get_endings(desk: AtDesk, span: Annotated[documents.Span, Query()]) -> Response:
        """Count the endings in 60 equal time spans; the last one includes now."""
        seen = await endings.look(desk.registry, span.minutes)
        return answer(
            {
                "now": seen.now,
                "begin": seen.begin,
                "step": seen.step,
                "counts": dict(seen.counts),
            }
        )

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
            str | None,
            Query(pattern=stream.ENTRY, description="Entry id; default: from now on."),
        ] = None,
    ) -> Response:
        """Stream endings as server-sent events, and the stats every two seconds.

        ``Last-Event-ID`` continues after a lost connection.
        """
        last = request.headers.get("last-event-id") or after
        return await stream.respond(desk.registry, last, glance, desk.without_redis)

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def get_metrics(desk: AtDesk) -> Response:
        """Get the fleet's metrics for Prometheus."""
        try:
            text = metrics.exposition(await desk.overview())
        except RegistryUnavailable:  # the metric that reports the outage must still arrive
            text = metrics.without_redis(desk.redis_alone())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @probes.get("/healthz", responses=answers(documents.Health))
    async def get_health() -> Response:
        """Check that this process answers."""
        return answer({"alive": True})

    @probes.get("/readyz", responses=answers(documents.Readiness, 503))
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

    @probes.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        headers = {"Content-Security-Policy": reference.POLICY}
        return HTMLResponse(reference.page(request.app.openapi()), headers=headers)

    routes.include_router(bulk.routes)
    return routes, probes


def _operation(route: APIRoute) -> str:
    """The operation's id in the OpenAPI document, after which generated clients name functions."""
    return route.name


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
    if said == ActionAnswer.UNKNOWN:
        raise Problem(404, f"{task_id} {why(said)}")
    reason = why(said) if said == ActionAnswer.NOBODY else f"the task {why(said)}"
    raise Problem(409, f"{task_id}: {reason}")


def glance(fleet: Overview) -> dict[str, Any]:
    """The fleet's state as a JSON document."""
    alive = frozenset(fleet.alive)
    return {
        "now": fleet.now,
        "tasks": dict(fleet.counts),
        "due": {
            kind: {"size": size, "late_seconds": round(late, 3)}
            for kind, (size, late) in fleet.due.items()
        },
        "workers": [
            {
                "name": name,
                "last_tick": tick,
                "alive": name in alive,
                "version": fleet.versions.get(name, ""),
            }
            for name, tick in sorted(fleet.workers.items())
        ],
        "rate": {
            "limit": fleet.rate,
            "factor": round(fleet.rate_factor, 3),
            "price": round(price(fleet.behind), 3),
        },
        "circuits": {
            name: {
                "kind": fields.get("kind", ""),
                "message": fields.get("message", ""),
                "opened_at": whole(fields.get("opened_at") or 0),
            }
            for name, fields in fleet.circuits.items()
        },
        "clock_step": fleet.clock_step,
        "counters": dict(sorted(fleet.counters.items())),
        **services.glance(fleet.services, fleet.hosts, fleet.intake),
    }


async def _fleet_fault(desk: Desk) -> str:
    try:
        fleet = await desk.registry.overview()
    except RegistryUnavailable as error:
        return f"Redis: {error}"
    return "" if fleet.alive else "no worker has ticked recently"


async def _store_fault(desk: Desk) -> str:
    """Why the store does not answer; empty if it does. Needs no more rights than a manifest."""
    if time.monotonic() - desk.store_seen < READY_FOR:
        return ""
    try:
        async with asyncio.timeout(5):
            await desk.store.get(desk.probe_key, max_bytes=1024)
    except (StoreError, TimeoutError) as error:
        said = str(error) or "no answer within 5 s"
        return f"store: {said}"
    desk.store_seen = time.monotonic()
    return ""
