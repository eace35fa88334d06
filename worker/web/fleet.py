"""The routes about the fleet: its state, its endings over time, its metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from worker.core import services
from worker.core.schedule import price
from worker.errors import RegistryUnavailable
from worker.registry import endings
from worker.registry.records import whole
from worker.web import documents, metrics
from worker.web.access import may_act
from worker.web.desk import AtDesk, answer, answers

if TYPE_CHECKING:
    from worker.registry.records import Overview

routes = APIRouter()


@routes.get("/api/stats", responses=answers(documents.Fleet))
async def get_stats(request: Request, desk: AtDesk) -> Response:
    """Get the state of the fleet."""
    return answer({**glance(await desk.overview()), "may_act": may_act(request.scope)})


@routes.get("/api/endings", responses=answers(documents.Endings, 422))
async def get_endings(desk: AtDesk, span: Annotated[documents.Span, Query()]) -> Response:
    """Count the endings in 60 equal time spans; the last one includes now."""
    return answer(asdict(await endings.look(desk.registry, span.minutes)))


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
