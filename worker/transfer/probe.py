"""The probe: it finds out what a store can do from what it refuses.

It writes one small object, always the same bytes under the same key, so that any number of probes
may run at once and nothing has to be deleted. A check of bytes is proven only if the store refused
a wrong digest as such and accepted the right one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import time
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from worker.errors import StoreBlocked, StoreError, StoreRefused, StoreUnavailable
from worker.transfer import complaints
from worker.transfer.attempts import ALGORITHM, is_md5, md5
from worker.transfer.capabilities import Facts, Seen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from worker.core.providers import Addressing
    from worker.transfer.store import ObjectStore
    from worker.transfer.wire import Answer

KEY = ".doctor/probe"
"""The object's key below ``HARVESTER_PREFIX``."""

SECONDS = 30.0
"""Seconds that a probe may take; facts not seen by then are unknown."""

_BODY = b"What harvester writes to see what this store checks.\n"
_ABORT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The result of a probe; ``clock_skew`` is how far the store's clock is ahead, in seconds."""

    provider: str
    addressing: Addressing
    endpoint: str
    facts: Facts
    clock_skew: float | None


def _encoded(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


_RIGHT_MD5 = {"ContentMD5": _encoded(md5(_BODY))}
_WRONG_MD5 = {"ContentMD5": _encoded(md5(_BODY + b"!"))}
_RIGHT_SHA256 = {"ChecksumSHA256": _encoded(hashlib.sha256(_BODY).digest())}
_WRONG_SHA256 = {"ChecksumSHA256": _encoded(hashlib.sha256(_BODY + b"!").digest())}
_CONDITION = {"IfNoneMatch": "*"}


async def probe(store: ObjectStore, prefix: str, *, seconds: float = SECONDS) -> Capabilities:
    """Try what the fleet needs with one object below ``prefix``, and set ``store.facts``.

    Raises the errors of the store if an object cannot be written and read back at all.
    """
    look = _Look(store, prefix + KEY)
    try:
        async with asyncio.timeout(seconds):
            await look.baseline()
            for step in (look.proofs, look.reading, look.condition, look.uploads):
                await step()
    except TimeoutError:
        if not look.works:
            raise StoreUnavailable("the store does not answer: no answer in time") from None
    store.facts = look.facts
    await store.log_what_is_missing()
    name, row = await store.provider()
    return Capabilities(
        provider=name,
        addressing=row.addressing,
        endpoint=await store.endpoint(),
        facts=look.facts,
        clock_skew=look.skew,
    )


async def takes_objects(store: ObjectStore, prefix: str) -> None:
    """Write the object of the probe.

    Raises the errors of the store; :class:`StoreBlocked` if it refuses this object too.
    """
    digest = hashlib.sha256(_BODY).digest()
    try:
        await store.put(
            prefix + KEY, _BODY, content_type="text/plain", sha256=digest, create_only=False
        )
    except StoreRefused as error:
        raise StoreBlocked(f"the store takes no object: {error}", about="credentials") from error


class _Look:
    """One probe: each step adds to ``facts``."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self.facts = Facts()
        self.works = False
        self.skew: float | None = None
        self._store = store
        self._key = key
        self._plain: dict[str, str] = {}

    async def _ask(self, call: str, params: Mapping[str, Any], body: bytes = b"") -> Answer | None:
        """The answer; ``None`` if none came."""
        wire = self._store.wire
        try:
            return await wire.send(call, {**wire.named(self._key), **params}, body)
        except StoreUnavailable:
            return None

    async def _put(self, params: Mapping[str, str], *, options: bool = True) -> Answer | None:
        described = {"ContentType": "text/plain", **(self._store.options if options else {})}
        return await self._ask("put_object", {**described, **params}, _BODY)

    async def _surely(
        self,
        ask: Callable[[Mapping[str, str]], Awaitable[Answer | None]],
        params: Mapping[str, str],
    ) -> Answer | None:
        """The answer to a request with a feature.

        A failure counts as a refusal if it comes twice, and not without the feature.
        """
        answer = await ask(params)
        if answer is None or not complaints.may_fail(answer.complaint):
            return answer
        again, without = await ask(params), await ask({})
        fails = again is not None and complaints.may_fail(again.complaint)
        if fails and without is not None and 200 <= without.status < 300:
            return replace(answer, status=501, body=b"")
        return again

    async def baseline(self) -> None:
        """Write an object and read it back: with its MD5, or without any proof."""
        call = "put_object"
        answer = await self._store.wire.send(
            call,
            self._store.wire.named(self._key)
            | {"ContentType": "text/plain", **self._store.options, **_RIGHT_MD5},
            _BODY,
        )
        if not answer.well(call):
            self._note(put_md5=_check(call, False, answer))
            refused = self.facts.put_md5 is Seen.REFUSED or complaints.may_fail(answer.complaint)
            if not refused or not _taken(call, await self._put({})):
                await self._blame(answer)
        if await self._store.get(self._key, max_bytes=len(_BODY)) != _BODY:
            raise StoreUnavailable("an object does not read back as it was written")
        self._plain = _RIGHT_MD5 if answer.well(call) else {}
        self.skew = _skew(answer)
        self.works = True

    async def _blame(self, answer: Answer) -> None:
        """Raise the error of a plain PUT; blame the options if it succeeds without them."""
        error = self._store.error(answer.complaint, "put_object", self._key)
        if self._store.options and not isinstance(error, StoreUnavailable):
            without = await self._put({}, options=False)
            if without is not None and without.well("put_object"):
                raise StoreBlocked(str(error), about="options")
        raise error

    async def proofs(self) -> None:
        """Find out whether the store refuses damaged bytes."""
        call = "put_object"
        if self._plain:
            self._note(put_md5=_check(call, True, await self._put(_WRONG_MD5)))
        right = await self._surely(self._put, _RIGHT_SHA256)
        taken = _taken(call, right)
        wrong = await self._put(_WRONG_SHA256) if taken else right
        self._note(put_sha256=_check(call, taken, wrong))
        # without Content-MD5, which a store could just return
        bare = await self._put({})
        if bare is not None and bare.well(call):
            self._note(put_etag=_etag(bare))

    async def reading(self) -> None:
        """Find out whether the store returns checksums."""
        sent = _taken("put_object", await self._put(_RIGHT_SHA256))
        call = "head_object"
        answer = await self._ask(call, {"ChecksumMode": "ENABLED"})
        if answer is not None and answer.well(call):
            given = answer.headers.get("x-amz-checksum-sha256")
            kept = given == _RIGHT_SHA256["ChecksumSHA256"]
            if sent or self.facts.put_sha256 is Seen.REFUSED:
                self._note(head_checksum=Seen.HONOURED if kept else Seen.IGNORED)
            return
        bare = None if answer is None else await self._ask(call, {})
        # if the store knows no HEAD, or forbids it, objects are checked by GET
        if bare is not None and (bare.well(call) or complaints.hides(bare.complaint)):
            self._note(head_checksum=Seen.REFUSED)

    async def condition(self) -> None:
        """Find out whether a conditional PUT overwrites an existing object."""
        answer = await self._surely(self._put, {**self._plain, **_CONDITION})
        self._note(put_condition=_condition("put_object", answer))

    async def uploads(self) -> None:
        """Find out the same about parts and completions, and whether open uploads are listed."""
        await self._parts_by_sha256()
        await self._parts_by_md5()

    async def _parts_by_sha256(self) -> None:
        async with self._upload(ALGORITHM.params) as (upload, complaint):
            if complaint is not None or not upload:
                seen = complaint is not None and complaints.may_be_unknown(complaint)
                self._note(part_sha256=Seen.REFUSED if seen else Seen.UNKNOWN)
                return
            right = await self._surely(partial(self._part, upload), _RIGHT_SHA256)
            taken = _taken("upload_part", right)
            wrong = await self._wrong_part(_WRONG_SHA256, ALGORITHM.params) if taken else right
            checked = _check("upload_part", taken, wrong)
            if not taken or right is None:
                self._note(part_sha256=checked)
                return
            etag = right.headers.get("etag", "")
            done = await self._complete(upload, etag, sha256=_RIGHT_SHA256["ChecksumSHA256"])
            if _taken("complete_multipart_upload", done):
                self._note(part_sha256=checked)
            elif _taken("complete_multipart_upload", await self._complete(upload, etag)):
                self._note(part_sha256=Seen.REFUSED)

    async def _parts_by_md5(self) -> None:
        async with self._upload({}) as (upload, _):
            if not upload:
                return
            right = await self._surely(partial(self._part, upload), _RIGHT_MD5)
            taken = _taken("upload_part", right)
            wrong = await self._wrong_part(_WRONG_MD5, {}) if taken else right
            self._note(part_md5=_check("upload_part", taken, wrong))
            bare = await self._part(upload, {})
            if bare is None or not bare.well("upload_part"):
                return
            self._note(part_etag=_etag(bare))
            await self._listing(upload)
            etag = bare.headers.get("etag", "")
            answer = await self._surely(partial(self._complete, upload, etag), _CONDITION)
            self._note(complete_condition=_condition("complete_multipart_upload", answer))

    async def _wrong_part(self, proof: Mapping[str, str], more: Mapping[str, str]) -> Answer | None:
        """The answer to a part with a wrong digest, in its own upload, which the store may end."""
        async with self._upload(more) as (upload, _):
            return await self._part(upload, proof) if upload else None

    async def _listing(self, upload: str) -> None:
        try:
            uploads = await self._store.list_uploads(self._key)
        except StoreUnavailable:
            return
        except StoreError:
            self._note(listing=Seen.REFUSED)
            return
        listed = any(each.id == upload for each in uploads)
        self._note(listing=Seen.HONOURED if listed else Seen.IGNORED)

    @contextlib.asynccontextmanager
    async def _upload(
        self, more: Mapping[str, str]
    ) -> AsyncIterator[tuple[str, complaints.Complaint | None]]:
        """The id of an upload that is aborted afterwards, or a complaint, or neither."""
        call = "create_multipart_upload"
        answer = await self._ask(call, {"ContentType": "text/plain", **self._store.options, **more})
        if answer is None or not answer.well(call):
            yield "", None if answer is None else answer.complaint
            return
        upload = ""
        with contextlib.suppress(StoreError):
            upload = (await self._store.wire.parse(call, answer)).get("UploadId", "")
        try:
            yield upload, None
        finally:
            if upload:
                abort = asyncio.create_task(
                    self._ask("abort_multipart_upload", {"UploadId": upload})
                )
                await asyncio.wait([abort], timeout=_ABORT_SECONDS)
                abort.cancel()

    async def _part(self, upload: str, proof: Mapping[str, str]) -> Answer | None:
        return await self._ask("upload_part", {"UploadId": upload, "PartNumber": 1, **proof}, _BODY)

    async def _complete(
        self, upload: str, etag: str, condition: Mapping[str, str] | None = None, sha256: str = ""
    ) -> Answer | None:
        part = f"<PartNumber>1</PartNumber><ETag>{escape(etag)}</ETag>"
        if sha256:
            part += f"<ChecksumSHA256>{sha256}</ChecksumSHA256>"
        body = f"<CompleteMultipartUpload><Part>{part}</Part></CompleteMultipartUpload>"
        params = {"UploadId": upload, **(condition or {})}
        return await self._ask("complete_multipart_upload", params, body.encode())

    def _note(self, **seen: Seen) -> None:
        self.facts = replace(self.facts, **seen)


def _taken(call: str, answer: Answer | None) -> bool:
    return answer is not None and answer.well(call)


def _check(call: str, right_was_taken: bool, answer: Answer | None) -> Seen:
    """What an answer to a wrong digest proves, or to the right one if that was refused."""
    if answer is None:
        return Seen.UNKNOWN
    complaint = answer.complaint
    if not right_was_taken:
        unknown = complaints.may_be_unknown(complaint) or complaints.is_bad_digest(complaint)
        return Seen.REFUSED if unknown else Seen.UNKNOWN
    if answer.well(call):
        return Seen.IGNORED
    return Seen.HONOURED if complaints.is_bad_digest(complaint) else Seen.UNKNOWN


def _condition(call: str, answer: Answer | None) -> Seen:
    """What an answer to a conditional write over an existing object proves."""
    if answer is None:
        return Seen.UNKNOWN
    if answer.well(call):
        return Seen.IGNORED
    if complaints.is_there(answer.complaint):
        return Seen.HONOURED
    return Seen.REFUSED if complaints.may_be_unknown(answer.complaint) else Seen.UNKNOWN


def _etag(answer: Answer) -> Seen:
    plain = is_md5(answer.headers.get("etag", ""), md5(_BODY))
    return Seen.HONOURED if plain else Seen.IGNORED


def _skew(answer: Answer) -> float | None:
    try:
        return parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()
    except (KeyError, ValueError):
        return None
