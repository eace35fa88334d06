"""The page: one document at each of its addresses, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from worker.errors import StoreError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from worker.transfer.store import ObjectStore

_STATIC = Path(__file__).parent / "static"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: {store}; media-src 'self' {store}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def install(app: FastAPI) -> None:
    """Serve the page at ``/``, ``/tasks`` and ``/tasks/ID``, and its files below ``/static``."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    @routes.get("/tasks")
    @routes.get("/tasks/{task_id}")
    async def page(request: Request) -> Response:
        desk = request.app.state.desk
        policy = _POLICY.format(store=await _store_origin(desk.store, desk.probe_key))
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": policy}
        return FileResponse(_STATIC / "index.html", headers=headers)

    app.include_router(routes)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")


async def _store_origin(store: ObjectStore, key: str) -> str:
    """The origin of presigned addresses, as a source of a content security policy."""
    try:
        parts = urlsplit(await store.presign_get(key, expires=1))
    except StoreError:
        return ""  # the page still works, without pictures
    return f"{parts.scheme}://{parts.netloc}"
