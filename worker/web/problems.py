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
from worker.core.services import Service
from worker.errors import (
    InvalidSubmission,
    RecordMalformed,
    RegistryUnavailable,
    RegistryUnconfirmed,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from fastapi import Request

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


async def _said(_: Request, error: Problem) -> Response:
    return problem(error.status, str(error), **error.more)


async def _refused(request: Request, error: HTTPException) -> Response:
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"method {request.method} is not allowed"
        return problem(405, detail, {"Allow": _allowed(request)})
    return problem(error.status_code, str(error.detail), error.headers)


async def _malformed(_: Request, error: RequestValidationError) -> Response:
    said = (f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors())
    return problem(422, one_line("; ".join(said), 500))


async def _invalid(_: Request, error: InvalidSubmission) -> Response:
    return problem(422, str(error))


async def _malformed_record(_: Request, error: RecordMalformed) -> Response:
    return problem(500, str(error))


async def _away(_: Request, error: RegistryUnconfirmed | StoreError) -> Response:
    what = "store" if isinstance(error, StoreError) else "Redis"
    return problem(503, f"{what}: {error}", {"Retry-After": "5"})


async def _no_redis(request: Request, error: RegistryUnavailable) -> Response:
    desk = request.app.state.desk
    desk.registry.reach.failed(Service.REDIS, error)
    return problem(503, str(error), {"Retry-After": "5"}, **desk.without_redis())


async def _broken(_: Request, error: Exception) -> Response:
    return problem(500, f"a defect of harvester web: {type(error).__name__}")


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    Problem: _said,
    HTTPException: _refused,
    RequestValidationError: _malformed,
    InvalidSubmission: _invalid,
    RecordMalformed: _malformed_record,
    RegistryUnavailable: _no_redis,
    RegistryUnconfirmed: _away,
    StoreError: _away,
    Exception: _broken,  # the server logs it with its traceback
}
"""How each error is answered: as a problem."""
