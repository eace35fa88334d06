from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from aiohttp import web
from botocore.credentials import RefreshableCredentials

from config.rules import PUT_OPTIONS
from tests.strict_store import error_document
from tests.support import BOUND, BucketEnv, point_to
from worker.core.services import Service
from worker.errors import StoreBlocked, StoreError, StoreRefused, StoreUnavailable
from worker.transfer.capabilities import Facts, Seen
from worker.transfer.objects import Upload, Written, composite_checksum
from worker.transfer.probe import probe
from worker.transfer.signer import make_signer
from worker.transfer.store import ObjectStore
from worker.wiring import make_store

MIB = 1024 * 1024


def sha256(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


@pytest.fixture
def environ(bucket: BucketEnv, monkeypatch: pytest.MonkeyPatch) -> BucketEnv:
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.fixture
async def store(environ: BucketEnv) -> AsyncIterator[ObjectStore]:
    store = ObjectStore(environ.bucket)
    yield store
    await store.close()


@pytest.fixture
def prefix() -> str:
    return f"t:{uuid.uuid4().hex}/"


async def put(store: ObjectStore, key: str, body: bytes, **options: Any) -> Written:
    options = {"content_type": "text/plain", "sha256": sha256(body)} | options
    return await store.put(key, body, **options)


# -- a real store -----------------------------------------------------------------------------


async def test_an_object_comes_back_with_all_that_was_said_of_it(
    store: ObjectStore, environ: BucketEnv, prefix: str
) -> None:
    body, key = os.urandom(MIB), f"{prefix}result/a_b-c.png"
    digest = sha256(body)
    outcome = await put(
        store,
        key,
        body,
        content_type="image/png",
        disposition="inline; filename=\"_ x.png\"; filename*=UTF-8''%E5%9B%BE%20x.png",
        metadata={"task-id": "t:1", "sha256": digest.hex()},
        options={"CacheControl": "max-age=60"},
    )
    assert outcome is Written.CREATED
    there = await store.head(key)
    assert there is not None
    assert (there.bytes, there.content_type) == (MIB, "image/png")
    assert there.metadata == {"task-id": "t:1", "sha256": digest.hex()}
    assert there.sha256 == digest.hex()
    assert await store.get(key, max_bytes=MIB) == body
    assert await store.digest(key) == digest
    seen = environ.client.head_object(Bucket=environ.bucket, Key=key)
    assert seen["CacheControl"] == "max-age=60"
    assert seen["ContentDisposition"].endswith("UTF-8''%E5%9B%BE%20x.png")


async def test_what_is_not_there(store: ObjectStore, prefix: str) -> None:
    assert await store.head(f"{prefix}no") is None
    assert await store.get(f"{prefix}no", max_bytes=10) is None
    assert await store.digest(f"{prefix}no") is None


async def test_an_object_is_created_once(store: ObjectStore, prefix: str) -> None:
    key = f"{prefix}once"
    assert await put(store, key, b"first") is Written.CREATED
    assert await put(store, key, b"second") is Written.EXISTS
    assert await store.get(key, max_bytes=10) == b"first"
    assert await put(store, key, b"third", create_only=False) is Written.CREATED
    assert await store.get(key, max_bytes=10) == b"third"


async def test_a_damaged_body_is_not_stored(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(StoreUnavailable, match="BadDigest"):
        await put(store, f"{prefix}bad", b"damaged", sha256=sha256(b"whole"))
    heard = store.wire.reach.outlook(Service.STORE, 0)
    assert (heard.last_success, heard.trouble) == (None, "")  # it has read what came
    assert await store.head(f"{prefix}bad") is None
    await put(store, f"{prefix}good", b"good")
    assert store.wire.reach.outlook(Service.STORE, 0).last_success is not None


async def test_md5_is_sent_where_sha256_is_not_checked(
    store: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.facts = Facts(put_sha256=Seen.IGNORED, put_md5=Seen.HONOURED)
    assert await put(store, f"{prefix}a", b"a") is Written.PROVEN
    there = await store.head(f"{prefix}a")
    assert there is not None
    assert there.checksum is None

    wrong = hashlib.md5
    monkeypatch.setattr(hashlib, "md5", lambda body, **options: wrong(b"other", **options))
    with pytest.raises(StoreUnavailable, match="BadDigest"):
        await put(store, f"{prefix}b", b"b")


async def test_documents(store: ObjectStore, environ: BucketEnv, prefix: str) -> None:
    key = f"{prefix}manifest.json"
    for body in (b'{"a":1}', b'{"a":2}'):
        await store.put_document(key, body, task_id="t:1")
        assert await store.get(key, max_bytes=100) == body
    seen = environ.client.head_object(Bucket=environ.bucket, Key=key)
    assert seen["ContentType"] == "application/json"
    assert seen["Metadata"] == {"task-id": "t:1"}


async def test_more_than_wanted_is_refused(store: ObjectStore, prefix: str) -> None:
    await put(store, f"{prefix}a", b"12345")
    assert await store.get(f"{prefix}a", max_bytes=5) == b"12345"
    with pytest.raises(StoreRefused, match="larger than 4 bytes"):
        await store.get(f"{prefix}a", max_bytes=4)


async def test_parts_become_one_object(store: ObjectStore, prefix: str) -> None:
    key, body = f"{prefix}big", os.urandom(12 * MIB)
    pieces = [memoryview(body)[at : at + 5 * MIB] for at in range(0, len(body), 5 * MIB)]
    upload = await store.create_upload(key, content_type="video/mp4", metadata={"task-id": "t"})
    assert [entry.id for entry in await store.list_uploads(prefix)] == [upload.id]
    moved = []
    parts = [
        await store.upload_part(
            upload, number, piece, sha256=sha256(piece), progress=lambda: moved.append(1)
        )
        for number, piece in enumerate(pieces, 1)
    ]
    assert len(moved) == 48
    assert await store.complete(upload, parts) is Written.CREATED
    there = await store.head(key)
    assert there is not None
    assert (there.bytes, there.content_type) == (len(body), "video/mp4")
    assert there.checksum == composite_checksum(parts)
    assert there.sha256 is None
    assert await store.digest(key) == sha256(body)
    assert await store.list_uploads(prefix) == []


async def test_a_damaged_part_is_refused_and_can_be_sent_again(
    store: ObjectStore, prefix: str
) -> None:
    upload = await store.create_upload(f"{prefix}big", content_type="video/mp4")
    body = os.urandom(MIB)
    with pytest.raises(StoreUnavailable, match="BadDigest"):
        await store.upload_part(upload, 1, body, sha256=sha256(b"other"))
    part = await store.upload_part(upload, 1, body, sha256=sha256(body))
    assert await store.complete(upload, [part]) is Written.CREATED


async def test_completing_creates_once_too(store: ObjectStore, prefix: str) -> None:
    key, body = f"{prefix}big", os.urandom(MIB)
    await put(store, key, b"first")
    upload = await store.create_upload(key, content_type="video/mp4")
    part = await store.upload_part(upload, 1, body, sha256=sha256(body))
    assert await store.complete(upload, [part]) is Written.EXISTS
    assert await store.get(key, max_bytes=10) == b"first"
    assert await store.complete(upload, [part], create_only=False) is Written.CREATED
    assert await store.digest(key) == sha256(body)


async def test_abort_ends_an_upload_and_may_be_repeated(store: ObjectStore, prefix: str) -> None:
    kept = await store.create_upload(f"{prefix}kept", content_type="a/b")
    upload = await store.create_upload(f"{prefix}gone", content_type="a/b")
    await store.upload_part(upload, 1, b"x", sha256=sha256(b"x"))
    await store.abort(upload)
    await store.abort(upload)
    assert [entry.key for entry in await store.list_uploads(prefix)] == [kept.key]
    with pytest.raises(StoreUnavailable, match="NoSuchUpload"):
        await store.upload_part(upload, 2, b"x", sha256=sha256(b"x"))
    await store.abort(kept)


async def test_anybody_can_fetch_a_presigned_address(store: ObjectStore, prefix: str) -> None:
    await put(store, f"{prefix}a.txt", b"hello")
    url = await store.presign_get(f"{prefix}a.txt", expires=60, filename="grüße.txt")
    async with httpx.AsyncClient(trust_env=False, timeout=BOUND) as client:
        reply = await client.get(url)
    assert reply.content == b"hello"
    assert "attachment" in reply.headers["content-disposition"]
    assert "gr%C3%BC%C3%9Fe.txt" in reply.headers["content-disposition"]


async def test_a_presigned_address_leads_to_where_people_reach_the_store(
    environ: BucketEnv, prefix: str
) -> None:
    elsewhere = environ.endpoint.replace("127.0.0.1", "localhost")
    store = ObjectStore(environ.bucket, presign_endpoint=elsewhere)
    await put(store, f"{prefix}a.txt", b"hello")
    url = await store.presign_get(f"{prefix}a.txt", expires=60, filename="ä b.txt")
    await store.close()
    assert url.startswith(f"{elsewhere}/{environ.bucket}/")
    async with httpx.AsyncClient(trust_env=False, timeout=BOUND) as client:
        assert (await client.get(url)).content == b"hello"
        # it is signed for that host alone
        assert (await client.get(url.replace("localhost", "127.0.0.1"))).status_code == 403


async def test_the_probe_says_what_the_store_can_do(
    store: ObjectStore, environ: BucketEnv, prefix: str
) -> None:
    for _ in range(2):
        seen = await probe(store, prefix)
        assert (seen.provider, seen.endpoint) == ("generic", environ.endpoint)
        assert set(json.loads(seen.facts.to_json()).values()) == {"honoured"}
        assert seen.facts == store.facts
        assert seen.clock_skew is not None
        assert abs(seen.clock_skew) < 60
        assert environ.keys(prefix) == [f"{prefix}.doctor/probe"]
        assert await store.list_uploads(prefix) == []


async def test_settings_make_a_store(environ: BucketEnv, prefix: str) -> None:
    settings = SimpleNamespace(
        bucket=environ.bucket,
        storage="auto",
        presign_endpoint=None,
        put_options={"CacheControl": "no-store"},
        lease=60.0,
    )
    store = make_store(settings)
    await store.put_document(f"{prefix}a.json", b"{}", task_id="t")
    await store.close()
    seen = environ.client.head_object(Bucket=environ.bucket, Key=f"{prefix}a.json")
    assert seen["CacheControl"] == "no-store"


# -- a store that will not --------------------------------------------------------------------


async def every_call(store: ObjectStore) -> AsyncIterator[StoreError]:
    """The error of each call."""
    upload = Upload(key="k", id="u")
    for call in (
        put(store, "k", os.urandom(9 * MIB)),
        store.put_document("k", b"{}", task_id="t"),
        store.create_upload("k", content_type="a/b"),
        store.upload_part(upload, 1, b"x", sha256=sha256(b"x")),
        store.complete(upload, []),
        store.abort(upload),
        store.list_uploads(""),
        store.head("k"),
        store.get("k", max_bytes=10),
        store.digest("k"),
        probe(store, ""),
    ):
        with pytest.raises(StoreError) as caught:
            await call
        yield caught.value


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
async def test_wrong_credentials_block(
    environ: BucketEnv, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "wrong")
    store = ObjectStore(environ.bucket)
    async for error in every_call(store):
        assert isinstance(error, StoreBlocked), error
        assert "X-Amz" not in str(error)
    await store.close()


async def test_credentials_that_are_replaced_are_found(
    environ: BucketEnv, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = ObjectStore(environ.bucket)
    with pytest.raises(StoreBlocked):
        await put(store, f"{prefix}a", b"a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", environ.secret_key)
    assert await put(store, f"{prefix}a", b"a") is Written.CREATED
    await store.close()


async def test_no_credentials_block_until_there_are_some(
    environ: BucketEnv, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    store = ObjectStore(environ.bucket)
    with pytest.raises(StoreBlocked, match="Unable to locate credentials"):
        await store.head("k")
    for name, value in environ.environ.items():
        monkeypatch.setenv(name, value)
    assert await put(store, f"{prefix}a", b"a") is Written.CREATED
    await store.close()


@pytest.mark.parametrize("endpoint", ["not a url", "ftp:/x", "http://"])
async def test_broken_endpoint_blocks(
    environ: BucketEnv, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    store = ObjectStore(environ.bucket)
    with pytest.raises((StoreBlocked, StoreUnavailable)):
        await store.head("k")
    await store.close()


async def test_missing_bucket_blocks(environ: BucketEnv) -> None:
    store = ObjectStore("missing-bucket")
    with pytest.raises(StoreBlocked, match="NoSuchBucket"):
        await put(store, "k", b"x")
    with pytest.raises(StoreBlocked, match="NoSuchBucket"):
        await store.create_upload("k", content_type="a/b")
    with pytest.raises(StoreBlocked, match="NoSuchBucket"):
        await store.get("k", max_bytes=10)
    await store.close()


async def test_unknown_put_option_blocks(store: ObjectStore) -> None:
    with pytest.raises(StoreBlocked, match="Nonsense"):
        await put(store, "k", b"x", options={"Nonsense": "1"})


async def test_store_out_of_reach_is_unavailable(
    environ: BucketEnv, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{unused_port}")
    store = ObjectStore(environ.bucket)
    async for error in every_call(store):
        assert isinstance(error, StoreUnavailable)
        assert "X-Amz" not in str(error)
    await store.close()


@pytest.fixture
async def unused_port() -> AsyncIterator[int]:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


# -- a store that says what a test wants ------------------------------------------------------

Handler = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


@dataclass
class Fake:
    """A store that answers as it is told; ``seen`` are the requests."""

    handler: Handler
    seen: list[tuple[web.Request, bytes]]
    port: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request, body))
        return await self.handler(request, body)


@contextlib.asynccontextmanager
async def faked(
    handler: Handler, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> AsyncIterator[tuple[ObjectStore, Fake]]:
    fake = Fake(handler, [])
    app = web.Application(client_max_size=64 * MIB)
    app.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.port = runner.addresses[0][1]
    point_to(monkeypatch, f"http://127.0.0.1:{fake.port}", secret="very-secret")
    store = ObjectStore("media", **options)
    try:
        yield store, fake
    finally:
        await store.close()
        await runner.cleanup()


def always(reply: Callable[[], web.Response]) -> Handler:
    async def handler(request: web.Request, body: bytes) -> web.Response:
        return reply()

    return handler


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "InvalidAccessKeyId", StoreBlocked),
        (403, "SignatureDoesNotMatch", StoreBlocked),
        (403, "RequestTimeTooSkewed", StoreBlocked),
        (403, "SecondLevelDomainForbidden", StoreBlocked),
        (403, "AccessDenied", StoreBlocked),
        (400, "ExpiredToken", StoreBlocked),
        (400, "AuthorizationHeaderMalformed", StoreBlocked),
        (400, "KMS.NotFoundException", StoreBlocked),
        (404, "NoSuchBucket", StoreBlocked),
        (301, "PermanentRedirect", StoreBlocked),
        (401, "Unauthorized", StoreBlocked),
        (500, "InternalError", StoreUnavailable),
        (503, "SlowDown", StoreUnavailable),
        (507, "XMinioStorageFull", StoreUnavailable),
        (429, "TooManyRequests", StoreUnavailable),
        (408, "RequestTimeout", StoreUnavailable),
        (400, "RequestTimeout", StoreUnavailable),
        (400, "BadDigest", StoreUnavailable),
        (403, "QuotaExceeded", StoreUnavailable),
        (409, "OperationAborted", StoreUnavailable),
        (307, "TemporaryRedirect", StoreUnavailable),
        (400, "InvalidArgument", StoreRefused),
        (400, "EntityTooLarge", StoreRefused),
        (404, "NoSuchKey", StoreBlocked),
        (405, "MethodNotAllowed", StoreBlocked),
        (501, "NotImplemented", StoreBlocked),
        (400, "InvalidStorageClass", StoreBlocked),
        (413, "EntityTooLarge", StoreRefused),
    ],
)
async def test_errors_are_told_apart(
    status: int, code: str, expected: type[StoreError], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = always(lambda: error_document(status, code, "see https://h/x?X-Amz-Signature=abc"))
    async with faked(handler, monkeypatch) as (store, _):
        with pytest.raises(StoreError) as caught:
            await put(store, "k", b"x", create_only=False)
    assert type(caught.value) is expected
    assert code in str(caught.value)
    assert "abc" not in str(caught.value)
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 418, 500, 502])
async def test_an_answer_that_is_no_error_document_blames_nobody(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = always(lambda: web.Response(status=status, text="<html>" + "x" * 100_000))
    async with faked(handler, monkeypatch) as (store, _):
        with pytest.raises(StoreUnavailable):
            await put(store, "k", b"x")
        with pytest.raises(StoreUnavailable):
            await store.head("k")


async def test_denied_blames_the_object_only_while_others_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0

    async def handler(request: web.Request, body: bytes) -> web.Response:
        return (
            error_document(403, "AccessDenied") if request.path.endswith("/no") else web.Response()
        )

    async with faked(handler, monkeypatch, clock=lambda: now) as (store, _):
        with pytest.raises(StoreBlocked):
            await put(store, "no", b"x")
        await put(store, "yes", b"x")
        now += 599
        with pytest.raises(StoreRefused):
            await put(store, "no", b"x")
        with pytest.raises(StoreBlocked):  # reading is no question of the object
            await store.head("no")
        now += 2
        with pytest.raises(StoreBlocked):
            await put(store, "no", b"x")


async def test_denied_reading_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with faked(always(lambda: error_document(403, "AccessDenied")), monkeypatch) as (
        store,
        _,
    ):
        assert await store.get("k", max_bytes=10) is None
        assert await store.digest("k") is None


@pytest.mark.parametrize("status", [409, 412])
async def test_conflicts_mean_that_the_object_exists(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = always(lambda: error_document(status, "ConditionalRequestConflict"))
    async with faked(handler, monkeypatch) as (store, fake):
        assert await put(store, "k", b"x") is Written.EXISTS
        assert await store.complete(Upload(key="k", id="u"), []) is Written.EXISTS
        assert {request.headers["if-none-match"] for request, _ in fake.seen} == {"*"}


async def test_a_store_without_conditions_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request, body: bytes) -> web.Response:
        if "if-none-match" in request.headers:
            return error_document(501, "NotImplemented")
        return web.Response()

    async with faked(handler, monkeypatch) as (store, fake):
        for _ in range(2):
            assert await put(store, "k", b"x") is Written.CREATED
        assert await store.complete(Upload(key="k", id="u"), []) is Written.CREATED
    tried = ["if-none-match" in request.headers for request, _ in fake.seen]
    assert tried == [True, False, False, True, False]  # a PUT says nothing of completing


async def test_completion_that_fails_after_200_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replies = [
        error_document(200, "InternalError"),
        error_document(200, "AccessDenied"),
        error_document(200, "PreconditionFailed"),
        web.Response(text="<CompleteMultipartUploadResult/>"),
    ]
    async with faked(always(lambda: replies.pop(0)), monkeypatch) as (store, _):
        upload = Upload(key="k", id="u")
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.complete(upload, [])
        assert await store.complete(upload, []) is Written.EXISTS
        assert await store.complete(upload, []) is Written.CREATED


async def test_the_oss_profile_sends_what_oss_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request, body: bytes) -> web.Response:
        if "uploads" in request.query:
            return web.Response(text="<R><UploadId>u1</UploadId></R>")
        return web.Response(headers={"ETag": '"E"', "Content-Length": "0"})

    async with faked(handler, monkeypatch, storage="oss") as (store, fake):
        await put(store, "k", b"x" * 300_000, metadata={"task-id": "t"})
        upload = await store.create_upload("k", content_type="a/b")
        part = await store.upload_part(upload, 1, b"part", sha256=sha256(b"part"))
        await store.complete(upload, [part])
        await store.head("k")
    for request, _ in fake.seen:
        names = {name.lower() for name in request.headers}
        assert not names & {"if-none-match", "transfer-encoding", "content-encoding"}
        assert not [name for name in names if "checksum" in name or "sha256" in name]
    digests = [
        base64.b64encode(hashlib.md5(body).digest()).decode() for body in (b"x" * 300_000, b"part")
    ]
    sent = [request.headers.get("content-md5") for request, _ in fake.seen]
    assert sent == [digests[0], None, digests[1], None, None]
    assert fake.seen[3][1] == (
        b'<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"E"</ETag></Part>'
        b"</CompleteMultipartUpload>"
    )


async def test_exactly_the_signed_headers_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with faked(always(web.Response), monkeypatch) as (store, fake):
        await put(
            store,
            "a:b/c",
            b"x" * 600_000,
            metadata={"task-id": "t:1"},
            options={"ServerSideEncryption": "AES256", "Tagging": "a=b", "ACL": "private"},
        )
    ((request, body),) = fake.seen
    assert body == b"x" * 600_000
    assert request.content_length == 600_000
    assert request.raw_path.startswith("/media/a%3Ab/c?")
    signed = set(request.query["X-Amz-SignedHeaders"].split(";"))
    sent = {name.lower() for name in request.headers}
    assert signed <= sent
    assert {name for name in sent if name.startswith("x-amz-")} <= signed
    assert request.headers["x-amz-tagging"] == "a=b"
    assert int(request.query["X-Amz-Expires"]) >= 3600


async def test_every_call_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request, body: bytes) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with faked(handler, monkeypatch, deadline=1.0) as (store, _):
        await store.ready()
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            await put(store, "k", b"x")
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            await store.digest("k")


async def test_an_answer_without_end_is_not_read_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def handler(request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(bytes(MIB))
        return response

    async with faked(handler, monkeypatch) as (store, _):
        with pytest.raises(StoreRefused, match="larger than"):
            await store.get("k", max_bytes=1000)
        with pytest.raises(StoreUnavailable, match="unreadable"):
            await store.list_uploads("")


async def test_a_body_can_be_sent_again_on_a_connection_that_had_been_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keep-alive connections die unnoticed; the client then repeats the whole request."""
    bodies: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        bodies.append(len(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read(1)  # the next request arrives, and is answered by hanging up
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        point_to(monkeypatch, f"http://127.0.0.1:{port}")
        store = ObjectStore("media")
        for _ in range(3):
            assert await put(store, "k", bytes(2 * MIB)) is Written.CREATED
        await store.close()
    assert bodies == [2 * MIB] * 3


async def test_credentials_are_refreshed_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An instance role's keys come over the network, by blocking calls."""
    threads: list[threading.Thread] = []

    def refresh() -> dict[str, str]:
        threads.append(threading.current_thread())
        life = timedelta(minutes=5 if len(threads) == 1 else 60)
        return {
            "access_key": f"AK{len(threads)}",
            "secret_key": "SK",
            "token": "T",
            "expiry_time": (datetime.now(UTC) + life).isoformat(),
        }

    async with faked(always(web.Response), monkeypatch) as (store, fake):
        credentials = RefreshableCredentials.create_from_metadata(
            refresh(), refresh_using=refresh, method="test"
        )
        monkeypatch.setattr(
            "botocore.session.Session.get_credentials", lambda self: credentials, raising=True
        )
        threads[0] = threading.Thread()  # the first one was this test's own
        await put(store, "a", b"x")
        await put(store, "b", b"x")
    assert len(threads) == 2
    assert threads[1] is not threading.main_thread()
    assert all(r.query["X-Amz-Credential"].startswith("AK2/") for r, _ in fake.seen)
    assert all(r.query["X-Amz-Security-Token"] == "T" for r, _ in fake.seen)


async def test_secrets_are_in_no_repr(store: ObjectStore, environ: BucketEnv) -> None:
    await store.ready()
    for thing in (store, store.wire, store.wire.signer, vars(store), vars(store.wire)):
        assert environ.secret_key not in repr(thing)
        assert "X-Amz" not in repr(thing)


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "bucket", "address"),
    [
        ("", "media", "https://media.s3.eu-west-1.amazonaws.com/k"),
        ("", "my.media", "https://s3.eu-west-1.amazonaws.com/my.media/k"),
        (
            "https://s3.oss-cn-hangzhou.aliyuncs.com",
            "media",
            "https://media.s3.oss-cn-hangzhou.aliyuncs.com/k",
        ),
        ("https://minio.example:9000", "media", "https://minio.example:9000/media/k"),
    ],
)
async def test_addressing(
    endpoint: str, bucket: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SK")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    store = ObjectStore(bucket)
    url = await store.presign_get("k", expires=60)
    assert url.partition("?")[0] == address
    await store.close()


def test_put_options_of_the_settings_are_headers_of_both_calls() -> None:
    """Each option must be signed as a header, whichever way a file goes up."""
    environ = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        signer = make_signer("media", "aws")
    for call in ("put_object", "create_multipart_upload"):
        members = signer.model(call).input_shape.members
        for option in PUT_OPTIONS:
            assert members[option].serialization["location"] == "header", json.dumps([call, option])
