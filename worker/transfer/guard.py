"""Which addresses the fleet may fetch from or post to.

Addresses are untrusted, so they may point at anything this machine can reach. The checks happen
where aiohttp connects: on the host of every request, and on the IP addresses that its name resolves
to, so that only allowed ones are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from contextvars import ContextVar
from fnmatch import fnmatchcase
from functools import partial
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from worker.errors import SourceFault, SourceRejected
from worker.http import make_client, make_session

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Collection, Sequence

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

TIMEOUT = httpx.Timeout(30, connect=10, pool=20)
"""For clients of a guard whose requests name none; ``pool`` bounds name lookup and connecting."""

# IANA IPv4 Special-Purpose Address Registry, multicast and class E.
_NOT_PUBLIC_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
# IANA IPv6 Special-Purpose Address Registry: only parts of 2000::/3 are global.
_GLOBAL_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # includes Teredo, which embeds an IPv4 address
            "2001:db8::/32",
            "2002::/16",  # 6to4, which embeds an IPv4 address too
            "3fff::/20",
        ),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")

_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

_IDLE_BYTES = 1024 * 1024
"""Bytes that a host may send between two pieces of a body, or before the first one."""
_LOOKUP_SECONDS, _LOOKUP_TRIES = 4.0, 2
"""Seconds for a name server's first try; the second one has twice as many."""
_LOOKUPS = 100
"""The lookups after which c-ares is replaced: it keeps all answers, also large ones."""

_LAST_PORT = 65535
_HTTPS_PORT = 443

_oddity: ContextVar[str] = ContextVar("_oddity", default="")
"""The feature of a request that only ``allow_private`` permits (plain http, a port), if any."""


def is_public(address: Address) -> bool:
    """Whether an address, or the IPv4 address embedded in it, belongs to the public internet."""
    address = _unwrapped(address)
    if isinstance(address, IPv4Address):
        return not _within(address, _NOT_PUBLIC_4)
    return address in _GLOBAL_6 and not _within(address, _NOT_PUBLIC_6)


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _unwrapped(address: Address) -> Address:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


class Guard:
    """Allows public https addresses of some hosts, and the additions of ``allow_private``.

    ``allow_hosts`` are globs of host names. An entry of ``allow_private`` is a host glob, whose
    hosts may use plain http and resolve to any address, or a network such as ``10.0.0.0/8``, whose
    addresses may be used, also over plain http. ``ports`` are the allowed ports of public
    addresses, ``None`` means any; entries of ``allow_private`` may use any port.
    """

    def __init__(
        self,
        allow_hosts: Sequence[str],
        allow_private: Sequence[str] = (),
        *,
        ports: Collection[int] | None = None,
        lookup: Callable[[], AbstractResolver] | None = None,
    ) -> None:
        self._hosts = tuple(glob.lower() for glob in allow_hosts)
        self._networks = [network for network in map(_network, allow_private) if network]
        self._private_hosts = tuple(
            entry.lower() for entry in allow_private if _network(entry) is None
        )
        self._ports = ports
        self._lookup = lookup or Names

    def check_url(self, url: str) -> str:
        """Raise :class:`SourceRejected` if no request may go to ``url``.

        Returns the URL as it is sent. The connections of :meth:`client` and :meth:`session` check
        the addresses that its name resolves to.
        """
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError):  # ValueError: a host that IDNA cannot encode
            raise SourceRejected("not an address that can be fetched") from None
        if parsed.port is not None and not 0 < parsed.port <= _LAST_PORT:
            raise SourceRejected("the port is invalid")
        self._check(
            parsed.scheme, parsed.raw_host.decode("ascii"), parsed.port, bool(parsed.userinfo)
        )
        return str(parsed)

    def client(self, timeout: httpx.Timeout = TIMEOUT) -> httpx.AsyncClient:
        """A client that checks every connection.

        Its requests raise :class:`SourceRejected` for an address that is not allowed,
        :class:`SourceFault` for a name that cannot be resolved, and one of ``worker.http.BROKEN``
        for all else.
        """
        return make_client(self._connector, timeout=timeout)

    def session(self) -> aiohttp.ClientSession:
        """The same for files; must be called on the loop. Requests set their own timeouts."""
        return make_session(self._connector)

    def _connector(self, context: ssl.SSLContext) -> aiohttp.BaseConnector:
        return _Connector(self, _Resolver(self, self._lookup()), context)

    def _check(self, scheme: str, host: str, port: int | None, has_user: bool) -> str:
        """Refuse a request that no address permits; returns the oddity that only some permit."""
        if scheme not in {"http", "https"}:
            raise SourceRejected("not an http(s) address")
        if has_user:
            raise SourceRejected("an address with a user name is not allowed")
        host = _canonical(host)
        literal = _literal(host)
        if not _matches(host, self._hosts):
            raise SourceRejected(f"the host {host} is not allowed")
        oddity = self._odd(scheme, port)
        if literal is not None:
            if not self._permits(host, literal, oddity):
                raise SourceRejected(_refusal(host, oddity))
        elif oddity and not self._networks and not _matches(host, self._private_hosts):
            raise SourceRejected(_refusal(host, oddity))
        return oddity

    def _odd(self, scheme: str, port: int | None) -> str:
        if scheme == "http":
            return "plain http"
        number = _HTTPS_PORT if port is None else port
        if self._ports is not None and number not in self._ports:
            return f"port {number}"
        return ""

    def _permits(self, host: str, address: Address, oddity: str) -> bool:
        if _matches(host, self._private_hosts):
            return True
        if _within(address, self._networks) or _within(_unwrapped(address), self._networks):
            return True
        return not oddity and is_public(address)


class _Connector(aiohttp.TCPConnector):
    """Checks each address as aiohttp parses it, which skips the resolver for numeric hosts."""

    def __init__(self, guard: Guard, resolver: AbstractResolver, context: ssl.SSLContext) -> None:
        super().__init__(
            resolver=resolver, ssl=context, use_dns_cache=False, limit=0, keepalive_timeout=15
        )
        self._resolver_owner = True  # it closes the resolver as well
        self._guard = guard
        self._factory = partial(_Handler, self._loop)  # type: ignore[assignment]

    async def connect(self, req: aiohttp.ClientRequest, *args: Any, **options: Any) -> Any:
        url = req.url
        has_user = url.raw_user is not None or url.raw_password is not None
        token = _oddity.set(self._guard._check(url.scheme, url.raw_host or "", url.port, has_user))
        try:
            return await super().connect(req, *args, **options)
        finally:
            _oddity.reset(token)


class _Handler(ResponseHandler):
    """Closes a connection that sends too many bytes between two pieces of a body.

    That bounds the memory and time for headers, interim answers (1xx), chunk extensions and
    trailers together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._idle = 0

    def is_connected(self) -> bool:
        """Whether it can serve a request: not once the host has sent more than was asked for.

        The next request would take that for its answer.
        """
        return super().is_connected() and not self._buffer and not self._tail

    def set_response_params(self, **params: Any) -> None:
        self._payload, self._idle = None, 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        before = self._payload, self._arrived()
        super().data_received(data)
        after = self._payload, self._arrived()
        if after[1] and before != after:
            self._idle = 0
            return
        self._idle += len(data)
        if self._idle > _IDLE_BYTES and self.transport is not None:
            self.transport.close()
            self.set_exception(HttpProcessingError(message="too many bytes without a body"))

    def _arrived(self) -> int:
        return getattr(self._payload, "total_bytes", 0)


class Names(AbstractResolver):
    """Looks up untrusted names with c-ares and its ``options``.

    It uses no thread per name, so unanswered names do not delay others.
    """

    def __init__(self, **options: Any) -> None:
        self._options = {"timeout": _LOOKUP_SECONDS, "tries": _LOOKUP_TRIES, **options}
        self._resolvers = WeakSet[AbstractResolver]()  # an old one is freed with its last lookup
        self._newest: AbstractResolver | None = None
        self._left = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily | Any = 0
    ) -> list[ResolveResult]:
        """The addresses of a name; raises ``OSError``."""
        if self._newest is None or not self._left:
            self._newest, self._left = aiohttp.AsyncResolver(**self._options), _LOOKUPS
            self._resolvers.add(self._newest)
        self._left -= 1
        resolver = self._newest
        return await resolver.resolve(host, port, family)

    async def close(self) -> None:
        """Cancel the lookups under way."""
        for resolver in list(self._resolvers):
            await resolver.close()


class _Resolver(AbstractResolver):
    """Returns only the allowed addresses of a name."""

    def __init__(self, guard: Guard, lookup: AbstractResolver) -> None:
        self._guard = guard
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily | Any = 0
    ) -> list[ResolveResult]:
        name = _canonical(host)
        try:
            addresses = await self._lookup.resolve(host, port, family)
        except (OSError, UnicodeError) as exc:  # UnicodeError: a label of over 63 characters
            raise SourceFault(f"the host {name} cannot be found") from exc
        oddity = _oddity.get()
        allowed = [
            result
            for result in addresses
            if self._guard._permits(name, ip_address(result["host"]), oddity)
        ]
        if not allowed:
            raise SourceRejected(_refusal(name, oddity))
        return allowed

    async def close(self) -> None:
        await self._lookup.close()


def _network(entry: str) -> Network | None:
    """The network of an entry, which may be one address; ``None`` for a host glob."""
    try:
        return ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None


def _canonical(host: str) -> str:
    return host.lower().removesuffix(".")


def _literal(host: str) -> Address | None:
    """The address that a host is written as, or ``None`` for a name.

    Only the usual notation is allowed: programs disagree about others (``127.1``, ``0x7f.1``,
    ``2130706433``).
    """
    if ":" not in host and _NAME.fullmatch(host) and not _NUMBER.fullmatch(host):
        return None
    with contextlib.suppress(ValueError):
        if "%" not in host:  # a zone (RFC 4007) names an interface of this machine
            return ip_address(host)
    raise SourceRejected("the host is neither a name nor a plain address")


def _matches(host: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(host, glob) for glob in globs)


def _refusal(host: str, oddity: str) -> str:
    if oddity:
        return f"{oddity} to {host} is not allowed"
    return f"the host {host} leads to an address that is not public"
