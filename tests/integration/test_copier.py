from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import random
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from tests.filehost import BODY, ETAG, Caller, Host, Script, hosted
from tests.support import BOUND, BucketEnv, point_to
from worker.errors import (
    HarvesterError,
    LeaseLost,
    SourceFault,
    SourceGone,
    SourceRejected,
    StoreRefused,
    StoreUnavailable,
)
from worker.transfer import copier
from worker.transfer.budget import Budget
from worker.transfer.copier import Copier, CopyJob
from worker.transfer.guard import Guard
from worker.transfer.source import Source
from worker.transfer.store import ObjectStore

MIB = 1024 * 1024
PART = 5 * MIB  # the least that S3 takes


def png(width: int = 64, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return buffer.getvalue()


def clip(size: int) -> bytes:
    """Bytes that begin as an MP4 does and cannot be compressed."""
    return b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + random.Random(size).randbytes(
        size - 24
    )


@dataclass
class Claim:
    """A hold that can be lost after a number of checks."""

    checks_left: int = 1_000_000
    reserved: list[str] = field(default_factory=list)
    signs: int = 0
    on_check: Callable[[], None] = lambda: None

    async def reserve(self, key: str) -> str:
        self.reserved.append(key)
        return self.reserved[0]

    async def check(self) -> None:
        self.checks_left -= 1
        self.on_check()
        if self.checks_left < 0:
            raise LeaseLost

    def reading(self, now: bool) -> None:
        pass

    def arrived(self, count: int) -> None:
        self.progress()

    def progress(self) -> None:
        self.signs += 1


@dataclass
class Bench:
    """A copier between a file host and a store."""

    copier: Copier
    store: ObjectStore
    budget: Budget
    prefix: str
    host: Host

    def job(self, name: str = "images/0", **options: Any) -> CopyJob:
        options = {"url": self.host.url("/a.bin")} | options
        return CopyJob(task_id="t:1", base=f"{self.prefix}{name}", **options)

    async def open_uploads(self) -> list[str]:
        return [upload.key for upload in await self.store.list_uploads(self.prefix)]


@contextlib.asynccontextmanager
async def bench(
    script: Script,
    bucket: str,
    *,
    max_file_bytes: int = 100 * MIB,
    budget: int = 4 * PART,
    stall: float = BOUND,
    storage: str = "auto",
    **options: Any,
) -> AsyncIterator[Bench]:
    store = ObjectStore(bucket, storage=storage)
    guard = Guard(["*"], ["127.0.0.0/8"])
    memory = Budget(budget)
    async with hosted(script) as host, guard.session() as session:
        source = Source(session, guard, max_file_bytes=max_file_bytes, stall_timeout=stall)
        copier = Copier(source, store, memory, **({"part_size": PART} | options))
        try:
            yield Bench(copier, store, memory, f"c/{uuid.uuid4().hex}/", host)
        finally:
            await store.close()
        assert memory.used == 0, "memory was not given back"


@pytest.fixture
def environ(bucket: BucketEnv, monkeypatch: pytest.MonkeyPatch) -> BucketEnv:
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    return bucket


def serving(body: bytes, *headers: str) -> Script:
    return lambda call: call.whole(*headers, body=body)


# -- what arrives -----------------------------------------------------------------------------


async def test_a_picture_is_stored_with_all_that_is_known_of_it(environ: BucketEnv) -> None:
    body, claim = png(), Claim()
    async with bench(serving(body), environ.bucket) as it:
        job = it.job(filename="Bild ü.png", url=it.host.url("/x.jpg?Signature=s"))
        stored = await it.copier.copy(job, claim)
    assert stored.key == f"{it.prefix}images/0.png"
    assert claim.reserved == [stored.key]
    assert claim.signs > 2
    assert (stored.bytes, stored.content_type) == (len(body), "image/png")
    assert (stored.width, stored.height) == (64, 48)
    assert stored.sha256 == hashlib.sha256(body).hexdigest()
    assert environ.read(stored.key) == body
    seen = environ.client.head_object(Bucket=environ.bucket, Key=stored.key)
    assert seen["ContentType"] == "image/png"
    assert seen["ContentDisposition"].startswith('inline; filename="Bild _.png"')
    assert seen["Metadata"] == {"task-id": "t:1", "sha256": stored.sha256}


@pytest.mark.parametrize("size", [PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 7])
@pytest.mark.parametrize("chunked", [False, True])
async def test_every_size_arrives_byte_for_byte(
    environ: BucketEnv, size: int, chunked: bool
) -> None:
    body = clip(size)

    async def script(call: Caller) -> None:
        if chunked:
            framed = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
            await call.send("200 OK", "Transfer-Encoding: chunked", body=framed)
        else:
            await call.whole(body=body)

    claim = Claim()
    async with bench(script, environ.bucket) as it:
        stored = await it.copier.copy(it.job(), claim)
        assert await it.open_uploads() == []
    assert (stored.bytes, stored.content_type) == (size, "video/mp4")
    assert stored.sha256 == hashlib.sha256(body).hexdigest()
    assert environ.read(stored.key) == body
    assert claim.reserved == [stored.key] == environ.keys(it.prefix)
    seen = environ.client.head_object(Bucket=environ.bucket, Key=stored.key)
    whole = {"sha256": stored.sha256} if size <= PART else {}
    assert seen["Metadata"] == {"task-id": "t:1"} | whole


async def test_many_files_at_once_share_a_budget_of_one_part(environ: BucketEnv) -> None:
    bodies = [clip(size) for size in (2 * PART + 9, 1000, PART + 1, 50_000, 2 * PART, 70)]

    async def script(call: Caller) -> None:
        await call.whole(body=bodies[int(call.path.rpartition("/")[2])])

    async with bench(script, environ.bucket, budget=PART) as it:
        jobs = [it.job(f"f/{n}", url=it.host.url(f"/{n}")) for n in range(len(bodies))]
        stored = await asyncio.wait_for(
            asyncio.gather(*(it.copier.copy(job, Claim()) for job in jobs)), BOUND
        )
    for body, file in zip(bodies, stored, strict=True):
        assert file.sha256 == hashlib.sha256(body).hexdigest()
        assert environ.read(file.key) == body


async def test_a_host_that_does_not_answer_yet_holds_no_memory(
    environ: BucketEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one whose name nobody answers for: their files come once they do."""
    monkeypatch.setattr(copier, "_LENT_AFTER", 0.0)
    speaks, asked, body = asyncio.Event(), asyncio.Event(), clip(PART + 1)

    async def serve(call: Caller) -> None:
        if call.path.startswith("/silent"):
            asked.set()
            await speaks.wait()
        await call.whole(body=body)

    async with bench(serve, environ.bucket, budget=PART) as at:
        job = at.job("silent", url=at.host.url("/silent.mp4"))
        silent = asyncio.create_task(at.copier.copy(job, Claim()))
        await asked.wait()
        async with asyncio.timeout(BOUND):
            good = await at.copier.copy(at.job("good"), Claim())
        assert not silent.done()
        speaks.set()
        for stored in (good, await silent):
            assert stored.sha256 == hashlib.sha256(body).hexdigest()


async def test_a_transfer_that_breaks_off_within_a_part_goes_on(environ: BucketEnv) -> None:
    body = clip(2 * PART + 99)

    async def script(call: Caller) -> None:
        if call.number:
            await call.rest(body)
        else:
            head = (f"Content-Length: {len(body)}", ETAG)
            await call.send("200 OK", *head, body=body[: PART + 1000])

    async with bench(script, environ.bucket) as it:
        stored = await it.copier.copy(it.job(), Claim())
    assert stored.sha256 == hashlib.sha256(body).hexdigest()
    assert environ.read(stored.key) == body


async def test_put_options_reach_small_and_large_files(environ: BucketEnv) -> None:
    for size in (100, PART + 1):
        options = {"CacheControl": "max-age=9"}
        async with bench(serving(clip(size)), environ.bucket, put_options=options) as it:
            stored = await it.copier.copy(it.job(), Claim())
        seen = environ.client.head_object(Bucket=environ.bucket, Key=stored.key)
        assert seen["CacheControl"] == "max-age=9"


# -- keys -------------------------------------------------------------------------------------


async def test_a_key_fixed_earlier_stays_whatever_the_bytes_say(environ: BucketEnv) -> None:
    claim = Claim()
    async with bench(serving(png()), environ.bucket) as it:
        key = f"{it.prefix}images/0.webp"
        stored = await it.copier.copy(it.job(key=key), claim)
        assert stored.key == key
        assert claim.reserved == []

        claim = Claim(reserved=[f"{it.prefix}images/1.gif"])
        stored = await it.copier.copy(it.job("images/1"), claim)
    assert stored.key == f"{it.prefix}images/1.gif"
    assert environ.keys(it.prefix) == [key, stored.key]


async def test_names_give_the_extension_where_bytes_do_not(environ: BucketEnv) -> None:
    async with bench(serving(b"\x93\x01\xf7\x00" * 9), environ.bucket) as it:
        job = it.job(url=it.host.url("/dir/a.bin?x=.png"), format="latent")
        stored = await it.copier.copy(job, Claim())
    assert (stored.key, stored.content_type) == (
        f"{it.prefix}images/0.latent",
        "application/octet-stream",
    )


# -- what may not be stored -------------------------------------------------------------------


async def test_types_that_are_not_allowed_are_refused(environ: BucketEnv) -> None:
    async with bench(
        serving(clip(PART + 1)), environ.bucket, content_types=("image/*", "audio/wav")
    ) as it:
        with pytest.raises(SourceRejected, match="video/mp4 is not allowed"):
            await it.copier.copy(it.job(), Claim())
        it.host.script = serving(png())
        await it.copier.copy(it.job(), Claim())
    assert environ.keys(it.prefix) == [f"{it.prefix}images/0.png"]


@pytest.mark.parametrize("entry", [False, True])
async def test_an_empty_file_is_stored_where_it_may_be_empty(
    environ: BucketEnv, entry: bool
) -> None:
    chunks = answer("Transfer-Encoding: chunked", body=b"0\r\n\r\n")
    for script in (answer("Content-Length: 0"), chunks):
        async with bench(script, environ.bucket) as it:
            stored = await it.copier.copy(it.job(filename="log.txt", entry=entry), Claim())
            assert (stored.bytes, stored.sha256) == (0, hashlib.sha256().hexdigest())
            with pytest.raises(SourceGone, match="empty"):
                await it.copier.copy(it.job(filename="a.png"), Claim())
            if entry:
                with pytest.raises(SourceGone, match="empty"):
                    await it.copier.copy(it.job(entry=True), Claim())


async def test_pages_in_place_of_files_are_faults(environ: BucketEnv) -> None:
    page = b"<!doctype html><h1>Service unavailable</h1>"
    async with bench(serving(page, "Content-Type: image/png"), environ.bucket) as it:
        for job in (
            it.job(url=it.host.url("/a.png")),
            it.job(filename="a.mp4"),
            it.job(format="zip", url=it.host.url("/x")),
        ):
            with pytest.raises(SourceGone, match="text/html"):
                await it.copier.copy(job, Claim())
        stored = await it.copier.copy(it.job(url=it.host.url("/x")), Claim())
    assert stored.content_type == "text/html"
    seen = environ.client.head_object(Bucket=environ.bucket, Key=stored.key)
    assert seen["ContentDisposition"] == "attachment"


# -- integrity --------------------------------------------------------------------------------

PAGE = b"<!doctype html><h1>Service unavailable</h1>"
ERROR = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"


def answer(*headers: str, body: bytes = b"", status: str = "200 OK") -> Script:
    return lambda call: call.send(status, *headers, body=body)


def cut(body: bytes, *headers: str) -> Script:
    """Ends early, by half of what was announced."""
    return answer(f"Content-Length: {2 * len(body)}", *headers, body=body)


def then(body: bytes, second: Script) -> Script:
    """Ends early, and answers the request for the rest otherwise."""
    first = cut(body, ETAG)
    return lambda call: second(call) if call.number else first(call)


def rest(body: bytes, start: int, total: int, etag: str = ETAG) -> Script:
    content = f"Content-Range: bytes {start}-{total - 1}/{total}"
    length = f"Content-Length: {total - start}"
    return answer(content, length, etag, body=(2 * body)[start:], status="206 Partial Content")


def framed(body: bytes, end: bytes = b"0\r\n\r\n", coding: str = "chunked") -> Script:
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    return answer(f"Transfer-Encoding: {coding}", body=chunk + end)


def reset(body: bytes) -> Script:
    async def script(call: Caller) -> None:
        await cut(body)(call)
        call.reset()

    return script


def varying(body: bytes) -> Script:
    return lambda call: call.send("200 OK", body=body[call.number :])


def stalled(body: bytes) -> Script:
    async def script(call: Caller) -> None:
        await cut(body)(call)
        await asyncio.sleep(30)

    return script


INTEGRITY: dict[str, tuple[Callable[[bytes], Script], type[HarvesterError]]] = {
    "it ends early": (cut, SourceFault),
    "it is cut by a reset": (reset, SourceFault),
    "it stalls": (stalled, SourceFault),
    "it has no announced end, and varies": (varying, SourceFault),
    "it has two lengths": (
        lambda body: answer("Content-Length: 5", f"Content-Length: {len(body)}", body=body),
        SourceFault,
    ),
    "it is empty": (lambda _: answer("Content-Length: 0"), SourceGone),
    "its last chunk is missing": (lambda body: framed(body, end=b""), SourceFault),
    "a chunk is broken": (lambda body: framed(body, end=b"zz\r\n"), SourceFault),
    "the rest has another tag": (
        lambda body: then(body, rest(body, len(body), 2 * len(body), 'ETag: "2"')),
        SourceFault,
    ),
    "the rest has no tag": (
        lambda body: then(body, rest(body, len(body), 2 * len(body), "X: y")),
        SourceFault,
    ),
    "the rest is the whole of another file": (
        lambda body: then(body, serving(body, 'ETag: "2"')),
        SourceFault,
    ),
    "the rest begins elsewhere": (
        lambda body: then(body, rest(body, len(body) - 1, 2 * len(body))),
        SourceFault,
    ),
    "the rest is of a file of another length": (
        lambda body: then(body, rest(body, len(body), 2 * len(body) - 1)),
        SourceFault,
    ),
    "the address died before the rest": (
        lambda body: then(body, answer("Content-Length: 0", status="403 Forbidden")),
        SourceGone,
    ),
    "it is an HTML page": (lambda _: serving(PAGE, "Content-Type: video/mp4"), SourceGone),
    "it is an XML error": (lambda _: serving(ERROR, "Content-Type: video/mp4"), SourceGone),
    "its content is compressed": (
        lambda body: serving(body, "Content-Encoding: gzip"),
        SourceFault,
    ),
    "its transfer is compressed": (lambda body: framed(body, coding="gzip, chunked"), SourceFault),
    "it is too large by announcement": (lambda body: serving(4 * PART * b"x"), SourceRejected),
    "it is too large in the end": (lambda body: framed(4 * PART * b"\x01"), SourceRejected),
    "it is gone": (lambda _: answer("Content-Length: 0", status="404 Not Found"), SourceGone),
}


@pytest.mark.parametrize("size", [1000, PART + 5])
@pytest.mark.parametrize("case", INTEGRITY)
async def test_what_is_not_the_whole_file_leaves_nothing(
    environ: BucketEnv, case: str, size: int
) -> None:
    script, expected = INTEGRITY[case]
    stall = 0.5 if case == "it stalls" else BOUND
    async with bench(
        script(clip(size)), environ.bucket, max_file_bytes=3 * PART, stall=stall
    ) as it:
        with pytest.raises(expected):
            await it.copier.copy(it.job(filename="0.mp4"), Claim())
        assert await it.open_uploads() == []
    assert environ.keys(it.prefix) == []


@pytest.mark.parametrize("size", [1000, 2 * PART + 10])
async def test_no_byte_is_stored_beyond_what_was_announced(environ: BucketEnv, size: int) -> None:
    """What comes later is not of this answer (RFC 9112, section 6.3): it may be seen, or not."""
    body = clip(size)
    script = answer(f"Content-Length: {size // 2}", body=body)
    async with bench(script, environ.bucket) as it:
        with contextlib.suppress(SourceFault):
            await it.copier.copy(it.job(), Claim())
        assert await it.open_uploads() == []
    assert [environ.read(key) for key in environ.keys(it.prefix)] in ([], [body[: size // 2]])


async def test_a_host_that_trickles_does_not_hold_memory_for_ever(environ: BucketEnv) -> None:
    async def script(call: Caller) -> None:
        await call.send("200 OK", f"Content-Length: {PART}", body=clip(100_000))
        while not call.writer.is_closing():
            call.writer.write(b"x")
            await call.writer.drain()
            await asyncio.sleep(0.02)

    async with bench(script, environ.bucket, part_seconds=0.3) as it:
        with pytest.raises(SourceFault, match="too slow"):
            await it.copier.copy(it.job(), Claim())
    assert environ.keys(it.prefix) == []


# -- the claim --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 3 * PART])
async def test_without_the_claim_nothing_is_written(environ: BucketEnv, size: int) -> None:
    checks = 1 if size < PART else 4  # one each part, one to complete
    for left in range(checks):
        async with bench(serving(clip(size)), environ.bucket) as it:
            with pytest.raises(LeaseLost):
                await it.copier.copy(it.job(), Claim(checks_left=left))
            assert await it.open_uploads() == []
        assert environ.keys(it.prefix) == []
    async with bench(serving(clip(size)), environ.bucket) as it:
        await it.copier.copy(it.job(), Claim(checks_left=checks))


async def test_cancelling_leaves_no_upload_open(environ: BucketEnv) -> None:
    async with bench(stalled(clip(2 * PART + 5)), environ.bucket) as it:
        second_part, claim = asyncio.Event(), Claim()
        claim.on_check = lambda: second_part.set() if claim.checks_left == 999_998 else None
        copying = asyncio.create_task(it.copier.copy(it.job(), claim))
        await asyncio.wait_for(second_part.wait(), BOUND)
        assert await it.open_uploads() != []
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        assert await it.open_uploads() == []
    assert environ.keys(it.prefix) == []


async def test_cancelling_while_the_upload_is_opened_leaves_none(
    environ: BucketEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(serving(clip(2 * PART)), environ.bucket) as it:
        opening, create = asyncio.Event(), it.store.create_upload

        async def create_upload(*args: Any, **options: Any) -> Any:
            opening.set()
            return await create(*args, **options)

        monkeypatch.setattr(it.store, "create_upload", create_upload)
        copying = asyncio.create_task(it.copier.copy(it.job(), Claim()))
        await asyncio.wait_for(opening.wait(), BOUND)
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        assert await it.open_uploads() == []


# -- what is there already --------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 2 * PART + 1])
async def test_the_same_object_is_adopted_and_another_one_replaced(
    environ: BucketEnv, size: int
) -> None:
    body = clip(size)
    async with bench(serving(body), environ.bucket) as it:
        first = await it.copier.copy(it.job(), Claim())
        before = environ.client.head_object(Bucket=environ.bucket, Key=first.key)
        claim = Claim()
        assert await it.copier.copy(it.job(key=first.key), claim) == first
        after = environ.client.head_object(Bucket=environ.bucket, Key=first.key)
        assert after["LastModified"] == before["LastModified"]
        assert after["ETag"] == before["ETag"]

        other = bytes([body[0]]) + body[1:-1] + b"!"
        assert other != body
        it.host.script = serving(other)
        second = await it.copier.copy(it.job(key=first.key), Claim())
        assert second == replace(first, sha256=hashlib.sha256(other).hexdigest())
        assert await it.open_uploads() == []
    assert environ.read(first.key) == other
    assert environ.keys(it.prefix) == [first.key]


async def test_a_claim_lost_before_replacing_replaces_nothing(environ: BucketEnv) -> None:
    for size, checks in ((1000, 1), (PART + 1, 3)):
        async with bench(serving(clip(size)), environ.bucket) as it:
            key = f"{it.prefix}images/0.mp4"
            environ.client.put_object(Bucket=environ.bucket, Key=key, Body=b"mine")
            with pytest.raises(LeaseLost):
                await it.copier.copy(it.job(), Claim(checks_left=checks))
            assert await it.open_uploads() == []
        assert environ.read(key) == b"mine"


async def test_an_object_without_checksum_is_compared_byte_by_byte(environ: BucketEnv) -> None:
    body = clip(1000)
    async with bench(serving(body), environ.bucket) as it:
        key = f"{it.prefix}images/0.mp4"
        for there, kept in ((body, True), (os.urandom(1000), False)):
            environ.client.put_object(
                Bucket=environ.bucket, Key=key, Body=there, Metadata={"note": "mine"}
            )
            await it.copier.copy(it.job(), Claim())
            assert environ.read(key) == body
            seen = environ.client.head_object(Bucket=environ.bucket, Key=key)
            assert ("note" in seen["Metadata"]) is kept


# -- a store that cannot be trusted -----------------------------------------------------------


class Memory:
    """A store that keeps objects as ``keep`` says, and says of them what ``claim`` says."""

    def __init__(
        self,
        *,
        keep: Callable[[bytes], bytes] = bytes,
        claim: Callable[[int], int] | None = None,
        checksums: bool = False,
    ) -> None:
        self.objects: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self.sent: dict[str, dict[str, str]] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.keep = keep
        self.claim = claim
        self.checksums = checksums
        self.fail: Callable[[web.Request], web.Response | None] = lambda _: None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        refused = self.fail(request)
        if refused is not None:
            return refused
        key, query = request.path.removeprefix("/media/"), request.query
        if request.method == "POST" and "uploads" in query:
            self.parts["u"] = {}
            return web.Response(text="<R><UploadId>u</UploadId></R>")
        if request.method == "POST":
            body = b"".join(part for _, part in sorted(self.parts.pop("u").items()))
            self.store(key, body, {})
            return web.Response(text="<R/>")
        if request.method == "PUT" and "partNumber" in query:
            self.parts["u"][int(query["partNumber"])] = body
            return web.Response(headers={"ETag": '"e"'})
        if request.method == "PUT":
            self.store(key, body, dict(request.headers))
            return web.Response()
        if request.method == "DELETE":
            self.parts.pop("u", None)
            return web.Response(status=204)
        if key not in self.objects:
            return web.Response(status=404)
        if request.method == "HEAD":
            headers = {"Content-Length": str(self.sizes[key])}
            if self.checksums and "x-amz-checksum-sha256" in self.sent[key]:
                headers["x-amz-checksum-sha256"] = self.sent[key]["x-amz-checksum-sha256"]
            return web.Response(headers=headers)
        return web.Response(body=self.objects[key])

    def store(self, key: str, body: bytes, headers: dict[str, str]) -> None:
        self.objects[key] = self.keep(body)
        size = len(self.objects[key])
        self.sizes[key] = self.claim(len(body)) if self.claim else size
        self.sent[key] = {name.lower(): value for name, value in headers.items()}


@contextlib.asynccontextmanager
async def remembered(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    app = web.Application(client_max_size=64 * MIB)
    app.router.add_route("*", "/{path:.*}", memory.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    point_to(monkeypatch, f"http://127.0.0.1:{runner.addresses[0][1]}")
    yield
    await runner.cleanup()


def half(body: bytes) -> bytes:
    return body[: len(body) // 2]


def flipped(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


@pytest.mark.parametrize("size", [1000, 2 * PART + 1])
@pytest.mark.parametrize(
    ("keep", "claim"), [(half, None), (half, int), (flipped, None), (lambda _: b"", None)]
)
async def test_a_store_that_answers_200_and_keeps_something_else_is_not_believed(
    size: int,
    keep: Callable[[bytes], bytes],
    claim: Callable[[int], int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = Memory(keep=keep, claim=claim)
    async with (
        remembered(memory, monkeypatch),
        bench(serving(clip(size)), "media") as it,
    ):
        with pytest.raises(StoreUnavailable):
            await it.copier.copy(it.job(), Claim())


@pytest.mark.parametrize("size", [1000, 2 * PART + 1])
async def test_a_store_that_proves_nothing_is_read_back_each_time(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, memory, asked = clip(size), Memory(), []
    memory.fail = lambda request: asked.append(request.method)  # type: ignore[assignment, return-value]  # notes, refuses none
    async with (
        remembered(memory, monkeypatch),
        bench(serving(body), "media") as it,
    ):
        first = await it.copier.copy(it.job("a"), Claim())
        assert asked.count("GET") == 1
        second = await it.copier.copy(it.job("b"), Claim())
        assert asked.count("GET") == 2
    assert memory.objects == {first.key: body, second.key: body}


@pytest.mark.parametrize("size", [1000, 2 * PART + 1])
async def test_an_object_that_vanishes_is_not_stored(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory()
    memory.fail = lambda r: web.Response(status=404) if r.method == "HEAD" else None
    async with remembered(memory, monkeypatch), bench(serving(clip(size)), "media") as it:
        with pytest.raises(StoreUnavailable, match="is not there"):
            await it.copier.copy(it.job(), Claim())


@pytest.mark.parametrize(("status", "expected"), [(503, StoreUnavailable), (400, StoreRefused)])
async def test_a_part_that_fails_ends_the_upload(
    status: int, expected: type[HarvesterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory()
    error = "<Error><Code>InvalidRequest</Code><Message>m</Message></Error>"
    memory.fail = lambda r: (
        web.Response(status=status, text=error) if r.query.get("partNumber") == "2" else None
    )
    async with remembered(memory, monkeypatch), bench(serving(clip(4 * PART)), "media") as it:
        with pytest.raises(expected):
            await it.copier.copy(it.job(), Claim())
    assert memory.parts == {}
    assert memory.objects == {}


async def test_a_store_that_never_creates_only_is_written_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = Memory()
    memory.fail = lambda r: (
        web.Response(status=501, text="<Error><Code>NotImplemented</Code></Error>")
        if "if-none-match" in r.headers
        else None
    )
    async with remembered(memory, monkeypatch), bench(serving(BODY), "media") as it:
        await it.copier.copy(it.job(), Claim())
    assert list(memory.objects.values()) == [BODY]


async def test_an_abort_that_fails_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    memory.fail = lambda r: web.Response(status=500) if r.method == "DELETE" else None
    async with remembered(memory, monkeypatch), bench(cut(clip(2 * PART + 5)), "media") as it:
        with pytest.raises(SourceFault):
            await it.copier.copy(it.job(), Claim())
