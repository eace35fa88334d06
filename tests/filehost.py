"""A file host that does, connection by connection, what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import httpx

BODY = bytes(range(256)) * 8
ETAG = 'ETag: "1"'


@dataclass
class Caller:
    """One connection of the server under the test's control."""

    head: str
    writer: asyncio.StreamWriter
    number: int

    @property
    def headers(self) -> httpx.Headers:
        lines = [line.split(": ", 1) for line in self.head.split("\r\n")[1:] if line]
        return httpx.Headers([(name, value) for name, value in lines])

    @property
    def path(self) -> str:
        return self.head.split(" ")[1]

    async def send(self, status: str, *headers: str, body: bytes = b"") -> None:
        lines = [f"HTTP/1.1 {status}", *headers, "", ""]
        self.writer.write("\r\n".join(lines).encode("latin-1") + body)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def raw(self, piece: bytes) -> None:
        self.writer.write(piece)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def whole(self, *headers: str, body: bytes = BODY) -> None:
        await self.send("200 OK", f"Content-Length: {len(body)}", *headers, body=body)

    async def rest(self, body: bytes = BODY, *headers: str) -> None:
        """Answer a Range request as it should be."""
        start = int(self.headers["range"].removeprefix("bytes=").removesuffix("-"))
        await self.send(
            "206 Partial Content",
            f"Content-Range: bytes {start}-{len(body) - 1}/{len(body)}",
            f"Content-Length: {len(body) - start}",
            ETAG,
            *headers,
            body=body[start:],
        )

    def reset(self) -> None:
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Caller], Awaitable[None]]


@dataclass
class Host:
    """A file host: each connection serves one request as the script says, or, if kept, many."""

    script: Script
    scheme: str = "http"
    port: int = 0
    keep: bool = False
    calls: list[Caller] = field(default_factory=list)
    problems: list[BaseException] = field(default_factory=list)

    def url(self, path: str = "/a.png") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            served = 0
            while self.keep or not served:
                served += 1
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.calls.append(Caller(head, writer, len(self.calls)))
                await self.script(self.calls[-1])
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as problem:
            self.problems.append(problem)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def hosted(
    script: Script, tls: ssl.SSLContext | None = None, *, keep: bool = False
) -> AsyncIterator[Host]:
    host = Host(script, "https" if tls else "http", keep=keep)
    server = await asyncio.start_server(host.serve, "127.0.0.1", 0, ssl=tls)
    host.port = server.sockets[0].getsockname()[1]
    async with server:
        yield host
    assert not host.problems, host.problems
