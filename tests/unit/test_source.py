from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from types import SimpleNamespace

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.filehost import BODY, ETAG, Caller, Script, hosted
from tests.support import BOUND, eventually
from worker.errors import SourceFault, SourceGone, SourceRejected
from worker.transfer import source as module
from worker.transfer.guard import Guard
from worker.transfer.source import MAX_REDIRECTS, Download, Source

LIMIT = 1_000_000


@pytest.fixture(autouse=True, params=["parsed", "direct"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds for bodies that aiohttp parses and for those received directly."""
    monkeypatch.setattr(module, "LONG_BODY", 1 if request.param == "direct" else 1 << 60)


@contextlib.asynccontextmanager
async def reaching(
    allow_hosts: tuple[str, ...] = ("*",), max_resumes: int = 3, **bounds: float
) -> AsyncIterator[Source]:
    guard = Guard(allow_hosts, ["127.0.0.0/8"])
    async with guard.session() as session:
        yield Source(
            session,
            guard,
            max_file_bytes=LIMIT,
            connect_timeout=5,
            stall_timeout=0.3,
            max_resumes=max_resumes,
            **bounds,
        )


async def read(download: Download, limit: int) -> bytes:
    """The next bytes, which are told of as they come."""
    room, told = memoryview(bytearray(limit)), []
    filled = await download.fill(room, told.append)
    assert sum(told) == filled
    assert not any(room[filled:])
    return bytes(room[:filled])


async def fetch(source: Source, url: str, limit: int = 1000) -> bytes:
    pieces = []
    async with source.open(url) as download:
        while piece := await read(download, limit):
            pieces.append(piece)
        assert all(len(piece) == limit for piece in pieces[:-1])
        assert await download.at_end()
        assert download.received == sum(map(len, pieces))
    return b"".join(pieces)


async def fetched(script: Script, path: str = "/a.png") -> bytes:
    async with hosted(script) as host, reaching() as source:
        return await fetch(source, host.url(path))


# -- what is whole ----------------------------------------------------------------------------


async def test_a_file_arrives_byte_for_byte_and_is_asked_for_uncompressed() -> None:
    async with hosted(Caller.whole) as host, reaching() as source:
        assert await fetch(source, host.url("/a%2Fb.png?x=%2B&y=%41")) == BODY
    (call,) = host.calls
    assert call.path == "/a%2Fb.png?x=%2B&y=%41"
    assert call.headers["accept-encoding"] == "identity"
    assert "range" not in call.headers


async def test_the_length_is_known_before_the_body() -> None:
    async with (
        hosted(Caller.whole) as host,
        reaching() as source,
        source.open(host.url()) as download,
    ):
        assert download.length == len(BODY)
        assert not await download.at_end()


async def test_chunks_that_end_properly_are_whole() -> None:
    async def script(call: Caller) -> None:
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:700], BODY[700:]))
        await call.send("200 OK", "Transfer-Encoding: chunked", body=body + b"0\r\n\r\n")

    assert await fetched(script) == BODY


async def test_identity_is_no_compression() -> None:
    assert await fetched(lambda call: call.whole("Content-Encoding: identity")) == BODY


# -- what is not ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["403 Forbidden", "404 Not Found", "410 Gone"])
async def test_gone(status: str) -> None:
    with pytest.raises(SourceGone, match=status[:3]):
        await fetched(lambda call: call.send(status, "Content-Length: 2", body=b"no"))


@pytest.mark.parametrize(
    "status",
    [
        "204 No Content",
        "206 Partial Content",
        "304 Not Modified",
        "400 Bad Request",
        "401 Who",
        "418 Teapot",
        "429 Slow Down",
        "500 Oops",
        "503 Busy",
        "302 Found",
        "300 Choose",
    ],
)
async def test_any_other_status_is_a_fault(status: str) -> None:
    with pytest.raises(SourceFault):
        await fetched(lambda call: call.send(status, "Content-Length: 0"))


async def no_length(call: Caller) -> None:
    await call.send("200 OK", body=BODY)


async def no_length_1_0(call: Caller) -> None:
    call.writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)


async def chunks_cut(call: Caller) -> None:
    body = b"%x\r\n%b\r\n" % (len(BODY), BODY)
    await call.send("200 OK", "Transfer-Encoding: chunked", body=body)


async def chunk_cut(call: Caller) -> None:
    await call.send("200 OK", "Transfer-Encoding: chunked", body=b"800\r\n" + BODY[:5])


async def chunk_broken(call: Caller) -> None:
    await call.send("200 OK", "Transfer-Encoding: chunked", body=b"zz\r\n" + BODY)


async def truncated(call: Caller) -> None:
    await call.send("200 OK", "Content-Length: 9999", body=BODY)


async def reset(call: Caller) -> None:
    await call.send("200 OK", "Content-Length: 9999", body=BODY)
    call.reset()


async def reset_at_once(call: Caller) -> None:
    call.reset()


async def stalled(call: Caller) -> None:
    await call.send("200 OK", "Content-Length: 9999", body=BODY)
    await asyncio.sleep(30)


async def silent(_: Caller) -> None:
    await asyncio.sleep(30)


async def closed(_: Caller) -> None:
    pass


async def garbage(call: Caller) -> None:
    call.writer.write(b"\x00\xffno http\r\n\r\n")


async def two_lengths(call: Caller) -> None:
    await call.send("200 OK", "Content-Length: 5", f"Content-Length: {len(BODY)}", body=BODY)


async def negative(call: Caller) -> None:
    await call.send("200 OK", "Content-Length: -5", body=BODY)


async def empty(call: Caller) -> None:
    await call.send("200 OK", "Content-Length: 0")


async def empty_chunks(call: Caller) -> None:
    await call.send("200 OK", "Transfer-Encoding: chunked", body=b"0\r\n\r\n")


async def longer_than_announced(call: Caller) -> None:
    await call.send("200 OK", "Content-Length: 5", body=BODY)


async def gzipped(call: Caller) -> None:
    await call.whole("Content-Encoding: gzip")


async def transferred_gzipped(call: Caller) -> None:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    await call.send("200 OK", "Transfer-Encoding: gzip, chunked", body=body)


async def header_without_end(call: Caller) -> None:
    await call.send("200 OK", f"X-A: {'a' * 100_000}", "Content-Length: 5", body=b"12345")


@pytest.mark.parametrize(
    "script",
    [
        chunks_cut,
        chunk_cut,
        chunk_broken,
        truncated,
        reset,
        reset_at_once,
        stalled,
        silent,
        closed,
        garbage,
        two_lengths,
        negative,
        longer_than_announced,
        gzipped,
        transferred_gzipped,
        header_without_end,
    ],
)
async def test_a_body_that_is_not_provably_whole_is_a_fault(script: Script) -> None:
    with pytest.raises(SourceFault) as caught:
        await fetched(script, "/a.png?Signature=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("script", [empty, empty_chunks])
async def test_an_empty_body_is_whole(script: Script) -> None:
    assert await fetched(script) == b""


async def test_no_server_is_a_fault() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with reaching() as source:
            with pytest.raises(SourceFault, match="does not answer"):
                await fetch(source, f"http://127.0.0.1:{unused.getsockname()[1]}/")


# -- size -------------------------------------------------------------------------------------


async def test_too_large_by_announcement_is_refused_before_the_body() -> None:
    async def script(call: Caller) -> None:
        await call.send("200 OK", f"Content-Length: {LIMIT + 1}")
        await asyncio.sleep(30)

    with pytest.raises(SourceRejected, match="larger than 1000000 bytes"):
        await fetched(script)


async def test_too_large_without_announcement_is_refused_on_the_way() -> None:
    async def script(call: Caller) -> None:
        await call.send("200 OK", "Transfer-Encoding: chunked")
        while not call.writer.is_closing():
            call.writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            await call.writer.drain()

    with pytest.raises(SourceRejected, match="larger than"):
        await fetched(script)


async def test_just_as_large_as_allowed_is_not_too_large() -> None:
    assert len(await fetched(lambda call: call.whole(body=bytes(LIMIT)))) == LIMIT


# -- redirects -----------------------------------------------------------------------------


async def test_redirections_are_followed() -> None:
    async def script(call: Caller) -> None:
        left = MAX_REDIRECTS - call.number
        if left:
            await call.send("302 Found", f"Location: ../{left}/a?b=%2B", "Content-Length: 0")
        else:
            await call.whole()

    async with hosted(script) as host, reaching() as source:
        assert await fetch(source, host.url("/x/y/z")) == BODY
    assert [call.path for call in host.calls][:3] == ["/x/y/z", "/x/5/a?b=%2B", "/x/4/a?b=%2B"]


async def test_too_many_redirections_are_a_fault() -> None:
    async def script(call: Caller) -> None:
        await call.send("307 Again", "Location: /again", "Content-Length: 0")

    async with hosted(script) as host, reaching() as source:
        with pytest.raises(SourceFault, match="more than 5 redirects"):
            await fetch(source, host.url())
    assert len(host.calls) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "location",
    [
        "http://10.0.0.1/",
        "https://169.254.169.254/latest/",
        "http://[::1]/",
        "file:///etc/passwd",
        "https://user@files.example/",
        "//192.168.0.1/",
        "https://2130706433/",
    ],
)
async def test_redirection_to_a_place_that_is_not_allowed_is_refused(location: str) -> None:
    async def script(call: Caller) -> None:
        await call.send("302 Found", f"Location: {location}", "Content-Length: 0")

    async with hosted(script) as host, reaching() as source:
        with pytest.raises(SourceRejected):
            await fetch(source, host.url())
    assert len(host.calls) == 1


async def test_redirection_to_a_host_that_is_not_listed_is_refused() -> None:
    async def script(call: Caller) -> None:
        await call.send("302 Found", "Location: https://files.example/", "Content-Length: 0")

    async with hosted(script) as host, reaching(("127.0.0.1",)) as source:
        with pytest.raises(SourceRejected, match=r"files\.example is not allowed"):
            await fetch(source, host.url())


@pytest.mark.parametrize("location", ["http://[::1", "http://a\x80b/", "http://x:y/"])
async def test_redirection_to_nowhere_is_an_error(location: str) -> None:
    async def script(call: Caller) -> None:
        await call.send("302 Found", f"Location: {location}", "Content-Length: 0")

    with pytest.raises((SourceFault, SourceRejected)):
        await fetched(script)


# -- going on ---------------------------------------------------------------------------------


def breaking(times: int, rest: Callable[[Caller], Awaitable[None]], *headers: str) -> Script:
    """Break off after some more bytes each time, then answer with ``rest``."""

    async def script(call: Caller) -> None:
        if call.number == 0:
            await call.send("200 OK", f"Content-Length: {len(BODY)}", *headers, body=BODY[:100])
        elif call.number < times:
            start = int(call.headers["range"].removeprefix("bytes=").removesuffix("-"))
            await call.send(
                "206 Partial Content",
                f"Content-Range: bytes {start}-{len(BODY) - 1}/{len(BODY)}",
                f"Content-Length: {len(BODY) - start}",
                *headers,
                body=BODY[start : start + 100],
            )
        else:
            await rest(call)

    return script


async def test_a_broken_transfer_goes_on_where_it_ended() -> None:
    async with hosted(breaking(3, Caller.rest, ETAG)) as host, reaching() as source:
        assert await fetch(source, host.url()) == BODY
    assert [call.headers.get("range") for call in host.calls] == [
        None,
        "bytes=100-",
        "bytes=200-",
        "bytes=300-",
    ]
    assert {call.headers["if-range"] for call in host.calls[1:]} == {'"1"'}


async def test_the_date_proves_that_a_file_is_the_same_where_there_is_no_tag() -> None:
    date = "Wed, 01 Jan 2025 00:00:00 GMT"
    headers = ('ETag: W/"1"', f"Last-Modified: {date}")
    async with hosted(breaking(1, Caller.rest, *headers)) as host, reaching() as source:
        assert await fetch(source, host.url()) == BODY
    assert host.calls[1].headers["if-range"] == date


async def test_a_part_with_another_date_is_of_another_file() -> None:
    async def other(call: Caller) -> None:
        await call.rest(BODY, "Last-Modified: Thu, 02 Jan 2025 00:00:00 GMT")

    date = "Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT"
    with pytest.raises(SourceFault, match="the file has changed"):
        await fetched(breaking(1, other, date))


async def test_a_stalled_transfer_goes_on() -> None:
    async def script(call: Caller) -> None:
        if call.number:
            await call.rest()
        else:
            await call.send("200 OK", f"Content-Length: {len(BODY)}", ETAG, body=BODY[:9])
            await asyncio.sleep(30)

    assert await fetched(script) == BODY


async def test_chunks_that_broke_off_go_on() -> None:
    async def script(call: Caller) -> None:
        if call.number:
            await call.rest()
        else:
            body = b"64\r\n" + BODY[:100] + b"\r\n"
            await call.send("200 OK", "Transfer-Encoding: chunked", ETAG, body=body)

    assert await fetched(script) == BODY


async def test_resuming_follows_redirections_anew() -> None:
    async def script(call: Caller) -> None:
        if call.path == "/a.png":
            await call.send("302 Found", f"Location: /{call.number}", "Content-Length: 0")
        elif call.path == "/0":
            await call.send("200 OK", f"Content-Length: {len(BODY)}", ETAG, body=BODY[:9])
        else:
            await call.rest()

    async with hosted(script) as host, reaching() as source:
        assert await fetch(source, host.url()) == BODY
    assert [call.path for call in host.calls] == ["/a.png", "/0", "/a.png", "/2"]


async def test_without_proof_that_the_file_is_the_same_nothing_goes_on() -> None:
    async with hosted(breaking(1, Caller.rest, 'ETag: W/"1"')) as host, reaching() as source:
        with pytest.raises(SourceFault, match="after 100 of 2048 bytes"):
            await fetch(source, host.url())
    assert len(host.calls) == 1


async def test_resumptions_are_bounded() -> None:
    async with hosted(breaking(9, Caller.rest, ETAG)) as host, reaching(max_resumes=3) as source:
        with pytest.raises(SourceFault, match="interrupted after 400 of 2048"):
            await fetch(source, host.url())
    assert len(host.calls) == 4


async def test_a_resumption_without_progress_is_the_last() -> None:
    async def script(call: Caller) -> None:
        if call.number == 0:
            await call.send("200 OK", f"Content-Length: {len(BODY)}", ETAG, body=BODY[:9])
        else:
            length = len(BODY)
            await call.send(
                "206 Partial Content",
                f"Content-Range: bytes 9-{length - 1}/{length}",
                f"Content-Length: {length - 9}",
            )

    async with hosted(script) as host, reaching() as source:
        with pytest.raises(SourceFault, match="interrupted after 9"):
            await fetch(source, host.url())
    assert len(host.calls) == 2


def answering(status: str, *headers: str, body: bytes = b"") -> Script:
    async def script(call: Caller) -> None:
        await call.send(status, f"Content-Length: {len(body)}", *headers, body=body)

    return script


@pytest.mark.parametrize(
    "rest",
    [
        Caller.whole,
        answering("206 Partial Content", body=BODY[100:]),
        answering("206 Partial Content", "Content-Range: bytes 0-2047/2048", ETAG, body=BODY),
        answering("206 Partial Content", "Content-Range: bytes 99-2047/2048", ETAG, body=BODY[99:]),
        answering("206 Partial Content", "Content-Range: bytes 100-4095/4096", body=BODY[100:]),
        answering("206 Partial Content", "Content-Range: bytes 100-2047/2048", body=BODY[100:]),
        answering(
            "206 Partial Content",
            "Content-Range: bytes 100-2047/2048",
            'ETag: "2"',
            body=BODY[100:],
        ),
        answering("206 Partial Content", "Content-Range: pages 100-2047/2048", body=BODY[100:]),
        answering(
            "206 Partial Content",
            "Content-Range: bytes 100-2047/2048",
            "Content-Encoding: br",
            body=BODY[100:],
        ),
        answering("416 Range Not Satisfiable", "Content-Range: bytes */99"),
        answering("503 Busy"),
    ],
)
async def test_a_rest_that_does_not_fit_is_a_fault(rest: Script) -> None:
    with pytest.raises(SourceFault):
        await fetched(breaking(1, rest, ETAG))


async def test_a_rest_that_is_longer_than_its_range_says_is_a_fault() -> None:
    async def rest(call: Caller) -> None:
        await call.send(
            "206 Partial Content",
            f"Content-Range: bytes 100-{len(BODY) - 1}/{len(BODY)}",
            f"Content-Length: {len(BODY)}",
            ETAG,
            body=BODY[100:] + BODY[:100],
        )

    with pytest.raises(SourceFault, match="another part than it says"):
        await fetched(breaking(1, rest, ETAG))


async def test_a_part_with_another_weak_tag_is_of_another_file() -> None:
    date = "Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT"

    async def other(call: Caller) -> None:
        await call.send(
            "206 Partial Content",
            f"Content-Range: bytes 100-{len(BODY) - 1}/{len(BODY)}",
            f"Content-Length: {len(BODY) - 100}",
            'ETag: W/"2"',
            date,
            body=BODY[100:],
        )

    with pytest.raises(SourceFault, match="the file has changed"):
        await fetched(breaking(1, other, 'ETag: W/"1"', date))


async def test_an_address_that_expired_meanwhile_is_gone() -> None:
    with pytest.raises(SourceGone):
        await fetched(breaking(1, answering("403 Forbidden"), ETAG))


async def test_a_rest_that_makes_the_file_too_large_is_refused() -> None:
    async def script(call: Caller) -> None:
        if call.number:
            await call.send(
                "206 Partial Content",
                f"Content-Range: bytes 5-{LIMIT}/{LIMIT + 1}",
                f"Content-Length: {LIMIT - 4}",
                ETAG,
            )
        else:
            body = b"5\r\n12345\r\n"
            await call.send("200 OK", "Transfer-Encoding: chunked", ETAG, body=body)

    with pytest.raises(SourceRejected, match="larger than"):
        await fetched(script)


async def test_every_request_shows_life() -> None:
    signs = 0

    def progress() -> None:
        nonlocal signs
        signs += 1

    async with (
        hosted(breaking(2, Caller.rest, ETAG)) as host,
        reaching() as source,
        source.open(host.url(), progress=progress) as download,
    ):
        while await read(download, 10_000):
            pass
    assert signs == len(host.calls) == 3


async def test_leaving_early_closes_the_connection() -> None:
    left = asyncio.Event()

    async def script(call: Caller) -> None:
        await call.send("200 OK", "Content-Length: 99999999")
        with contextlib.suppress(ConnectionError):
            while not call.writer.is_closing():
                call.writer.write(bytes(10_000))
                await call.writer.drain()
        left.set()

    guard = Guard(["*"], ["127.0.0.0/8"])
    async with hosted(script) as host, guard.session() as session:
        source = Source(session, guard, max_file_bytes=10**9)
        async with source.open(host.url()) as download:
            await read(download, 10)
        await asyncio.wait_for(left.wait(), BOUND)


async def test_a_read_can_be_cancelled() -> None:
    async with hosted(stalled) as host, reaching() as source, source.open(host.url()) as download:
        await read(download, 10)
        reading = asyncio.create_task(read(download, 10_000))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


# -- hosts that never come to the point -------------------------------------------------------


def dribbling(line: bytes, pause: float = 0.05) -> Script:
    """Sends a line again and again, each time well before the connection counts as silent."""

    async def script(call: Caller) -> None:
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                call.writer.write(line)
                await call.writer.drain()
                await asyncio.sleep(pause)

    return script


@pytest.mark.parametrize(
    "line",
    [b"H", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"],
    ids=["a byte at a time", "103", "100"],
)
async def test_headers_have_a_time_in_all(line: bytes) -> None:
    async with hosted(dribbling(line)) as host, reaching(headers_timeout=1.0) as source:
        with pytest.raises(SourceFault, match=r"no headers within 1 s|does not answer"):
            await fetch(source, host.url("/a.png"))


async def test_redirections_have_a_time_in_all() -> None:
    async def script(call: Caller) -> None:
        await asyncio.sleep(0.25)
        await call.send("302 Found", "Location: /b", "Content-Length: 0")

    async with hosted(script) as host, reaching(headers_timeout=0.6) as source:
        with pytest.raises(SourceFault, match="no headers"):
            await fetch(source, host.url("/a.png"))


# -- plain http -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        (
            "http://files.example/a%2Fb?Signature=x%2By",
            "https://files.example/a%2Fb?Signature=x%2By",
        ),
        ("http://files.example:80/a", "https://files.example/a"),
        ("HTTP://Files.example/a", "https://files.example/a"),
    ],
)
async def test_plain_http_that_would_be_refused_is_asked_for_over_https(
    url: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard(("*",))
    async with guard.session() as session:
        source = Source(session, guard, max_file_bytes=LIMIT)
        seen: list[str] = []

        async def request(url: str, headers: object) -> object:
            seen.append(url)
            raise SourceFault("enough")

        monkeypatch.setattr(source, "_request", request)
        with pytest.raises(SourceFault, match="enough"):
            await fetch(source, url)
    assert seen == [asked]


@pytest.mark.parametrize(
    "url", ["http://files.example:8080/a", "http://127.0.0.1/a", "http://10.0.0.1:80/a"]
)
async def test_other_ports_and_private_hosts_are_refused_as_ever(url: str) -> None:
    guard = Guard(("*",))
    async with guard.session() as session:
        source = Source(session, guard, max_file_bytes=LIMIT)
        with pytest.raises(SourceRejected, match=r"not allowed|not public"):
            await fetch(source, url)


def connecting(error: OSError) -> aiohttp.ClientConnectorError:
    return aiohttp.ClientConnectorError(None, error)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cause",
    [
        connecting(OSError(111, "refused")),
        aiohttp.ClientConnectorSSLError(None, ssl.SSLError(1, "no")),  # type: ignore[arg-type]
        aiohttp.ClientConnectorCertificateError(None, ssl.CertificateError(1, "expired")),  # type: ignore[arg-type]
    ],
    ids=lambda cause: type(cause).__name__,
)
async def test_a_host_that_speaks_no_https_is_refused_in_the_end(
    cause: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard(("*",))
    async with guard.session() as session:
        source = Source(session, guard, max_file_bytes=LIMIT)
        monkeypatch.setattr(module, "_TLS_AGAIN", (0.0, 20.0))
        tries: list[str] = []

        async def request(url: str, headers: object) -> object:
            tries.append(url)
            raise SourceFault("the file's host does not answer") from cause

        monkeypatch.setattr(source, "_request", request)
        with pytest.raises(SourceRejected, match="does not speak https") as caught:
            await fetch(source, "http://files.example/a")
    assert caught.value.retry_after == 20
    assert tries == ["https://files.example/a"] * 2


@pytest.mark.parametrize(
    "cause",
    [
        socket.gaierror(-3, "temporary failure in name resolution"),
        connecting(OSError(101, "network is unreachable")),
        connecting(OSError(113, "no route to host")),
        aiohttp.ConnectionTimeoutError("connect"),
        aiohttp.ServerDisconnectedError(),
    ],
    ids=lambda cause: type(cause).__name__,
)
async def test_a_host_that_was_not_reached_has_not_refused_https(
    cause: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard(("*",))
    async with guard.session() as session:
        source = Source(session, guard, max_file_bytes=LIMIT)

        async def request(url: str, headers: object) -> object:
            raise SourceFault("the file's host does not answer") from cause

        monkeypatch.setattr(source, "_request", request)
        with pytest.raises(SourceFault):
            await fetch(source, "http://files.example/a")


async def test_plain_http_on_the_port_of_https_is_no_tls() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, reaching() as source:
        with pytest.raises(SourceFault) as caught:
            await fetch(source, f"https://127.0.0.1:{port}/a")
    assert module._speaks_no_tls(caught.value.__cause__)


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("http://files.example/b?c", "https://files.example/b?c"),
        ("http://files.example:080/b", "https://files.example/b"),
        ("//other.example/b", "https://other.example/b"),
    ],
)
async def test_a_redirection_to_plain_http_is_followed_over_https(
    location: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard(("*",))
    async with guard.session() as session:
        source = Source(session, guard, max_file_bytes=LIMIT)
        seen: list[str] = []

        async def request(url: str, headers: object) -> object:
            seen.append(url)
            if len(seen) == 2:
                raise SourceFault("enough")
            headers = {"location": location}
            return SimpleNamespace(status=302, headers=headers, close=lambda: None)

        monkeypatch.setattr(source, "_request", request)
        with pytest.raises(SourceFault, match="enough"):
            await fetch(source, "https://files.example/a")
    assert seen[1] == asked


# -- headers in the wild ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "coding",
    ["aws-chunked", "UTF-8", "binary", "identity, identity", "identity,aws-chunked", "", "none"],
)
async def test_an_unknown_coding_is_no_compression(coding: str) -> None:
    assert await fetched(lambda call: call.whole(f"Content-Encoding: {coding}")) == BODY


@pytest.mark.parametrize(
    "coding", ["GZip", "identity, br", "aws-chunked,gzip", "x-gzip", "zstd", "deflate", "compress"]
)
async def test_a_compression_is_one_wherever_it_is_named(coding: str) -> None:
    with pytest.raises(SourceFault, match="compresses"):
        await fetched(lambda call: call.whole(f"Content-Encoding: {coding}"))


async def test_long_headers_and_many_are_read() -> None:
    long = f"X-Long: {'a' * (64 * 1024 - 100)}"
    many = [f"X-{number}: {number}" for number in range(997)]
    assert await fetched(lambda call: call.whole(long, *many)) == BODY


async def too_many(call: Caller) -> None:
    await call.whole(*(f"X-{number}: 1" for number in range(1100)))


async def too_long_in_all(call: Caller) -> None:
    await call.whole(*(f"X-{number}: {'a' * 60_000}" for number in range(100)))


async def early_without_end(call: Caller) -> None:
    for _ in range(4000):
        await call.send("103 Early Hints", f"Link: </{'a' * 1000}>")
    await call.whole()


async def extensions_without_end(call: Caller) -> None:
    await call.send("200 OK", "Transfer-Encoding: chunked", body=b"5;")
    for _ in range(400):
        await call.raw(b"a" * 10_000)
    await call.raw(b"\r\n12345\r\n0\r\n\r\n")


async def trailers_without_end(call: Caller) -> None:
    await call.send("200 OK", "Transfer-Encoding: chunked", body=b"5\r\n12345\r\n0\r\n")
    for number in range(400):
        await call.raw(b"x%d: %b\r\n" % (number, b"a" * 10_000))
    await call.raw(b"\r\n")


@pytest.mark.parametrize(
    "script",
    [too_many, too_long_in_all, early_without_end, extensions_without_end, trailers_without_end],
)
async def test_what_is_no_body_is_bounded_in_all(script: Script) -> None:
    with pytest.raises(SourceFault):
        await fetched(script)


async def test_a_kept_connection_has_its_headers_counted_from_the_start() -> None:
    async def script(call: Caller) -> None:
        await call.whole(*(f"X-{number}: {'a' * 60_000}" for number in range(10)))

    async with hosted(script, keep=True) as host, reaching() as source:
        for _ in range(3):
            assert await fetch(source, host.url()) == BODY


@pytest.mark.parametrize(
    "framing",
    [
        ["xchunked"],
        ["chunked;q=1"],
        ["chunked, identity"],
        ["chunked", "identity"],
        ["\x0bchunked"],
        ["chunked\xa0"],
    ],
)
async def test_a_framing_that_the_parser_does_not_know_is_no_part_of_a_file(
    framing: list[str],
) -> None:
    """The parser reads until the connection is closed, and calls all of it the body."""

    async def script(call: Caller) -> None:
        lines = [f"Transfer-Encoding: {each}" for each in framing]
        await call.send("200 OK", *lines, body=b"800\r\n" + BODY + b"\r\n0\r\n\r\n")

    with pytest.raises(SourceFault, match="Transfer-Encoding"):
        await fetched(script)


@pytest.mark.parametrize("framing", [["CHUNKED"], ["identity", "chunked"], ["chunked "]])
async def test_chunks_are_known_however_they_are_written(framing: list[str]) -> None:
    async def script(call: Caller) -> None:
        lines = [f"Transfer-Encoding: {each}" for each in framing]
        await call.send("200 OK", *lines, body=b"800\r\n" + BODY + b"\r\n0\r\n\r\n")

    assert await fetched(script) == BODY


async def test_what_follows_a_file_is_not_the_next_file() -> None:
    received = asyncio.Event()

    async def script(call: Caller) -> None:
        await call.whole()
        if not call.number:
            await received.wait()
            await call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")

    async with hosted(script, keep=True) as host, reaching() as source:
        assert await fetch(source, host.url()) == BODY
        received.set()
        connector = source._session.connector
        assert connector is not None

        def usable() -> list[object]:
            return [p for each in connector._conns.values() for p, _ in each if p.is_connected()]

        await eventually(lambda: not usable())
        assert await fetch(source, host.url()) == BODY


async def test_several_parts_are_no_file() -> None:
    kind = "Content-Type: Multipart/ByteRanges; boundary=x"
    with pytest.raises(SourceFault, match="only a part"):
        await fetched(part_of(f"bytes 0-{len(BODY) - 1}/{len(BODY)}", kind))


@pytest.mark.parametrize("status", ["200 OK", "203 Who"])
async def test_a_part_is_no_file_whatever_its_status(status: str) -> None:
    """Some caches lose the status of a part."""
    part = ("Content-Length: 100", f"Content-Range: bytes 0-99/{len(BODY)}")
    with pytest.raises(SourceFault, match="only a part"):
        await fetched(lambda call: call.send(status, *part, body=BODY[:100]))
    whole = f"Content-Range: Bytes 0-{len(BODY) - 1}/{len(BODY)}"
    length = f"Content-Length: {len(BODY)}"
    assert await fetched(lambda call: call.send(status, length, whole, body=BODY)) == BODY


async def test_a_status_of_203_is_the_file() -> None:
    length = f"Content-Length: {len(BODY)}"
    assert await fetched(lambda call: call.send("203 Who", length, body=BODY)) == BODY


def part_of(content_range: str, *headers: str) -> Script:
    return lambda call: call.send(
        "206 Partial Content", f"Content-Range: {content_range}", *headers, body=BODY
    )


@pytest.mark.parametrize("headers", [(f"Content-Length: {len(BODY)}",), ()])
async def test_a_part_that_is_the_whole_is_the_file(headers: tuple[str, ...]) -> None:
    assert await fetched(part_of(f"bytes 0-{len(BODY) - 1}/{len(BODY)}", *headers)) == BODY


@pytest.mark.parametrize(
    "content_range",
    ["bytes 0-2047/*", "bytes 0-2047/4096", "bytes 1-2048/2048", "bytes 0-99/100", "whole", ""],
)
async def test_a_part_that_is_not_the_whole_is_a_fault(content_range: str) -> None:
    with pytest.raises(SourceFault):
        await fetched(part_of(content_range, f"Content-Length: {len(BODY)}"))


async def waited(value: str, status: str = "503 Busy") -> float:
    with pytest.raises(SourceFault) as caught:
        await fetched(lambda call: call.send(status, f"Retry-After: {value}", "Content-Length: 0"))
    return caught.value.retry_after


async def test_a_host_says_how_long_it_wants_to_be_left_alone() -> None:
    assert await waited("17") == 17
    assert await waited("17", "429 Slow Down") == 17
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 0 < await waited(soon) <= 60


@pytest.mark.parametrize("value", ["999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_no_host_is_left_alone_for_long(value: str) -> None:
    assert await waited(value) == module._LONGEST_WAIT


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-5",
        "soon",
        "1e9",
        "1.5",
        "9" * 10_000,
        "Fri, 31 Dec 1999 23:59:59 GMT",
        "Fri, 99",
        "\xff",
    ],
)
async def test_what_says_no_time_is_none(value: str) -> None:
    assert await waited(value) == 0


@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=200))
def test_whatever_stands_in_retry_after_is_a_time_within_its_bound(value: str) -> None:
    response = SimpleNamespace(headers={"retry-after": value})
    assert 0 <= module._retry_after(response) <= module._LONGEST_WAIT  # type: ignore[arg-type]


# -- a body that the close of its connection ends ---------------------------------------------


@pytest.mark.parametrize("script", [no_length, no_length_1_0])
async def test_a_body_that_ends_by_close_counts_if_it_comes_twice(script: Script) -> None:
    async with (
        hosted(script) as host,
        reaching() as source,
        source.open(host.url()) as download,
    ):
        assert await read(download, len(BODY) + 1) == BODY
        assert await download.at_end()
        assert download.ends_by_close
        await download.confirm(sha256(BODY).digest(), lambda count: None)
    assert len(host.calls) == 2


@pytest.mark.parametrize(
    "again",
    [
        lambda call: call.send("200 OK", body=BODY[:-1]),
        lambda call: call.send("200 OK", body=BODY + b"x"),
        lambda call: call.whole(body=BODY[::-1]),
        reset,
        lambda call: call.send("503 Busy", "Content-Length: 0"),
    ],
)
async def test_a_body_that_ends_by_close_and_varies_is_a_fault(again: Script) -> None:
    async def script(call: Caller) -> None:
        await (again if call.number else no_length)(call)

    async with (
        hosted(script) as host,
        reaching() as source,
        source.open(host.url()) as download,
    ):
        assert await read(download, len(BODY) + 1) == BODY
        with pytest.raises(SourceFault):
            await download.confirm(sha256(BODY).digest(), lambda count: None)


async def test_a_body_whose_end_is_known_is_fetched_once() -> None:
    async with (
        hosted(Caller.whole) as host,
        reaching() as source,
        source.open(host.url()) as download,
    ):
        await read(download, len(BODY))
        await download.confirm(b"", lambda count: None)
    assert len(host.calls) == 1
