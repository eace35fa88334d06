"""The bucket, verb by verb.

A request carries what lets the store check it and keep it from writing over an object. What a store
does not know it may refuse: the request is then made again without that, once, and if this
succeeds, the store is known to refuse it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol
from xml.sax.saxutils import escape

import structlog

from worker.errors import StoreBlocked, StoreError, StoreRefused, StoreUnavailable
from worker.http import BROKEN, read_some
from worker.transfer import complaints, pages, wire
from worker.transfer.capabilities import Facts, Proof, Seen, best
from worker.transfer.sniff import disposition
from worker.transfer.wire import Answer, Buffer, Wire, nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from worker.core.providers import Provider
    from worker.transfer.complaints import Complaint

log = structlog.get_logger("harvester.store")

_TRUST_SECONDS = 600.0
_METADATA = "x-amz-meta-"
_PLAIN_MD5 = re.compile(r'"?([0-9a-fA-F]{32})"?')


class Outcome(Enum):
    """What became of a write that was to create its object."""

    CREATED = "created"
    PROVEN = "proven"
    """Created, and the store was seen to refuse bytes that are damaged on the way."""
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
    """An open multipart upload. ``checksums``: whether its parts are to carry a SHA-256."""

    key: str
    id: str = field(repr=False)
    checksums: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part that was uploaded; ``sha256`` is the digest of its bytes.

    ``checksum``: whether it carried that; ``proven``: whether the store checked its bytes.
    """

    number: int
    etag: str
    sha256: bytes
    checksum: bool = False
    proven: bool = False


class StoreSettings(Protocol):
    """The settings that a store is made from."""

    @property
    def bucket(self) -> str:
        """Name of the bucket."""

    @property
    def storage(self) -> str:
        """Row and columns of the table of providers."""

    @property
    def put_options(self) -> Mapping[str, str]:
        """boto3 parameters of every object."""

    @property
    def lease(self) -> float:
        """Seconds within which a write must have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Extra:
    """What a request carries although the store may not know it, and what takes its place.

    ``fact`` is the name of the fact that it teaches, ``word`` what a complaint about it would say.
    """

    fact: str
    word: str
    params: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """The body without it, if it is in the body."""


class ObjectStore:
    """One bucket.

    ``put_options`` are boto3 parameters for every object. No request takes longer than
    ``deadline`` seconds, except for :meth:`digest`. ``facts`` are what the store was seen to do;
    whoever learns of them sets them, and :meth:`surprise` is set when a request teaches one. Every
    method may raise

    - :class:`StoreBlocked`: credentials, clock, region, address, options or bucket are wrong, no
      object is to blame;
    - :class:`StoreUnavailable`: the store failed, timed out, or is out of reach;
    - :class:`StoreRefused`: the store takes other objects, but not this one.
    """

    def __init__(
        self,
        bucket: str,
        *,
        storage: str = "auto",
        put_options: Mapping[str, str] | None = None,
        deadline: float = wire.DEADLINE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bucket = bucket
        self.wire = Wire(bucket, storage=storage, deadline=deadline)
        self.options = dict(put_options or {})
        self.surprise = asyncio.Event()
        self._facts = Facts()
        self._refused: set[str] = set()
        self._overruled: set[str] = set()
        self._said: set[str] = set()
        self._clock = clock
        self._wrote_at: dict[str, float] = {}

    @classmethod
    def from_settings(cls, settings: StoreSettings) -> ObjectStore:
        """The store that the settings name; credentials and endpoint come from boto3's chain."""
        return cls(
            settings.bucket,
            storage=settings.storage,
            put_options=settings.put_options,
            deadline=min(wire.DEADLINE, 0.75 * settings.lease),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.wire.close()

    async def ready(self) -> None:
        """Find credentials and endpoint, if that has not been done."""
        await self.wire.ready()

    async def endpoint(self) -> str:
        """The address of the store, as boto3 finds it."""
        return str((await self.wire.ready()).boto.meta.endpoint_url)

    async def provider(self) -> tuple[str, Provider]:
        """The row of the table of providers that is used, and its name."""
        signer = await self.wire.ready()
        return signer.provider_name, signer.provider

    # -- what the store can do ----------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """What the store was seen to do.

        What it refused at work stays refused, unless the probe sees otherwise, which counts once.
        """
        return self._facts

    @facts.setter
    def facts(self, facts: Facts) -> None:
        overruled = {name for name in self._refused if getattr(facts, name) is Seen.HONOURED}
        self._refused -= overruled - self._overruled
        self._overruled |= overruled
        self._facts = facts.without(self._refused)

    def vouches(self, checksum: str) -> bool:
        """Whether the store checked the bytes of an object that it gives this SHA-256 for."""
        fact = self.facts.part_sha256 if "-" in checksum else self.facts.put_sha256
        return fact is Seen.HONOURED

    async def say_what_is_missing(self) -> None:
        """Log what the store was seen to do without, once each, unless the settings know it."""
        row = (await self.provider())[1]
        facts, lacks = self.facts, (Seen.IGNORED, Seen.REFUSED)
        if row.sha256 and facts.put_sha256 in lacks and self._first("checksums"):
            log.warning("store.no_checksums", bucket=self.bucket)
        if row.conditions and facts.put_condition in lacks and self._first("conditions"):
            log.warning("store.no_conditional_writes", bucket=self.bucket)
        unproven = [
            name
            for name, proofs in (
                ("put", (facts.put_sha256, facts.put_md5)),
                ("part", (facts.part_sha256, facts.part_md5)),
            )
            if all(seen in lacks for seen in proofs)
        ]
        if unproven and self._first("proofs"):
            log.warning("store.unproven", bucket=self.bucket, operations=unproven)

    def _first(self, what: str) -> bool:
        first = what not in self._said
        self._said.add(what)
        return first

    async def _learn(self, extra: _Extra) -> None:
        """Note that a request succeeded once it came without this."""
        self._refused.add(extra.fact)
        self._facts = self._facts.without(self._refused)
        self.surprise.set()
        await self.say_what_is_missing()

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
        progress: Callable[[], None] = nothing,
    ) -> Outcome:
        """Store an object whose SHA-256 digest is ``sha256``.

        With ``create_only`` an object that is there already is left alone where the store can
        (:attr:`Outcome.EXISTS`), and replaced where it cannot.
        """
        row, facts = (await self.provider())[1], self.facts
        proof = best(sha256=facts.put_sha256, md5=facts.put_md5, spared=not row.sha256)
        params = self._described(key, content_type, disposition, metadata, options)
        extras = [*self._condition("put_condition", row, create_only=create_only)]
        extras += await _proof("put", proof, body, sha256)
        answer, left = await self._try("put_object", params, body, extras, progress)
        if _conditional(left) and complaints.is_conflict(answer.complaint):
            return Outcome.EXISTS
        self._expect(answer, "put_object", key)
        proven = self._proven("put", left) and _agrees(answer, left, facts.put_etag)
        return Outcome.PROVEN if proven else Outcome.CREATED

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
        row, facts = (await self.provider())[1], self.facts
        asks = row.sha256 and facts.head_checksum is not Seen.REFUSED
        mode = _Extra(fact="head_checksum", word="checksum", params={"ChecksumMode": "ENABLED"})
        answer, _ = await self._try("head_object", self.wire.named(key), b"", [mode] * asks)
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
        answer = await self.wire.send("get_object", self.wire.named(key), most=max_bytes)
        if _is_missing(answer):
            return None
        self._expect(answer, "get_object", key)
        if len(answer.body) > max_bytes:
            raise StoreRefused(f"{key} is larger than {max_bytes} bytes")
        return answer.body

    async def digest(self, key: str, *, progress: Callable[[], None] = nothing) -> bytes | None:
        """The SHA-256 digest of an object, read back from the store; ``None`` if there is none.

        Takes as long as bytes arrive; ``progress`` is called as they do.
        """
        request = await self.wire.sign("get_object", self.wire.named(key))
        digest = hashlib.sha256()
        try:
            async with self.wire.opened(request, stall=self.wire.deadline) as response:
                if response.status != HTTPStatus.OK:
                    answer = await wire.read(response)
                    if _is_missing(answer):
                        return None
                    raise self.error(answer.complaint, "get_object", key)
                while piece := await read_some(response):
                    digest.update(piece)
                    progress()
        except BROKEN as exc:
            raise wire.unavailable(exc) from exc
        return digest.digest()

    async def presign_get(self, key: str, *, expires: int, filename: str = "") -> str:
        """A URL that anybody can fetch an object from for ``expires`` seconds.

        With ``filename`` a browser saves it under that name.
        """
        params = self.wire.named(key)
        if filename:
            params["ResponseContentDisposition"] = disposition("", filename)
        return (await self.wire.sign("get_object", params, expires)).url

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
        row, facts = (await self.provider())[1], self.facts
        proof = best(sha256=facts.part_sha256, md5=facts.part_md5, spared=not row.part_sha256)
        params = self._described(key, content_type, disposition, metadata, options)
        algorithm = _Extra(
            fact="part_sha256", word="checksum", params={"ChecksumAlgorithm": "SHA256"}
        )
        extras = [algorithm] * (proof is Proof.SHA256)
        call = "create_multipart_upload"
        answer, left = await self._try(call, params, b"", extras)
        self._expect(answer, call, key)
        found = await self.wire.parse(call, answer)
        if not found.get("UploadId"):
            raise StoreUnavailable(f"the store opens no upload for {key}")
        return Upload(key=key, id=found["UploadId"], checksums=bool(left))

    async def upload_part(
        self,
        upload: Upload,
        number: int,
        body: Buffer,
        *,
        sha256: bytes,
        progress: Callable[[], None] = nothing,
    ) -> Part:
        """Send part ``number`` (from 1), whose SHA-256 digest is ``sha256``."""
        facts = self.facts
        proof = Proof.MD5
        # what was refused at the first part is not tried with every other one
        if upload.checksums and facts.part_sha256 is not Seen.REFUSED:
            proof = Proof.SHA256
        elif facts.part_md5 is Seen.REFUSED:
            proof = Proof.NONE
        params = _of(self.wire, upload) | {"PartNumber": number}
        extras = await _proof("part", proof, body, sha256)
        answer, left = await self._try("upload_part", params, body, extras, progress)
        self._expect(answer, "upload_part", upload.key)
        etag = answer.headers.get("etag", "")
        if not etag:
            raise StoreUnavailable(f"the store did not confirm part {number} of {upload.key}")
        return Part(
            number=number,
            etag=etag,
            sha256=sha256,
            checksum=any(extra.fact == "part_sha256" for extra in left),
            proven=self._proven("part", left) and _agrees(answer, left, facts.part_etag),
        )

    async def complete(
        self, upload: Upload, parts: Sequence[Part], *, create_only: bool = True
    ) -> Outcome:
        """Make an object of the parts. ``create_only`` is as for :meth:`put`."""
        row, call = (await self.provider())[1], "complete_multipart_upload"
        extras = [*self._condition("complete_condition", row, create_only=create_only)]
        body = _listed(parts, checksums=False)
        if any(part.checksum for part in parts):
            extras.append(_Extra(fact="part_sha256", word="checksum", body=body))
            body = _listed(parts, checksums=True)
        answer, left = await self._try(call, _of(self.wire, upload), body, extras)
        if _conditional(left) and complaints.is_conflict(answer.complaint):
            return Outcome.EXISTS
        self._expect(answer, call, upload.key)
        proven = bool(parts) and all(part.proven for part in parts)
        return Outcome.PROVEN if proven else Outcome.CREATED

    async def abort(self, upload: Upload) -> None:
        """Throw an upload's parts away; one that is not open any more is left as it is."""
        call = "abort_multipart_upload"
        answer = await self.wire.send(call, _of(self.wire, upload))
        if answer.status != HTTPStatus.NOT_FOUND:
            self._expect(answer, call, upload.key)

    async def list_uploads(self, prefix: str) -> list[Upload]:
        """The open uploads of all keys that begin with ``prefix``.

        Some stores list those of a key only if ``prefix`` is that key.
        """
        uploads: list[Upload] = []
        async for entry in pages.uploads(self._page, self.wire.bucket, prefix):
            if entry["Key"].startswith(prefix):
                uploads.append(Upload(key=entry["Key"], id=entry["UploadId"]))
        return uploads

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """The keys of all objects below ``prefix``, in order.

        Raises :class:`StoreRefused` if the store does not go on with a list that it has begun.
        """
        async for entry in pages.objects(self._page, self.wire.bucket, prefix):
            yield entry["Key"]

    async def _page(self, call: str, params: Mapping[str, Any]) -> dict[str, Any]:
        answer = await self.wire.send(call, params)
        if call == "list_multipart_uploads" and _is_missing(answer) and answer.status == 404:
            return {}  # what some say of a bucket without any
        self._expect(answer, call, params["Prefix"])
        if call != "list_multipart_uploads" and b"ListBucketResult" not in answer.body[:1000]:
            raise StoreUnavailable(f"the store's answer to {call} is not a list")
        return await self.wire.parse(call, answer)

    # -- requests -----------------------------------------------------------------------------

    def _described(
        self,
        key: str,
        content_type: str,
        disposition: str,
        metadata: Mapping[str, str] | None,
        options: Mapping[str, str] | None,
    ) -> dict[str, Any]:
        params = self.wire.named(key) | {
            "ContentType": content_type,
            "Metadata": dict(metadata or {}),
        }
        if disposition:
            params["ContentDisposition"] = disposition
        return params | self.options | dict(options or {})

    def _condition(self, fact: str, row: Provider, *, create_only: bool) -> Iterable[_Extra]:
        known = getattr(self.facts, fact)
        spared = not row.conditions and known is not Seen.HONOURED
        if create_only and not spared and known is not Seen.REFUSED:
            yield _Extra(fact=fact, word="if-none-match", params={"IfNoneMatch": "*"})

    def _proven(self, operation: str, extras: Sequence[_Extra]) -> bool:
        """Whether the store checks what these extras prove."""
        facts = self.facts
        return any(
            extra.fact.startswith((f"{operation}_sha256", f"{operation}_md5"))
            and getattr(facts, extra.fact) is Seen.HONOURED
            for extra in extras
        )

    async def _try(
        self,
        call: str,
        params: Mapping[str, Any],
        body: Buffer,
        extras: Sequence[_Extra],
        progress: Callable[[], None] = nothing,
    ) -> tuple[Answer, Sequence[_Extra]]:
        """The answer to a request with these extras, or with fewer; and those that it came with.

        An extra is left out after a refusal that may be of it, the one first that the complaint
        names. Only one whose absence made the request succeed is known to be refused.
        """
        first = answer = await self._attempt(call, params, body, extras, progress)
        left = list(extras)
        while left and self._may_blame(left, answer, call):
            message = answer.complaint.message.lower()
            dropped = next((extra for extra in left if extra.word in message), left[0])
            left.remove(dropped)
            if (
                dropped.fact.endswith("_sha256")
                and dropped.params
                and call != ("create_multipart_upload")
            ):
                left += await _proof(dropped.fact.partition("_")[0], Proof.MD5, body, b"")
            if dropped.body is not None:
                body = dropped.body
            answer = await self._attempt(call, params, body, left, progress)
            conflict = _conditional(left) and complaints.is_conflict(answer.complaint)
            if answer.well(call) or conflict:
                await self._learn(dropped)
                return answer, left
        # where nothing helped, the first complaint says most
        return (first, extras) if self._may_blame(extras, answer, call) else (answer, left)

    def _may_blame(self, extras: Sequence[_Extra], answer: Answer, call: str) -> bool:
        """Whether a request may have failed for one of these extras."""
        if answer.well(call):
            return False
        # some fail over an element that they do not know, as they would if they were out of order
        untried = self.facts.part_sha256 is Seen.UNKNOWN and any(e.body is not None for e in extras)
        return complaints.may_be_unknown(answer.complaint) or (answer.status >= 500 and untried)

    async def _attempt(
        self,
        call: str,
        params: Mapping[str, Any],
        body: Buffer,
        extras: Sequence[_Extra],
        progress: Callable[[], None],
    ) -> Answer:
        more = {name: value for extra in extras for name, value in extra.params.items()}
        return await self.wire.send(call, {**params, **more}, body, progress=progress)

    # -- errors -------------------------------------------------------------------------------

    def _expect(self, answer: Answer, call: str, key: str) -> None:
        """Raise unless the request succeeded."""
        if not answer.well(call):
            raise self.error(answer.complaint, call, key)
        if call in complaints.WRITES:
            self._wrote_at[call] = self._clock()

    def error(self, complaint: Complaint, call: str, key: str) -> StoreError:
        """The error that a complaint comes out as."""
        since = self._clock() - _TRUST_SECONDS
        lately = {name for name, at in self._wrote_at.items() if at > since}
        verdict, about = complaints.judge(
            complaint,
            call,
            takes_writes=bool(lately),
            takes_these=call in lately,
            options=bool(self.options),
        )
        text = f"{call} {key}: {complaint}"
        match verdict:
            case complaints.Verdict.BLOCKED:
                self.wire.forget()  # keys may have been replaced
                return StoreBlocked(text, about=about)
            case complaints.Verdict.UNAVAILABLE:
                return StoreUnavailable(text)
            case complaints.Verdict.REFUSED:
                return StoreRefused(text)


def composite_checksum(parts: Sequence[Part]) -> str:
    """The checksum that S3 gives an object made of parts: that of their digests, and their number.

    Source: Amazon S3, "Checking object integrity", composite checksums.
    """
    digest = hashlib.sha256(b"".join(part.sha256 for part in parts)).digest()
    return f"{base64.b64encode(digest).decode()}-{len(parts)}"


def _of(wire: Wire, upload: Upload) -> dict[str, Any]:
    return wire.named(upload.key) | {"UploadId": upload.id}


def _conditional(extras: Iterable[_Extra]) -> bool:
    return any("IfNoneMatch" in extra.params for extra in extras)


async def _proof(operation: str, proof: Proof, body: Buffer, sha256: bytes) -> list[_Extra]:
    """What lets the store check a body: its SHA-256, or its MD5, or nothing."""
    match proof:
        case Proof.SHA256:
            params = {"ChecksumSHA256": base64.b64encode(sha256).decode()}
            return [_Extra(fact=f"{operation}_sha256", word="checksum", params=params)]
        case Proof.MD5:
            digest = await asyncio.to_thread(md5, body)
            params = {"ContentMD5": base64.b64encode(digest).decode()}
            return [_Extra(fact=f"{operation}_md5", word="content-md5", params=params)]
        case Proof.NONE:
            return []


def md5(body: Buffer) -> bytes:
    """The MD5 digest, which is no secret of anything."""
    return hashlib.md5(body, usedforsecurity=False).digest()


def is_md5(etag: str, digest: bytes) -> bool:
    """Whether an ETag is this MD5, in whatever case and with quotes or without."""
    found = _PLAIN_MD5.fullmatch(etag.strip())
    return found is not None and found[1].lower() == digest.hex()


def _agrees(answer: Answer, extras: Iterable[_Extra], etag: Seen) -> bool:
    """Whether the ETag says nothing against the bytes, where it is their MD5 in this store."""
    sent = next((e.params["ContentMD5"] for e in extras if "ContentMD5" in e.params), None)
    if sent is None or etag is not Seen.HONOURED:
        return True
    return is_md5(answer.headers.get("etag", ""), base64.b64decode(sent))


def _listed(parts: Sequence[Part], *, checksums: bool) -> bytes:
    """The body of CompleteMultipartUpload."""
    listed = "".join(_part_xml(part, checksum=checksums and part.checksum) for part in parts)
    return f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()


def _part_xml(part: Part, *, checksum: bool) -> str:
    fields = f"<PartNumber>{part.number}</PartNumber><ETag>{escape(part.etag)}</ETag>"
    if checksum:
        fields += f"<ChecksumSHA256>{base64.b64encode(part.sha256).decode()}</ChecksumSHA256>"
    return f"<Part>{fields}</Part>"


def _is_missing(answer: Answer) -> bool:
    code = answer.complaint.code
    if answer.status == HTTPStatus.NOT_FOUND:
        return code != "NoSuchBucket"
    return answer.status == HTTPStatus.FORBIDDEN and code == "AccessDenied"
