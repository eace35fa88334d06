"""A file host that costs next to nothing: ``GET /SIZE`` answers with a picture of so many bytes."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import ssl
import struct
import sys
import threading

CHUNK = 1024 * 1024
HEAD = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 1024, 1024)
PIECE = HEAD + random.Random(1).randbytes(CHUNK - len(HEAD))
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    b'ETag: "1"\r\nContent-Length: %d\r\n\r\n'
)


def digest(size: int) -> str:
    """The SHA-256, in hex, of the file of ``size`` bytes."""
    found = hashlib.sha256()
    for start in range(0, size, CHUNK):
        found.update(PIECE[: size - start])
    return found.hexdigest()


def _serve(connection: socket.socket, context: ssl.SSLContext | None) -> None:
    """Answer the requests of a connection, one after the other, until it is closed."""
    with contextlib.suppress(OSError), connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            connection = context.wrap_socket(connection, server_side=True)
        with connection, connection.makefile("rb") as lines:
            while request := lines.readline(1000):
                while lines.readline(10_000).strip():
                    pass
                method, path, _ = request.split(b" ", 2)
                size = int(path[1:])
                connection.sendall(_ANSWER % size)
                left = 0 if method == b"HEAD" else size
                for start in range(0, left, CHUNK):
                    connection.sendall(memoryview(PIECE)[: left - start])


def main() -> None:
    """Print the port, and serve until ended; arguments: files with certificate and key for TLS."""
    context = None
    if len(sys.argv) > 1:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*sys.argv[1:])
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_serve, args=(connection, context), daemon=True).start()


if __name__ == "__main__":
    main()
