"""Connections to ``harvester web`` that send nothing, half of it, or read nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support import BOUND, eventually, joined
from worker.web import connections
from worker.web.connections import Connection, Seldom, make_server, most_connections

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]

HEAD = b"GET /small HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /small HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
HALVES = {
    "nothing": b"",
    "a method": b"GE",
    "no end of the headers": HEAD,
    "half a body": POST + b"x",
    "half a body that nobody reads": POST.replace(b"small", b"unread") + b"x",
    "a chunk without end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    "an answer, and half of the next request": HEAD + b"\r\n" + HEAD,
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    async def answer(body: bytes) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        return
    if scope["path"] == "/waits":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    while scope["path"] == "/small" and (await receive()).get("more_body"):
        pass
    await answer(b"x" * 8_000_000 if scope["path"] == "/large" else b"small")


@asynccontextmanager
async def serving() -> AsyncIterator[Callable[[bytes], Any]]:
    """A server, and a function that connects to it and sends some bytes."""
    server = make_server(app, host="127.0.0.1", port=0)
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    opened: list[asyncio.StreamWriter] = []

    async def connect(what: bytes) -> Pair:
        # a small buffer, so that the other side notices soon that nobody reads
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        opened.append(writer)
        writer.write(what)
        await writer.drain()
        return reader, writer

    try:
        yield connect
    finally:
        for writer in opened:
            writer.transport.abort()
        server.should_exit = True
        await joined(task)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "seconds", (0.3, 0.3, 0.3))


async def ended(pair: Pair) -> bytes:
    """What arrives until the server closes the connection."""
    async with asyncio.timeout(BOUND):
        try:
            return await pair[0].read(-1)
        except ConnectionError:
            return b""


async def asked(connect: Callable[[bytes], Any]) -> bytes:
    return await ended(await connect(HEAD + b"Connection: close\r\n\r\n"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("what", HALVES.values(), ids=HALVES)
async def test_what_stays_half_is_ended(what: bytes) -> None:
    async with serving() as connect:
        pair = await connect(what)
        assert (b"small" in await ended(pair)) == ((what.endswith(HEAD) and what != HEAD) or
                                                  b"unread" in what)  # fmt: skip


@pytest.mark.usefixtures("quick")
async def test_a_byte_now_and_then_gains_no_time() -> None:
    async with serving() as connect:
        reader, writer = await connect(b"GET / HTTP/1.1\r\nX: ")
        async with asyncio.timeout(BOUND):
            while not reader.at_eof() and reader.exception() is None:
                writer.write(b"x")
                await asyncio.sleep(0.02)


@pytest.mark.usefixtures("quick")
async def test_an_answer_that_nobody_reads_is_broken_off() -> None:
    async with serving() as connect:
        reader, writer = await connect(HEAD.replace(b"small", b"large") + b"\r\n")
        writer.transport.pause_reading()
        # what is left in the buffers of the system can still be read
        await asyncio.sleep(1)
        writer.transport.resume_reading()
        assert len(await ended((reader, writer))) < 8_000_000


@pytest.mark.usefixtures("quick")
async def test_what_is_being_answered_is_left_alone() -> None:
    async with serving() as connect:
        waiting = await connect(HEAD.replace(b"small", b"waits") + b"\r\n")
        half = await connect(HEAD)
        await ended(half)  # its time is over, and that of a request would be too
        assert not waiting[0].at_eof()
        assert b"small" in await asked(connect)


async def test_many_idle_connections_leave_room_for_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as connect:
        monkeypatch.setattr(Connection, "most", 5)
        waiting = [await connect(HEAD.replace(b"small", b"waits") + b"\r\n") for _ in range(3)]
        halves = [
            half for half in HALVES.values() if b"unread" not in half and half.count(HEAD) < 2
        ]
        silent = [await connect(half) for _ in range(5) for half in halves]
        assert b"small" in await asked(connect)
        await eventually(lambda: sum(map(_gone, silent)) >= len(silent) - 2)
        assert not any(pair[0].at_eof() for pair in waiting)


def _gone(pair: Pair) -> bool:
    return pair[0].at_eof() or pair[0].exception() is not None


async def test_without_room_a_new_connection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as connect:
        monkeypatch.setattr(Connection, "most", 2)
        waiting = [await connect(HEAD.replace(b"small", b"waits") + b"\r\n") for _ in range(2)]
        await eventually(lambda: _refused(connect))
        assert not any(pair[0].at_eof() for pair in waiting)


async def _refused(connect: Callable[[bytes], Any]) -> bool:
    return await asked(connect) == b""


async def test_answers_to_slow_readers_take_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as connect:
        monkeypatch.setattr(Connection, "buffered", 20_000_000)
        slow = []
        for _ in range(6):
            pair = await connect(HEAD.replace(b"small", b"large") + b"Connection: close\r\n\r\n")
            pair[1].transport.pause_reading()
            slow.append(pair)
        assert b"small" in await asked(connect)
        for pair in slow:
            pair[1].transport.resume_reading()
        lengths = [len(await ended(pair)) for pair in slow]
        assert any(length < 8_000_000 for length in lengths)


async def test_garbage_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as connect:
        for _ in range(50):
            assert b"400" in await ended(await connect(b"\x16\x03\x01 garbage\r\n\r\n"))
    said = [record for record in caplog.records if "Invalid HTTP" in record.getMessage()]
    assert 0 < len(said) <= 10


def test_the_log_keeps_what_is_worse() -> None:
    seldom = Seldom()
    records = [logging.LogRecord("x", level, "", 0, "", (), None) for level in (30, 40)]
    assert [seldom.filter(records[0]) for _ in range(20)].count(True) == 10
    assert seldom.filter(records[1])


@pytest.mark.parametrize(("soft", "hard", "most"), [
    (256, 256, 85), (1024, 1024, 341), (1024, 4096, 512), (1024, -1, 512), (-1, -1, 512), (2, 2, 1),
])  # fmt: skip
def test_connections_take_a_third_of_the_open_files(
    soft: int, hard: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, both: limits.append(both))
    assert most_connections() == most
