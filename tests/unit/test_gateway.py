"""Signed calls over real connections on loopback, and over ones that fail on demand."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from tests.support import BOUND
from worker.core import jsontext
from worker.core.models import NotFound, Pending, Succeeded
from worker.core.services import Service
from worker.errors import UpstreamBlocked, UpstreamError, UpstreamThrottled, UpstreamUnavailable
from worker.reach import SILENCE, Reach
from worker.sandbox.simulator.gateway import Doorkeeper
from worker.upstream.gateway import Gateway
from worker.wiring import upstream_session

if TYPE_CHECKING:
    from worker.sandbox.simulator import Simulator

NOON = 1_795_435_200.0  # Mon, 23 Nov 2026 12:00:00 GMT
RUNNING = {"status": 10, "data": {"status": "running"}}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with upstream_session() as made:
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


def gateway(session: aiohttp.ClientSession, endpoint: str, **more: Any) -> Gateway:
    return Gateway(session, endpoint=endpoint, app_key="key", app_secret="hush", **more)


@dataclass
class Canned:
    """An upstream that gives these replies in turn, and what it was asked."""

    endpoint: str = ""
    seen: list[web.Request] = field(default_factory=list)


@asynccontextmanager
async def canned(*replies: web.Response) -> AsyncIterator[Canned]:
    left = iter(replies)
    upstream = Canned()

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        upstream.seen.append(request)
        return next(left)

    async with serve(handle) as upstream.endpoint:
        yield upstream


def running() -> web.Response:
    return web.json_response(RUNNING)


def refusal(message: str, date: str | None = None) -> web.Response:
    """One without a date if that is empty."""
    response = web.Response(status=400, headers={"X-Ca-Error-Message": message})
    if date is not None:
        response.headers["Date"] = date
    return response


# -- what comes --------------------------------------------------------------------------------


async def test_a_reply_that_is_compressed_is_read_in_bounds(session: aiohttp.ClientSession) -> None:
    good, bomb = json.dumps(RUNNING).encode(), b" " * (8 * jsontext.MAX_BYTES)
    replies = [
        web.Response(body=gzip.compress(body), headers=headers)
        for body, headers in ((good, {"Content-Encoding": "gzip"}), (good, {}), (bomb, {}))
    ]
    replies.append(web.Response(body=b"\x1f\x8bnone"))
    async with canned(*replies) as upstream:
        calls = gateway(session, upstream.endpoint)
        for _ in range(2):
            answer = await calls.get_result("t")
            assert answer.observation == Pending(status="running")
        with pytest.raises(UpstreamUnavailable, match="too large"):
            await calls.get_result("t")
        with pytest.raises(UpstreamUnavailable, match="unreadable"):
            await calls.get_result("t")


# -- what is sent -----------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["", "/", "/mirror", "/a/b-c.d/"])
async def test_what_is_signed_is_what_arrives(session: aiohttp.ClientSession, base: str) -> None:
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
        upstream = gateway(session, endpoint + base, clock=lambda: NOON)
        assert (await upstream.get_result("task-1")).observation == Pending(status="running")
        await upstream.get_result("task-1")  # the nonce is another, or the keeper would refuse
    path = f"{base.rstrip('/')}/scc/comfy_get_result"
    assert arrived == [(path, b'{"taskId":"task-1"}', None)] * 2


async def test_headers_are_as_the_gateway_needs_them_and_no_more(
    session: aiohttp.ClientSession,
) -> None:
    async with canned(running()) as upstream:
        asking = gateway(
            session, upstream.endpoint, clock=lambda: NOON, new_nonce=lambda: "n"
        )  # fmt: skip
        await asking.get_result("task-1")
    (request,) = upstream.seen
    assert request.headers["date"] == "Mon, 23 Nov 2026 12:00:00 GMT+00:00"
    assert request.headers["x-ca-timestamp"] == "1795435200000"
    assert request.headers["x-ca-nonce"] == "n"
    assert request.headers["accept-encoding"] == "identity"
    assert {name.lower() for name in request.headers} == {
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


async def test_cookies_are_not_sent_back(session: aiohttp.ClientSession) -> None:
    cookies: list[str | None] = []

    async def handle(request: web.Request) -> web.Response:
        cookies.append(request.headers.get("Cookie"))
        return web.json_response(RUNNING, headers={"Set-Cookie": "session=1; Path=/"})

    async with serve(handle) as endpoint:
        upstream = gateway(session, endpoint.replace("127.0.0.1", "localhost"))
        for _ in range(2):
            await upstream.get_result("task-1")
    assert cookies == [None, None]


async def test_repr_hides_the_key_and_the_secret(session: aiohttp.ClientSession) -> None:
    shown = repr(gateway(session, "https://upstream.test/base"))
    assert shown == "Gateway('https://upstream.test/base/scc/comfy_get_result')"


# -- replies ----------------------------------------------------------------------------------


async def test_the_simulated_service_accepts_and_answers(
    session: aiohttp.ClientSession, simulator: Simulator
) -> None:
    upstream = Gateway(
        session,
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


async def test_a_redirect_is_not_followed(session: aiohttp.ClientSession) -> None:
    paths: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere?token=1"})

    async with serve(handle) as endpoint:
        with pytest.raises(UpstreamBlocked, match="/elsewhere") as caught:
            await gateway(session, endpoint).get_result("task-1")
    assert caught.value.kind == "request"
    assert paths == ["/scc/comfy_get_result"]


@pytest.mark.parametrize(("status", "kind"), [(200, UpstreamUnavailable), (403, UpstreamBlocked)])
async def test_no_more_than_eight_mebibytes_are_read(
    session: aiohttp.ClientSession, status: int, kind: type[Exception]
) -> None:
    gone = asyncio.Event()
    sent = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        try:
            response = web.StreamResponse(status=status)
            await response.prepare(request)
            while True:  # without an end
                await response.write(b" " * (1 << 16))
                sent += 1 << 16
        finally:
            gone.set()

    async with serve(handle) as endpoint:
        with pytest.raises(kind):
            await gateway(session, endpoint).get_result("task-1")
        await asyncio.wait_for(gone.wait(), BOUND)
    # what both ends hold in their buffers comes on top
    assert jsontext.MAX_BYTES < sent < 3 * jsontext.MAX_BYTES


async def test_a_connection_serves_again_after_a_reply_that_was_too_long(
    session: aiohttp.ClientSession,
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
        upstream = gateway(session, endpoint)
        with pytest.raises(UpstreamUnavailable, match="too large"):
            await upstream.get_result("task-1")
        assert (await upstream.get_result("task-1")).observation == Pending(status="running")


# -- failures on the way ----------------------------------------------------------------------


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
    session: aiohttp.ClientSession, sent: bytes
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(sent)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UpstreamUnavailable):
            await gateway(session, f"http://127.0.0.1:{port}").get_result("task-1")


async def test_nobody_listening_is_unavailable(session: aiohttp.ClientSession) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(UpstreamUnavailable, match="no answer"):
        await gateway(session, f"http://127.0.0.1:{port}").get_result("task-1")


@pytest.mark.parametrize("trickle", [False, True])
async def test_silence_and_a_trickle_end_at_the_timeout(
    session: aiohttp.ClientSession, trickle: bool
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
            await gateway(session, endpoint, timeout=0.2).get_result("task-1")
        await asyncio.wait_for(gone.wait(), BOUND)  # the connection is closed, not left behind


# -- clocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["Timestamp Expired", "Invalid Timestamp", "Nonce Used"])
async def test_a_refused_clock_or_nonce_is_signed_anew_once(
    session: aiohttp.ClientSession, message: str
) -> None:
    times = iter([NOON, NOON, NOON + 5, NOON + 5])
    async with canned(refusal(message), running()) as upstream:
        asking = gateway(session, upstream.endpoint, clock=lambda: next(times))
        answer = await asking.get_result("task-1")
    assert answer.observation == Pending(status="running")
    first, second = upstream.seen
    for name in ("x-ca-nonce", "x-ca-timestamp", "date", "x-ca-signature"):
        assert first.headers[name] != second.headers[name]
    assert await first.read() == await second.read()


@pytest.mark.parametrize(
    ("date", "words"),
    [
        ("Mon, 23 Nov 2026 11:40:00 GMT", "clock is 1200 s ahead of the upstream's"),
        ("Mon, 23 Nov 2026 12:20:00 GMT", "clock is 1200 s behind the upstream's"),
        ("", "clock is off is unknown"),
    ],
)
async def test_a_clock_refused_twice_is_named_with_its_skew(
    session: aiohttp.ClientSession, date: str, words: str
) -> None:
    async with canned(*(refusal("Timestamp Expired", date) for _ in range(2))) as upstream:
        with pytest.raises(UpstreamBlocked, match=words) as caught:
            await gateway(session, upstream.endpoint, clock=lambda: NOON).get_result("task-1")
    assert caught.value.kind == "clock"
    assert "Timestamp Expired" in str(caught.value)
    assert len(upstream.seen) == 2


async def test_what_the_second_attempt_meets_is_told_as_it_is(
    session: aiohttp.ClientSession,
) -> None:
    async with canned(refusal("Nonce Used"), refusal("Invalid Signature")) as upstream:
        with pytest.raises(UpstreamBlocked) as caught:
            await gateway(session, upstream.endpoint).get_result("task-1")
    assert caught.value.kind == "credentials"
    assert len(upstream.seen) == 2


@pytest.mark.parametrize(
    ("status", "message"),
    [(400, "Invalid Signature"), (400, "Throttled by USER Flow Control"), (503, "")],
)
async def test_nothing_else_is_tried_twice(
    session: aiohttp.ClientSession, status: int, message: str
) -> None:
    reply = web.Response(status=status, headers={"X-Ca-Error-Message": message})
    async with canned(reply) as upstream:
        with pytest.raises((UpstreamBlocked, UpstreamThrottled, UpstreamUnavailable)):
            await gateway(session, upstream.endpoint).get_result("task-1")
    assert len(upstream.seen) == 1


@pytest.mark.parametrize(
    ("date", "skew"),
    [
        ("Mon, 23 Nov 2026 11:59:30 GMT", 30.0),
        ("Mon, 23 Nov 2026 12:00:30 GMT", -30.0),
        ("yesterday", None),
        ("", None),
    ],
)
async def test_skew_is_told_from_the_last_reply(
    session: aiohttp.ClientSession, date: str, skew: float | None
) -> None:
    reply = web.json_response(RUNNING, headers={"Date": date})
    async with canned(reply) as upstream:
        asking = gateway(session, upstream.endpoint, clock=lambda: NOON)
        assert asking.clock_skew is None
        await asking.get_result("task-1")
        assert asking.clock_skew == skew


# -- what the fleet hears of it ---------------------------------------------------------------


async def test_only_answers_that_can_be_used_speak_for_the_upstream(
    session: aiohttp.ClientSession,
) -> None:
    reach = Reach()
    replies = [
        web.json_response(RUNNING),
        web.Response(status=503),
        refusal("Invalid Signature"),
        web.Response(status=404),
        web.json_response({"status": 20, "data": {"status": "succeeded"}}),
    ]
    said = []
    async with canned(*replies) as upstream:
        asked = gateway(session, upstream.endpoint, reach=reach)
        for _ in replies:
            with suppress(UpstreamError):
                await asked.get_result("t1")
            outlook = reach.outlook(Service.UPSTREAM, 0)
            said.append((outlook.last_success is not None, outlook.trouble.partition(":")[0]))
    assert said[0] == (True, "")
    assert said[1] == (True, "the upstream fails")
    assert said[2][1].startswith("the upstream refuses")
    # a bare refusal, and an answer that cannot be used, may be about this id alone
    assert said[2] == said[3] == said[4]


async def test_a_call_that_hangs_is_heard_of_before_it_ends(session: aiohttp.ClientSession) -> None:
    now = 0.0
    reach, asked, over = Reach(lambda: now), asyncio.Event(), asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        asked.set()
        await over.wait()
        return running()

    async with serve(hang) as endpoint:
        call = asyncio.create_task(gateway(session, endpoint, reach=reach).get_result("t1"))
        await asyncio.wait_for(asked.wait(), BOUND)
        now = SILENCE + 1
        ((name, *_, trouble),) = reach.take()
        assert (name, trouble) == ("upstream", "no answer for 16 s so far")
        over.set()
        await call
    assert [report[-1] for report in reach.take()] == [""]
