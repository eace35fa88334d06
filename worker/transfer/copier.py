"""Copying one file: GET, sniff, hash, PUT, verify.

Bytes pass through memory in parts, so that the length and checksum of each part are known before it
is sent, and memory does not depend on the size of the file.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Protocol

import structlog

from worker.core import keys
from worker.core.models import StoredFile
from worker.errors import SourceFault, SourceGone, SourceRejected, StoreError, StoreUnavailable
from worker.http import host_of
from worker.transfer import media, names, sniff
from worker.transfer.objects import Written, composite_checksum
from worker.transfer.part import PartBuffer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence

    from worker.transfer.budget import Budget, Room
    from worker.transfer.objects import Part, StoredObject, Upload
    from worker.transfer.sniff import FileType
    from worker.transfer.source import Download, Source
    from worker.transfer.store import ObjectStore

log = structlog.get_logger("harvester.copy")

PART_BYTES = 8 * 1024 * 1024

_PARTS_AT_ONCE = 2  # sent concurrently; more slow down a store on the same machine
_PART_SECONDS = 600.0
_ABORT_SECONDS = 10.0
_LENT_AFTER = 2.0  # seconds
_LATE_SECONDS = 600.0  # longest wait for an object whose completion got no answer
_LATE_RATE = 4 * 1024 * 1024  # assumed bytes a second at which a store assembles parts
_LATE_PAUSE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyJob:
    """One file to copy. ``base`` is its key without extension, ``key`` the one fixed earlier.

    ``expires`` is when ``url`` expires, in Unix seconds, if known; ``entry``: the reply lists it
    under ``images``.
    """

    task_id: str
    url: str = field(repr=False)
    base: str
    key: str = ""
    filename: str = ""
    format: str = ""
    expires: float | None = None
    entry: bool = False


class Hold(Protocol):
    """The claim under which a file is copied."""

    async def reserve(self, key: str) -> str:
        """Fix the file's key; returns the key in force, which may be an earlier one."""

    async def check(self) -> None:
        """Raise ``LeaseLost`` if another worker owns the file."""

    def progress(self) -> None:
        """Note that bytes have moved."""

    def reading(self, now: bool) -> None:
        """Note whether the transfer waits for the file's host from now on."""

    def arrived(self, count: int) -> None:
        """Note that ``count`` bytes have come from the file's host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """What is known of a file once its first part has arrived."""

    job: CopyJob
    key: str
    kind: FileType
    width: int | None
    height: int | None
    duration: float | None

    @property
    def disposition(self) -> str:
        return sniff.disposition(self.kind.content_type, self.job.filename)

    def stored(self, content: _Content) -> StoredFile:
        return StoredFile(
            key=self.key,
            bytes=content.size,
            sha256=content.sha256.hex(),
            content_type=self.kind.content_type,
            width=self.width,
            height=self.height,
            duration=self.duration,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """The bytes sent: size, SHA-256, and the checksum that the store should return for them."""

    size: int
    sha256: bytes
    checksum: str


class Copier:
    """Copies files from ``source`` to ``store``.

    ``part_size`` is in bytes; a file needs room for one part, and takes room for another only while
    nobody waits. ``part_seconds`` is the longest time for a host to fill a part. ``content_types``
    are globs of the types that may be stored.
    """

    def __init__(
        self,
        source: Source,
        store: ObjectStore,
        budget: Budget,
        *,
        part_size: int = PART_BYTES,
        part_seconds: float = _PART_SECONDS,
        content_types: Sequence[str] = ("*",),
        put_options: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._store = store
        self._budget = budget
        self._part_size = part_size
        self._part_seconds = part_seconds
        self._content_types = tuple(content_types)
        self._options = put_options
        self._clock = clock
        self._aborting: set[asyncio.Task[None]] = set()

    @property
    def waited_for(self) -> bool:
        """Whether another file waits for memory."""
        return self._budget.waited_for

    async def copy(self, job: CopyJob, hold: Hold) -> StoredFile:
        """Copy one file and return it once the store is known to hold all of it.

        Raises the ``Source…`` and ``Store…`` errors of ``worker.errors``, and those of ``hold``.
        Its multipart upload is always completed or aborted; one that the store does not abort is
        logged (``upload.not_aborted``), and stays open.
        """
        await self._store.ready()
        async with self._budget.room(
            self._part_size, host=host_of(job.url), expires=job.expires, waiting=hold.progress
        ) as room:
            hold.reading(True)
            # while a host takes long to answer, other files may use the room
            lent = asyncio.get_running_loop().call_later(_LENT_AFTER, room.shrink, 0)
            async with self._source.open(job.url, progress=hold.progress) as download:
                lent.cancel()
                limit = await self._part_limit(download)
                wanted = limit if download.length is None else min(limit, download.length)
                if wanted > room.size:
                    hold.reading(False)
                    await room.again(wanted)
                    hold.reading(True)
                else:
                    room.shrink(wanted)
                part = PartBuffer(min(limit, download.length or limit))
                kind = await self._kind(job, download, part, hold)
                await self._fill(download, part, hold)
                room.filled()
                width, height = sniff.dimensions(part.data, kind)
                clip = media.facts(part.data, kind)
                if clip.sound and kind.content_type == "video/mp4":
                    named = names.named_extension(job.filename, job.format, job.url)
                    kind = self._allowed(sniff.sound(named))
                key = job.key or await hold.reserve(keys.object_key(job.base, kind.extension))
                file = _File(
                    job=job,
                    key=key,
                    kind=kind,
                    width=width or clip.width,
                    height=height or clip.height,
                    duration=clip.duration,
                )
                if not await self._ended(download):
                    return await self._copy_parts(file, download, part, room, hold)
                await self._confirm(download, part.digest(), hold)
            return await self._copy_whole(file, part, hold)

    async def _part_limit(self, download: Download) -> int:
        """The size of a part: larger than usual only if there would be too many parts."""
        longest = download.length or self._source.max_file_bytes
        _, provider = await self._store.provider()
        return max(self._part_size, -(-longest // provider.parts))

    # -- reading ------------------------------------------------------------------------------

    async def _kind(
        self, job: CopyJob, download: Download, part: PartBuffer, hold: Hold
    ) -> FileType:
        """The file's type, from its first bytes; raises if it may not be stored."""
        await self._fill(download, part, hold, most=sniff.HEAD_BYTES)
        head = bytes(part.data)
        kind = sniff.sniff(head, filename=job.filename, format=job.format, url=job.url)
        promise = names.promised(job.filename, job.format, job.url, entry=job.entry)
        if not head and promise.filled:
            raise SourceGone("the file's host sent an empty file")
        if sniff.is_error(head, kind, promise):
            what = f"text ({kind.content_type})"
            raise SourceGone(f"the file's host sent {what} with status 200 instead of the file")
        return self._allowed(kind)

    def _allowed(self, kind: FileType) -> FileType:
        if not any(fnmatchcase(kind.content_type, glob) for glob in self._content_types):
            raise SourceRejected(f"content of type {kind.content_type} is not allowed")
        return kind

    async def _fill(
        self, download: Download, part: PartBuffer, hold: Hold, *, most: int | None = None
    ) -> None:
        """Read until the part is full, ``most`` more bytes have come, or the file ends."""

        def arrived(count: int) -> None:
            part.arrived(count)
            hold.arrived(count)

        room = part.rest[:most]
        hold.reading(True)
        try:
            async with asyncio.timeout(self._part_seconds):
                await download.fill(room, arrived)
        except TimeoutError:
            seconds = f"{self._part_seconds:g} s"
            raise SourceFault(
                f"the file's host is too slow: {len(room)} bytes took over {seconds}"
            ) from None
        finally:
            hold.reading(False)

    async def _ended(self, download: Download) -> bool:
        try:
            async with asyncio.timeout(self._part_seconds):
                return await download.at_end()
        except TimeoutError:
            raise SourceFault("the file's host did not finish the file in time") from None

    async def _confirm(self, download: Download, sha256: bytes, hold: Hold) -> None:
        """Check that a file is whole if only the close of its connection marked the end."""
        parts = 1 + download.received // self._part_size
        hold.reading(True)
        try:
            async with asyncio.timeout(parts * self._part_seconds):
                await download.confirm(sha256, hold.arrived)
        except TimeoutError:
            raise SourceFault("the file's host did not send the file again in time") from None
        finally:
            hold.reading(False)

    # -- a file that fits one part ------------------------------------------------------------

    async def _copy_whole(self, file: _File, part: PartBuffer, hold: Hold) -> StoredFile:
        content = _Content(size=len(part), sha256=part.digest(), checksum=_base64(part.digest()))

        async def put(*, create_only: bool) -> Written:
            await hold.check()
            return await self._store.put(
                file.key,
                part.data,
                content_type=file.kind.content_type,
                sha256=content.sha256,
                disposition=file.disposition,
                metadata={"task-id": file.job.task_id, "sha256": content.sha256.hex()},
                create_only=create_only,
                options=self._options,
                progress=hold.progress,
            )

        outcome = await put(create_only=True)
        if outcome is Written.EXISTS:
            if await self._is_there(file.key, content, hold):
                return file.stored(content)
            outcome = await put(create_only=False)
        await self._verify(file.key, content, hold, outcome)
        return file.stored(content)

    # -- a file of many parts -----------------------------------------------------------------

    async def _copy_parts(
        self, file: _File, download: Download, part: PartBuffer, room: Room, hold: Hold
    ) -> StoredFile:
        async with self._upload(file) as upload:
            parts = await self._send_parts(upload, download, part, room, hold)
            await self._confirm(download, part.whole(), hold)
            content = _Content(
                size=download.received, sha256=part.whole(), checksum=composite_checksum(parts)
            )
            outcome = await self._complete(upload, parts, content, hold)
            if outcome is Written.EXISTS:
                await self._abort(upload)
                return file.stored(content)
            # some say that it is done, or nothing, while the upload stays open
            await self._verify(file.key, content, hold, outcome)
        return file.stored(content)

    async def _complete(
        self, upload: Upload, parts: Sequence[Part], content: _Content, hold: Hold
    ) -> Written:
        """Complete the upload; returns :attr:`Written.EXISTS` if the same bytes are already stored.

        Some stores assemble a large object only now, and may finish it after a proxy or the
        deadline has given up on the answer.
        """
        await hold.check()
        try:
            outcome = await self._store.complete(upload, parts)
            if outcome is not Written.EXISTS:
                return outcome
            if await self._is_there(upload.key, content, hold):
                return outcome
            await hold.check()
            return await self._store.complete(upload, parts, create_only=False)
        except StoreUnavailable:
            until = self._clock() + min(_LATE_SECONDS, content.size / _LATE_RATE)
            while True:
                with contextlib.suppress(StoreError):
                    if await self._is_there(upload.key, content, hold):
                        return Written.EXISTS
                if self._clock() >= until:
                    raise
                await asyncio.sleep(_LATE_PAUSE)
                await hold.check()

    async def _send_parts(
        self, upload: Upload, download: Download, part: PartBuffer, room: Room, hold: Hold
    ) -> list[Part]:
        """Send all parts; the next one is read while others are being sent."""
        limit = read = len(part)
        sending: list[asyncio.Task[Part]] = []
        rooms = [room]
        try:
            while True:
                await hold.check()
                body, sha256 = part.take()
                sent = self._send_part(
                    upload, len(sending) + 1, body, sha256=sha256, room=room, hold=hold
                )
                sending.append(asyncio.create_task(sent))
                del body  # freed once it has been sent
                if await self._ended(download):
                    return [await task for task in sending]
                left = limit if download.length is None else download.length - read
                room = await self._next_room(room, sending, min(limit, left), hold)
                rooms.append(room)
                part.begin(min(limit, left))
                await self._fill(download, part, hold)
                room.filled()
                read += len(part)
        finally:
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
            for room in rooms:
                room.release()  # a task that was cancelled before it started has not

    async def _send_part(
        self,
        upload: Upload,
        number: int,
        body: memoryview,
        *,
        sha256: bytes,
        room: Room,
        hold: Hold,
    ) -> Part:
        try:
            return await self._store.upload_part(
                upload, number, body, sha256=sha256, progress=hold.progress
            )
        finally:
            room.release()

    async def _next_room(
        self, room: Room, sending: Sequence[asyncio.Task[Part]], size: int, hold: Hold
    ) -> Room:
        """Room for one more part: while others are sent if nobody waits, else after them."""
        while True:
            busy = [task for task in sending if not task.done()]
            for task in sending:
                if task.done():
                    task.result()
            room = room.another(size)
            if not busy:
                await room.acquire()
                return room
            if len(busy) < _PARTS_AT_ONCE and room.acquire_now():
                return room
            await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)

    @contextlib.asynccontextmanager
    async def _upload(self, file: _File) -> AsyncIterator[Upload]:
        opening = asyncio.ensure_future(
            self._store.create_upload(
                file.key,
                content_type=file.kind.content_type,
                disposition=file.disposition,
                metadata={"task-id": file.job.task_id},
                options=self._options,
            )
        )
        try:
            upload = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # the upload may be open already, and only the answer contains its id
            await self._finish_anyway(self._abort_opened(opening))
            raise
        try:
            yield upload
        except BaseException:
            await self._abort(upload)
            raise

    async def _abort(self, upload: Upload) -> None:
        await self._finish_anyway(self._try_abort(upload))

    async def _abort_opened(self, opening: asyncio.Future[Upload]) -> None:
        with contextlib.suppress(StoreError):
            await self._try_abort(await opening)

    async def _try_abort(self, upload: Upload) -> None:
        try:
            await self._store.abort(upload)
        except StoreError as error:
            log.warning("upload.not_aborted", key=upload.key, error=str(error))

    async def _finish_anyway(self, work: Coroutine[None, None, None]) -> None:
        """Finish work even if this copy is cancelled again, with a bounded wait."""
        task = asyncio.create_task(work)
        self._aborting.add(task)
        task.add_done_callback(self._aborting.discard)
        await asyncio.wait([task], timeout=_ABORT_SECONDS)

    # -- verifying ----------------------------------------------------------------------------

    async def _verify(self, key: str, content: _Content, hold: Hold, outcome: Written) -> None:
        """Raise unless the store holds what was just written."""
        there = await self._store.head(key)
        given = None if there is None else there.checksum
        proven = outcome is Written.PROVEN and await self._store.agrees(given, content.checksum)
        difference = await self._difference(key, there, content, hold, proven=proven)
        if difference:
            raise StoreUnavailable(f"{key} was accepted, but {difference}")

    async def _is_there(self, key: str, content: _Content, hold: Hold) -> bool:
        """Whether the existing object already has the right bytes."""
        there = await self._store.head(key)
        proven = (
            there is not None
            and there.checksum == content.checksum
            and self._store.vouches(content.checksum)
        )
        return not await self._difference(key, there, content, hold, proven=proven)

    async def _difference(
        self,
        key: str,
        there: StoredObject | None,
        content: _Content,
        hold: Hold,
        *,
        proven: bool,
    ) -> str:
        """How an object differs from the content; its bytes are read back unless ``proven``."""
        hold.progress()
        if there is None:
            return "is not there"
        if there.bytes != content.size:
            return f"has {there.bytes} of {content.size} bytes"
        if proven:
            return ""
        digest = await self._store.digest(key, progress=hold.progress)
        return {content.sha256: "", None: "is not there"}.get(digest, "has other bytes")


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
