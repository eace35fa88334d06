"""Requests to the store, signed with boto3's credentials and sent by aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import create_parser
from yarl import URL

from worker.core.redact import one_line, origin
from worker.core.services import STORE_READS, Service
from worker.errors import StoreBlocked, StoreError, StoreUnavailable
from worker.http import BROKEN, CHUNK_BYTES, connector, describe, hung_up, make_session, read_some
from worker.offload import Aside, offload
from worker.reach import SILENCE, Reach
from worker.transfer import complaints
from worker.transfer.signer import Request, Signer, make_signer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from aiohttp.abc import AbstractStreamWriter

Buffer = bytes | bytearray | memoryview

DEADLINE = 45.0
"""The most seconds that a request may take."""

_LEAST_SECONDS = 15.0
_LEAST_RATE = 256 * 1024  # bytes a second for which a request has time
_CONNECT = 10.0
_ANSWER_BYTES = 4 * 1024 * 1024
_THREADS = 4  # while one refreshes credentials, others use the old ones
_PARSER = create_parser("rest-xml")


def service_of(call: str) -> str:
    """The part of the store that a request tests: whether it accepts objects, or returns them."""
    return Service.STORE if call in complaints.WRITES else STORE_READS


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of the store; the case of header names does not matter."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def complaint(self) -> complaints.Complaint:
        """The answer's error document."""
        complaint = complaints.read(self.status, self.body)
        moved = origin(self.headers.get("location", ""))
        if moved and 300 <= self.status < 400 and not complaint.code:
            return replace(complaint, message=f"redirected to {moved}")
        return complaint

    def well(self, call: str) -> bool:
        """Whether the request succeeded."""
        # CompleteMultipartUpload may send status 200 before it has finished, and then fail; proxies
        # send errors with 200 too. An object that is read may itself be such a document.
        late = call != "get_object" and bool(self.complaint.code)
        return 200 <= self.status < 300 and not late


class Wire:
    """The requests of one bucket.

    ``storage`` is as in :func:`~worker.core.providers.choose`, ``presign_endpoint`` as in
    :func:`~worker.transfer.signer.make_signer`. No request takes longer than ``deadline`` seconds,
    except for those of :meth:`opened`. Every method may raise :class:`StoreBlocked` for unusable
    credentials or endpoints, and :class:`StoreUnavailable` if the store does not answer, which is
    also reported to ``reach``.
    """

    def __init__(
        self,
        bucket: str,
        *,
        storage: str = "auto",
        presign_endpoint: str = "",
        deadline: float = DEADLINE,
        reach: Reach | None = None,
    ) -> None:
        self.bucket = bucket
        self.deadline = deadline
        self.reach = reach or Reach()
        self.signer: Signer | None = None
        self._store = storage, presign_endpoint
        self._session: aiohttp.ClientSession | None = None
        self._starting = asyncio.Lock()
        self._aside = Aside(_THREADS)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def ready(self) -> Signer:
        """The signer; built in a thread, since finding credentials may use the network."""
        if self.signer is None:
            with self._boto_errors():
                async with asyncio.timeout(DEADLINE), self._starting:
                    if self.signer is None:
                        self.signer = await self._aside.run(make_signer, self.bucket, *self._store)
        return self.signer

    def forget(self) -> None:
        """Find credentials and endpoint again at the next request: they may have been replaced."""
        self.signer = None

    def named(self, key: str) -> dict[str, Any]:
        """The parameters that name an object."""
        return {"Bucket": self.bucket, "Key": key}

    async def send(
        self,
        call: str,
        params: Mapping[str, Any],
        body: Buffer = b"",
        *,
        progress: Callable[[], None] = nothing,
        most: int = _ANSWER_BYTES,
    ) -> Answer:
        """The answer to one request, also an error; its body is cut after ``most`` + 1 bytes."""
        request = await self.sign(call, params)
        seconds = min(self.deadline, _LEAST_SECONDS + max(len(body), most) / _LEAST_RATE)
        # sent twice if a connection was closed, unless that could open two uploads
        again = call != "create_multipart_upload"
        try:
            # a store may take long to assemble parts
            patience = self.deadline if call == "complete_multipart_upload" else SILENCE
            with self.reach.asking(service_of(call), patience) as asked:

                def moved() -> None:
                    asked.moved()
                    progress()

                async with asyncio.timeout(seconds):
                    while True:
                        try:
                            async with self.opened(request, body, moved) as response:
                                answer = await read(response, most)
                                break
                        except BROKEN as exc:
                            if not again or not hung_up(exc):
                                raise
                            again = False
        except BROKEN as exc:
            error = unavailable(exc)
            self.reach.failed(service_of(call), error)
            raise error from exc
        return answer

    @contextlib.asynccontextmanager
    async def opened(
        self,
        request: Request,
        body: Buffer = b"",
        progress: Callable[[], None] = nothing,
        *,
        stall: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with its body unread; raises one of ``BROKEN``.

        ``stall``: most seconds between two pieces of data, for a request without another deadline.
        """
        if self._session is None:
            with self._boto_errors():
                self._session = make_session(connector, ca_bundle=request.ca_bundle)
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

    async def sign(self, call: str, params: Mapping[str, Any]) -> Request:
        """Sign a request, which is valid for an hour."""
        return await self._signed(lambda signer: signer.sign(call, params))

    async def presign(self, call: str, params: Mapping[str, Any], expires: int) -> str:
        """A URL for people outside, valid for ``expires`` seconds."""
        made = await self._signed(lambda signer: signer.sign(call, params, expires, outside=True))
        return made.url

    async def _signed(self, make: Callable[[Signer], Request]) -> Request:
        signer = await self.ready()
        with self._boto_errors():
            if not signer.waits:
                return make(signer)
            async with asyncio.timeout(DEADLINE):
                return await self._aside.run(make, signer)

    async def parse(self, call: str, answer: Answer) -> dict[str, Any]:
        """The members of an XML answer, parsed by botocore."""
        shape = (await self.ready()).model(call).output_shape
        given = {"status_code": answer.status, "headers": answer.headers, "body": answer.body}
        try:
            members = await offload(len(answer.body), _PARSER.parse, given, shape)
        except Exception as exc:  # unexpected elements make it raise anything
            raise StoreUnavailable(f"the store's answer to {call} is unreadable") from exc
        if not _is_plain(members):  # repeated elements come back unparsed
            raise StoreUnavailable(f"the store's answer to {call} is unreadable")
        return cast("dict[str, Any]", members)

    @contextlib.contextmanager
    def _boto_errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as exc:
            raise StoreUnavailable("no credentials in time") from exc
        except StoreError:
            raise
        # files, programs and services with credentials make it raise anything
        except Exception as exc:
            self.forget()
            said = one_line(str(exc))
            if not isinstance(exc, BotoCoreError | ClientError):
                said = f"credentials or endpoint cannot be read: {type(exc).__name__}: {said}"
            raise StoreBlocked(said) from exc


def _is_plain(value: object) -> bool:
    match value:
        case dict():
            return all(map(_is_plain, value.values()))
        case list():
            return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bytes | int | float | datetime)


class _Body(aiohttp.payload.Payload):
    """A body sent in slices, without a copy; it can be sent again."""

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
        """Free the buffer: aiohttp's request and response refer to each other, and live on."""
        self._value = memoryview(b"")


async def read(response: aiohttp.ClientResponse, most: int = _ANSWER_BYTES) -> Answer:
    """The rest of a response, cut after ``most`` + 1 bytes; raises one of ``BROKEN``."""
    if not response.ok:
        most = complaints.BODY_BYTES
    body = bytearray()
    while len(body) <= most and (piece := await read_some(response)):
        body += piece
    return Answer(status=response.status, headers=response.headers, body=bytes(body[: most + 1]))


def unavailable(error: Exception) -> StoreUnavailable:
    """The error for a request that was interrupted."""
    return StoreUnavailable(f"the store does not answer: {describe(error)}")
