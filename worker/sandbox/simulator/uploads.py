"""Input files: an application gets a signed address and uploads the file there."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from typing import Any
from urllib.parse import quote

from aiohttp import web

from worker.sandbox.simulator import addresses, files

FOLDER = "/comfy/temp/"
_UPLOAD_TTL = 900.0  # seconds during which the file may be uploaded
_MOST_BYTES = 256 << 20


class Uploads:
    """The uploaded files, in memory; beyond 256 MiB the oldest are removed."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._files: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def sign(
        self, name: str, content_type: str, *, origin: str, now: float, ttl: float
    ) -> dict[str, Any]:
        """The ``data`` of the call: where to upload a file, and where to fetch it.

        ``now`` is in Unix seconds; the file can be fetched for ``ttl`` seconds.
        """
        key = f"{FOLDER[1:]}{secrets.token_hex(16)}/{name.replace('/', '_')[-200:]}"
        path = f"/{quote(key)}"
        put = self._query(f"PUT {content_type} {path}", now, _UPLOAD_TTL)
        return {
            "uploadUrl": f"{origin}{path}?{put}",
            "objectKey": key,
            "path": key,
            "expireTime": int((now + ttl) * 1000),
            "accessUrl": f"{origin}{path}?{self._query(path, now, ttl)}",
        }

    async def put(self, request: web.Request, *, now: float) -> web.StreamResponse:
        """Store an upload with the announced content type."""
        path = request.raw_path.partition("?")[0]
        content_type = request.headers.get("Content-Type", "")
        refusal = self._refusal(f"PUT {content_type} {path}", request, now)
        if refusal is not None:
            return refusal
        body = await request.read()
        self._files.pop(path, None)
        self._files[path] = (content_type, body)
        while sum(len(kept) for _, kept in self._files.values()) > _MOST_BYTES:
            self._files.popitem(last=False)
        return web.Response(headers={"ETag": _etag(body)})

    def get(self, request: web.Request, *, now: float) -> web.StreamResponse:
        """Serve an uploaded file."""
        path = request.raw_path.partition("?")[0]
        refusal = self._refusal(path, request, now)
        if refusal is not None:
            return refusal
        if path not in self._files:
            return files.error(404, "NoSuchKey", "The specified key does not exist.")
        content_type, body = self._files[path]
        return web.Response(body=body, headers={"Content-Type": content_type, "ETag": _etag(body)})

    def _query(self, signed: str, now: float, ttl: float) -> str:
        return addresses.sign(
            signed, style="oss_v1", issued=now, ttl=ttl, serial=0, secret=self._secret
        )

    def _refusal(self, signed: str, request: web.Request, now: float) -> web.StreamResponse | None:
        expires = addresses.expiry(signed, request.query, secret=self._secret)
        if expires is None:
            return files.error(403, "SignatureDoesNotMatch", "The signature does not match.")
        if expires < now:
            return files.error(403, "AccessDenied", "Request has expired.", expires=expires)
        return None


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest().upper()}"'
