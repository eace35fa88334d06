"""Every kind of store takes every size, and what a store does not check is read back.

The stores are stand-ins with the traits of real ones; ``test_store.py`` has a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.test_copier import Bench, Claim, bench, clip, serving
from tests.store_standin import (
    BUCKET,
    NOT_IMPLEMENTED,
    STORES,
    StandIn,
    Traits,
    refused,
    standing_in,
)
from tests.support import BOUND, point_to
from worker.errors import StoreBlocked, StoreError, StoreRefused, StoreUnavailable
from worker.transfer.capabilities import NAMES, Facts, Seen
from worker.transfer.probe import probe
from worker.transfer.store import ObjectStore

PART = 64 * 1024
SIZES = {"small": 1000, "large": PART + 1000}
NAMED = [pytest.param(traits, id=name) for name, traits in STORES.items()]


def style(traits: Traits) -> str:
    return "virtual" if traits.path else "path"


@dataclass
class Pair:
    """A stand-in and a copier that stores in it."""

    it: Bench
    there: StandIn

    async def copied(self, name: str, body: bytes) -> int:
        """Copy a file as often as the works would; how often it took."""
        self.it.host.script = serving(body)
        for attempt in range(1, 6):
            with contextlib.suppress(StoreUnavailable):
                stored = await self.it.copier.copy(self.it.job(name), Claim())
                assert stored.sha256 == hashlib.sha256(body).hexdigest()
                assert self.there.files[stored.key] == body, "announced, and it is not so"
                return attempt
        raise AssertionError("the file never arrives")


@pytest.fixture
def paired(monkeypatch: pytest.MonkeyPatch) -> Any:
    @contextlib.asynccontextmanager
    async def paired(traits: Traits, **options: Any) -> AsyncIterator[Pair]:
        async with (
            standing_in(traits, monkeypatch, **options) as there,
            bench(serving(b""), BUCKET, storage=style(traits), part_size=PART) as it,
        ):
            yield Pair(it, there)

    return paired


@pytest.mark.parametrize("probed", [True, False], ids=["probed", "unknown"])
@pytest.mark.parametrize("traits", NAMED)
async def test_every_file_arrives_and_no_damage_is_announced(
    traits: Traits, probed: bool, paired: Any
) -> None:
    async with paired(traits) as pair:
        if probed:
            await probe(pair.it.store, "")
        for size, count in SIZES.items():
            assert await pair.copied(f"{size}/whole", clip(count)) == 1
            pair.there.damage = 2
            assert await pair.copied(f"{size}/hurt", clip(count)) <= 3
            assert pair.there.damage == 0
            assert pair.there.uploads == {}


@pytest.mark.parametrize("traits", NAMED)
async def test_only_what_is_not_checked_is_read_back(traits: Traits, paired: Any) -> None:
    """Once a store is known, a file costs no request that it refuses."""
    async with paired(traits) as pair:
        facts = (await probe(pair.it.store, "")).facts
        for size, kind, steps in (
            ("small", "put", ["put"]),
            ("large", "part", ["create", "part", "part", "complete"]),
        ):
            del pair.there.seen[:]
            await pair.copied(size, clip(SIZES[size]))
            proofs = getattr(facts, f"{kind}_sha256"), getattr(facts, f"{kind}_md5")
            read = [] if Seen.HONOURED in proofs else ["get"]
            looks = ["head", "get"] if traits.head != "yes" else ["head"]
            assert sorted(pair.there.seen) == sorted([*steps, *looks, *read])


EXPECTED: dict[str, dict[str, Seen]] = {
    "aws": {},
    "oss": {
        "put_sha256": Seen.IGNORED, "part_sha256": Seen.IGNORED, "head_checksum": Seen.IGNORED,
        "put_condition": Seen.REFUSED, "complete_condition": Seen.REFUSED,
    },
    "r2": {
        "part_sha256": Seen.REFUSED, "complete_condition": Seen.IGNORED,
        "put_etag": Seen.IGNORED, "part_etag": Seen.IGNORED,
    },
    "swift": {
        "put_sha256": Seen.IGNORED, "part_sha256": Seen.REFUSED, "head_checksum": Seen.IGNORED,
        "put_condition": Seen.REFUSED,
    },
    "s3proxy": {
        "put_sha256": Seen.IGNORED, "part_sha256": Seen.REFUSED, "head_checksum": Seen.IGNORED,
    },
    "rclone": {
        "put_sha256": Seen.IGNORED, "part_sha256": Seen.IGNORED, "listing": Seen.IGNORED,
        "put_condition": Seen.IGNORED, "complete_condition": Seen.IGNORED,
    },
    "s3rver": {
        "put_sha256": Seen.IGNORED, "part_sha256": Seen.IGNORED, "head_checksum": Seen.IGNORED,
        "put_md5": Seen.IGNORED, "part_md5": Seen.IGNORED, "listing": Seen.REFUSED,
        "put_condition": Seen.IGNORED, "complete_condition": Seen.IGNORED,
    },
    "hetzner": {"head_checksum": Seen.IGNORED},
    "aws-drops": {},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
async def test_what_is_seen_of_a_store(name: str, paired: Any) -> None:
    async with paired(STORES[name]) as pair:
        for _ in range(2):  # the second time the object is there
            seen = await probe(pair.it.store, "p/")
            honoured = Facts(**dict.fromkeys(NAMES, Seen.HONOURED))
            assert seen.facts == replace(honoured, **EXPECTED[name])
            assert list(pair.there.objects) == ["p/.doctor/probe"]
            assert pair.there.uploads == {}
        assert "delete" not in pair.there.seen


@pytest.mark.parametrize("step", ["put", "create", "part", "complete", "uploads", "head"])
@pytest.mark.parametrize("status", [500, 503])
async def test_an_outage_proves_nothing(step: str, status: int, paired: Any) -> None:
    """Whatever fails during the probe is unknown, and unknown is read back."""
    async with paired(Traits()) as pair:
        asked = 0

        def fault(at: str, _: web.Request) -> web.Response | None:
            nonlocal asked
            asked += at == step
            # the first PUT shows that the store works at all
            return refused((status, "SlowDown", "")) if at == step and asked > 1 else None

        pair.there.fault = fault
        facts = (await probe(pair.it.store, "")).facts
        assert not {getattr(facts, name) for name in NAMES} & {Seen.IGNORED, Seen.REFUSED}
        assert facts.unknown or step in ("create", "uploads", "head")
        pair.there.fault = lambda *_: None
        assert await pair.copied("a", clip(SIZES["large"])) == 1


async def test_a_store_that_is_away_is_no_store_without_features(paired: Any) -> None:
    async with paired(Traits()) as pair:
        pair.there.fault = lambda *_: refused((503, "SlowDown", ""))
        with pytest.raises(StoreUnavailable):
            await probe(pair.it.store, "")
        assert pair.it.store.facts == Facts()


@pytest.mark.parametrize(
    ("traits", "size"),
    [
        (Traits(put_condition=NOT_IMPLEMENTED), "small"),
        (Traits(part_sha256=NOT_IMPLEMENTED), "large"),
        (Traits(complete_condition=(400, "InvalidRequest", "m")), "large"),
    ],
)
async def test_a_feature_that_is_taken_away_is_done_without(
    traits: Traits, size: str, paired: Any
) -> None:
    """A store that is upgraded, or moved, between the probe and the work."""
    async with paired(Traits()) as pair:
        store = pair.it.store
        await probe(store, "")
        assert not store.surprise.is_set()
        pair.there.traits = traits
        assert await pair.copied("a", clip(SIZES[size])) == 1
        assert store.surprise.is_set()
        refused_ones = [n for n in NAMES if getattr(store.facts, n) is Seen.REFUSED]
        assert len(refused_ones) == 1
        # the probe may overrule that once
        store.facts = Facts(**dict.fromkeys(NAMES, Seen.HONOURED))
        assert not [n for n in NAMES if getattr(store.facts, n) is Seen.REFUSED]
        assert await pair.copied("b", clip(SIZES[size])) == 1
        store.facts = Facts(**dict.fromkeys(NAMES, Seen.HONOURED))
        assert [n for n in NAMES if getattr(store.facts, n) is Seen.REFUSED] == refused_ones


async def test_a_refusal_that_no_feature_causes_teaches_nothing(paired: Any) -> None:
    async with paired(Traits()) as pair:
        await pair.copied("first", clip(100))
        pair.there.fault = lambda step, _: (
            refused((400, "InvalidArgument", "m")) if step == "put" else None
        )
        with pytest.raises(StoreRefused, match="400 InvalidArgument"):
            await pair.it.copier.copy(pair.it.job("a"), Claim())
        assert pair.it.store.facts == Facts()
        assert pair.there.seen.count("put") == 1 + 4  # as it is, and with less each time


async def test_a_write_that_is_under_way_proves_no_condition(paired: Any) -> None:
    async with paired(Traits()) as pair:
        pair.there.fault = lambda step, request: (
            refused((409, "ConditionalRequestConflict", "m"))
            if step in ("put", "complete") and "if-none-match" in request.headers
            else None
        )
        facts = (await probe(pair.it.store, "")).facts
        assert (facts.put_condition, facts.complete_condition) == (Seen.UNKNOWN, Seen.UNKNOWN)


@pytest.mark.parametrize("body", [b"", b"x"])
async def test_a_size_is_asked_for_by_get_where_no_head_tells(body: bytes, paired: Any) -> None:
    for name in ("no-head", "no-head-501", "no-size"):
        async with paired(STORES[name]) as pair:
            store = pair.it.store
            assert await store.head("k") is None
            await store.put("k", body, content_type="a/b", sha256=hashlib.sha256(body).digest())
            found = await store.head("k")
            assert (found.bytes, found.content_type) == (len(body), "a/b")


async def test_an_etag_that_is_another_md5_is_looked_into(paired: Any) -> None:
    """A store that checks on the way in, and damages afterwards."""
    async with paired(STORES["gcs"]) as pair:
        await probe(pair.it.store, "")
        pair.there.fault = lambda step, _: (
            web.Response(headers={"ETag": f'"{"0" * 32}"'}) if step == "put" else None
        )
        with pytest.raises(StoreUnavailable, match="is not there"):
            await pair.it.copier.copy(pair.it.job("a"), Claim())
        pair.there.fault = lambda *_: None
        del pair.there.seen[:]
        await pair.copied("b", clip(1000))
        assert "get" not in pair.there.seen


@pytest.mark.parametrize("name", ["supabase", "ceph"])
async def test_another_store_at_the_same_address_is_noticed(name: str, paired: Any) -> None:
    """What was seen of the one before is kept for a week."""
    async with paired(STORES["aws"]) as pair:
        await probe(pair.it.store, "")
        await pair.copied("a", clip(1000))
        assert not pair.it.store.surprise.is_set()
        pair.there.traits = STORES[name]
        pair.there.damage = 1
        await pair.copied("b", clip(1000))
        assert pair.it.store.surprise.is_set()


@pytest.mark.parametrize(
    "body", ["", " \n" * 2000, "<html/>", "<!-- --><Error><Code>InternalError</Code></Error>"]
)
async def test_a_completion_that_says_nothing_leaves_no_upload(body: str, paired: Any) -> None:
    async with paired(STORES["aws"]) as pair:
        for when in ("fault", "after"):
            left = iter([web.Response(text=body)])
            answer = lambda step, _, left=left: next(left, None) if step == "complete" else None  # noqa: E731  short
            setattr(pair.there, when, answer)
            await pair.copied(when, clip(SIZES["large"]))
            assert pair.there.uploads == {}


@pytest.mark.parametrize("name", ["127.0.0.1", "other.example"])
async def test_a_certificate_that_is_not_valid_is_called_so(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    if name == "other.example":
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    runner = web.AppRunner(web.Application(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    point_to(monkeypatch, f"https://127.0.0.1:{runner.addresses[0][1]}")
    store = ObjectStore(BUCKET, storage="path")
    said = "certificate is not valid: .*(self.signed|issuer|mismatch)"
    with pytest.raises(StoreUnavailable, match=said):
        await store.head("k")
    await store.close()
    await runner.cleanup()


async def test_a_redirect_says_where_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing_in(Traits(), monkeypatch) as there:
        store = ObjectStore(BUCKET)
        there.fault = lambda *_: web.Response(
            status=308, headers={"Location": "https://user:pw@s3.example/media/k?secret=1"}
        )
        with pytest.raises(StoreBlocked, match=r"308 redirected to https://s3\.example$") as caught:
            await store.put("k", b"x", content_type="a/b", sha256=b"")
        assert caught.value.about == "address"
        await store.close()


async def test_an_error_with_status_200_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing_in(Traits(), monkeypatch) as there:
        store = ObjectStore(BUCKET)
        there.fault = lambda *_: refused((200, "InternalError", "m"))
        with pytest.raises(StoreUnavailable, match="InternalError"):
            await store.put("k", b"x", content_type="a/b", sha256=hashlib.sha256(b"x").digest())
        for body in ("<Error><Code>SlowDown</Code></Error>", "<html/>", ""):
            there.fault = lambda *_, b=body: web.Response(text=b)  # type: ignore[misc]  # bound now
            with pytest.raises(StoreUnavailable):
                await store.list_uploads("k")
        await store.close()


async def test_a_checksum_that_nobody_checked_lets_nothing_be_adopted(paired: Any) -> None:
    body = clip(1000)
    async with paired(STORES["nothing-proven"]) as pair:
        await probe(pair.it.store, "")
        await pair.copied("a", body)
        (key,) = pair.there.files
        pair.there.objects[key].body = b"x" * len(body)  # under the checksum of the right bytes
        assert await pair.copied("a", body) == 1


# -- large objects that a store puts together late ---------------------------------------------


@pytest.mark.parametrize("condition", ["honour", "ignore"])
@pytest.mark.parametrize("how", ["late", "gateway", "reset"])
async def test_a_large_file_arrives_although_its_completion_is_not_answered(
    condition: str, how: str, paired: Any
) -> None:
    """As with stores that put parts together only then, and proxies that wait for less."""
    async with paired(Traits(complete_condition=condition)) as pair:
        pair.it.store.wire.deadline = 2.0
        if how == "late":
            pair.there.late.add("complete")
        else:
            pair.there.after = lambda step, request: (  # type: ignore[method-assign]
                gone(how, request) if step == "complete" else None
            )
        assert await pair.copied("a", clip(SIZES["large"])) == 1
        assert pair.there.seen.count("create") == 1
        assert pair.there.uploads == {}


def gone(how: str, request: web.Request) -> web.Response:
    if how == "reset" and request.transport is not None:
        request.transport.abort()
    return refused((504, "", ""))


async def test_another_object_is_not_taken_for_one_that_is_late(paired: Any) -> None:
    body = clip(SIZES["large"])
    async with paired(Traits(put_sha256="echo", part_sha256="echo")) as pair:
        await pair.copied("a", body)
        (key,) = pair.there.files
        pair.there.objects[key].body = b"x" * len(body)
        pair.there.fault = lambda step, _: refused((500, "", "")) if step == "complete" else None
        with pytest.raises(StoreUnavailable, match="500"):
            await pair.it.copier.copy(pair.it.job("a"), Claim())


# -- options, addresses -----------------------------------------------------------------------


async def test_options_that_a_store_refuses_are_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with standing_in(STORES["r2"], monkeypatch):
        store = ObjectStore(BUCKET, put_options={"Tagging": "a=b"})
        with pytest.raises(StoreBlocked, match="NotImplemented") as caught:
            await probe(store, "")
        assert caught.value.about == "options"
        with pytest.raises(StoreBlocked):
            await store.put("k", b"x", content_type="a/b", sha256=hashlib.sha256(b"x").digest())
        await store.close()


@pytest.mark.parametrize("name", ["oss", "cos", "obs", "tos"])
async def test_a_wrong_address_blames_no_object(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing_in(STORES[name], monkeypatch):
        store = ObjectStore(BUCKET, storage="path")
        for call in (
            store.put("k", b"x", content_type="a/b", sha256=hashlib.sha256(b"x").digest()),
            store.create_upload("k", content_type="a/b"),
            anext(store.keys("")),
        ):
            with pytest.raises(StoreBlocked) as caught:
                await call
            assert caught.value.about == "address"
        await store.close()


# -- lists ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def filled(
    traits: Traits, monkeypatch: pytest.MonkeyPatch, count: int
) -> AsyncIterator[ObjectStore]:
    async with standing_in(traits, monkeypatch):
        store = ObjectStore(BUCKET)
        for number in range(count):
            await store.put_document(f"m/{number:03}", b"{}", task_id="t")
        yield store
        await store.close()


@pytest.mark.parametrize("objects", ["v1", "v2", "silent", "silent-v2"])
@pytest.mark.parametrize("count", [0, 9, 10, 11, 35])
async def test_a_list_is_read_to_its_end(
    objects: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with filled(Traits(objects=objects, page=10), monkeypatch, count) as store:
        assert [key async for key in store.keys("m/")] == [f"m/{n:03}" for n in range(count)]


async def test_a_list_that_does_not_go_on_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    async with filled(Traits(objects="stuck", page=10), monkeypatch, 35) as store:
        with pytest.raises(StoreRefused, match="does not continue its list"):
            [key async for key in store.keys("m/")]


async def test_what_is_no_list_is_not_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing_in(Traits(), monkeypatch) as there:
        store = ObjectStore(BUCKET)
        for text in ("", "<html/>", "<R/>"):
            there.fault = lambda *_, text=text: web.Response(text=text)  # type: ignore[misc]  # bound now
            with pytest.raises(StoreError):
                [key async for key in store.keys("m/")]
        await store.close()


@pytest.mark.parametrize("asked", [True, False], ids=["if-asked", "always"])
async def test_a_key_that_xml_cannot_hold_hides_no_other(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 sends it as a reference that no parser takes; boto3 always asks for encoded keys."""
    keys = ["m/\x01", "m/a b+c%", "m/é"]

    def answer(_: str, request: web.Request) -> web.Response:
        encoded = "encoding-type" in request.query or not asked
        named = [quote(key, safe="") if encoded else key.replace("\x01", "&#x1;") for key in keys]
        kind = "Upload" if "uploads" in request.query else "Contents"
        entries = "".join(
            f"<{kind}><Key>{name}</Key><UploadId>u</UploadId></{kind}>" for name in named
        )
        how = "<EncodingType>url</EncodingType>" if encoded else ""
        name = "ListMultipartUploadsResult" if kind == "Upload" else "ListBucketResult"
        return web.Response(text=f"<{name}>{how}{entries}</{name}>")

    async with standing_in(Traits(), monkeypatch) as there:
        there.fault = answer
        store = ObjectStore(BUCKET)
        assert [key async for key in store.keys("m/")] == keys
        assert [upload.key for upload in await store.list_uploads("m/")] == keys
        await store.close()


LISTED = st.lists(
    st.sampled_from(
        [
            "<Key>m/1</Key>", "<Key/>", "<UploadId>u</UploadId>", "<UploadId/>", "<Size>x</Size>",
            "<LastModified>99999999999999999999</LastModified>", "<LastModified>x</LastModified>",
            "<Owner>x</Owner>", "<Contents>x</Contents>", "<IsTruncated>x</IsTruncated>", "text",
            "<MaxKeys>x</MaxKeys>", "<MaxKeys>-1</MaxKeys>", "<Initiated>-1e999</Initiated>",
        ]
    )
)  # fmt: skip


async def test_a_list_of_anything_is_read_or_fails_as_a_store_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not a store's error would crash the task that clears up, again and again."""
    async with standing_in(Traits(), monkeypatch) as there:
        store = ObjectStore(BUCKET)

        async def read(entries: list[list[str]], around: list[str]) -> None:
            text = "".join(around)
            for name, what in (("Contents", "ListBucketResult"), ("Upload", "ListUploads")):
                inside = "".join(f"<{name}>{''.join(entry)}</{name}>" for entry in entries)
                there.fault = lambda *_, a=what, b=text + inside: web.Response(
                    text=f"<{a}>{b}</{a}>"
                )  # type: ignore[misc]  # bound now
                with contextlib.suppress(StoreError):
                    assert all([key async for key in store.keys("m/")])
                with contextlib.suppress(StoreError):
                    assert all(upload.id for upload in await store.list_uploads("m/"))

        loop = asyncio.get_running_loop()

        @settings(max_examples=60)
        @given(st.lists(LISTED, max_size=3), LISTED)
        def anything(entries: list[list[str]], around: list[str]) -> None:
            asyncio.run_coroutine_threadsafe(read(entries, around), loop).result(BOUND)

        await asyncio.to_thread(anything)
        await store.close()


@pytest.mark.parametrize("code", ["NoSuchUpload", "NoSuchKey", ""])
async def test_uploads_that_are_not_found_are_none(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with standing_in(Traits(listing=(404, code, "m")), monkeypatch):
        store = ObjectStore(BUCKET)
        assert await store.list_uploads("k") == []
        await store.close()


@pytest.mark.parametrize(("key", "there"), [("gone", False), ("here", True)])
async def test_a_head_that_cannot_be_read_is_asked_by_get(
    key: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenStack Swift 2.30: the answer to a HEAD of nothing has a body, which HTTP forbids."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                if asked.startswith(b"HEAD"):
                    head, body = "404 Not Found\r\nTransfer-Encoding: chunked", "0\r\n\r\n"
                elif there:
                    head, body = "206 Partial Content\r\nContent-Length: 1", "x"
                else:
                    body = "<Error><Code>NoSuchKey</Code></Error>"
                    head = f"404 Not Found\r\nContent-Length: {len(body)}"
                writer.write(f"HTTP/1.1 {head}\r\n\r\n{body}".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        point_to(monkeypatch, f"http://127.0.0.1:{port}")
        store = ObjectStore(BUCKET)
        if there:
            with pytest.raises(StoreUnavailable):
                await store.head(key)
        else:
            assert await store.head(key) is None
        await store.close()
