"""Signed calls to the upstream."""

from __future__ import annotations

import asyncio
import time
import uuid
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from worker.core import jsontext, samples
from worker.core.models import Doubtful
from worker.core.redact import one_line, strip_query
from worker.core.samples import Reply
from worker.core.services import Service
from worker.errors import UpstreamBlocked, UpstreamError, UpstreamRefused, UpstreamUnavailable
from worker.http import BROKEN, read_some
from worker.offload import offload
from worker.reach import Reach
from worker.upstream.signature import date_header, sign

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.core.models import Answer

_RESULT = "/scc/comfy_get_result"
_GZIP = b"\x1f\x8b"
_UNBOUND = aiohttp.ClientTimeout(total=None)  # the whole call has its own bound


def _new_nonce() -> str:
    return str(uuid.uuid4())


class Gateway:
    """The upstream, over a session of :func:`worker.http.make_session`.

    ``endpoint`` is an http(s) URL, with or without a base path. ``timeout`` in seconds bounds one
    whole :meth:`get_result`. ``clock`` gives Unix seconds. Each answer is reported to ``reach``.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        endpoint: str,
        app_key: str,
        app_secret: str,
        timeout: float = 30.0,
        clock: Callable[[], float] = time.time,
        new_nonce: Callable[[], str] = _new_nonce,
        reach: Reach | None = None,
    ) -> None:
        self._session = session
        self._url = URL(endpoint.rstrip("/") + _RESULT)
        self._path = self._url.raw_path
        self._app_key = app_key
        self._app_secret = app_secret
        self._timeout = timeout
        self._clock = clock
        self._new_nonce = new_nonce
        self._reach = reach or Reach()
        self._last_date = ("", 0.0)

    def __repr__(self) -> str:
        return f"Gateway({strip_query(str(self._url))!r})"

    @property
    def clock_skew(self) -> float | None:
        """Seconds by which this machine's clock is ahead of the upstream's; negative if behind.

        Computed from the ``Date`` of the last reply (RFC 9110, section 6.6.1), so exact to a second
        or two; ``None`` if there was none.
        """
        text, received_at = self._last_date
        try:
            date = datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
        except ValueError:
            return None
        return received_at - date.timestamp()

    async def fetch(self, task_id: str) -> Reply:
        """The raw reply to one call about a task; raises ``UpstreamUnavailable``."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._send(task_id)
        except TimeoutError as exc:
            raise self._too_late() from exc

    async def get_result(self, task_id: str) -> Answer:
        """Poll one task once; if the clock or nonce is refused, once more with a new signature.

        Raises ``UpstreamThrottled``, ``UpstreamUnavailable`` or ``UpstreamBlocked``.
        """
        try:
            with self._reach.asking(Service.UPSTREAM):
                async with asyncio.timeout(self._timeout):
                    answer = await self._ask(task_id)
        except TimeoutError as exc:
            late = self._too_late()
            self._reach.failed(Service.UPSTREAM, late)
            raise late from exc
        except UpstreamRefused:  # the registry decides whether it concerns all calls
            raise
        except UpstreamError as error:
            self._reach.failed(Service.UPSTREAM, error)
            raise
        if not isinstance(answer.observation, Doubtful):
            self._reach.heard(Service.UPSTREAM)
        return answer

    def _too_late(self) -> UpstreamUnavailable:
        return UpstreamUnavailable(f"the upstream gave no full answer within {self._timeout:g} s")

    async def _ask(self, task_id: str) -> Answer:
        try:
            return await self._attempt(task_id)
        except UpstreamBlocked as error:
            if error.kind != "clock":
                raise
        try:
            return await self._attempt(task_id)
        except UpstreamBlocked as error:
            if error.kind != "clock":
                raise
            raise UpstreamBlocked(f"{error}; {self._describe_skew()}", kind="clock") from error

    async def _attempt(self, task_id: str) -> Answer:
        reply = await self._send(task_id)
        return await offload(len(reply.body), samples.answer, reply)

    async def _send(self, task_id: str) -> Reply:
        # serialised once, so that exactly the signed bytes are sent
        body = jsontext.dumps({"taskId": task_id}).encode("ascii")
        now = self._clock()
        signed = sign(
            method="POST",
            path=self._path,
            body=body,
            app_key=self._app_key,
            app_secret=self._app_secret,
            timestamp_ms=int(now * 1000),
            nonce=self._new_nonce(),
            date=date_header(now),
        )
        try:
            async with self._session.post(
                self._url,
                data=body,
                headers=signed,
                allow_redirects=False,
                timeout=_UNBOUND,
            ) as response:
                self._last_date = (response.headers.get("Date", ""), self._clock())
                reply = await _read(response)
        except BROKEN as exc:
            raise UpstreamUnavailable(
                one_line(f"no answer from the upstream: {type(exc).__name__}: {exc}".rstrip(": "))
            ) from exc
        return Reply(
            task_id=task_id,
            host=self._url.host or "",
            status=response.status,
            headers=response.headers,
            body=reply,
        )

    def _describe_skew(self) -> str:
        skew = self.clock_skew
        if skew is None:
            return "how far this machine's clock is off is unknown"
        way = "ahead of" if skew > 0 else "behind"
        return f"this machine's clock is {abs(skew):.0f} s {way} the upstream's"


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, or its beginning if it is larger than a reply may be."""
    parts: list[bytes] = []
    size = 0
    while size <= jsontext.MAX_BYTES and (chunk := await read_some(response)):
        parts.append(chunk)
        size += len(chunk)
    body = b"".join(parts)
    if body.startswith(_GZIP):  # of a proxy that compresses although asked not to
        with suppress(zlib.error):
            return zlib.decompressobj(wbits=31).decompress(body, jsontext.MAX_BYTES + 1)
    return body
