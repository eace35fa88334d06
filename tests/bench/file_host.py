"""A file host that costs next to nothing: ``GET /SIZE`` answers with a picture of so many bytes."""

from __future__ import annotations

import asyncio
import hashlib
import random
import struct
from typing import cast

CHUNK = 1024 * 1024
HEAD = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 1024, 1024)
PIECE = HEAD + random.Random(1).randbytes(CHUNK - len(HEAD))


def digest(size: int) -> str:
    """The SHA-256, in hex, of the file of ``size`` bytes."""
    found = hashlib.sha256()
    for start in range(0, size, CHUNK):
        found.update(PIECE[: size - start])
    return found.hexdigest()


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=CHUNK)
        self._head = b""
        self._left = 0
        self._paused = False

    def data_received(self, data: bytes) -> None:
        self._head += data
        if not self._head.endswith(b"\r\n\r\n"):
            return
        method, path, _ = self._head.split(b" ", 2)
        self._head = b""
        size = int(path[1:])
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
            b'ETag: "1"\r\nContent-Length: %d\r\n\r\n' % size
        )
        self._left = 0 if method == b"HEAD" else size
        self._send()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send()

    def _send(self) -> None:
        while self._left and not self._paused:
            piece = PIECE[: self._left]
            self._left -= len(piece)
            self._transport.write(piece)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
