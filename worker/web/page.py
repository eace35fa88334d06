"""What people see: the page, one document at every address of it, its files, and the reference."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from worker.errors import StoreError
from worker.web import reference
from worker.web.desk import AtDesk, Desk

_STATIC = Path(__file__).parent / "static"
FILES = StaticFiles(directory=_STATIC)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: {store}; media-src 'self' {store}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

routes = APIRouter(include_in_schema=False)


@routes.get("/")
@routes.get("/tasks")
@routes.get("/tasks/{task_id}")
async def show_page(desk: AtDesk) -> Response:
    """The page; what it shows is in the address, which its scripts read."""
    policy = _POLICY.format(store=await _store_origin(desk))
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": policy}
    return FileResponse(_STATIC / "index.html", headers=headers)


@routes.get("/docs")
async def show_reference(request: Request) -> Response:
    """The OpenAPI document for people."""
    headers = {"Content-Security-Policy": reference.POLICY}
    return HTMLResponse(reference.page(request.app.openapi()), headers=headers)


async def _store_origin(desk: Desk) -> str:
    """The origin of presigned addresses, as a source of a content security policy."""
    try:
        parts = urlsplit(await desk.store.presign_get(desk.probe_key, expires=1))
    except StoreError:
        return ""  # the page still works, without pictures
    return f"{parts.scheme}://{parts.netloc}"
