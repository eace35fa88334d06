"""A long body is taken over from aiohttp, whatever it has read by then, and whatever TLS does.

What holds for both kinds of bodies is in ``test_source.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator

import aiohttp
import pytest
import trustme

from tests.filehost import Caller, Host, Script, hosted
from tests.support import BOUND, eventually
from worker.errors import SourceFault
from worker.http import BROKEN
from worker.transfer.body import DirectBody

SIZE = 6_000_001
BODY = random.Random(7).randbytes(SIZE)
MOST_AHEAD = 2 * 2**16  # what aiohttp reads ahead of its reader before it stops the connection


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@contextlib.asynccontextmanager
async def serving(
    script: Script, authority: trustme.CA | None, *, keep: bool = False
) -> AsyncIterator[tuple[Host, aiohttp.ClientSession]]:
    there = here = None
    if authority is not None:
        there = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(there)
        here = ssl.create_default_context()
        authority.configure_trust(here)
    async with (
        hosted(script, there, keep=keep) as host,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=here or True)) as session,
    ):
        yield host, session


@contextlib.asynccontextmanager
async def opened(
    authority: trustme.CA | None = None,
    *,
    body: bytes = BODY,
    size: int = SIZE,
    reset: bool = False,
) -> AsyncIterator[tuple[aiohttp.ClientResponse, DirectBody]]:
    async def script(call: Caller) -> None:
        await call.send("200 OK", f"Content-Length: {size}", body=body)
        if reset:
            call.reset()

    async with serving(script, authority) as (host, session):
        response = await session.get(host.url())
        direct = DirectBody(response, size, stall=5)
        yield response, direct
        direct.close()


async def test_what_the_reader_raises_is_not_lost_with_the_connection() -> None:
    async with opened() as (_, direct):

        def refused(count: int) -> None:
            if direct._room:  # while it receives
                asyncio.get_running_loop().call_soon(direct.connection_lost, None)
                raise SourceFault("the file is longer than announced")

        with pytest.raises(SourceFault, match="longer"):
            async with asyncio.timeout(BOUND):
                await direct.fill(memoryview(bytearray(SIZE)), refused)
        direct._transport.abort()


async def rest(body: DirectBody, step: int) -> bytes:
    """What is left, in rooms of ``step`` bytes."""
    found = b""
    while True:
        room, told = memoryview(bytearray(step)), []
        await body.fill(room, told.append)
        assert not any(room[sum(told) :])
        found += room[: sum(told)]
        if sum(told) < step:
            return found


@pytest.mark.parametrize("step", [1_000_000, 65_537, SIZE])
@pytest.mark.parametrize("tls", [False, True])
async def test_nothing_is_lost_doubled_or_moved(
    authority: trustme.CA, tls: bool, step: int
) -> None:
    async with opened(authority if tls else None) as (_, body):
        assert await rest(body, step) == BODY


@pytest.mark.parametrize("tls", [False, True])
async def test_what_aiohttp_read_ahead_and_has_not_parsed_is_there_too(
    authority: trustme.CA, tls: bool
) -> None:
    async with opened(authority if tls else None) as (response, body):
        await eventually(lambda: response.content.total_bytes > MOST_AHEAD)
        assert await rest(body, 1_000_000) == BODY


async def test_a_reader_that_pauses_gets_all_and_its_room_is_left_alone(
    authority: trustme.CA,
) -> None:
    for papers in (None, authority):
        async with opened(papers) as (_, body):
            room = memoryview(bytearray(500_000))
            await body.fill(room, lambda count: None)
            kept = bytes(room)
            for _ in range(100):  # bytes could come in
                await asyncio.sleep(0.001)
            assert room == kept == BODY[:500_000]
            assert kept + await rest(body, 800_000) == BODY


async def test_the_end_of_a_connection_is_no_error_and_a_reset_is_one() -> None:
    part = BODY[: SIZE // 2]
    async with opened(body=part) as (_, body):
        assert await rest(body, SIZE) == part
        assert await rest(body, 10) == b""
    async with opened(body=part, reset=True) as (_, body):
        with pytest.raises(BROKEN):
            await rest(body, SIZE)


async def test_what_the_reader_raises_is_raised_to_it_and_to_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    received = 0

    def arrived(count: int) -> None:
        nonlocal received
        received += count
        if received > SIZE // 2:
            raise SourceFault("enough")

    async with opened() as (_, body):
        with pytest.raises(SourceFault, match="enough"):
            await body.fill(memoryview(bytearray(SIZE)), arrived)
    assert caplog.messages == []


async def test_a_body_that_aiohttp_has_read_to_its_end_is_all_there() -> None:
    small = BODY[:50_000]
    async with opened(body=small, size=len(small)) as (response, body):
        await eventually(lambda: response.connection is None)
        assert await rest(body, 20_001) == small


async def test_a_session_closes_at_once_whatever_is_left_of_a_body(
    authority: trustme.CA,
) -> None:
    for papers in (None, authority):
        async with asyncio.timeout(BOUND), opened(papers) as (response, body):
            await body.fill(memoryview(bytearray(10)), lambda count: None)
            assert response.connection is not None


@pytest.mark.parametrize("size", [1, 70_000, SIZE])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_serves_the_next_request_once_its_body_is_here(
    authority: trustme.CA, tls: bool, size: int
) -> None:
    async def script(call: Caller) -> None:
        await call.whole(body=BODY[call.number : size])

    async with serving(script, authority if tls else None, keep=True) as (host, session):
        for number in range(3):
            response = await session.get(host.url())
            body = DirectBody(response, len(BODY[number:size]), stall=5)
            assert await rest(body, size + 1) == BODY[number:size]
            body.close()
        assert len({call.writer for call in host.calls}) == 1


@pytest.mark.parametrize("tls", [False, True])
async def test_what_follows_a_body_is_no_answer_to_the_next_request(
    authority: trustme.CA, tls: bool
) -> None:
    async def script(call: Caller) -> None:
        await call.whole(body=BODY[: 500_000 + call.number])
        if not call.number:
            await call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")

    async with serving(script, authority if tls else None, keep=True) as (host, session):
        response = await session.get(host.url())
        body = DirectBody(response, 500_000, stall=5)
        assert await rest(body, SIZE) == BODY[:500_000]
        # aiohttp drops what comes before the next request, or closes the connection
        await eventually(lambda: response.content.exception() or not _pooled(session))
        second = await session.get(host.url())
        assert await second.read() == BODY[:500_001]


@pytest.mark.parametrize("header", ["Connection: close", "Keep-Alive: timeout=0"])
async def test_a_connection_that_the_host_closes_is_not_used_again(header: str) -> None:
    async def script(call: Caller) -> None:
        await call.whole(header, body=BODY)

    async with serving(script, None) as (host, session):
        for _ in range(2):
            response = await session.get(host.url())
            assert await rest(DirectBody(response, SIZE, stall=5), SIZE + 1) == BODY
            await eventually(lambda: not _pooled(session))
        assert len({call.writer for call in host.calls}) == 2


def _pooled(session: aiohttp.ClientSession) -> list[object]:
    """The connections that wait for a request."""
    kept = session.connector._conns if session.connector else {}
    return [proto for each in kept.values() for proto, _ in each if proto.is_connected()]
