"""The bucket, verb by verb.

Requests let the store check their bytes and keep it from overwriting objects. A store may refuse a
feature that it does not know: the request is then repeated once without it, and if that succeeds,
the store is known to refuse the feature.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp

from worker.errors import StoreBlocked, StoreError, StoreRefused, StoreUnavailable
from worker.http import BROKEN, read_some
from worker.transfer import complaints, pages, wire
from worker.transfer.attempts import ALGORITHM, MODE, Attempts, Extra, exists, proof_of
from worker.transfer.capabilities import Facts, Proof, Seen, best
from worker.transfer.objects import Part, StoredObject, Upload, Written, listed
from worker.transfer.sniff import disposition
from worker.transfer.wire import Answer, Buffer, Wire, nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from worker.core.providers import Provider
    from worker.reach import Reach
    from worker.transfer.complaints import Complaint

_TRUST_SECONDS = 600.0
_LEAST_RATE = 64 * 1024  # bytes a second at which an object is read back, at least
_METADATA = "x-amz-meta-"
_CHECKSUM = "x-amz-checksum-sha256"
_LISTS = {
    "list_objects": b"ListBucketResult",
    "list_objects_v2": b"ListBucketResult",
    "list_multipart_uploads": b"ListMultipartUploadsResult",
}


class ObjectStore:
    """One bucket.

    ``put_options`` are boto3 parameters for every object. No request takes longer than ``deadline``
    seconds, except for :meth:`digest`. ``reach`` is told of each answer. ``facts`` are set by the
    probe, or read from the fleet's; :meth:`surprise` is set when a request reveals a new one. Every
    method may raise

    - :class:`StoreBlocked`: credentials, clock, region, address, options or bucket are wrong; no
      object is to blame;
    - :class:`StoreUnavailable`: the store failed, timed out, or is out of reach;
    - :class:`StoreRefused`: the store accepts other objects, but not this one.
    """

    def __init__(
        self,
        bucket: str,
        *,
        storage: str = "auto",
        presign_endpoint: str = "",
        put_options: Mapping[str, str] | None = None,
        deadline: float = wire.DEADLINE,
        reach: Reach | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bucket = bucket
        self.wire = Wire(
            bucket,
            storage=storage,
            presign_endpoint=presign_endpoint,
            deadline=deadline,
            reach=reach,
        )
        self.options = dict(put_options or {})
        self._attempts = Attempts(self.wire)
        self._clock = clock
        self._wrote_at: dict[str, float] = {}

    async def close(self) -> None:
        """Close all connections."""
        await self.wire.close()

    async def ready(self) -> None:
        """Find credentials and endpoint, unless they are known."""
        await self.wire.ready()

    async def endpoint(self) -> str:
        """The address of the store, as boto3 finds it."""
        return str((await self.wire.ready()).boto.meta.endpoint_url)

    async def provider(self) -> tuple[str, Provider]:
        """The name and the row of the provider in use."""
        signer = await self.wire.ready()
        return signer.provider_name, signer.provider

    # -- what the store can do ----------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """The facts about the store."""
        return self._attempts.facts

    @facts.setter
    def facts(self, facts: Facts) -> None:
        self._attempts.facts = facts

    @property
    def surprise(self) -> asyncio.Event:
        """Set when a request reveals a new fact."""
        return self._attempts.surprise

    def vouches(self, checksum: str) -> bool:
        """Whether the store checks the bytes of objects for which it returns such a SHA-256."""
        fact = self.facts.part_sha256 if "-" in checksum else self.facts.put_sha256
        return fact is Seen.HONOURED

    async def agrees(self, given: str | None, checksum: str) -> bool:
        """Whether the store would give this checksum for an object that has ``checksum``.

        A store that no longer returns what it returned to the probe was replaced or has changed.
        """
        if given is not None:
            return given == checksum
        row, facts = (await self.provider())[1], self.facts
        kept = facts.put_sha256 is Seen.HONOURED and facts.head_checksum is Seen.HONOURED
        if "-" in checksum or not row.sha256 or not kept:
            return True
        self.surprise.set()
        return False

    async def log_what_is_missing(self) -> None:
        """Log the features that the store lacks, once each, unless its row already says so."""
        await self._attempts.log_what_is_missing()

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
    ) -> Written:
        """Store an object whose SHA-256 digest is ``sha256``.

        With ``create_only``, an existing object is kept if the store knows conditional writes
        (:attr:`Written.EXISTS`), else replaced.
        """
        row, facts = (await self.provider())[1], self.facts
        proof = best(sha256=facts.put_sha256, md5=facts.put_md5, spared=not row.sha256)
        params = self._described(key, content_type, disposition, metadata, options)
        extras = self._attempts.condition("put", row) if create_only else []
        extras += await proof_of("put", proof, body, sha256)
        answer, left = await self._attempts.make("put_object", params, body, extras, progress)
        if exists(answer, left):
            self._heard("put_object")
            return Written.EXISTS
        self._expect(answer, "put_object", key)
        proven = self._attempts.proven("put", answer, left)
        return Written.PROVEN if proven else Written.CREATED

    async def put_document(self, key: str, body: bytes, *, task_id: str) -> None:
        """Store a JSON document, replacing any existing one."""
        await self.put(
            key,
            body,
            content_type="application/json",
            sha256=hashlib.sha256(body).digest(),
            metadata={"task-id": task_id},
            create_only=False,
        )

    async def head(self, key: str) -> StoredObject | None:
        """The store's description of an object; ``None`` if there is none."""
        row, facts = (await self.provider())[1], self.facts
        asks = row.sha256 and facts.head_checksum is not Seen.REFUSED
        extras = [MODE] if asks else []
        answer, size = await self._attempted_head(key, extras), None
        checksum = None if answer is None else answer.headers.get(_CHECKSUM)
        if answer is not None and answer.status != HTTPStatus.NOT_FOUND:
            size = _number(answer.headers.get("content-length", ""))
        if answer is None or (answer.well("head_object") and size is None):
            answer = await self.wire.send(
                "get_object", {**self.wire.named(key), "Range": "bytes=0-0"}, most=1
            )
            size = _whole(answer)
        if answer.status == HTTPStatus.NOT_FOUND and _is_missing(answer):
            self._heard("head_object")
            return None
        if size is None or answer.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._expect(answer, "head_object", key)
        if size is None:
            raise StoreUnavailable(f"the store does not say how large {key} is")
        headers = answer.headers  # read directly: botocore's parser costs as much as the request
        return StoredObject(
            bytes=size,
            content_type=headers.get("content-type", ""),
            metadata={
                name[len(_METADATA) :].lower(): value
                for name, value in headers.items()
                if name.lower().startswith(_METADATA)
            },
            etag=headers.get("etag", ""),
            checksum=headers.get(_CHECKSUM, checksum),
        )

    async def _attempted_head(self, key: str, extras: Sequence[Extra]) -> Answer | None:
        """The answer to a HEAD; ``None`` if a GET is needed instead.

        A refused HEAD has no body, so its reason is unknown. Some stores know no HEAD or forbid it,
        and Swift sends a body with a 404 to HEAD, which no client can read.
        """
        call = "head_object"
        try:
            answer, _ = await self._attempts.make(call, self.wire.named(key), b"", extras)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, aiohttp.ClientResponseError):
                return None
            raise
        return None if complaints.hides(answer.complaint) else answer

    async def get(self, key: str, max_bytes: int) -> bytes | None:
        """The bytes of an object; ``None`` if it is missing, or may not be read.

        Without permission to list a bucket, S3 denies access to missing objects. Raises
        :class:`StoreRefused` for an object larger than ``max_bytes``.
        """
        answer = await self.wire.send("get_object", self.wire.named(key), most=max_bytes)
        if _is_missing(answer):
            if answer.status == HTTPStatus.NOT_FOUND:  # a denial may concern all objects
                self._heard("get_object")
            return None
        self._expect(answer, "get_object", key)
        if len(answer.body) > max_bytes:
            raise StoreRefused(f"{key} is larger than {max_bytes} bytes")
        return answer.body

    async def digest(self, key: str, *, progress: Callable[[], None] = nothing) -> bytes | None:
        """The SHA-256 digest of an object, read back from the store; ``None`` if there is none.

        May take as long as the bytes come at 64 KiB a second or more; ``progress`` is called as
        they come.
        """
        request = await self.wire.sign("get_object", self.wire.named(key))
        digest = hashlib.sha256()
        try:
            async with (
                self.wire.opened(request, stall=self.wire.deadline) as response,
                asyncio.timeout(self.wire.deadline + (response.content_length or 0) / _LEAST_RATE),
            ):
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
        """A URL from which anyone can fetch an object for ``expires`` seconds.

        It uses the address at which people reach the store. With ``filename``, browsers save the
        object under that name.
        """
        params = self.wire.named(key)
        if filename:
            params["ResponseContentDisposition"] = disposition("", filename)
        return await self.wire.presign("get_object", params, expires)

    async def presign_files(
        self, files: Sequence[Mapping[str, Any]], *, expires: int
    ) -> list[dict[str, str]]:
        """A URL for each stored file of a record: ``name``, ``content_type`` and ``url``."""
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
        extras = [ALGORITHM] if proof is Proof.SHA256 else []
        call = "create_multipart_upload"
        answer, left = await self._attempts.make(call, params, b"", extras)
        self._expect(answer, call, key)
        members = await self.wire.parse(call, answer)
        if not members.get("UploadId"):
            raise StoreUnavailable(f"the store opens no upload for {key}")
        return Upload(key=key, id=members["UploadId"], checksums=bool(left))

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
        # a proof refused for the first part is not tried for the others
        if upload.checksums and facts.part_sha256 is not Seen.REFUSED:
            proof = Proof.SHA256
        elif facts.part_md5 is Seen.REFUSED:
            proof = Proof.NONE
        params = _of(self.wire, upload) | {"PartNumber": number}
        extras = await proof_of("part", proof, body, sha256)
        answer, left = await self._attempts.make("upload_part", params, body, extras, progress)
        self._expect(answer, "upload_part", upload.key)
        etag = answer.headers.get("etag", "")
        if not etag:
            raise StoreUnavailable(f"the store did not confirm part {number} of {upload.key}")
        return Part(
            number=number,
            etag=etag,
            sha256=sha256,
            checksum=any(extra.fact == "part_sha256" for extra in left),
            proven=self._attempts.proven("part", answer, left),
        )

    async def complete(
        self, upload: Upload, parts: Sequence[Part], *, create_only: bool = True
    ) -> Written:
        """Make an object of the parts. ``create_only`` is as for :meth:`put`."""
        row, call = (await self.provider())[1], "complete_multipart_upload"
        extras = self._attempts.condition("complete", row) if create_only else []
        body = listed(parts, checksums=False)
        if any(part.checksum for part in parts):
            extras.append(Extra(fact="part_sha256", word="checksum", body=body))
            body = listed(parts, checksums=True)
        answer, left = await self._attempts.make(call, _of(self.wire, upload), body, extras)
        if exists(answer, left):
            self._heard(call)
            return Written.EXISTS
        self._expect(answer, call, upload.key)
        done = b"CompleteMultipartUploadResult" in answer.body  # and not blanks, or a proxy's page
        proven = done and bool(parts) and all(part.proven for part in parts)
        return Written.PROVEN if proven else Written.CREATED

    async def abort(self, upload: Upload) -> None:
        """Abort an upload and delete its parts; does nothing if it is no longer open."""
        call = "abort_multipart_upload"
        answer = await self.wire.send(call, _of(self.wire, upload))
        if answer.status != HTTPStatus.NOT_FOUND:
            self._expect(answer, call, upload.key)

    async def list_uploads(self, prefix: str) -> list[Upload]:
        """The open uploads of all keys that begin with ``prefix``.

        Some stores list the uploads of a key only if ``prefix`` is exactly that key.
        """
        uploads: list[Upload] = []
        async for entry in pages.uploads(self._page, self.wire.bucket, prefix):
            if entry["Key"].startswith(prefix):
                uploads.append(Upload(key=entry["Key"], id=entry["UploadId"]))
        return uploads

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys of all objects below ``prefix``, in the store's order.

        Raises :class:`StoreRefused` if the store does not continue its list.
        """
        async for entry in pages.objects(self._page, self.wire.bucket, prefix):
            yield entry["Key"]

    async def _page(self, call: str, params: Mapping[str, Any]) -> dict[str, Any]:
        answer = await self.wire.send(call, params)
        if call == "list_multipart_uploads" and _is_missing(answer) and answer.status == 404:
            return {}  # some stores answer so for a bucket without uploads
        self._expect(answer, call, params["Prefix"])
        is_list = _LISTS[call] in answer.body[:1000]
        try:
            page = await self.wire.parse(call, answer)
        except StoreUnavailable:
            if "EncodingType" in params or not is_list:
                raise
            # a key may hold a character that XML cannot
            return await self._page(call, {**params, "EncodingType": "url"})
        if not is_list:
            raise StoreUnavailable(f"the store's answer to {call} is not a list")
        return pages.decoded(page)

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

    # -- errors -------------------------------------------------------------------------------

    def _expect(self, answer: Answer, call: str, key: str) -> None:
        if not answer.well(call):
            raise self.error(answer.complaint, call, key)
        self._heard(call)
        if call in complaints.WRITES:
            self._wrote_at[call] = self._clock()

    def _heard(self, call: str) -> None:
        self.wire.reach.heard(wire.service_of(call))

    def error(self, complaint: Complaint, call: str, key: str) -> StoreError:
        """The error for a complaint."""
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
                self.wire.forget()  # credentials may have been replaced
                return StoreBlocked(text, about=about)
            case complaints.Verdict.UNAVAILABLE:
                if not complaints.is_bad_digest(complaint):  # it has read the bytes
                    self.wire.reach.failed(wire.service_of(call), text)
                return StoreUnavailable(text)
            case complaints.Verdict.REFUSED:
                return StoreRefused(text)


def _of(wire: Wire, upload: Upload) -> dict[str, Any]:
    return wire.named(upload.key) | {"UploadId": upload.id}


def _number(text: str) -> int | None:
    """The number in a header, if it can be an object's size."""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _whole(answer: Answer) -> int | None:
    """The size of an object, from the answer to a request for its first byte."""
    if answer.status == HTTPStatus.OK:
        return _number(answer.headers.get("content-length", ""))
    return _number(answer.headers.get("content-range", "").rpartition("/")[2])


def _is_missing(answer: Answer) -> bool:
    code = answer.complaint.code
    if answer.status == HTTPStatus.NOT_FOUND:
        return code != "NoSuchBucket"
    return answer.status == HTTPStatus.FORBIDDEN and code == "AccessDenied"
