"""The body of a response, read into a buffer of the reader's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from worker.http import read_some

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiohttp

    Arrived = Callable[[int], None]
    """Takes note that so many bytes more lie in the room."""


_AT_ONCE = 1024 * 1024  # hashing more of them would hold up all else


def _nothing(count: int) -> None:
    """Take note of nothing."""


def pour(ahead: memoryview, room: memoryview, arrived: Arrived) -> tuple[memoryview, memoryview]:
    """Move what was read ahead into ``room``, as far as it fits; returns what is left of both."""
    count = min(len(ahead), len(room))
    if count:
        room[:count] = ahead[:count]
        arrived(count)
    return ahead[count:], room[count:]


class Body(Protocol):
    """A body that is not read to its end yet."""

    async def fill(self, room: memoryview, arrived: Arrived) -> None:
        """Read on until ``room`` is full, or the body or its connection ends.

        ``arrived`` is called as bytes come. Raises one of ``worker.http.BROKEN``, and what
        ``arrived`` raises.
        """

    def close(self) -> None:
        """Let go of the connection."""


class ParsedBody:
    """A body however it is framed. Read to its end, it leaves the connection to other requests."""

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
    """A long body of ``length`` bytes, received where it is to lie.

    Takes the connection from aiohttp once the headers are read, which saves copies and a wake-up of
    the reader for each piece, and gives it back once all of the body is here. ``stall`` is how many
    seconds may pass without a byte.
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
        self._error = None  # refers to the frames it went through, and they to this

    def _take_over(self) -> None:
        """Take the connection, and what aiohttp has read from it."""
        content = self._response.content
        self._ahead = memoryview(b"".join(iter(content.read_nowait, b"")))
        connection = self._response.connection
        transport = connection.transport if connection is not None else None
        if transport is None:  # the rest of a body that is all here, or lost
            self._lost = True
            return
        self._transport = transport
        self._parser = transport.get_protocol()
        transport.pause_reading()
        transport.set_protocol(self)

    def _give_back(self) -> None:
        """Let the connection serve other requests, as aiohttp does after a body that it has read.

        Its parser still waits for the body, so it takes nothing that comes before the next request
        for an answer to that.
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

    # -- what the transport calls -----------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._room[:_AT_ONCE]

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of bytes that came."""
        self._room = self._room[nbytes:]
        self._left -= nbytes
        self._moved = self._loop.time()
        try:
            self._arrived(nbytes)
        except Exception as error:  # for the reader; asyncio would log it and break off
            self._error = error
        if not self._room or self._error is not None:
            self._transport.pause_reading()
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the reader know, and aiohttp, which waits for it when it closes."""
        self._lost, self._error = True, self._error or exc
        self._wake()
        self._parser.connection_lost(exc)

    def _wake(self) -> None:
        if self._filled is not None and not self._filled.done():
            self._filled.set_result(None)
