"""Errors as RFC 9457 problem details."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from worker.core import jsontext
from worker.core.redact import one_line
from worker.errors import InvalidSubmission, RecordMalformed, RegistryUnavailable, StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI, Request

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818  named as RFC 9457 names it
    """An error answer; ``more`` are members of the document in addition to ``detail``."""

    def __init__(self, status: int, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.more = more


def problem(
    status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """The response for a problem."""
    document = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return Response(jsontext.dumps(document), status, dict(headers or {}), MEDIA_TYPE)


def _allowed(request: Request) -> str:
    """The methods of all routes of this path; the router only returns those of the first one."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", set())
    return ", ".join(sorted(methods))


def install(app: FastAPI) -> None:
    """Answer every error as a problem."""

    @app.exception_handler(Problem)
    async def said(_: Request, error: Problem) -> Response:
        return problem(error.status, str(error), **error.more)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            return problem(
                405, f"method {request.method} is not allowed", {"Allow": _allowed(request)}
            )
        return problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        said = (
            f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors()
        )
        return problem(422, one_line("; ".join(said), 500))

    @app.exception_handler(InvalidSubmission)
    async def invalid(_: Request, error: InvalidSubmission) -> Response:
        return problem(422, str(error))

    @app.exception_handler(RecordMalformed)
    async def malformed_record(_: Request, error: RecordMalformed) -> Response:
        return problem(500, str(error))

    @app.exception_handler(RegistryUnavailable)
    async def away(_: Request, error: RegistryUnavailable) -> Response:
        return problem(503, f"Redis: {error}", {"Retry-After": "5"})

    @app.exception_handler(Exception)  # the server logs it with its traceback
    async def broken(_: Request, error: Exception) -> Response:
        return problem(500, f"a defect of harvester web: {type(error).__name__}")

    @app.exception_handler(StoreError)
    async def no_store(_: Request, error: StoreError) -> Response:
        return problem(503, f"store: {error}", {"Retry-After": "5"})
