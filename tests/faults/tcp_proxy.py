"""A TCP proxy that hurts connections: latency, resets, silence, and cuts in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct

from tests.support import BOUND

_LINGER_0 = struct.pack("ii", 1, 0)
_CHUNK = 64 * 1024


def reset(transport: asyncio.BaseTransport) -> None:
    """Close a connection with RST instead of FIN."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    transport.abort()  # type: ignore[attr-defined]  # of a stream: always a Transport


class TcpProxy:
    """Passes connections on to ``host:port`` and hurts them as it is told.

    ``latency`` is in seconds for each chunk. While ``blackhole`` is set nothing is passed on, in
    neither direction, and no connection is closed. ``refuse`` resets every new connection.
    ``cut_after`` resets a connection before more bytes of answers than that pass through it. With
    ``tls`` it is spoken to over TLS, and passes plain text on.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.target = (host, port)
        self._tls = tls
        self.port = 0
        self.latency = 0.0
        self.refuse = False
        self.cut_after: int | None = None
        self.connections = 0
        self._passing = asyncio.Event()
        self._passing.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> TcpProxy:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.reset_all()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=BOUND)
        await self._server.wait_closed()

    @property
    def blackhole(self) -> bool:
        """Whether nothing is passed on."""
        return not self._passing.is_set()

    @blackhole.setter
    def blackhole(self, wanted: bool) -> None:
        (self._passing.clear if wanted else self._passing.set)()

    def heal(self) -> None:
        """Pass everything on again."""
        self.latency, self.refuse, self.cut_after = 0.0, False, None
        self._passing.set()

    def forget(self) -> None:
        """Pass nothing on for the open connections, ever, and do not close them."""
        self._passing.clear()
        self._passing = asyncio.Event()
        self._passing.set()

    def reset_all(self) -> None:
        """Reset every open connection."""
        for writer in list(self._open):
            reset(writer.transport)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._open.add(writer)
        onward: asyncio.StreamWriter | None = None
        hurt = True
        passing = self._passing
        try:
            if self.refuse:
                return
            await passing.wait()
            back, onward = await asyncio.open_connection(*self.target)
            self._open.add(onward)
            pumps = [
                asyncio.create_task(self._pump(reader, onward, passing, limited=False)),
                asyncio.create_task(self._pump(back, writer, passing, limited=True)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                hurt = any(pump.done() and pump.result() for pump in pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in filter(None, (writer, onward)):
                self._open.discard(end)
                if hurt:
                    reset(end.transport)
                else:
                    end.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        passing: asyncio.Event,
        *,
        limited: bool,
    ) -> bool:
        """Pass on one direction; whether the connection is to be cut."""
        passed = 0
        while piece := await reader.read(_CHUNK):
            if self.latency:
                await asyncio.sleep(self.latency)
            await passing.wait()
            if limited and self.cut_after is not None and passed + len(piece) > self.cut_after:
                return True
            passed += len(piece)
            writer.write(piece)
            await writer.drain()
        return False
