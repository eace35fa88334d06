"""Connections of ``harvester web``: bounds on their number and duration.

uvicorn bounds neither. A client that opens connections and sends nothing, or half a request, or
does not read the answer, could hold as many as the process may have files, and nobody else would
get one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

MOST = 512
"""Connections of one process."""

HEAD_SECONDS = 10.0
"""For all headers of a request, from the connection or the request's first byte."""

BODY_SECONDS = 30.0
"""For a whole body, which is 2 MiB at most."""

IDLE_SECONDS = 30.0
"""Between two requests; also for sending an answer, or each 48 KiB of it."""

BUFFERED = 64 * 1024 * 1024
"""Bytes of answers that wait for slow readers, over all connections."""

BACKLOG = 128
"""Connections that the system queues until they are accepted, which is at once."""

_FILES = 2048
_LINES = 10  # a minute, of messages that peers can cause


def most_connections() -> int:
    """The most connections; raises the limit on open files, of which they get a third."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox, or a system-wide limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(1, min(MOST, soft // 3))


class Connection(H11Protocol):
    """One connection. Beyond ``most``, the one whose time ends first is closed.

    Time is limited whenever the server waits for the peer. A new connection is refused only if
    every other one waits for our answer.
    """

    most = MOST
    buffered = BUFFERED
    seconds = (HEAD_SECONDS, BODY_SECONDS, IDLE_SECONDS)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._phase = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for this connection, and wait for its first request."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._drop(min(self.connections - {self}, key=_until, default=self))
        self._enter("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._enter("")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Limit the time of a request from its first byte on."""
        if self._phase == "idle":
            self._enter("head")
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Wait for the next request, which may have arrived already."""
        self._enter("idle")
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        """Limit how long the peer may read nothing, and the bytes that wait for such peers."""
        super().pause_writing()
        self._enter("stuck")
        if sum(map(_waiting, self.connections)) > self.buffered:
            self._drop(max(self.connections, key=_waiting))

    def resume_writing(self) -> None:
        """Continue with the answer."""
        super().resume_writing()
        if self._phase == "stuck":
            self._enter("answer" if self._busy else "idle")

    def _should_upgrade(self) -> bool:
        return False  # nothing here speaks another protocol

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _look(self) -> None:
        if self._busy and self._phase in ("head", "idle"):
            self._enter("body")
        if self._busy and self._phase == "body" and not self.cycle.more_body:
            self._enter("answer")

    def _drop(self, other: Any) -> None:
        if other is not self and _until(other) == math.inf:
            other = self
        other.transport.abort()
        self.connections.discard(other)  # the loop reports it lost only in its next turn

    def _enter(self, phase: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._phase == "closed":
            return
        head, body, idle = self.seconds
        self._phase = phase or "closed"
        limit = {"head": head, "body": body, "idle": idle, "stuck": idle}.get(phase)
        if limit is not None:
            # aborted, not closed: closing waits until the peer has read everything
            self._timer = self.loop.call_later(limit, self.transport.abort)


def _until(other: Any) -> float:
    return math.inf if other._timer is None else float(other._timer.when())


def _waiting(other: Any) -> int:
    return int(other.transport.get_write_buffer_size())


class Seldom(logging.Filter):
    """Passes ten lines of each level per minute, so that no peer can fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._since = 0.0
        self._passed: Counter[int] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line passes."""
        now = time.monotonic()
        if now - self._since >= 60:
            self._since = now
            self._passed.clear()
        self._passed[record.levelno] += 1
        return self._passed[record.levelno] <= _LINES


def make_server(app: Any, *, host: str, port: int) -> uvicorn.Server:
    """A server of ``app`` with these bounds; port 0 takes a free one."""
    for name in ("asyncio", "uvicorn.error"):
        logger = logging.getLogger(name)
        if not any(isinstance(kept, Seldom) for kept in logger.filters):
            logger.addFilter(Seldom())
    Connection.most = most_connections()
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=Connection,
            ws="none",
            backlog=BACKLOG,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=16_384,
            timeout_keep_alive=25,  # closed properly, before IDLE_SECONDS would abort it
            timeout_graceful_shutdown=2,
        )
    )
