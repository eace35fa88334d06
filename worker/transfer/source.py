"""Fetching a file from an address that the upstream gave.

The result is a complete file or an error: a body counts as whole only if it has the announced
length or, if chunked, its last chunk (RFC 9112, sections 6 and 7.1). A body that ends with the
close of its connection must come a second time with the same digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
import httpx
from yarl import URL

from worker.errors import SourceFault, SourceGone, SourceRejected
from worker.http import BROKEN, describe
from worker.transfer.body import DirectBody, ParsedBody, pour

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from worker.transfer.body import Arrived, Body
    from worker.transfer.guard import Guard

MAX_REDIRECTS = 5
LONG_BODY = 64 * 1024
"""Bytes; longer bodies are received directly into the reader's buffer."""

_HEADER_BYTES = 64 * 1024  # of one line; the guard's connections bound the total
_HEADER_LINES = 1000
_TLS_AGAIN = (1.0, 20.0)  # seconds: until the second try, and until the next request
_LONGEST_WAIT = 300.0  # seconds that a host may ask for
_DIGEST_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WHOLE = frozenset({HTTPStatus.OK, HTTPStatus.NON_AUTHORITATIVE_INFORMATION})
_GONE = frozenset({403, 404, 410})
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(\*|[0-9]{1,19})", re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]{1,9}")
_DEFAULT_PORT = re.compile(r":0*80$")
# IANA HTTP Content Coding Registry; other words, such as "aws-chunked", change no bytes
_COMPRESSED = frozenset(
    {
        "br",
        "compress",
        "dcb",
        "dcz",
        "deflate",
        "exi",
        "gzip",
        "pack200-gzip",
        "x-compress",
        "x-gzip",
        "zstd",
    }
)


def _secured(url: str) -> str | None:
    """The same address over https, if it is plain http on its usual port."""
    try:
        parts = urlsplit(url)
        if parts.scheme.lower() != "http" or parts.port not in (None, 80):
            return None
    except ValueError:  # the guard reports what is wrong with it
        return None
    return parts._replace(scheme="https", netloc=_DEFAULT_PORT.sub("", parts.netloc)).geturl()


def _speaks_no_tls(error: BaseException | None) -> bool:
    """Whether a host refused TLS, rather than being out of reach or not answering."""
    if isinstance(error, ssl.SSLError):
        return True
    return isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, ssl.SSLError | ConnectionRefusedError
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Address:
    url: str
    progress: Callable[[], None]


class Source:
    """Opens files. ``session`` must be one of the guard's own.

    ``connect_timeout`` and ``stall_timeout`` are in seconds: for a connection, and between two
    pieces of data on it; ``headers_timeout`` covers everything up to the last header, including
    redirects. A broken transfer is resumed up to ``max_resumes`` times, as long as each try brought
    bytes and the host can prove that the file is still the same.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        guard: Guard,
        *,
        max_file_bytes: int,
        connect_timeout: float = 10.0,
        stall_timeout: float = 30.0,
        headers_timeout: float = 30.0,
        max_resumes: int = 10,
    ) -> None:
        self.max_file_bytes = max_file_bytes
        self._stall_timeout = stall_timeout
        self._headers_timeout = headers_timeout
        self._session = session
        self._guard = guard
        self._max_resumes = max_resumes
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            connect=2 * connect_timeout,  # name lookup included
            sock_connect=connect_timeout,
            sock_read=stall_timeout,
        )

    @contextlib.asynccontextmanager
    async def open(
        self, url: str, *, progress: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Download]:
        """GET ``url``; the body is read from the :class:`Download`.

        ``progress`` is called before every request; redirects and resumptions make several. Each
        request progresses or fails within the timeouts.

        Raises :class:`SourceGone` for 403, 404 and 410, :class:`SourceRejected` for an address
        that is not allowed or a file that is too large, :class:`SourceFault` for all else.
        """
        address = _Address(url=url, progress=progress)
        response = await self._get(address, {})
        try:
            length = self._announced(response)
            download = Download(self, address, response, length)
        except BaseException:
            response.close()
            raise
        try:
            yield download
        finally:
            download._body.close()

    async def _get(self, address: _Address, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """The final response to a GET after redirects, with its body unread.

        The total time is bounded, also for a host that keeps sending headers or redirects.
        """
        try:
            async with asyncio.timeout(self._headers_timeout):
                return await self._follow(address, headers)
        except TimeoutError:
            seconds = f"{self._headers_timeout:g} s"
            raise SourceFault(f"the file's host sends no headers within {seconds}") from None

    async def _follow(
        self, address: _Address, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        url = address.url
        for _ in range(MAX_REDIRECTS + 1):
            address.progress()
            url, response = await self._ask(url, headers)
            if response.status not in _REDIRECTS:
                return response
            response.close()
            try:
                target = httpx.URL(url).join(response.headers["location"])
            except (KeyError, ValueError, httpx.InvalidURL):
                raise SourceFault("a redirect without a usable Location") from None
            url = self._onward(url, str(target))
        raise SourceFault(f"more than {MAX_REDIRECTS} redirects")

    def _onward(self, url: str, target: str) -> str:
        """The target of a redirect: never from https to http, even if the guard allows that."""
        if not url.startswith("https:") or not target.startswith("http:"):
            return target
        try:
            self._guard.check_url(target)
        except SourceRejected:
            return _secured(target) or target
        raise SourceRejected("a redirect from https to plain http is not allowed")

    async def _ask(
        self, url: str, headers: Mapping[str, str]
    ) -> tuple[str, aiohttp.ClientResponse]:
        """GET an address, over https if only plain http is refused; returns the address used.

        A signature does not cover the scheme. There is no fallback to plain http.
        """
        secure = _secured(url)
        try:
            plain = self._guard.check_url(url)
            return plain, await self._request(plain, headers)
        except SourceRejected:
            if secure is None:
                raise
        secure = self._guard.check_url(secure)
        try:
            return secure, await self._request(secure, headers)
        except SourceFault as error:
            if not _speaks_no_tls(error.__cause__):
                raise
        await asyncio.sleep(_TLS_AGAIN[0])
        try:
            return secure, await self._request(secure, headers)
        except SourceFault as error:
            if not _speaks_no_tls(error.__cause__):
                raise
            raise SourceRejected(
                "plain http is not allowed, and the host does not speak https",
                retry_after=_TLS_AGAIN[1],
            ) from error

    async def _request(self, url: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        try:
            return await self._session.get(
                URL(url, encoded=True),
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
                max_line_size=_HEADER_BYTES,
                max_field_size=_HEADER_BYTES,
                max_headers=_HEADER_LINES,
            )
        except BROKEN as exc:
            raise SourceFault(f"the file's host does not answer: {describe(exc)}") from exc

    def _announced(self, response: aiohttp.ClientResponse) -> int | None:
        """The announced length of the whole file; ``None`` if there is none."""
        length: int | None
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            length = _length_of_all(response)
        elif response.status in _WHOLE:
            if _range(response) is not None:  # of a cache that has lost the status
                _length_of_all(response)
            length = response.content_length
        else:
            raise _status_error(response)
        _check_coding(response)
        if length is not None and length > self.max_file_bytes:
            raise self._too_large()
        return length

    def _body(self, response: aiohttp.ClientResponse) -> Body:
        length = response.content_length
        if length is None or length < LONG_BODY:
            return ParsedBody(response)
        return DirectBody(response, length, stall=self._stall_timeout)

    def _too_large(self) -> SourceRejected:
        return SourceRejected(f"the file is larger than {self.max_file_bytes} bytes")


class Download:
    """The body of one file, over one or more connections. ``length`` is ``None`` until known.

    ``ends_by_close``: only the close of the connection marks the end, so that the file is not known
    to be whole before :meth:`confirm`.
    """

    def __init__(
        self,
        source: Source,
        address: _Address,
        response: aiohttp.ClientResponse,
        length: int | None,
    ) -> None:
        self.length = length
        self.received = 0
        self._source = source
        self._address = address
        self.ends_by_close = length is None and "chunked" not in _words(
            response, "transfer-encoding"
        )
        self._validator = _validator(response)
        self._etag = response.headers.get("etag", "")
        self._peeked = memoryview(b"")
        self._resumes = 0
        self._resumed_at = 0
        self._body = source._body(response)

    async def fill(self, room: memoryview, arrived: Arrived) -> int:
        """Read until ``room`` is full or the file has ended properly; returns the number of bytes.

        ``arrived`` is called with the number of bytes as they come.
        """
        self._peeked, rest = pour(self._peeked, room, arrived)
        return len(room) - len(rest) + await self._fill(rest, arrived)

    async def at_end(self) -> bool:
        """Whether the file has ended."""
        if self.length is not None and self.received < self.length:
            return False
        if not self._peeked:
            one = memoryview(bytearray(1))
            self._peeked = one[: await self._fill(one, lambda count: None)]
        return not self._peeked

    async def confirm(self, sha256: bytes, arrived: Arrived) -> None:
        """Fetch a complete file once more, if need be, to check that it is whole.

        ``sha256`` is the digest of the file. Raises the errors of :meth:`Source.open`, and
        :class:`SourceFault` if the bytes differ.
        """
        if not self.ends_by_close:
            return
        digest, room = hashlib.sha256(), memoryview(bytearray(_DIGEST_BYTES))
        async with self._source.open(
            self._address.url, progress=self._address.progress
        ) as download:
            while count := await download.fill(room, arrived):
                digest.update(room[:count])
        if digest.digest() != sha256:
            raise SourceFault("the file's host does not say where the file ends, and it varies")

    async def _fill(self, room: memoryview, arrived: Arrived) -> int:
        begun = self.received

        def count(size: int) -> None:
            self._count(size)
            arrived(size)

        while rest := room[self.received - begun :]:
            cause: Exception | None = None
            try:
                await self._body.fill(rest, count)
            except BROKEN as exc:
                cause = exc
            if self.received - begun == len(room):
                break
            if cause is None and self.length in (None, self.received):
                break
            await self._resume(cause)
        return self.received - begun

    def _count(self, size: int) -> None:
        self.received += size
        if self.received > self._source.max_file_bytes:
            raise self._source._too_large()
        if self.length is not None and self.received > self.length:
            raise SourceFault("the file is longer than announced")

    async def _resume(self, cause: Exception | None) -> None:
        """Resume where the last connection ended, if the file is provably the same."""
        self._body.close()
        reason = describe(cause) if cause else "the connection was closed"
        total = "?" if self.length is None else self.length
        broken = f"interrupted after {self.received} of {total} bytes: {reason}"
        if (
            not self._validator
            or self.received == self._resumed_at
            or self._resumes == self._source._max_resumes
        ):
            raise SourceFault(broken) from cause
        self._resumes += 1
        self._resumed_at = self.received
        headers = {"Range": f"bytes={self.received}-", "If-Range": self._validator}
        response = await self._source._get(self._address, headers)
        try:
            self._check_rest(response, broken)
        except BaseException:
            response.close()
            raise
        self._body = self._source._body(response)

    def _check_rest(self, response: aiohttp.ClientResponse, broken: str) -> None:
        if response.status == HTTPStatus.OK:
            raise SourceFault(f"{broken}; it cannot be resumed")
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            raise _status_error(response)
        _check_coding(response)
        given = _range(response)
        if given is None or int(given[1]) != self.received:
            raise SourceFault(f"{broken}; the host resumed at the wrong offset")
        if response.content_length not in (None, int(given[2]) + 1 - int(given[1])):
            raise SourceFault(f"{broken}; the host sends another part than it says")
        if not _same(self._validator, self._etag, response):
            raise SourceFault(f"{broken}; the file has changed")
        if given[3] == "*":
            return
        total = int(given[3])
        if self.length not in (None, total):
            raise SourceFault(f"{broken}; the length of the file has changed")
        if total > self._source.max_file_bytes:
            raise self._source._too_large()
        self.length, self.ends_by_close = total, False


def _validator(response: aiohttp.ClientResponse) -> str:
    """The validator that proves that a file is the same (RFC 9110, section 13.1.5), or nothing."""
    etag = str(response.headers.get("etag", ""))
    return etag if etag.startswith('"') else str(response.headers.get("last-modified", ""))


def _same(validator: str, etag: str, response: aiohttp.ClientResponse) -> bool:
    """Whether a part belongs to the same file: some hosts ignore ``If-Range``.

    A part must repeat the tag and may repeat the date (RFC 9110, section 15.3.7). A weak ``etag``
    proves nothing, but another one does.
    """
    if validator.startswith('"'):
        return bool(response.headers.get("etag") == validator)
    given = response.headers
    tags = {tag.removeprefix("W/") for tag in (etag, given.get("etag", etag)) if etag}
    return len(tags) <= 1 and bool(given.get("last-modified", validator) == validator)


def _words(response: aiohttp.ClientResponse, header: str) -> list[str]:
    """What the lines of a header list."""
    words = (
        word.strip(" \t").lower()
        for line in response.headers.getall(header, ())
        for word in line.split(",")
    )
    return [word for word in words if word]


def _check_coding(response: aiohttp.ClientResponse) -> None:
    framing = _words(response, "transfer-encoding")
    if _COMPRESSED.intersection((*framing, *_words(response, "content-encoding"))):
        raise SourceFault("the file's host compresses although asked not to")
    # the parser would take chunks for a part of the file if anything else follows
    plain = {"identity"}.issuperset(framing)
    if not plain and not (framing[-1] == "chunked" and {"identity", "chunked"}.issuperset(framing)):
        raise SourceFault("the file's host sends a Transfer-Encoding that is not understood")


def _range(response: aiohttp.ClientResponse) -> re.Match[str] | None:
    """First and last byte of a part, and the length of the file, if the body is one part."""
    if response.headers.get("content-type", "").lower().startswith("multipart/byteranges"):
        return None
    return _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())


def _length_of_all(response: aiohttp.ClientResponse) -> int:
    """The length of the file, if an unrequested partial answer holds all of it."""
    given = _range(response)
    if given is None or given[3] == "*" or int(given[1]) or int(given[2]) + 1 != int(given[3]):
        raise SourceFault("the file's host sends only a part of the file")
    return int(given[3])


def _status_error(response: aiohttp.ClientResponse) -> Exception:
    said = f"the file's host answers {response.status}"
    if response.status in _GONE:
        return SourceGone(said)
    return SourceFault(said, retry_after=_retry_after(response))


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """The host's ``Retry-After`` in seconds (RFC 9110, section 10.2.3), up to a bound."""
    value = response.headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        seconds = float(value)
    else:
        try:
            seconds = parsedate_to_datetime(value[:64]).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, IndexError):
            return 0.0
    return min(max(0.0, seconds), _LONGEST_WAIT)
