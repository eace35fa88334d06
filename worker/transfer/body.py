"""The body of a response, read into the reader's buffer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from worker.http import read_some

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiohttp

    Arrived = Callable[[int], None]
    """Called with the number of new bytes in the room."""


_AT_ONCE = 1024 * 1024  # hashing more at once would block the event loop


def _nothing(count: int) -> None:
    """Do nothing."""


def pour(ahead: memoryview, room: memoryview, arrived: Arrived) -> tuple[memoryview, memoryview]:
    """Copy as much of ``ahead`` into ``room`` as fits; returns what is left of both."""
    count = min(len(ahead), len(room))
    if count:
        room[:count] = ahead[:count]
        arrived(count)
    return ahead[count:], room[count:]


class Body(Protocol):
    """A body that has not been read to its end."""

    async def fill(self, room: memoryview, arrived: Arrived) -> None:
        """Read until ``room`` is full, or the body or its connection ends.

        ``arrived`` is called as bytes come. Raises one of ``worker.http.BROKEN``, and the errors of
        ``arrived``.
        """

    def close(self) -> None:
        """Release the connection."""


class ParsedBody:
    """A body in any framing. Reading it to its end frees the connection for other requests."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._ahead = memoryview(b"")

    async def fill(self, room: memoryview, arrived: Arrived) -> None:
        """See :class:`Body`."""
        while room:
            if not self._ahead:
                self._ahead = memoryview(await read_some(self._response))
                if not self._ahead:
                    return
            self._ahead, room = pour(self._ahead, room, arrived)

    def close(self) -> None:
        """See :class:`Body`."""
        self._response.close()


class DirectBody(asyncio.BufferedProtocol):
    """A long body of ``length`` bytes, received directly into the reader's buffer.

    Takes the connection from aiohttp once the headers are read, which saves copies and one wake-up
    of the reader per piece, and returns it at the end of the body. ``stall`` is the longest time
    without a byte, in seconds.
    """

    def __init__(self, response: aiohttp.ClientResponse, length: int, *, stall: float) -> None:
        self._response = response
        self._left = length
        self._stall = stall
        self._loop = asyncio.get_running_loop()
        self._begun = False
        self._ahead = memoryview(b"")
        self._room = memoryview(b"")
        self._arrived: Arrived = _nothing
        self._moved = 0.0
        self._filled: asyncio.Future[None] | None = None
        self._lost = False
        self._error: Exception | None = None

    async def fill(self, room: memoryview, arrived: Arrived) -> None:
        """See :class:`Body`."""
        if not self._begun:
            self._begun = True
            self._take_over()
        room = room[: self._left]
        wanted = len(room)
        self._ahead, room = pour(self._ahead, room, arrived)
        self._left -= wanted - len(room)
        if room and not self._lost:
            await self._receive(room, arrived)
        if self._error is not None:
            raise self._error
        if not self._left and not self._lost:
            self._give_back()

    def close(self) -> None:
        """See :class:`Body`."""
        self._response.close()
        self._error = None  # it refers to the frames it passed through, and these to this object

    def _take_over(self) -> None:
        """Take the connection, and the bytes that aiohttp has already read from it."""
        content = self._response.content
        self._ahead = memoryview(b"".join(iter(content.read_nowait, b"")))
        connection = self._response.connection
        transport = connection.transport if connection is not None else None
        if transport is None:  # the body is complete already, or the connection is lost
            self._lost = True
            return
        self._transport = transport
        self._parser = transport.get_protocol()
        transport.pause_reading()
        transport.set_protocol(self)

    def _give_back(self) -> None:
        """Let other requests use the connection, as aiohttp does after a body that it has read.

        Its parser still expects the body, so bytes that come before the next request never count as
        that request's answer.
        """
        self._lost = True
        self._transport.set_protocol(self._parser)
        self._response.content.feed_eof()

    async def _receive(self, room: memoryview, arrived: Arrived) -> None:
        self._room, self._arrived = room, arrived
        self._filled = self._loop.create_future()
        self._moved = self._loop.time()
        self._transport.resume_reading()
        try:
            while not self._filled.done():
                patience = self._moved + self._stall - self._loop.time()
                if patience <= 0:
                    raise TimeoutError
                await asyncio.wait([self._filled], timeout=patience)
        finally:
            self._transport.pause_reading()
            self._room, self._arrived = memoryview(b""), _nothing  # they hold the reader's buffer

    # -- called by the transport ------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer for the next bytes."""
        return self._room[:_AT_ONCE]

    def buffer_updated(self, nbytes: int) -> None:
        """Process ``nbytes`` new bytes."""
        self._room = self._room[nbytes:]
        self._left -= nbytes
        self._moved = self._loop.time()
        try:
            self._arrived(nbytes)
        except Exception as error:  # raised in the reader; asyncio would log it and close
            self._error = error
        if not self._room or self._error is not None:
            self._transport.pause_reading()
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the reader, and aiohttp, which waits for this when it closes."""
        self._lost, self._error = True, self._error or exc
        self._wake()
        self._parser.connection_lost(exc)

    def _wake(self) -> None:
        if self._filled is not None and not self._filled.done():
            self._filled.set_result(None)
