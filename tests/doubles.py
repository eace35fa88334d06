"""Doubles of the bucket and the upstream, for tests of the works.

``tests/integration/test_doubles.py`` holds each to the real thing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from worker.core.models import Answer
from worker.core.providers import PROVIDERS, Provider
from worker.core.reply import read_reply
from worker.errors import (
    StoreRefused,
    StoreUnavailable,
    UpstreamBlocked,
    UpstreamRefused,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from worker.transfer.objects import Part, StoredObject, Upload, Written, composite_checksum
from worker.transfer.wire import Buffer

Act = Exception | Callable[[], Awaitable[object]]
"""What happens at some moment: an error is raised, or a function is awaited."""


async def _do(act: Act) -> None:
    if isinstance(act, Exception):
        raise act
    await act()


def _nothing() -> None:
    """Do nothing."""


@dataclass(kw_only=True)
class _Planned:
    call: str
    key: str
    act: Act
    after: bool
    skip: int
    times: int


@dataclass(kw_only=True)
class _Object:
    body: bytes
    content_type: str
    metadata: Mapping[str, str]
    checksum: str | None


@dataclass(kw_only=True)
class _Open:
    """An upload that is neither completed nor aborted."""

    upload: Upload
    content_type: str
    metadata: Mapping[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


class MemoryStore:
    """An ``ObjectStore`` in memory.

    ``log`` lists the calls that had an effect, as ``(method, key)``. ``checks``: whether it is
    known to refuse damaged bytes, which it does.
    """

    def __init__(self) -> None:
        self.objects: dict[str, _Object] = {}
        self.uploads: dict[str, _Open] = {}
        self.log: list[tuple[str, str]] = []
        self.checks = True
        self._planned: list[_Planned] = []
        self._opened = 0

    def on(
        self,
        call: str,
        act: Act,
        *,
        key: str = "*",
        after: bool = False,
        skip: int = 0,
        times: int = 1,
    ) -> None:
        """Have ``act`` happen at the next ``times`` calls that match, before or after their effect.

        ``call`` and ``key`` are globs; the first ``skip`` calls that match are let through.
        """
        self._planned.append(
            _Planned(call=call, key=key, act=act, after=after, skip=skip, times=times)
        )

    def relent(self) -> None:
        """Forget everything that was planned."""
        self._planned.clear()

    @contextlib.asynccontextmanager
    async def _effect(self, call: str, key: str) -> AsyncIterator[None]:
        due = []
        for planned in self._planned:
            if fnmatchcase(call, planned.call) and fnmatchcase(key, planned.key):
                if planned.skip:
                    planned.skip -= 1
                elif planned.times:
                    planned.times -= 1
                    due.append(planned)
        for planned in due:
            if not planned.after:
                await _do(planned.act)
        yield
        self.log.append((call, key))
        for planned in due:
            if planned.after:
                await _do(planned.act)

    async def ready(self) -> None:
        pass

    async def provider(self) -> tuple[str, Provider]:
        return "generic", PROVIDERS["generic"]

    def vouches(self, checksum: str) -> bool:
        return self.checks

    async def agrees(self, given: str | None, checksum: str) -> bool:
        return given in (None, checksum)

    @property
    def _created(self) -> Written:
        return Written.PROVEN if self.checks else Written.CREATED

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
    ) -> Written:
        async with self._effect("put", key):
            progress()
            self._check(body, sha256)
            if create_only and key in self.objects:
                return Written.EXISTS
            self.objects[key] = _Object(
                body=bytes(body),
                content_type=content_type,
                metadata=dict(metadata or {}),
                checksum=base64.b64encode(sha256).decode(),
            )
            return self._created

    async def put_document(self, key: str, body: bytes, *, task_id: str) -> None:
        async with self._effect("put_document", key):
            self.objects[key] = _Object(
                body=body,
                content_type="application/json",
                metadata={"task-id": task_id},
                checksum=base64.b64encode(_digest(body)).decode(),
            )

    async def head(self, key: str) -> StoredObject | None:
        async with self._effect("head", key):
            there = self.objects.get(key)
            if there is None:
                return None
            return StoredObject(
                bytes=len(there.body),
                content_type=there.content_type,
                metadata=there.metadata,
                etag=_etag(there.body),
                checksum=there.checksum,
            )

    async def get(self, key: str, max_bytes: int) -> bytes | None:
        async with self._effect("get", key):
            there = self.objects.get(key)
            if there is not None and len(there.body) > max_bytes:
                raise StoreRefused(f"{key} is larger than {max_bytes} bytes")
            return there and there.body

    async def digest(self, key: str, *, progress: Callable[[], None] = _nothing) -> bytes | None:
        async with self._effect("digest", key):
            there = self.objects.get(key)
            if there is None:
                return None
            progress()
            return _digest(there.body)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        async with self._effect("keys", prefix):
            found = sorted(key for key in self.objects if key.startswith(prefix))
        for key in found:
            yield key

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
        async with self._effect("create_upload", key):
            self._opened += 1
            upload = Upload(key=key, id=f"upload-{self._opened}", checksums=True)
            self.uploads[upload.id] = _Open(
                upload=upload, content_type=content_type, metadata=dict(metadata or {})
            )
            return upload

    async def upload_part(
        self,
        upload: Upload,
        number: int,
        body: Buffer,
        *,
        sha256: bytes,
        progress: Callable[[], None] = _nothing,
    ) -> Part:
        async with self._effect("upload_part", upload.key):
            progress()
            self._check(body, sha256)
            self._open(upload).parts[number] = bytes(body)
            return Part(
                number=number, etag=_etag(body), sha256=sha256, checksum=True, proven=self.checks
            )

    async def complete(
        self, upload: Upload, parts: Sequence[Part], *, create_only: bool = True
    ) -> Written:
        async with self._effect("complete", upload.key):
            opened = self._open(upload)
            if create_only and upload.key in self.objects:
                return Written.EXISTS
            for part in parts:
                if part.number not in opened.parts or part.etag != _etag(opened.parts[part.number]):
                    raise StoreUnavailable(f"complete {upload.key}: 400 InvalidPart")
            self.objects[upload.key] = _Object(
                body=b"".join(opened.parts[part.number] for part in parts),
                content_type=opened.content_type,
                metadata=opened.metadata,
                checksum=composite_checksum(parts) if upload.checksums else None,
            )
            del self.uploads[upload.id]
            return self._created

    async def abort(self, upload: Upload) -> None:
        async with self._effect("abort", upload.key):
            self.uploads.pop(upload.id, None)

    async def list_uploads(self, prefix: str) -> list[Upload]:
        async with self._effect("list_uploads", prefix):
            return [
                Upload(key=opened.upload.key, id=opened.upload.id)
                for opened in self.uploads.values()
                if opened.upload.key.startswith(prefix)
            ]

    def _open(self, upload: Upload) -> _Open:
        if upload.id not in self.uploads:
            raise StoreUnavailable(f"{upload.key}: 404 NoSuchUpload")
        return self.uploads[upload.id]

    @staticmethod
    def _check(body: Buffer, sha256: bytes) -> None:
        if _digest(body) != sha256:
            raise StoreUnavailable("400 BadDigest")


def _digest(body: Buffer) -> bytes:
    return hashlib.sha256(body).digest()


def _etag(body: Buffer) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


# -- the upstream -----------------------------------------------------------------------------

Said = Answer | Exception | Callable[[], Awaitable[Answer]]


class ScriptedGateway:
    """A ``Gateway`` that says what a script says, and counts the calls for each task.

    The last thing said is repeated. A task without a script cannot be found.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._scripts: dict[str, list[Said]] = {}

    def script(self, task_id: str, *said: Said) -> None:
        """From now on, say this about a task."""
        self._scripts[task_id] = list(said)

    async def get_result(self, task_id: str) -> Answer:
        self.calls[task_id] += 1
        script = self._scripts.get(task_id, [not_found()])
        said = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(said, Answer):
            return said
        if isinstance(said, Exception):
            raise said
        return await said()


def _reply(**reply: Any) -> Answer:
    return read_reply(http_status=200, headers={}, body=json.dumps(reply).encode(), task_id="")


def pending(status: str = "running", **times: Any) -> Answer:
    return _reply(status=10, data={"status": status, **times})


def done(*images: str, result: Any = None, **times: Any) -> Answer:
    """A success with these addresses as ``images``."""
    return success(images=list(images), result=result, **times)


def success(**data: Any) -> Answer:
    """A success with just these members."""
    return _reply(status=10, data={"status": "successed", **data})


def failed() -> Answer:
    return _reply(status=10, data={"status": "failed"})


def not_found() -> Answer:
    return _reply(status=20, errCode="B_API_ServiceError", subErrCode="B_COMPUTING_CanNotFindTask")


def doubtful() -> Answer:
    return _reply(status=20, errCode="B_API_ServiceError", subErrCode="X_Strange")


def throttled() -> UpstreamThrottled:
    return UpstreamThrottled("the upstream throttles")


def unavailable() -> UpstreamUnavailable:
    return UpstreamUnavailable("the upstream fails")


def blocked() -> UpstreamBlocked:
    return UpstreamBlocked("the upstream refuses the credentials", kind="credentials")


def bare() -> UpstreamRefused:
    return UpstreamRefused("the upstream refuses the request: HTTP 404", kind="request")
