"""The HTTP API, the page and the metrics, as one ASGI application.

It holds no state and does none of the fleet's work: it reads Redis, and changes it with the same
scripts as the command line. Any number of processes may serve it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from worker.web import bulk, documents, fleet, page, probes, problems, stream, tasks
from worker.web.access import Access, Tokens
from worker.web.desk import Desk, problem_answers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastapi.routing import APIRoute


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
        exception_handlers=problems.HANDLERS,
        description="Submit SpeedPix ComfyUI task ids, and follow them until their files are "
        "stored. Errors are RFC 9457 problem details.",
    )
    # Access checks the token before any route; this is for the OpenAPI document
    bearer = [Depends(HTTPBearer(auto_error=False, description="HARVESTER_WEB_TOKEN"))]
    for routes in (tasks.routes, fleet.routes, stream.routes, bulk.routes):
        app.include_router(
            routes,
            responses=problem_answers(401, 403, 503),
            dependencies=bearer if tokens else None,
        )
    app.include_router(probes.routes)
    app.include_router(page.routes)
    app.mount("/static", page.FILES, name="static")
    return Access(app, tokens)


def _operation(route: APIRoute) -> str:
    """The operation's id in the OpenAPI document, after which generated clients name functions."""
    return route.name
