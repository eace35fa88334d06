"""Serves the files, with the faults of their scripts."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import itertools
import secrets
import socket
import struct
import time
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from aiohttp import web

from worker.sandbox.simulator import addresses
from worker.sandbox.simulator.content import MEDIA_TYPES
from worker.sandbox.simulator.script import Step, step_at

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from worker.sandbox.simulator.content import Content
    from worker.sandbox.simulator.tasks import Task

_HOP = "_hop"  # counts redirects; not signed
_SLICES = 20  # pieces of a slow body
_GZIP_LIMIT = 64 << 20
_PAGE = b"<!doctype html>\n<html><body><h1>Service temporarily unavailable</h1></body></html>\n"
_MODIFIED = "Wed, 01 Jan 2025 00:00:00 GMT"


async def serve(
    request: web.Request, task: Task, number: int, *, now: float, secret: str
) -> web.StreamResponse:
    """Answer a GET or HEAD for file ``number`` of ``task`` at Unix time ``now``."""
    path = request.raw_path.partition("?")[0]
    if task.script.signing != "none":
        expires = addresses.expiry(path, request.query, secret=secret)
        if expires is None:
            return error(403, "SignatureDoesNotMatch", "The signature does not match.")
        if expires < now:
            return error(403, "AccessDenied", "Request has expired.", expires=expires)
    delivery = _Delivery(request, task.content(number), _etag(task, number))
    if request.method == "HEAD":
        return delivery.head()
    if _HOP in request.query:
        return await delivery.hop()
    return await _play(delivery, task, number)


async def _play(delivery: _Delivery, task: Task, number: int) -> web.StreamResponse:
    """Count the fetch, and answer as the script says."""
    count = task.fetches.get(number, 0)
    task.fetches[number] = count + 1
    step = step_at(task.script.files[number].faults, count)
    if step is None:
        return await delivery.plain()
    if step.kind in _ERRORS:
        return error(*_ERRORS[step.kind])
    return await _FAULTS[step.kind](delivery, step)


def error(
    status: int, code: str, message: str, *, expires: float | None = None
) -> web.StreamResponse:
    """An error of the object store, as XML."""
    details = ""
    if expires is not None:
        at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(expires))
        details = f"  <Expires>{at}</Expires>\n"
    return web.Response(
        status=status,
        content_type="application/xml",
        text=(
            '<?xml version="1.0" encoding="UTF-8"?>\n<Error>\n'
            f"  <Code>{code}</Code>\n  <Message>{escape(message)}</Message>\n"
            f"  <RequestId>{secrets.token_hex(12).upper()}</RequestId>\n{details}</Error>\n"
        ),
    )


async def reset(request: web.Request) -> web.StreamResponse:
    """Drop the connection so that the client sees a reset (RST)."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response(status=500)  # never sent


async def silence() -> web.StreamResponse:
    """Send nothing until the client leaves, which cancels the handler."""
    await asyncio.Event().wait()
    return web.Response(status=500)


class _Delivery:
    def __init__(self, request: web.Request, content: Content, etag: str) -> None:
        self._request = request
        self._content = content
        # As in the store: from the extension in the address, not from the bytes.
        ext = request.raw_path.partition("?")[0].rpartition(".")[2].lower()
        self._headers = {
            "Content-Type": MEDIA_TYPES.get(ext, "application/octet-stream"),
            "ETag": etag,
            "Last-Modified": _MODIFIED,
            "Accept-Ranges": "bytes",
            "x-oss-object-type": "Normal",
        }

    def head(self) -> web.StreamResponse:
        return web.Response(
            headers=self._headers | {"Content-Length": str(self._content.size)},
        )

    async def plain(self) -> web.StreamResponse:
        """The file or the requested range (RFC 9110, section 14)."""
        wanted = self._range()
        if wanted is None:
            return await self._send(200, self._content.blocks(), self._content.size)
        start, stop = wanted
        if start >= stop:
            self._headers["Content-Range"] = f"bytes */{self._content.size}"
            return web.Response(status=416, headers=self._headers)
        self._headers["Content-Range"] = f"bytes {start}-{stop - 1}/{self._content.size}"
        return await self._send(206, self._content.blocks(start, stop), stop - start)

    async def hop(self) -> web.StreamResponse:
        """Answer a request that comes from a redirect."""
        left = self._request.query[_HOP]
        if left == "loop":
            return self._redirect("loop")
        return self._redirect(str(int(left) - 1)) if int(left) > 0 else await self.plain()

    # -- faults ------------------------------------------------------------------------------

    async def redirect(self, step: Step) -> web.StreamResponse:
        return self._redirect(str(max(0, step.hops - 1)))

    async def redirect_loop(self, _: Step) -> web.StreamResponse:
        return self._redirect("loop")

    async def redirect_to(self, step: Step) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": step.to})

    async def html(self, _: Step) -> web.StreamResponse:
        return web.Response(body=_PAGE, content_type="text/html")

    async def empty(self, _: Step) -> web.StreamResponse:
        return web.Response(body=b"", headers=self._headers)

    async def no_range(self, _: Step) -> web.StreamResponse:
        del self._headers["Accept-Ranges"]
        return await self._send(200, self._content.blocks(), self._content.size)

    async def no_length(self, _: Step) -> web.StreamResponse:
        return await self._send(200, self._content.blocks(), None)

    async def oversized(self, step: Step) -> web.StreamResponse:
        block = bytes(1 << 16)
        return await self._send(200, (block for _ in range(step.bytes // len(block))), None)

    async def gzip(self, _: Step) -> web.StreamResponse:
        accepted = "gzip" in self._request.headers.get("Accept-Encoding", "")
        if not accepted or self._content.size > _GZIP_LIMIT:
            return await self.plain()
        body = gzip.compress(b"".join(self._content.blocks()), 1, mtime=0)
        self._headers["Content-Encoding"] = "gzip"
        return await self._send(200, [body], len(body))

    async def slow(self, step: Step) -> web.StreamResponse:
        size = self._content.size
        bounds = [size * n // _SLICES for n in range(_SLICES + 1)]
        pieces = (
            b"".join(self._content.blocks(start, stop))
            for start, stop in itertools.pairwise(bounds)
        )
        return await self._send(200, pieces, size, pause=step.seconds / _SLICES)

    async def truncated(self, step: Step) -> web.StreamResponse:
        response = await self._part(step)
        if self._request.transport is not None:
            self._request.transport.close()
        return response

    async def reset(self, step: Step) -> web.StreamResponse:
        response = await self._part(step)
        await reset(self._request)
        return response

    async def stalled(self, step: Step) -> web.StreamResponse:
        await self._part(step)
        return await silence()

    # -- the bytes ---------------------------------------------------------------------------

    async def _part(self, step: Step) -> web.StreamResponse:
        """Announce the requested bytes and send only some of them; the caller disconnects."""
        start, stop = self._range() or (0, self._content.size)
        after = (stop - start) // 2 if step.after is None else step.after
        if start:
            self._headers["Content-Range"] = f"bytes {start}-{stop - 1}/{self._content.size}"
        end = min(start + after, stop)
        return await self._send(
            206 if start else 200, self._content.blocks(start, end), stop - start, finish=False
        )

    async def _send(
        self,
        status: int,
        pieces: Iterable[bytes] | Iterator[bytes],
        length: int | None,
        *,
        pause: float = 0.0,
        finish: bool = True,
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers=self._headers)
        response.content_length = length
        await response.prepare(self._request)
        with contextlib.suppress(ConnectionError):  # the client has left
            for piece in pieces:
                await response.write(piece)
                if pause:
                    await asyncio.sleep(pause)
            if finish:
                await response.write_eof()
        return response

    def _redirect(self, left: str) -> web.StreamResponse:
        location = self._request.rel_url.update_query({_HOP: left})
        return web.Response(status=302, headers={"Location": str(location)})

    def _range(self) -> tuple[int, int] | None:
        """Start and stop of the requested range; ``None`` for the whole file."""
        headers, size = self._request.headers, self._content.size
        if headers.get("If-Range", self._headers["ETag"]) != self._headers["ETag"]:
            return None
        unit, _, given = headers.get("Range", "").partition("=")
        first, dash, last = given.partition("-")
        digits = all(part.isdigit() or not part for part in (first, last))
        if unit.strip() != "bytes" or not dash or not digits or not (first or last):
            return None
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(int(last) + 1, size) if last else size


def _etag(task: Task, number: int) -> str:
    seed = f"{task.id}/{number}".encode()
    return f'"{hashlib.md5(seed, usedforsecurity=False).hexdigest().upper()}"'


def task_of(path: str, folder: str) -> tuple[str, int] | None:
    """The task id and file number in a path below ``folder``; ``None`` for other paths."""
    if not path.startswith(folder):
        return None
    task_id, _, rest = path.removeprefix(folder).partition("/")
    number = rest.partition("/")[0]
    return (task_id, int(number)) if number.isdecimal() else None


_ERRORS = {
    "expired": (403, "AccessDenied", "Request has expired."),
    "forbidden": (403, "AccessDenied", "You have no right to access this object."),
    "missing": (404, "NoSuchKey", "The specified key does not exist."),
    "gone": (410, "Gone", "The object is gone."),
    "error_500": (500, "InternalError", "Please contact the server administrator."),
    "error_503": (503, "ServiceUnavailable", "Please reduce your request rate."),
}
_FAULTS: dict[str, Callable[[_Delivery, Step], Awaitable[web.StreamResponse]]] = {
    "truncated": _Delivery.truncated,
    "reset": _Delivery.reset,
    "stalled": _Delivery.stalled,
    "oversized": _Delivery.oversized,
    "html": _Delivery.html,
    "empty": _Delivery.empty,
    "redirect": _Delivery.redirect,
    "redirect_loop": _Delivery.redirect_loop,
    "redirect_to": _Delivery.redirect_to,
    "slow": _Delivery.slow,
    "no_length": _Delivery.no_length,
    "no_range": _Delivery.no_range,
    "gzip": _Delivery.gzip,
}
