"""A store in memory that does with each feature what its traits say, and can damage what comes.

The traits of providers are those that ``docs/stores.md`` names; nothing here is a provider's code.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

import pytest
from aiohttp import web

from tests.support import eventually, point_to

BUCKET = "media"

Refusal = tuple[int, str, str]
"""Status, code and message; without a code there is no document."""

NOT_IMPLEMENTED = (501, "NotImplemented", "A header you provided is not implemented")
NO_ARGUMENT = (400, "InvalidArgument", "Unsupported header received for this API call.")
BAD_XML = (400, "MalformedXML", "The XML you provided was not well-formed")


@dataclass(frozen=True, kw_only=True)
class Traits:
    """``put_sha256`` and ``part_sha256``: ``keep`` (check and give back), ``check``, ``ignore``,
    ``echo`` (give back unchecked) or a refusal. ``…_md5``: ``check``, ``ignore`` or a refusal.
    Conditions: ``honour``, ``ignore`` or a refusal. ``listing``: ``yes``, ``exact`` (of the very
    key alone), ``empty`` or a refusal. ``objects``: ``v2``, ``v1`` (knows no ``list-type``),
    ``silent`` and ``silent-v2`` (a page never says that there are more) or ``stuck`` (begins again
    and again). ``head``: ``yes``, ``no-size`` or a refusal. ``etag``: ``md5``, ``upper`` or
    ``random``.
    """

    path: Refusal | None = None
    virtual: Refusal | None = None
    put_sha256: str | Refusal = "keep"
    part_sha256: str | Refusal = "keep"
    create_sha256: Refusal | None = None
    xml_sha256: Refusal | None = None
    put_md5: str | Refusal = "check"
    part_md5: str | Refusal = "check"
    put_condition: str | Refusal = "honour"
    complete_condition: str | Refusal = "honour"
    head: str | Refusal = "yes"
    head_mode: Refusal | None = None
    listing: str | Refusal = "yes"
    objects: str = "v2"
    etag: str = "md5"
    options: Refusal | None = None
    drops: bool = False
    """Whether a part that is refused ends its upload."""
    most_parts: int = 10_000
    page: int = 1000


STORES: dict[str, Traits] = {
    "aws": Traits(),
    "oss": Traits(
        path=(403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access."),
        put_sha256="ignore", part_sha256="ignore", etag="upper",
        put_condition=(400, "NotImplemented", "A header is not implemented"),
        complete_condition=NOT_IMPLEMENTED,
    ),
    "r2": Traits(
        part_sha256=NOT_IMPLEMENTED, etag="random", options=NOT_IMPLEMENTED,
        complete_condition="ignore",
    ),
    "r2-create": Traits(
        part_sha256=NOT_IMPLEMENTED, etag="random", complete_condition="ignore",
        create_sha256=(501, "NotImplemented", "'x-amz-checksum-algorithm' is not implemented"),
    ),
    "b2": Traits(put_condition=NOT_IMPLEMENTED, complete_condition=NOT_IMPLEMENTED),
    "b2-2024": Traits(
        put_sha256=NO_ARGUMENT, part_sha256=NO_ARGUMENT, create_sha256=NO_ARGUMENT,
        head_mode=(400, "", ""), put_condition=NOT_IMPLEMENTED, complete_condition=NOT_IMPLEMENTED,
    ),
    "gcs": Traits(
        put_sha256="ignore", part_sha256="ignore",
        put_condition="ignore", complete_condition="ignore",
    ),
    "cos": Traits(
        path=(403, "PathStyleDomainForbidden", "The bucket must be addressed by virtual host."),
        put_sha256="ignore", part_sha256="ignore",
        put_condition="ignore", complete_condition="ignore",
    ),
    "obs": Traits(
        path=(404, "NoSuchKey", "The specified key does not exist."),
        put_sha256="ignore", part_sha256="ignore",
        put_condition="ignore", complete_condition="ignore",
    ),
    "tos": Traits(
        path=(403, "InvalidPathAccess", "Forbidden path to access server."),
        put_sha256="ignore", part_sha256="ignore",
        put_condition="ignore", complete_condition="ignore",
    ),
    "hetzner": Traits(put_sha256="check", part_sha256="check"),
    "supabase": Traits(
        put_sha256="ignore", part_sha256="ignore", put_md5="ignore", part_md5="ignore",
        put_condition="ignore", complete_condition="ignore",
    ),
    "swift": Traits(
        virtual=(404, "NoSuchBucket", "The specified bucket does not exist"),
        put_sha256="ignore", part_sha256="ignore", xml_sha256=BAD_XML,
        put_condition=NOT_IMPLEMENTED, options=NOT_IMPLEMENTED,
    ),
    "s3proxy": Traits(
        put_sha256="ignore", part_sha256="ignore", xml_sha256=(500, "InternalError", "element"),
    ),
    "rclone": Traits(
        put_sha256="echo", part_sha256="echo", put_condition="ignore", complete_condition="ignore",
        listing=(404, "NoSuchUpload", "m"), drops=True,
    ),
    "aws-drops": Traits(drops=True),
    "s3rver": Traits(
        put_sha256="ignore", part_sha256="ignore", put_md5="ignore", part_md5="ignore",
        put_condition="ignore", complete_condition="ignore", listing=NOT_IMPLEMENTED,
    ),
    "ceph": Traits(put_sha256="ignore", part_sha256="ignore", complete_condition="ignore"),
    "minio": Traits(put_sha256="ignore", part_sha256="ignore", listing="exact"),
    "refuses-by-405": Traits(
        put_condition=(405, "MethodNotAllowed", "m"), complete_condition=(405, "", ""),
        listing=(405, "MethodNotAllowed", "m"),
    ),
    "refuses-by-400": Traits(
        put_condition=(400, "InvalidArgument", "Unsupported header 'if-none-match'"),
        complete_condition=(400, "BadRequest", "m"),
        put_sha256=(400, "BadRequest", "m"), part_sha256=(400, "InvalidRequest", "m"),
        create_sha256=(400, "UnsupportedHeader", "m"),
    ),
    "fails-over-it": Traits(
        put_sha256=(500, "InternalError", "m"), part_sha256=(502, "", ""), head_mode=(500, "", ""),
        put_condition=(500, "InternalError", "m"), complete_condition=(500, "", ""),
    ),
    "denies-it": Traits(
        put_sha256=(403, "AccessDenied", "m"), part_sha256=(403, "AccessDenied", "m"),
        put_condition=(403, "", ""), complete_condition=(403, "AccessDenied", "m"),
        head_mode=(403, "", ""),
    ),
    "no-head": Traits(head=(405, "MethodNotAllowed", "m")),
    "no-head-501": Traits(head=(501, "", ""), put_sha256="ignore", part_sha256="ignore"),
    "no-head-403": Traits(head=(403, "", "")),
    "no-size": Traits(head="no-size"),
    "no-md5": Traits(put_md5=NOT_IMPLEMENTED, part_md5=NO_ARGUMENT),
    "nothing-proven": Traits(
        put_sha256="echo", part_sha256="echo", put_md5="ignore", part_md5="ignore", etag="random"
    ),
    "only-bytes": Traits(
        put_sha256=NO_ARGUMENT, part_sha256=NO_ARGUMENT, create_sha256=NO_ARGUMENT,
        put_md5=NO_ARGUMENT, part_md5=NOT_IMPLEMENTED, head_mode=(501, "", ""),
        put_condition=(405, "", ""), complete_condition=NO_ARGUMENT, listing=NOT_IMPLEMENTED,
    ),
}  # fmt: skip


@dataclass
class Stored:
    """An object; ``checksum`` is what is given back for its SHA-256."""

    body: bytes
    headers: dict[str, str]
    etag: str
    checksum: str | None


@dataclass
class _Open:
    key: str
    headers: dict[str, str]
    parts: dict[int, tuple[bytes, str | None]] = field(default_factory=dict)


@dataclass
class StandIn:
    """``damage`` so many of the next bodies that are worth it; ``fault`` may answer instead.

    ``after`` may do so once the step is done. Those that are ``late`` are done once the client has
    gone.
    """

    traits: Traits
    damage: int = 0
    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, _Open] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    late: set[str] = field(default_factory=set)
    fault: Callable[[str, web.Request], web.Response | None] = lambda _step, _request: None
    after: Callable[[str, web.Request], web.Response | None] = lambda _step, _request: None
    port: int = 0

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        step = _step(request)
        self.seen.append(step)
        if step in self.late:  # until nobody waits any more
            await eventually(lambda: request.transport is None or request.transport.is_closing())
        if fault := self.fault(step, request):
            return fault
        answer = self._answer(step, request, body)
        return self.after(step, request) or answer

    @property
    def files(self) -> dict[str, bytes]:
        """The objects that no probe has written."""
        return {k: o.body for k, o in self.objects.items() if "/.doctor/" not in f"/{k}"}

    # -- what each request comes to -----------------------------------------------------------

    def _answer(self, step: str, request: web.Request, body: bytes) -> web.Response:
        traits, name = self.traits, request.path.removeprefix("/")
        by_host = request.host.partition(".")[0] == BUCKET
        refusal = traits.virtual if by_host else traits.path
        bucket, _, key = (BUCKET, "", name) if by_host else name.partition("/")
        if bucket != BUCKET:
            return refused((404, "NoSuchBucket", "m"))
        if refusal and step != "head":
            return refused(refusal)
        headers = {name.lower(): value for name, value in request.headers.items()}
        if traits.options and {"x-amz-acl", "x-amz-tagging", "x-amz-storage-class"} & {*headers}:
            return refused(traits.options)
        act: Callable[..., web.Response] = getattr(self, f"_{step}")
        return act(key, request.query, headers, body)

    def _unproven(self, kind: str, headers: dict[str, str], body: bytes) -> Refusal | None:
        for name, header, digest in (
            ("md5", "content-md5", hashlib.md5),
            ("sha256", "x-amz-checksum-sha256", hashlib.sha256),
        ):
            trait = getattr(self.traits, f"{kind}_{name}")
            if header not in headers:
                continue
            if isinstance(trait, tuple):
                return trait
            if trait in ("keep", "check") and headers[header] != _base64(digest(body).digest()):
                return (400, "BadDigest", f"The {name} does not match")
        return None

    def _hurt(self, body: bytes) -> bytes:
        """What arrives of a body; the least are spared, among them those of probes."""
        if not self.damage or len(body) < 500:
            return body
        self.damage -= 1
        return body[:200] + bytes([body[200] ^ 1]) + body[201:]

    def _put(self, key: str, _: Any, headers: dict[str, str], body: bytes) -> web.Response:
        body = self._hurt(body)
        if wrong := self._unproven("put", headers, body):
            return refused(wrong)
        if wrong := self._exists(self.traits.put_condition, key, headers):
            return refused(wrong)
        kept = self.traits.put_sha256 in ("keep", "echo")
        sha256 = headers.get("x-amz-checksum-sha256") if kept else None
        self.objects[key] = Stored(body, headers, self._etag(body), sha256)
        return web.Response(headers={"ETag": self.objects[key].etag})

    def _exists(self, trait: str | Refusal, key: str, headers: dict[str, str]) -> Refusal | None:
        if "if-none-match" not in headers:
            return None
        if isinstance(trait, tuple):
            return trait
        there = trait == "honour" and key in self.objects
        return (412, "PreconditionFailed", "m") if there else None

    def _create(self, key: str, _: Any, headers: dict[str, str], __: bytes) -> web.Response:
        if "x-amz-checksum-algorithm" in headers and self.traits.create_sha256:
            return refused(self.traits.create_sha256)
        upload = secrets.token_hex(8)
        self.uploads[upload] = _Open(key, headers)
        return _document("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")

    def _part(self, _: str, query: Any, headers: dict[str, str], body: bytes) -> web.Response:
        if query["uploadId"] not in self.uploads:
            return refused((404, "NoSuchUpload", "m"))
        if int(query["partNumber"]) > self.traits.most_parts:
            return refused((400, "InvalidArgument", "Part number is too large"))
        body = self._hurt(body)
        if wrong := self._unproven("part", headers, body):
            if self.traits.drops:
                del self.uploads[query["uploadId"]]
            return refused(wrong)
        kept = self.traits.part_sha256 in ("keep", "echo")
        sha256 = headers.get("x-amz-checksum-sha256") if kept else None
        self.uploads[query["uploadId"]].parts[int(query["partNumber"])] = (body, sha256)
        return web.Response(headers={"ETag": self._etag(body)})

    def _complete(self, key: str, query: Any, headers: dict[str, str], body: bytes) -> web.Response:
        opened = self.uploads.get(query["uploadId"])
        if opened is None:
            return refused((404, "NoSuchUpload", "m"))
        if b"<ChecksumSHA256>" in body and self.traits.xml_sha256:
            return refused(self.traits.xml_sha256)
        if wrong := self._exists(self.traits.complete_condition, key, headers):
            return refused(wrong)
        parts = [opened.parts[int(n)] for n in re.findall(rb"<PartNumber>(\d+)", body)]
        whole = b"".join(part for part, _ in parts)
        sha256 = None
        if all(each for _, each in parts):
            digests = b"".join(base64.b64decode(each or "") for _, each in parts)
            sha256 = f"{_base64(hashlib.sha256(digests).digest())}-{len(parts)}"
        del self.uploads[query["uploadId"]]
        self.objects[key] = Stored(whole, opened.headers, self._etag(whole), sha256)
        return _document("CompleteMultipartUploadResult", f"<ETag>{escape('e')}</ETag>")

    def _abort(self, _: str, query: Any, __: Any, ___: bytes) -> web.Response:
        found = self.uploads.pop(query["uploadId"], None)
        return web.Response(status=204) if found else refused((404, "NoSuchUpload", "m"))

    def _uploads(self, _: str, query: Any, __: Any, ___: bytes) -> web.Response:
        listing, prefix = self.traits.listing, query.get("prefix", "")
        if isinstance(listing, tuple):
            return refused(listing)
        found = "".join(
            f"<Upload><Key>{escape(opened.key)}</Key><UploadId>{upload}</UploadId></Upload>"
            for upload, opened in self.uploads.items()
            if (opened.key == prefix if listing == "exact" else opened.key.startswith(prefix))
            and listing != "empty"
        )
        return _document("ListMultipartUploadsResult", f"<IsTruncated>false</IsTruncated>{found}")

    def _list(self, _: str, query: Any, __: Any, ___: bytes) -> web.Response:
        kind, most = self.traits.objects, self.traits.page
        keys = sorted(key for key in self.objects if key.startswith(query.get("prefix", "")))
        name = {"v2": "continuation-token", "silent-v2": "start-after"}.get(kind, "marker")
        after = query.get(name, "")
        keys = keys if kind == "stuck" else [key for key in keys if key > after]
        more, mark = len(keys) > most, ""
        if more and kind == "v2":
            mark = f"<NextContinuationToken>{escape(keys[most - 1])}</NextContinuationToken>"
        if more and kind == "stuck":
            mark = f"<NextContinuationToken>{secrets.token_hex(4)}</NextContinuationToken>"
        entries = "".join(f"<Contents><Key>{escape(key)}</Key></Contents>" for key in keys[:most])
        said = more and not kind.startswith("silent")
        mark += "<KeyCount>9</KeyCount>" if kind.endswith("v2") else ""
        head = f"<IsTruncated>{str(said).lower()}</IsTruncated><MaxKeys>{most}</MaxKeys>{mark}"
        return _document("ListBucketResult", head + entries)

    def _get(self, key: str, _: Any, headers: dict[str, str], __: bytes) -> web.Response:
        if key not in self.objects:
            return refused((404, "NoSuchKey", "m"))
        there = self.objects[key]
        kept = {k: v for k, v in there.headers.items() if k.startswith("x-amz-meta-")}
        kept |= {"Content-Type": there.headers.get("content-type", ""), "ETag": there.etag}
        if "x-amz-checksum-mode" in headers and there.checksum:
            kept["x-amz-checksum-sha256"] = there.checksum
        if headers.get("range") == "bytes=0-0":
            kept["Content-Range"] = f"bytes {'0-0' if there.body else '*'}/{len(there.body)}"
            return web.Response(
                status=206 if there.body else 416, body=there.body[:1], headers=kept
            )
        return web.Response(body=there.body, headers=kept)

    def _head(self, key: str, query: Any, headers: dict[str, str], body: bytes) -> web.Response:
        if "x-amz-checksum-mode" in headers and self.traits.head_mode:
            return refused(self.traits.head_mode)
        if isinstance(self.traits.head, tuple):
            return refused(self.traits.head)
        answer = self._get(key, query, headers, body)
        if self.traits.head == "no-size" and answer.status == 200:
            answer = web.Response(headers=answer.headers)
            answer.enable_chunked_encoding()
        return answer

    def _etag(self, body: bytes) -> str:
        md5 = hashlib.md5(body).hexdigest()
        made = {"md5": md5, "upper": md5.upper(), "random": secrets.token_urlsafe(24)}
        return f'"{made[self.traits.etag]}"'


def _step(request: web.Request) -> str:
    match request.method:
        case "POST":
            return "create" if "uploads" in request.query else "complete"
        case "PUT":
            return "part" if "partNumber" in request.query else "put"
        case "DELETE":
            return "abort"
        case "HEAD":
            return "head"
    if "uploads" in request.query:
        return "uploads"
    return "list" if request.path.rstrip("/") in ("", f"/{BUCKET}") else "get"


def refused(refusal: Refusal) -> web.Response:
    """An error of the store."""
    status, code, message = refusal
    text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    return web.Response(status=status, text=text if code else "", content_type="application/xml")


def _document(name: str, content: str) -> web.Response:
    return web.Response(text=f"<{name}>{content}</{name}>", content_type="application/xml")


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _local(resolve: Any) -> Any:
    """Every name below ``localhost`` leads to this machine, the bucket's own among them."""

    def local(host: Any, *args: Any, **options: Any) -> Any:
        own = isinstance(host, str) and host.endswith(".localhost")
        return resolve("127.0.0.1" if own else host, *args, **options)

    return local


@contextlib.asynccontextmanager
async def standing_in(
    traits: Traits, patch: pytest.MonkeyPatch, **options: Any
) -> AsyncIterator[StandIn]:
    """A stand-in on a free port, which the environment then points to."""
    it = StandIn(traits, **options)
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", it.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    it.port = runner.addresses[0][1]
    patch.setattr(socket, "getaddrinfo", _local(socket.getaddrinfo))
    point_to(patch, f"http://store.localhost:{it.port}")
    patch.setenv("HARVESTER_BUCKET", BUCKET)
    try:
        yield it
    finally:
        await runner.cleanup()
