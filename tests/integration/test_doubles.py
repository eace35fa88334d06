"""The doubles behave as the real things do: one suite for both."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests import doubles
from tests.doubles import MemoryStore, ScriptedGateway
from tests.support import ROOT, BucketEnv
from worker.core import finding, jsontext
from worker.core.models import Doubtful, Failed, NotFound, Pending, Succeeded
from worker.errors import (
    StoreBlocked,
    StoreRefused,
    StoreUnavailable,
    UpstreamBlocked,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from worker.sandbox.simulator import Simulator
from worker.transfer.capabilities import NAMES, Facts, Seen
from worker.transfer.objects import Part, Upload, Written, composite_checksum
from worker.transfer.store import ObjectStore
from worker.upstream.gateway import Gateway
from worker.wiring import upstream_session

Store = MemoryStore | ObjectStore
LEAST_PART = 5 * 1024 * 1024
CALLERS = [
    *(path for path in (ROOT / "worker/work").glob("*.py") if path.stem != "learning"),
    ROOT / "worker/transfer/copier.py",
]


def sha256(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


@pytest.fixture
def key() -> str:
    return f"d/{uuid.uuid4().hex}/a.png"


@pytest.fixture
def prefix(key: str) -> str:
    return key.removesuffix("a.png")


@pytest.fixture(params=["double", "real"])
async def store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Store]:
    if request.param == "double":
        yield MemoryStore()
        return
    bucket: BucketEnv = request.getfixturevalue("bucket")
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    real = ObjectStore(bucket.bucket)
    real.facts = Facts(**dict.fromkeys(NAMES, Seen.HONOURED))
    yield real
    await real.close()


async def put(store: Store, key: str, body: bytes, **options: Any) -> Written:
    options = {"content_type": "image/png", "sha256": sha256(body)} | options
    return await store.put(key, body, **options)


async def uploaded(store: Store, key: str, *bodies: bytes) -> tuple[Upload, list[Part]]:
    upload = await store.create_upload(key, content_type="video/mp4", metadata={"task-id": "t"})
    parts = [
        await store.upload_part(upload, number, body, sha256=sha256(body))
        for number, body in enumerate(bodies, 1)
    ]
    return upload, parts


# -- objects ----------------------------------------------------------------------------------


async def test_what_is_not_there_is_none(store: Store, key: str, prefix: str) -> None:
    await store.ready()
    assert await store.head(key) is None
    assert await store.get(key, max_bytes=9) is None
    assert await store.digest(key) is None
    assert [found async for found in store.keys(prefix)] == []
    assert await store.list_uploads(prefix) == []


async def test_an_object_is_read_back_as_it_was_put(store: Store, key: str) -> None:
    moved: list[int] = []
    outcome = await put(
        store,
        key,
        b"12345",
        disposition="inline",
        metadata={"task-id": "t", "sha256": sha256(b"12345").hex()},
        options={"CacheControl": "no-cache"},
        progress=lambda: moved.append(1),
    )
    assert outcome is Written.PROVEN
    assert moved
    there = await store.head(key)
    assert there is not None
    assert (there.bytes, there.content_type) == (5, "image/png")
    assert there.metadata == {"task-id": "t", "sha256": sha256(b"12345").hex()}
    assert there.sha256 == sha256(b"12345").hex()
    assert there.etag
    assert await store.get(key, max_bytes=5) == b"12345"
    assert await store.digest(key, progress=lambda: moved.append(2)) == sha256(b"12345")
    assert 2 in moved


async def test_more_than_wanted_is_refused(store: Store, key: str) -> None:
    await put(store, key, b"12345")
    with pytest.raises(StoreRefused, match="larger than 4 bytes"):
        await store.get(key, max_bytes=4)


async def test_an_object_is_created_once_unless_it_may_be_replaced(store: Store, key: str) -> None:
    assert await put(store, key, b"first") is Written.PROVEN
    assert await put(store, key, b"second") is Written.EXISTS
    assert await store.get(key, max_bytes=9) == b"first"
    assert await put(store, key, b"third", create_only=False) is Written.PROVEN
    assert await store.get(key, max_bytes=9) == b"third"


async def test_a_body_with_another_digest_is_not_stored(store: Store, key: str) -> None:
    with pytest.raises(StoreUnavailable, match="BadDigest"):
        await put(store, key, b"damaged", sha256=sha256(b"whole"))
    assert await store.head(key) is None


async def test_what_is_not_known_to_be_checked_is_not_proven(store: Store, key: str) -> None:
    if isinstance(store, MemoryStore):
        store.checks = False
    else:
        store.facts = Facts()
    assert await put(store, key, b"12345") is Written.CREATED
    upload, parts = await uploaded(store, key + "2", b"12345")
    assert await store.complete(upload, parts) is Written.CREATED
    assert not store.vouches("AAAA")
    assert not store.vouches("AAAA-2")


async def test_documents_replace_each_other(store: Store, key: str) -> None:
    for body in (b'{"a":1}', b'{"a":2}'):
        await store.put_document(key, body, task_id="t")
        assert await store.get(key, max_bytes=99) == body
    there = await store.head(key)
    assert there is not None
    assert (there.content_type, there.metadata) == ("application/json", {"task-id": "t"})
    assert there.sha256 == sha256(b'{"a":2}').hex()


async def test_keys_are_listed_in_order(store: Store, prefix: str) -> None:
    for name in ("b", "a/2", "a/10", "c"):
        await put(store, f"{prefix}{name}", b"x")
    assert [found async for found in store.keys(f"{prefix}a/")] == [
        f"{prefix}a/10",
        f"{prefix}a/2",
    ]
    assert [found async for found in store.keys(prefix)] == [
        f"{prefix}{name}" for name in ("a/10", "a/2", "b", "c")
    ]


# -- uploads ----------------------------------------------------------------------------------


async def test_parts_become_one_object(store: Store, key: str, prefix: str) -> None:
    bodies = (b"a" * LEAST_PART, b"b" * 100)
    upload, parts = await uploaded(store, key, *bodies)
    assert upload.checksums
    assert [part.number for part in parts] == [1, 2]
    assert [(open_.key, open_.id) for open_ in await store.list_uploads(prefix)] == [
        (upload.key, upload.id)
    ]
    assert await store.head(key) is None
    assert await store.complete(upload, parts) is Written.PROVEN
    there = await store.head(key)
    assert there is not None
    assert (there.bytes, there.content_type) == (LEAST_PART + 100, "video/mp4")
    assert there.metadata == {"task-id": "t"}
    assert there.checksum == composite_checksum(parts)
    assert there.sha256 is None
    assert await store.digest(key) == sha256(b"".join(bodies))
    assert await store.list_uploads(prefix) == []


async def test_an_upload_creates_once_and_stays_open_if_it_did_not(
    store: Store, key: str, prefix: str
) -> None:
    await put(store, key, b"first")
    upload, parts = await uploaded(store, key, b"second")
    assert await store.complete(upload, parts) is Written.EXISTS
    assert await store.get(key, max_bytes=9) == b"first"
    assert [open_.id for open_ in await store.list_uploads(prefix)] == [upload.id]
    assert await store.complete(upload, parts, create_only=False) is Written.PROVEN
    assert await store.get(key, max_bytes=9) == b"second"


async def test_a_part_with_another_digest_is_refused_and_can_be_sent_again(
    store: Store, key: str
) -> None:
    upload, _ = await uploaded(store, key)
    with pytest.raises(StoreUnavailable, match="BadDigest"):
        await store.upload_part(upload, 1, b"body", sha256=sha256(b"other"))
    part = await store.upload_part(upload, 1, b"body", sha256=sha256(b"body"))
    assert await store.complete(upload, [part]) is Written.PROVEN


async def test_a_part_that_was_not_sent_makes_no_object(store: Store, key: str) -> None:
    upload, (part,) = await uploaded(store, key, b"body")
    stranger = Part(number=1, etag='"00000000000000000000000000000000"', sha256=part.sha256)
    with pytest.raises(StoreUnavailable, match="InvalidPart"):
        await store.complete(upload, [stranger])
    assert await store.head(key) is None
    await store.abort(upload)


async def test_an_aborted_upload_is_unknown(store: Store, key: str, prefix: str) -> None:
    kept, _ = await uploaded(store, f"{prefix}kept")
    upload, parts = await uploaded(store, key, b"body")
    await store.abort(upload)
    await store.abort(upload)
    assert [open_.id for open_ in await store.list_uploads(prefix)] == [kept.id]
    with pytest.raises(StoreUnavailable, match="NoSuchUpload"):
        await store.upload_part(upload, 2, b"more", sha256=sha256(b"more"))
    with pytest.raises(StoreUnavailable, match="NoSuchUpload"):
        await store.complete(upload, parts)
    assert await store.head(key) is None
    await store.abort(kept)


# -- errors -----------------------------------------------------------------------------------

UPLOAD = Upload(key="d/x", id="unknown")
CALLS: dict[str, Callable[[Any], Any]] = {
    "put": lambda store: put(store, "d/x", b"x"),
    "put_document": lambda store: store.put_document("d/x", b"{}", task_id="t"),
    "head": lambda store: store.head("d/x"),
    "get": lambda store: store.get("d/x", max_bytes=9),
    "digest": lambda store: store.digest("d/x"),
    "keys": lambda store: anext(store.keys("d/x")),
    "create_upload": lambda store: store.create_upload("d/x", content_type="a/b"),
    "upload_part": lambda store: store.upload_part(UPLOAD, 1, b"x", sha256=sha256(b"x")),
    "complete": lambda store: store.complete(UPLOAD, []),
    "abort": lambda store: store.abort(UPLOAD),
    "list_uploads": lambda store: store.list_uploads("d/x"),
}


@pytest.mark.parametrize("error", [StoreBlocked, StoreUnavailable])
async def test_every_call_may_find_the_store_blocked_or_away(
    store: Store, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(store, MemoryStore):
        store.on("*", error("scheduled"), times=len(CALLS))
    elif error is StoreBlocked:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    for call in CALLS.values():
        with pytest.raises(error):
            await call(store)
    if isinstance(store, MemoryStore):
        assert (store.objects, store.uploads, store.log) == ({}, {}, [])
        assert await store.head("d/x") is None  # what was scheduled has been used up


async def test_an_error_after_the_effect_is_a_lost_answer() -> None:
    store = MemoryStore()
    store.on("put", StoreUnavailable("lost"), key="d/*", after=True, skip=1)
    assert await put(store, "d/1", b"x") is Written.PROVEN
    with pytest.raises(StoreUnavailable, match="lost"):
        await put(store, "d/2", b"x")
    assert sorted(store.objects) == ["d/1", "d/2"]
    assert await put(store, "d/2", b"x") is Written.EXISTS


# -- the upstream -----------------------------------------------------------------------------

SCRIPTS: dict[str, dict[str, Any]] = {
    "pending": {"end": "never"},
    "done": {"images": ["png"]},
    "failed": {"end": "failed"},
    "not_found": {"end": "unknown"},
    "doubtful": {"end": "service_error"},
    "throttled": {"answers": ["throttled"]},
    "unavailable": {"answers": ["error_503"]},
    "blocked": {"answers": ["bad_signature"]},
}


@pytest.fixture(params=["double", "real"])
async def upstream(
    request: pytest.FixtureRequest, simulator: Simulator
) -> AsyncIterator[tuple[Any, Callable[[str], str]]]:
    """A gateway, and a function that makes a task about which it says what it should."""
    if request.param == "double":
        gateway = ScriptedGateway()

        def scripted(what: str) -> str:
            urls = ["https://files.example/0.png"] if what == "done" else []
            gateway.script(what, getattr(doubles, what)(*urls))
            return what

        yield gateway, scripted
        return
    async with upstream_session() as session:
        real = Gateway(
            session,
            endpoint=simulator.endpoint,
            app_key=simulator.app_key,
            app_secret=simulator.app_secret,
        )
        yield real, lambda what: simulator.submit({"simulate": SCRIPTS[what]})


@pytest.mark.parametrize(
    ("what", "observation"),
    [
        ("pending", Pending),
        ("done", Succeeded),
        ("failed", Failed),
        ("not_found", NotFound),
        ("doubtful", Doubtful),
    ],
)
async def test_answers_mean_the_same(upstream: Any, what: str, observation: type) -> None:
    gateway, task = upstream
    answer = await gateway.get_result(task(what))
    said = answer.observation
    assert isinstance(said, observation)
    assert set(json.loads(answer.upstream)) == {
        "status", "apiInvokeId", "errCode", "errMessage", "subErrCode", "subErrMessage",
        "taskBeginTime", "taskEndTime", "taskDuration",
    }  # fmt: skip
    if isinstance(said, Succeeded):
        (file,) = finding.find_files(jsontext.loads(said.data))
        assert (file.refs, file.url[:4]) == (("/images/0",), "http")
    if isinstance(said, Failed):
        assert (said.reason, said.error) == ("upstream_failed", "failed upstream")
    if isinstance(said, Pending):
        assert (said.status, said.known) == ("running", True)


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("throttled", UpstreamThrottled),
        ("unavailable", UpstreamUnavailable),
        ("blocked", UpstreamBlocked),
    ],
)
async def test_calls_that_bring_no_answer_raise_the_same(
    upstream: Any, what: str, error: type[Exception]
) -> None:
    gateway, task = upstream
    with pytest.raises(error) as raised:
        await gateway.get_result(task(what))
    if isinstance(raised.value, UpstreamBlocked):
        assert raised.value.kind == "credentials"


async def test_a_task_that_nobody_knows_is_not_found(upstream: Any) -> None:
    gateway, _ = upstream
    answer = await gateway.get_result("01nobodyknowsthistaskatall")
    assert isinstance(answer.observation, NotFound)


# -- completeness -----------------------------------------------------------------------------


def called_on(name: str) -> set[str]:
    """What the works and the copier use of ``name`` or ``self._name``."""
    used = set()
    for path in CALLERS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                match node.value:
                    case ast.Name(id=holder) if holder == name:
                        used.add(node.attr)
                    case ast.Attribute(attr=holder) if holder == f"_{name}":
                        used.add(node.attr)
    return used


@pytest.mark.parametrize(
    ("double", "real", "name"),
    [
        (MemoryStore, ObjectStore, "store"),
        (ScriptedGateway, Gateway, "gateway"),
    ],
)
def test_the_double_has_all_that_the_works_call(double: type, real: type, name: str) -> None:
    used = called_on(name)
    assert used
    have = double()
    assert {member for member in used if not hasattr(have, member)} == set()
    for member in used & set(vars(double)):
        ours, theirs = (
            [
                (given.name, given.kind, given.default is given.empty)
                for given in inspect.signature(getattr(kind, member)).parameters.values()
            ]
            for kind in (double, real)
        )
        assert ours == theirs, member


def test_every_call_of_the_store_is_tested_for_its_errors() -> None:
    used = called_on("store")
    assert used - {"ready", "provider", "vouches", "agrees"} == set(CALLS)
