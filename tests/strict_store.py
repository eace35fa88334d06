"""A store in memory that is as strict as Alibaba OSS is with S3 clients."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from aiohttp import web

BUCKET = "media"
_HOST = "oss.localhost"
_META = "x-amz-meta-"


def error_document(status: int, code: str, message: str = "m") -> web.Response:
    """An S3 error document."""
    text = f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return web.Response(status=status, text=text, content_type="application/xml")


@dataclass
class Stored:
    """An object and the headers it was created with, by lower-case name."""

    body: bytes
    headers: Mapping[str, str]
    etag: str


@dataclass
class _Opened:
    key: str
    headers: Mapping[str, str]
    parts: dict[int, tuple[bytes, str]]


class StrictStore:
    """Virtual-hosted only, no chunked signatures, no conditions, MD5 checked, upper-case ETags.

    Source: Alibaba OSS, "Use Amazon S3 SDKs to access OSS" and "Compatibility with Amazon S3".
    Signatures are not checked: tests against real stores do that.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, _Opened] = {}
        self.refused: list[str] = []
        self._made = 0
        self._port = 0
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start(self, patch: pytest.MonkeyPatch) -> None:
        """Listen on a free port, and have every name below ``localhost`` lead to it."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]
        resolve = socket.getaddrinfo

        def local(host: Any, *args: Any, **options: Any) -> Any:
            own = isinstance(host, str) and host.endswith(".localhost")
            return resolve("127.0.0.1" if own else host, *args, **options)

        patch.setattr(socket, "getaddrinfo", local)

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that point a worker at it; the profile is not among them."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://{_HOST}:{self._port}",
            "AWS_ACCESS_KEY_ID": "AK",
            "AWS_SECRET_ACCESS_KEY": "SK",
            "HARVESTER_BUCKET": BUCKET,
        }

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        answer = self._refusal(request, body) or self._answer(request, body)
        probed = request.path.endswith("/.doctor/probe")
        if answer.status >= 400 and answer.status != 404 and not probed:
            self.refused.append(f"{request.method} {answer.status} {answer.text}")
        return answer

    def _refusal(self, request: web.Request, body: bytes) -> web.Response | None:
        headers = request.headers
        if request.host != f"{BUCKET}.{_HOST}:{self._port}":
            return error_document(403, "SecondLevelDomainForbidden")
        signed = headers.get("x-amz-content-sha256", "")
        if "aws-chunked" in headers.get("content-encoding", "") or signed.startswith("STREAMING-"):
            return error_document(400, "InvalidArgument", "aws-chunked encoding is not supported")
        if {"if-none-match", "if-match"} & {name.lower() for name in headers}:
            return error_document(501, "NotImplemented")
        if any("_" in name for name in headers if name.lower().startswith(_META)):
            return error_document(400, "InvalidArgument", "metadata name")
        if "content-md5" in headers and headers["content-md5"] != _md5(body):
            return error_document(400, "BadDigest")
        return None

    def _answer(self, request: web.Request, body: bytes) -> web.Response:
        key, query = request.path.removeprefix("/"), request.query
        match request.method:
            case "POST" if "uploads" in query:
                return self._open(key, request)
            case "POST":
                return self._complete(key, query.get("uploadId", ""), body)
            case "PUT" if "uploadId" in query:
                return self._part(query["uploadId"], int(query["partNumber"]), body)
            case "PUT":
                self.objects[key] = Stored(body, _headers(request), _etag(body))
                return web.Response(headers={"ETag": self.objects[key].etag})
            case "DELETE" if "uploadId" in query:
                self.uploads.pop(query["uploadId"], None)
                return web.Response(status=204)
            case "DELETE":
                self.objects.pop(key, None)
                return web.Response(status=204)
            case _ if "uploads" in query:
                return self._listed(query.get("prefix", ""))
            case _:
                return self._read(key)

    def _open(self, key: str, request: web.Request) -> web.Response:
        self._made += 1
        upload = f"UPLOAD{self._made}"
        self.uploads[upload] = _Opened(key, _headers(request), {})
        return _document("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")

    def _part(self, upload: str, number: int, body: bytes) -> web.Response:
        if upload not in self.uploads:
            return error_document(404, "NoSuchUpload")
        self.uploads[upload].parts[number] = (body, _etag(body))
        return web.Response(headers={"ETag": _etag(body)})

    def _complete(self, key: str, upload: str, body: bytes) -> web.Response:
        opened = self.uploads.get(upload)
        if opened is None:
            return error_document(404, "NoSuchUpload")
        listed = [
            (int(part.findtext("PartNumber", "")), part.findtext("ETag", ""))
            for part in ElementTree.fromstring(body)
        ]
        if listed != [(number, etag) for number, (_, etag) in sorted(opened.parts.items())]:
            return error_document(400, "InvalidPart")
        whole = b"".join(opened.parts[number][0] for number, _ in listed)
        etag = f'{_etag(whole)[:-1]}-{len(listed)}"'
        self.objects[key] = Stored(whole, opened.headers, etag)
        del self.uploads[upload]
        return _document("CompleteMultipartUploadResult", f"<ETag>{escape(etag)}</ETag>")

    def _listed(self, prefix: str) -> web.Response:
        found = "".join(
            f"<Upload><Key>{escape(opened.key)}</Key><UploadId>{upload}</UploadId></Upload>"
            for upload, opened in self.uploads.items()
            if opened.key.startswith(prefix)
        )
        return _document("ListMultipartUploadsResult", found)

    def _read(self, key: str) -> web.Response:
        if key not in self.objects:
            return error_document(404, "NoSuchKey")
        stored = self.objects[key]
        kept = {
            name: value
            for name, value in stored.headers.items()
            if name.startswith(_META) or name in ("content-type", "content-disposition")
        }
        return web.Response(body=stored.body, headers={**kept, "ETag": stored.etag})


def _headers(request: web.Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body).digest()).decode()


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest().upper()}"'


def _document(name: str, content: str) -> web.Response:
    return web.Response(text=f"<{name}>{content}</{name}>", content_type="application/xml")
