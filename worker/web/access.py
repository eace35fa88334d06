"""Access to the API: by a bearer token (RFC 6750), or from this machine only.

Without tokens the server listens on loopback only. It also refuses requests from pages of other
sites in a browser on this machine: by the Host header (their name may resolve to loopback) and by
the Origin header (their form may post here).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from worker.web.problems import problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_READABLE = re.compile(r"/metrics|/api/(?:endings|events|groups|stats|tasks)|/api/tasks/[^/]+")
"""The paths that a read-only token may GET. They do not include addresses of files."""
_MAY_ACT = "harvester.may_act"
_OPEN = ("/healthz", "/readyz")
_OPEN_WITH_TOKEN = (*_OPEN, "/", "/tasks", "/docs", "/openapi.json")
_OPEN_BELOW = ("/static/", "/tasks/")  # the page, without any data of the fleet
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether a host, as in ``--host`` or a Host header, is this machine itself."""
    name = host.removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


# Beginnings of headers that proxies and content delivery networks add: they show that a request
# comes from elsewhere, although the proxy is on this machine.
_FORWARDED = (
    "forwarded", "via", "x-forwarded", "x-original-", "x-real-", "x-client-", "x-cluster-client-",
    "x-envoy-", "x-azure-", "x-amzn-", "x-appengine-", "x-proxyuser-", "x-rewrite-url", "x-scheme",
    "x-varnish", "client-ip", "true-client-ip", "cf-", "cdn-loop", "fastly-", "fly-",
    "front-end-https", "max-forwards", "surrogate-capability",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Tokens:
    """The tokens: those that may do everything, and read-only ones."""

    full: tuple[str, ...] = ()
    read: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.full or self.read)


def may_act(scope: Scope) -> bool:
    """Whether a request that :class:`Access` has allowed may do more than read."""
    return bool(scope.get(_MAY_ACT, True))


def _is_one_of(given: str, tokens: tuple[str, ...]) -> bool:
    """Whether a token is among ``tokens``, compared in constant time."""
    return sum(hmac.compare_digest(given.encode(), token.encode()) for token in tokens) > 0


class Access:
    """ASGI middleware: the checks above, and the headers of every answer.

    Without ``tokens`` it only answers requests from this machine.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api/"):
                    headers.setdefault("Cache-Control", "no-store")
                elif scope["path"].startswith("/static/"):  # of one release, like the page
                    headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        refused = self._refuse(scope, Headers(scope=scope))
        if refused is None:
            await self._app(scope, receive, with_headers)
            return
        status, detail = refused
        extra = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        await problem(status, detail, extra)(scope, receive, with_headers)

    def _refuse(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        path = scope["path"]
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if self._tokens:
            if path in _OPEN_WITH_TOKEN or path.startswith(_OPEN_BELOW):
                return None
            scheme, _, given = headers.get("authorization", "").partition(" ")
            given = given.strip()
            if scheme.lower() != "bearer":
                given = ""
            if _is_one_of(given, self._tokens.full):
                return None
            if not _is_one_of(given, self._tokens.read):
                return 401, "a bearer token is needed: HARVESTER_WEB_TOKEN"
            scope[_MAY_ACT] = False
            if scope["method"] != "GET" or not _READABLE.fullmatch(path):
                return 403, "this token may only read, and not create addresses of files"
            return None
        if path in _OPEN:
            return None
        if not is_loopback(name):
            return 403, "without HARVESTER_WEB_TOKEN only requests to localhost are answered"
        if any(name.replace("_", "-").startswith(_FORWARDED) for name in headers):
            return 403, "behind a proxy HARVESTER_WEB_TOKEN is needed"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "requests from pages of other sites are refused"
        return None
