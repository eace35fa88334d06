"""Signed calls over real connections on loopback, and over a transport that fails on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from httpx_aiohttp import AiohttpTransport

from worker.core import jsontext
from worker.core.models import NotFound, Pending, Succeeded
from worker.errors import UpstreamBlocked, UpstreamThrottled, UpstreamUnavailable
from worker.sandbox.simulator.gateway import Doorkeeper
from worker.upstream.gateway import Gateway

if TYPE_CHECKING:
    from worker.sandbox.simulator import Simulator

NOON = 1_795_435_200.0  # Mon, 23 Nov 2026 12:00:00 GMT
RUNNING = {"status": 10, "data": {"status": "running"}}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    def session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    transport = AiohttpTransport(client=session)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as made:
        yield made


@asynccontextmanager
async def serve(handler: Handler) -> AsyncIterator[str]:
    """Serve every path with one handler; yields the endpoint."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def gateway(client: httpx.AsyncClient, endpoint: str, **more: Any) -> Gateway:
    return Gateway(client, endpoint=endpoint, app_key="key", app_secret="hush", **more)


def canned(*replies: httpx.Response | Exception) -> tuple[httpx.AsyncClient, list[httpx.Request]]:
    """A client that answers with these replies in turn, and the requests it has seen."""
    seen: list[httpx.Request] = []
    left = iter(replies)

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        reply = next(left)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return httpx.AsyncClient(transport=httpx.MockTransport(answer)), seen


def refusal(message: str, date: str = "") -> httpx.Response:
    headers = {"X-Ca-Error-Message": message}
    return httpx.Response(400, headers=headers | ({"Date": date} if date else {}))


# -- what is sent -----------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["", "/", "/mirror", "/a/b-c.d/"])
async def test_what_is_signed_is_what_arrives(client: httpx.AsyncClient, base: str) -> None:
    arrived: list[tuple[str, bytes, object]] = []
    keeper = Doorkeeper("key", "hush")

    async def handle(request: web.Request) -> web.Response:
        body = await request.read()
        verdict = keeper.check(
            method=request.method,
            path=request.raw_path,
            headers=request.headers,
            body=body,
            now=NOON,
        )
        assert request.headers["content-md5"]
        arrived.append((request.raw_path, body, verdict))
        return web.json_response(RUNNING)

    async with serve(handle) as endpoint:
        upstream = gateway(client, endpoint + base, clock=lambda: NOON)
        assert (await upstream.get_result("task-1")).observation == Pending(status="running")
        await upstream.get_result("task-1")  # the nonce is another, or the keeper would refuse
    path = f"{base.rstrip('/')}/scc/comfy_get_result"
    assert arrived == [(path, b'{"taskId":"task-1"}', None)] * 2


async def test_headers_are_as_the_gateway_needs_them_and_no_more() -> None:
    client, (request, *_) = await one_call(httpx.Response(200, json=RUNNING))
    await client.aclose()
    assert request.headers["date"] == "Mon, 23 Nov 2026 12:00:00 GMT+00:00"
    assert request.headers["x-ca-timestamp"] == "1795435200000"
    assert request.headers["x-ca-nonce"] == "n"
    assert request.headers["accept-encoding"] == "identity"
    assert set(request.headers) == {
        "accept",
        "accept-encoding",
        "content-length",
        "content-md5",
        "content-type",
        "date",
        "host",
        "user-agent",
        "x-ca-key",
        "x-ca-nonce",
        "x-ca-signature",
        "x-ca-signature-headers",
        "x-ca-signature-method",
        "x-ca-timestamp",
    }
    assert request.extensions["timeout"] == dict.fromkeys(["connect", "read", "write", "pool"], 7)


async def one_call(reply: httpx.Response) -> tuple[httpx.AsyncClient, list[httpx.Request]]:
    client, seen = canned(reply)
    upstream = gateway(
        client, "https://upstream.test", timeout=7, clock=lambda: NOON, new_nonce=lambda: "n"
    )
    await upstream.get_result("task-1")
    return client, seen


async def test_cookies_are_not_sent_back(client: httpx.AsyncClient) -> None:
    cookies: list[str | None] = []

    async def handle(request: web.Request) -> web.Response:
        cookies.append(request.headers.get("Cookie"))
        return web.json_response(RUNNING, headers={"Set-Cookie": "session=1; Path=/"})

    async with serve(handle) as endpoint:
        upstream = gateway(client, endpoint.replace("127.0.0.1", "localhost"))
        for _ in range(2):
            await upstream.get_result("task-1")
    assert cookies == [None, None]


def test_repr_hides_the_key_and_the_secret() -> None:
    shown = repr(gateway(httpx.AsyncClient(), "https://upstream.test/base"))
    assert shown == "Gateway('https://upstream.test/base/scc/comfy_get_result')"


# -- replies ----------------------------------------------------------------------------------


async def test_the_simulated_service_accepts_and_answers(
    client: httpx.AsyncClient, simulator: Simulator
) -> None:
    upstream = Gateway(
        client,
        endpoint=simulator.endpoint,
        app_key=simulator.app_key,
        app_secret=simulator.app_secret,
    )
    said = (await upstream.get_result(simulator.example())).observation
    assert isinstance(said, Succeeded)
    assert isinstance((await upstream.get_result("made-up")).observation, NotFound)
    simulator.control(outage="throttle")
    with pytest.raises(UpstreamThrottled):
        await upstream.get_result("made-up")
    simulator.control(outage="", app_secret="changed")
    with pytest.raises(UpstreamBlocked) as caught:
        await upstream.get_result("made-up")
    assert caught.value.kind == "credentials"
    assert simulator.app_secret not in str(caught.value)
    assert simulator.counters.calls == 4


async def test_a_redirect_is_not_followed(client: httpx.AsyncClient) -> None:
    paths: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere?token=1"})

    async with serve(handle) as endpoint:
        with pytest.raises(UpstreamBlocked, match="/elsewhere") as caught:
            await gateway(client, endpoint).get_result("task-1")
    assert caught.value.kind == "request"
    assert paths == ["/scc/comfy_get_result"]


class Endless(httpx.AsyncByteStream):
    """A body without an end that counts what was taken of it."""

    def __init__(self) -> None:
        self.taken = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self.taken += 1 << 16
            yield b" " * (1 << 16)

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("status", "kind"), [(200, UpstreamUnavailable), (403, UpstreamBlocked)])
async def test_no_more_than_eight_mebibytes_are_read(status: int, kind: type[Exception]) -> None:
    body = Endless()
    client, _ = canned(httpx.Response(status, stream=body))
    async with client:
        with pytest.raises(kind):
            await gateway(client, "https://upstream.test").get_result("task-1")
    assert jsontext.MAX_BYTES < body.taken <= jsontext.MAX_BYTES + (1 << 16)
    assert body.closed


async def test_a_connection_serves_again_after_a_reply_that_was_too_long(
    client: httpx.AsyncClient,
) -> None:
    calls = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        if calls > 1:
            return web.json_response(RUNNING)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * (1 << 16))

    async with serve(handle) as endpoint:
        upstream = gateway(client, endpoint)
        with pytest.raises(UpstreamUnavailable, match="unreadable"):
            await upstream.get_result("task-1")
        assert (await upstream.get_result("task-1")).observation == Pending(status="running")


# -- failures on the way ----------------------------------------------------------------------


def subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def made(kind: type[Exception]) -> Exception:
    if issubclass(kind, httpx.HTTPStatusError):
        return kind("boom", request=httpx.Request("POST", "/"), response=httpx.Response(500))
    return kind("boom")


FAILURES = [
    *(made(kind) for kind in subclasses(httpx.HTTPError)),
    httpx.StreamError("boom"),
    httpx.StreamClosed(),
    aiohttp.ClientError("boom"),
    aiohttp.ServerDisconnectedError(),
    OSError("boom"),
    TimeoutError("boom"),
    ConnectionResetError("boom"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
async def test_every_failure_of_the_transport_is_translated(failure: Exception) -> None:
    client, _ = canned(failure)
    async with client:
        with pytest.raises(UpstreamUnavailable, match=type(failure).__name__) as caught:
            await gateway(client, "https://upstream.test").get_result("task-1")
    assert caught.value.__cause__ is failure


class Torn(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b'{"status": 10, "da'
        raise httpx.ReadError("torn")


async def test_a_body_that_breaks_off_is_translated() -> None:
    client, _ = canned(httpx.Response(200, stream=Torn()))
    async with client:
        with pytest.raises(UpstreamUnavailable, match="torn"):
            await gateway(client, "https://upstream.test").get_result("task-1")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
    ids=range(8),
)
async def test_a_server_that_talks_nonsense_is_unavailable(
    client: httpx.AsyncClient, sent: bytes
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(sent)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UpstreamUnavailable):
            await gateway(client, f"http://127.0.0.1:{port}").get_result("task-1")


async def test_nobody_listening_is_unavailable(client: httpx.AsyncClient) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(UpstreamUnavailable, match="no answer"):
        await gateway(client, f"http://127.0.0.1:{port}").get_result("task-1")


@pytest.mark.parametrize("trickle", [False, True])
async def test_silence_and_a_trickle_end_at_the_timeout(
    client: httpx.AsyncClient, trickle: bool
) -> None:
    gone = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            response = web.StreamResponse()
            if trickle:
                await response.prepare(request)
            while True:
                if trickle:
                    await response.write(b" ")
                await asyncio.sleep(0.01)
        finally:
            gone.set()

    async with serve(handle) as endpoint:
        with pytest.raises(UpstreamUnavailable, match=r"no .*answer"):
            await gateway(client, endpoint, timeout=0.2).get_result("task-1")
        await asyncio.wait_for(gone.wait(), 30)  # the connection is closed, not left behind


# -- clocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["Timestamp Expired", "Invalid Timestamp", "Nonce Used"])
async def test_a_refused_clock_or_nonce_is_signed_anew_once(message: str) -> None:
    client, seen = canned(refusal(message), httpx.Response(200, json=RUNNING))
    times = iter([NOON, NOON, NOON + 5, NOON + 5])
    async with client:
        upstream = gateway(client, "https://upstream.test", clock=lambda: next(times))
        answer = await upstream.get_result("task-1")
    assert answer.observation == Pending(status="running")
    for name in ("x-ca-nonce", "x-ca-timestamp", "date", "x-ca-signature"):
        assert seen[0].headers[name] != seen[1].headers[name]
    assert seen[0].content == seen[1].content


@pytest.mark.parametrize(
    ("date", "words"),
    [
        ("Mon, 23 Nov 2026 11:40:00 GMT", "clock is 1200 s ahead of the upstream's"),
        ("Mon, 23 Nov 2026 12:20:00 GMT", "clock is 1200 s behind the upstream's"),
        ("", "clock is off is unknown"),
    ],
)
async def test_a_clock_refused_twice_is_named_with_its_skew(date: str, words: str) -> None:
    client, seen = canned(*(refusal("Timestamp Expired", date) for _ in range(2)))
    async with client:
        with pytest.raises(UpstreamBlocked, match=words) as caught:
            await gateway(client, "https://upstream.test", clock=lambda: NOON).get_result("task-1")
    assert caught.value.kind == "clock"
    assert "Timestamp Expired" in str(caught.value)
    assert len(seen) == 2


async def test_what_the_second_attempt_meets_is_told_as_it_is() -> None:
    client, seen = canned(refusal("Nonce Used"), refusal("Invalid Signature"))
    async with client:
        with pytest.raises(UpstreamBlocked) as caught:
            await gateway(client, "https://upstream.test").get_result("task-1")
    assert caught.value.kind == "credentials"
    assert len(seen) == 2


@pytest.mark.parametrize(
    "reply",
    [
        refusal("Invalid Signature"),
        refusal("Throttled by USER Flow Control"),
        httpx.Response(503),
        httpx.ConnectTimeout("slow"),
    ],
    ids=range(4),
)
async def test_nothing_else_is_tried_twice(reply: httpx.Response | Exception) -> None:
    client, seen = canned(reply)
    async with client:
        with pytest.raises((UpstreamBlocked, UpstreamThrottled, UpstreamUnavailable)):
            await gateway(client, "https://upstream.test").get_result("task-1")
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("date", "skew"),
    [
        ("Mon, 23 Nov 2026 11:59:30 GMT", 30.0),
        ("Mon, 23 Nov 2026 12:00:30 GMT", -30.0),
        ("yesterday", None),
        ("", None),
    ],
)
async def test_skew_is_told_from_the_last_reply(date: str, skew: float | None) -> None:
    client, _ = canned(httpx.Response(200, content=json.dumps(RUNNING), headers={"Date": date}))
    async with client:
        upstream = gateway(client, "https://upstream.test", clock=lambda: NOON)
        assert upstream.clock_skew is None
        await upstream.get_result("task-1")
        assert upstream.clock_skew == skew
