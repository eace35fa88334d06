"""The bucket: requests are signed with what boto3 found, aiohttp moves the bytes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import secrets
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import Enum
from html import unescape
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple, cast
from xml.sax.saxutils import escape

import aiohttp
import structlog
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError, create_parser
from yarl import URL

from worker.core.redact import one_line
from worker.errors import StoreBlocked, StoreError, StoreRefused, StoreUnavailable
from worker.http import (
    BROKEN,
    CHUNK_BYTES,
    describe,
    hung_up,
    make_session,
    read_some,
)
from worker.transfer.signer import EXPIRES, ProfileName, Request, Signer, make_signer
from worker.transfer.sniff import disposition

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from aiohttp.abc import AbstractStreamWriter

log = structlog.get_logger("harvester.store")

Buffer = bytes | bytearray | memoryview

MAX_PARTS = 10_000
"""Parts of a multipart upload (Amazon S3, "multipart upload limits")."""

_DEADLINE = 45.0
_LEAST_SECONDS = 15.0
_LEAST_RATE = 256 * 1024  # bytes a second that a request is given time for
_CONNECT = 10.0
_TRUST_SECONDS = 600.0
_ANSWER_BYTES = 4 * 1024 * 1024
_ERROR_BYTES = 64 * 1024

# Codes that say the same of every object: keys, clock, region, account or bucket are wrong.
_BLOCKED = frozenset(
    {
        "AccountProblem",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "AuthorizationQueryParametersError",
        "ExpiredToken",
        "IllegalLocationConstraintException",
        "InvalidAccessKeyId",
        "InvalidBucketName",
        "InvalidSecurity",
        "InvalidSecurityToken",
        "InvalidToken",
        "NoSuchBucket",
        "NotSignedUp",
        "PermanentRedirect",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SecondLevelDomainForbidden",
        "SecurityTokenExpired",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UserDisable",
    }
)
# Codes below 500 that another attempt may get past: the body was damaged, or the store is busy.
_PASSING = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "InvalidPart",
        "NoSuchUpload",
        "OperationAborted",
        "QuotaExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "TooManyRequests",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
_PASSING_STATUS = frozenset({307, 408, 409, 429})
_CONFLICT = frozenset({409, 412})
_CONFLICT_CODES = frozenset({"ConditionalRequestConflict", "PreconditionFailed"})
_WRITES = frozenset(
    {"put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload"}
)
_ERROR_START = re.compile(rb"\s*(?:<\?xml[^>]*>)?\s*<Error[\s>]")
_METADATA = "x-amz-meta-"
_PARSER = create_parser("rest-xml")

Given = TypeVarTuple("Given")
Found = TypeVar("Found")


def _nothing() -> None:
    """Take note of nothing."""


class Outcome(Enum):
    """What became of a write that was to create its object."""

    CREATED = "created"
    EXISTS = "exists"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """What the store says of an object.

    ``checksum`` is its ``x-amz-checksum-sha256`` as the store gives it (base64, followed by ``-``
    and the number of parts if it was made from theirs), or ``None``.
    """

    bytes: int
    content_type: str
    metadata: Mapping[str, str]
    etag: str
    checksum: str | None = None

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the whole object in hex, if the store knows it."""
        if self.checksum is None or "-" in self.checksum:
            return None
        return base64.b64decode(self.checksum).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An open multipart upload. ``checksums``: whether its parts carry a SHA-256."""

    key: str
    id: str = field(repr=False)
    checksums: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part that was uploaded; ``sha256`` is the digest of its bytes."""

    number: int
    etag: str
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store was seen to do; ``clock_skew`` is how far its clock is ahead, in seconds."""

    profile: str
    endpoint: str
    checksums: bool
    conditional_writes: bool
    clock_skew: float | None


class StoreSettings(Protocol):
    """The settings that a store is made from."""

    @property
    def bucket(self) -> str:
        """Name of the bucket."""

    @property
    def storage(self) -> ProfileName:
        """Profile."""

    @property
    def put_options(self) -> Mapping[str, str]:
        """boto3 parameters of every object."""

    @property
    def lease(self) -> float:
        """Seconds within which a write must have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    headers: Mapping[str, str]  # whatever their case
    body: bytes


class ObjectStore:
    """One bucket.

    ``put_options`` are boto3 parameters for every object. No request takes longer than
    ``deadline`` seconds, except for :meth:`digest`. Every method may raise

    - :class:`StoreBlocked`: credentials, clock, region or bucket are wrong, no object is to blame;
    - :class:`StoreUnavailable`: the store failed, timed out, or is out of reach;
    - :class:`StoreRefused`: the store takes other objects, but not this one.
    """

    def __init__(
        self,
        bucket: str,
        *,
        profile: ProfileName = "auto",
        put_options: Mapping[str, str] | None = None,
        deadline: float = _DEADLINE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bucket = bucket
        self._profile = profile
        self._options = dict(put_options or {})
        self._deadline = deadline
        self._clock = clock
        self._signer: Signer | None = None
        self._session: aiohttp.ClientSession | None = None
        self._starting = asyncio.Lock()
        self._conditional = True
        self._checksums = True
        self._wrote_at: float | None = None

    @classmethod
    def from_settings(cls, settings: StoreSettings) -> ObjectStore:
        """The store that the settings name; credentials and endpoint come from boto3's chain."""
        return cls(
            settings.bucket,
            profile=settings.storage,
            put_options=settings.put_options,
            deadline=min(_DEADLINE, 0.75 * settings.lease),
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def ready(self) -> None:
        """Find credentials and endpoint, if that has not been done."""
        await self._ready()

    async def endpoint(self) -> str:
        """The address of the store, as boto3 finds it."""
        return str((await self._ready()).boto.meta.endpoint_url)

    @property
    def gives_checksums(self) -> bool:
        """Whether objects are written with a SHA-256 that the store gives back.

        Otherwise their bytes are proven by ``Content-MD5`` alone. Decided once :meth:`ready`.
        """
        profile_says = self._signer is None or self._signer.profile.checksum == "sha256"
        return self._checksums and profile_says

    def distrust_checksums(self) -> None:
        """Note that the store keeps no SHA-256: from now on ``Content-MD5`` is sent instead."""
        if self._checksums:
            log.warning("store.no_checksums", bucket=self.bucket)
        self._checksums = False

    # -- whole objects ------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        body: Buffer,
        *,
        content_type: str,
        sha256: bytes,
        disposition: str = "",
        metadata: Mapping[str, str] | None = None,
        create_only: bool = True,
        options: Mapping[str, str] | None = None,
        progress: Callable[[], None] = _nothing,
    ) -> Outcome:
        """Store an object whose SHA-256 digest is ``sha256``.

        With ``create_only`` an object that is there already is left alone where the store can
        (:attr:`Outcome.EXISTS`), and replaced where it cannot.
        """
        await self._ready()
        params = self._described(key, content_type, disposition, metadata, options)
        params |= await _proof(body, sha256 if self.gives_checksums else None)
        return await self._create("put_object", params, body, create_only, progress)

    async def put_document(self, key: str, body: bytes, *, task_id: str) -> None:
        """Store a JSON document, in place of what is there."""
        await self.put(
            key,
            body,
            content_type="application/json",
            sha256=hashlib.sha256(body).digest(),
            metadata={"task-id": task_id},
            create_only=False,
        )

    async def head(self, key: str) -> StoredObject | None:
        """What the store says of an object; ``None`` if there is none."""
        signer = await self._ready()
        params = self._named(key)
        if self.gives_checksums:
            params["ChecksumMode"] = "ENABLED"
        answer = await self._send(signer, "head_object", params)
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        self._expect(answer, "head_object", key)
        headers = answer.headers  # read as they are: botocore's parser costs as much as the request
        if not headers.get("content-length", "").isdecimal():
            raise StoreUnavailable(f"the store does not say how large {key} is")
        return StoredObject(
            bytes=int(headers["content-length"]),
            content_type=headers.get("content-type", ""),
            metadata={
                name[len(_METADATA) :].lower(): value
                for name, value in headers.items()
                if name.lower().startswith(_METADATA)
            },
            etag=headers.get("etag", ""),
            checksum=headers.get("x-amz-checksum-sha256"),
        )

    async def get(self, key: str, max_bytes: int) -> bytes | None:
        """The bytes of an object; ``None`` if there is none, or none that may be read.

        Without permission to list a bucket, S3 denies access to an object that is missing.
        Raises :class:`StoreRefused` for one larger than ``max_bytes``.
        """
        signer = await self._ready()
        answer = await self._send(signer, "get_object", self._named(key), most=max_bytes)
        if _is_missing(answer):
            return None
        self._expect(answer, "get_object", key)
        if len(answer.body) > max_bytes:
            raise StoreRefused(f"{key} is larger than {max_bytes} bytes")
        return answer.body

    async def digest(self, key: str, *, progress: Callable[[], None] = _nothing) -> bytes | None:
        """The SHA-256 digest of an object, read back from the store; ``None`` if there is none.

        Takes as long as bytes arrive; ``progress`` is called as they do.
        """
        request = await self._sign(await self._ready(), "get_object", self._named(key))
        digest = hashlib.sha256()
        try:
            async with self._opened(request, stall=self._deadline) as response:
                if response.status != HTTPStatus.OK:
                    answer = await _read(response, _ANSWER_BYTES)
                    if _is_missing(answer):
                        return None
                    raise self._error(answer, "get_object", key)
                while piece := await read_some(response):
                    digest.update(piece)
                    progress()
        except BROKEN as exc:
            raise _unavailable(exc) from exc
        return digest.digest()

    async def presign_get(self, key: str, *, expires: int, filename: str = "") -> str:
        """A URL that anybody can fetch an object from for ``expires`` seconds.

        With ``filename`` a browser saves it under that name.
        """
        params = self._named(key)
        if filename:
            params["ResponseContentDisposition"] = disposition("", filename)
        signed = await self._sign(await self._ready(), "get_object", params, expires)
        return signed.url

    async def presign_files(
        self, files: Sequence[Mapping[str, Any]], *, expires: int
    ) -> list[dict[str, str]]:
        """Such a URL for each stored file of a record: ``name``, ``content_type`` and ``url``."""
        return [
            {
                "name": file["name"],
                "content_type": file.get("content_type", ""),
                "url": await self.presign_get(file["key"], expires=expires),
            }
            for file in files
            if "key" in file
        ]

    # -- multipart uploads --------------------------------------------------------------------

    async def create_upload(
        self,
        key: str,
        *,
        content_type: str,
        disposition: str = "",
        metadata: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Upload:
        """Open a multipart upload, to be ended by :meth:`complete` or :meth:`abort`."""
        signer = await self._ready()
        params = self._described(key, content_type, disposition, metadata, options)
        checksums = self.gives_checksums
        if checksums:
            params["ChecksumAlgorithm"] = "SHA256"
        answer = await self._ask("create_multipart_upload", params, key)
        found = self._parse(signer, "create_multipart_upload", answer)
        if not found.get("UploadId"):
            raise StoreUnavailable(f"the store opens no upload for {key}")
        return Upload(key=key, id=found["UploadId"], checksums=checksums)

    async def upload_part(
        self,
        upload: Upload,
        number: int,
        body: Buffer,
        *,
        sha256: bytes,
        progress: Callable[[], None] = _nothing,
    ) -> Part:
        """Send part ``number`` (from 1), whose SHA-256 digest is ``sha256``."""
        params = self._of(upload) | {"PartNumber": number}
        params |= await _proof(body, sha256 if upload.checksums else None)
        answer = await self._ask("upload_part", params, upload.key, body, progress)
        self._wrote_at = self._clock()
        etag = answer.headers.get("etag", "")
        if not etag:
            raise StoreUnavailable(f"the store did not confirm part {number} of {upload.key}")
        return Part(number=number, etag=etag, sha256=sha256)

    async def complete(
        self, upload: Upload, parts: Sequence[Part], *, create_only: bool = True
    ) -> Outcome:
        """Make an object of the parts. ``create_only`` is as for :meth:`put`."""
        listed = "".join(_part_xml(part, checksum=upload.checksums) for part in parts)
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        return await self._create(
            "complete_multipart_upload", self._of(upload), body, create_only, _nothing
        )

    async def abort(self, upload: Upload) -> None:
        """Throw an upload's parts away; one that is not open any more is left as it is."""
        signer = await self._ready()
        answer = await self._send(signer, "abort_multipart_upload", self._of(upload))
        if answer.status != HTTPStatus.NOT_FOUND:
            self._expect(answer, "abort_multipart_upload", upload.key)

    async def list_uploads(self, prefix: str) -> list[Upload]:
        """The open uploads of all keys that begin with ``prefix``."""
        signer = await self._ready()
        uploads: list[Upload] = []
        params: dict[str, Any] = {"Bucket": self.bucket, "Prefix": prefix}
        while True:
            answer = await self._ask("list_multipart_uploads", params, prefix)
            found = self._parse(signer, "list_multipart_uploads", answer)
            uploads += [
                Upload(key=entry["Key"], id=entry["UploadId"])
                for entry in found.get("Uploads", ())
                if entry["Key"].startswith(prefix)
            ]
            marks = {
                "KeyMarker": found.get("NextKeyMarker", ""),
                "UploadIdMarker": found.get("NextUploadIdMarker", ""),
            }
            if not found.get("IsTruncated") or marks.items() <= params.items():
                return uploads
            params |= marks

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """The keys of all objects below ``prefix``, in order."""
        signer = await self._ready()
        params: dict[str, Any] = {"Bucket": self.bucket, "Prefix": prefix}
        while True:
            answer = await self._ask("list_objects_v2", params, prefix)
            found = self._parse(signer, "list_objects_v2", answer)
            for entry in found.get("Contents", ()):
                yield entry["Key"]
            mark = found.get("NextContinuationToken")
            if not found.get("IsTruncated") or mark == params.get("ContinuationToken"):
                return
            params["ContinuationToken"] = mark

    # -- what the store can do ----------------------------------------------------------------

    async def probe(self, prefix: str) -> Capabilities:
        """Put, head, get and delete a small object below ``prefix`` and say what was seen."""
        signer = await self._ready()
        key = f"{prefix}probe-{secrets.token_hex(8)}"
        body = b"harvester"
        sha256 = hashlib.sha256(body).digest()

        async def put() -> Outcome:
            return await self.put(key, body, content_type="text/plain", sha256=sha256)

        await put()
        try:
            there = await self.head(key)
            if there is None or await self.get(key, max_bytes=len(body)) != body:
                raise StoreUnavailable("an object does not read back as it was written")
            kept = await put() is Outcome.EXISTS
        finally:
            answer = await self._ask("delete_object", self._named(key), key)
        return Capabilities(
            profile=signer.profile_name,
            endpoint=await self.endpoint(),
            checksums=there.sha256 == sha256.hex(),
            conditional_writes=kept,
            clock_skew=_skew(answer),
        )

    # -- requests -----------------------------------------------------------------------------

    def _named(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": key}

    def _of(self, upload: Upload) -> dict[str, Any]:
        return self._named(upload.key) | {"UploadId": upload.id}

    def _described(
        self,
        key: str,
        content_type: str,
        disposition: str,
        metadata: Mapping[str, str] | None,
        options: Mapping[str, str] | None,
    ) -> dict[str, Any]:
        params = self._named(key) | {"ContentType": content_type, "Metadata": dict(metadata or {})}
        if disposition:
            params["ContentDisposition"] = disposition
        return params | self._options | dict(options or {})

    async def _create(
        self,
        call: str,
        params: Mapping[str, Any],
        body: Buffer,
        create_only: bool,
        progress: Callable[[], None],
    ) -> Outcome:
        signer = await self._ready()
        conditional = create_only and self._conditional and signer.profile.conditional
        condition = {"IfNoneMatch": "*"} if conditional else {}
        answer = await self._send(signer, call, {**params, **condition}, body, progress=progress)
        code, _ = _complaint(answer)
        if conditional and (answer.status in _CONFLICT or code in _CONFLICT_CODES):
            return Outcome.EXISTS
        if conditional and (
            answer.status == HTTPStatus.NOT_IMPLEMENTED or code == "NotImplemented"
        ):
            log.warning("store.no_conditional_writes", bucket=self.bucket)
            self._conditional = False
            return await self._create(call, params, body, create_only, progress)
        self._expect(answer, call, params["Key"])
        self._wrote_at = self._clock()
        return Outcome.CREATED

    async def _ask(
        self,
        call: str,
        params: Mapping[str, Any],
        key: str,
        body: Buffer = b"",
        progress: Callable[[], None] = _nothing,
    ) -> _Answer:
        """A request that must succeed."""
        answer = await self._send(await self._ready(), call, params, body, progress=progress)
        self._expect(answer, call, key)
        return answer

    async def _send(
        self,
        signer: Signer,
        call: str,
        params: Mapping[str, Any],
        body: Buffer = b"",
        *,
        progress: Callable[[], None] = _nothing,
        most: int = _ANSWER_BYTES,
    ) -> _Answer:
        """The answer to one request, whatever it is, cut off after ``most`` bytes and one."""
        request = await self._sign(signer, call, params)
        seconds = min(self._deadline, _LEAST_SECONDS + max(len(body), most) / _LEAST_RATE)
        # twice if a connection was closed, except for what would then be open twice
        again = call != "create_multipart_upload"
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        async with self._opened(request, body, progress) as response:
                            return await _read(response, most)
                    except BROKEN as exc:
                        if not again or not hung_up(exc):
                            raise
                        again = False
        except BROKEN as exc:
            raise _unavailable(exc) from exc

    @contextlib.asynccontextmanager
    async def _opened(
        self,
        request: Request,
        body: Buffer = b"",
        progress: Callable[[], None] = _nothing,
        *,
        stall: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """``stall``: seconds between two signs of life, of a request without another deadline."""
        if self._session is None:
            self._session = make_session(_connector, ca_bundle=request.ca_bundle)
        content = _Body(body, progress) if body else None
        try:
            async with self._session.request(
                request.method,
                URL(request.url, encoded=True),
                headers=request.headers,
                data=content,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=stall, sock_connect=_CONNECT, sock_read=stall
                ),
            ) as response:
                yield response
        finally:
            if content is not None:
                content.let_go()

    async def _ready(self) -> Signer:
        """The signer; made in a thread, since finding credentials may ask other machines."""
        if self._signer is None:
            async with self._starting:
                if self._signer is None:
                    self._signer = await self._boto(make_signer, self.bucket, self._profile)
        return self._signer

    async def _sign(
        self, signer: Signer, call: str, params: Mapping[str, Any], expires: int = EXPIRES
    ) -> Request:
        if signer.waits:
            return await self._boto(signer.sign, call, params, expires)
        with self._boto_errors():
            return signer.sign(call, params, expires)

    async def _boto(self, work: Callable[[*Given], Found], *given: *Given) -> Found:
        with self._boto_errors():
            async with asyncio.timeout(_DEADLINE):
                return await asyncio.to_thread(work, *given)

    @contextlib.contextmanager
    def _boto_errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as exc:
            raise StoreUnavailable("no credentials in time") from exc
        # ValueError: a malformed endpoint; OSError: a file or program of credentials
        except (BotoCoreError, ClientError, ValueError, OSError) as exc:
            self._signer = None
            raise StoreBlocked(one_line(str(exc))) from exc

    def _parse(self, signer: Signer, call: str, answer: _Answer) -> dict[str, Any]:
        given = {"status_code": answer.status, "headers": answer.headers, "body": answer.body}
        try:
            return cast("dict[str, Any]", _PARSER.parse(given, signer.model(call).output_shape))
        except (ResponseParserError, ValueError) as exc:
            raise StoreUnavailable(f"the store's answer to {call} is unreadable") from exc

    # -- errors -------------------------------------------------------------------------------

    def _expect(self, answer: _Answer, call: str, key: str) -> None:
        """Raise unless the request succeeded."""
        # CompleteMultipartUpload answers 200 before it knows, and may fail afterwards
        late = call == "complete_multipart_upload" and _complaint(answer) != ("", "")
        if late or not 200 <= answer.status < 300:
            raise self._error(answer, call, key)

    def _error(self, answer: _Answer, call: str, key: str) -> StoreError:
        code, message = _complaint(answer)
        detail = " ".join(filter(None, (str(answer.status), code, one_line(message, 200))))
        text = f"{call} {key}: {detail}"
        if self._is_blocking(answer.status, code, call):
            self._signer = None  # keys may have been replaced: they are looked up again
            return StoreBlocked(text)
        passing = answer.status >= 500 or answer.status in _PASSING_STATUS or code in _PASSING
        # a late error has status 200, and an answer to HEAD has no code
        if passing or answer.status < 400 or not code:
            return StoreUnavailable(text)
        return StoreRefused(text)

    def _is_blocking(self, status: int, code: str, call: str) -> bool:
        if code in _BLOCKED or code.startswith("KMS.") or status in (301, 401):
            return True
        if status != HTTPStatus.FORBIDDEN or code in _PASSING:
            return False
        recently = self._wrote_at is not None and self._clock() - self._wrote_at < _TRUST_SECONDS
        return not (recently and call in _WRITES)


class _Body(aiohttp.payload.Payload):
    """What is sent, in slices and without a copy of it; it can be sent again."""

    _autoclose = True

    def __init__(self, body: Buffer, progress: Callable[[], None]) -> None:
        super().__init__(memoryview(body))
        self._size = len(body)
        self._progress = progress

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, self._size)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        for start in range(0, len(self._value), CHUNK_BYTES):
            await writer.write(self._value[start : start + CHUNK_BYTES])
            self._progress()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return str(self._value, encoding, errors)

    def let_go(self) -> None:
        """Free the buffer: aiohttp's request and response refer to each other, and linger."""
        self._value = memoryview(b"")


def composite_checksum(parts: Sequence[Part]) -> str:
    """The checksum that S3 gives an object made of parts: that of their digests, and their number.

    Source: Amazon S3, "Checking object integrity", composite checksums.
    """
    digest = hashlib.sha256(b"".join(part.sha256 for part in parts)).digest()
    return f"{base64.b64encode(digest).decode()}-{len(parts)}"


def _connector(context: ssl.SSLContext) -> aiohttp.BaseConnector:
    return aiohttp.TCPConnector(ssl=context, limit=0, keepalive_timeout=15)


async def _proof(body: Buffer, sha256: bytes | None) -> dict[str, str]:
    """The parameter that lets the store check the body: its SHA-256 if given, else its MD5."""
    if sha256 is not None:
        return {"ChecksumSHA256": base64.b64encode(sha256).decode()}
    return {"ContentMD5": base64.b64encode(await asyncio.to_thread(_md5, body)).decode()}


def _md5(body: Buffer) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


def _part_xml(part: Part, *, checksum: bool) -> str:
    fields = f"<PartNumber>{part.number}</PartNumber><ETag>{escape(part.etag)}</ETag>"
    if checksum:
        fields += f"<ChecksumSHA256>{base64.b64encode(part.sha256).decode()}</ChecksumSHA256>"
    return f"<Part>{fields}</Part>"


async def _read(response: aiohttp.ClientResponse, most: int) -> _Answer:
    if not response.ok:
        most = _ERROR_BYTES
    body = bytearray()
    while len(body) <= most and (piece := await read_some(response)):
        body += piece
    return _Answer(status=response.status, headers=response.headers, body=bytes(body[: most + 1]))


def _complaint(answer: _Answer) -> tuple[str, str]:
    """Code and message of the store's XML error document; empty if the answer is none."""
    text = answer.body[:_ERROR_BYTES]
    if not _ERROR_START.match(text):
        return "", ""
    found = [re.search(rb"<%b>([^<]*)</%b>" % (tag, tag), text) for tag in (b"Code", b"Message")]
    code, message = (unescape(m[1].decode("utf-8", "replace")) if m else "" for m in found)
    return one_line(code, 60) or "Error", message


def _is_missing(answer: _Answer) -> bool:
    code, _ = _complaint(answer)
    if answer.status == HTTPStatus.NOT_FOUND:
        return code != "NoSuchBucket"
    return answer.status == HTTPStatus.FORBIDDEN and code == "AccessDenied"


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the store does not answer: {describe(error)}")


def _skew(answer: _Answer) -> float | None:
    try:
        return parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()
    except (KeyError, ValueError):
        return None
