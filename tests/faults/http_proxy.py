"""An HTTP proxy in front of a real server. What it does to a request is a function's to say."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

from tests.faults.tcp_proxy import reset

_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
_TASK_ID = re.compile(r"(?<![0-9a-z])[0-9a-hjkmnp-tv-z]{26}(?![0-9a-z])")


class Reset(Exception):  # noqa: N818  it is what shall happen, not an error
    """The client's connection is to be reset."""


@dataclass(kw_only=True)
class Seen:
    """A request as it came. ``step`` says in one word what it is to an S3 store."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def task_id(self) -> str:
        """The first task id in the address or in the body; empty if there is none."""
        found = _TASK_ID.search(self.path) or _TASK_ID.search(self.body.decode("utf-8", "replace"))
        return found[0] if found else ""

    @property
    def manifest(self) -> bool:
        """Whether a manifest is meant."""
        return self.path.endswith(".json")

    @property
    def conditional(self) -> bool:
        """Whether it asks to create only."""
        return "if-none-match" in self.headers

    @property
    def step(self) -> str:
        """``PUT``, ``manifest PUT``, ``part``, ``open``, ``complete``, ``abort``, ``GET``…"""
        names = {part.partition("=")[0] for part in self.query.split("&")}
        if "uploads" in names:
            return "open" if self.method == "POST" else "list"
        if "uploadId" in names:
            return {"PUT": "part", "POST": "complete", "DELETE": "abort"}[self.method]
        return f"manifest {self.method}" if self.manifest else self.method


Forward = Callable[[], Awaitable[web.Response]]
Rule = Callable[[Seen, Forward], Awaitable[web.StreamResponse]]


async def honest(_: Seen, forward: Forward) -> web.StreamResponse:
    """No fault."""
    return await forward()


class HttpProxy:
    """Passes requests on to ``upstream`` (``http://host:port``), each as ``rule`` says.

    A rule answers by itself, awaits ``forward()`` and answers with that or otherwise, or raises
    :class:`Reset`.
    """

    def __init__(self, upstream: str, rule: Rule = honest) -> None:
        self.upstream = upstream
        self.rule = rule
        self.seen: list[tuple[str, int]] = []  # step and status of every answer
        self._runner: web.ServerRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self.endpoint = ""

    async def __aenter__(self) -> HttpProxy:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.endpoint = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        assert self._session is not None
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await request.content.read()
            path, _, query = request.raw_path.partition("?")
            seen = Seen(
                method=request.method,
                path=path,
                query=query,
                headers={name.lower(): value for name, value in request.headers.items()},
                body=body,
            )
            response = await self.rule(seen, lambda: self.forward(seen))
        except (Reset, aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError):
            if request.transport is not None:
                reset(request.transport)
            return web.Response(status=502)
        self.seen.append((seen.step, response.status))
        return response

    async def forward(self, seen: Seen) -> web.Response:
        """Pass a request on, and give what came back."""
        assert self._session is not None
        headers = {n: v for n, v in seen.headers.items() if n not in _HOP}
        address = f"{self.upstream}{seen.path}" + (f"?{seen.query}" if seen.query else "")
        async with self._session.request(
            seen.method,
            URL(address, encoded=True),
            headers=headers,
            data=io.BytesIO(seen.body) if seen.body else None,
            allow_redirects=False,
        ) as there:
            body = await there.read()
        answered = {n: v for n, v in there.headers.items() if n.lower() not in _HOP}
        if seen.method != "HEAD":
            answered = {n: v for n, v in answered.items() if n.lower() != "content-length"}
        return web.Response(status=there.status, headers=answered, body=body)


def s3_error(status: int, code: str) -> web.Response:
    """An error as S3 tells it."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


class Silence:
    """A rule's way to say nothing until :meth:`end`."""

    def __init__(self) -> None:
        self._over = asyncio.Event()

    def end(self) -> None:
        """Let the silent ones go."""
        self._over.set()

    async def keep(self) -> None:
        """Say nothing."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._over.wait()
        raise Reset
