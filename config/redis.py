"""The address of Redis, and whether a server can be used.

One parser serves both sides: the registry's own client (:func:`worker.registry.client.connect`) and
Celery's broker (:mod:`config.celery`), so that ``REDIS_URL`` means the same to both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMES = ("redis", "rediss", "redis+sentinel")

SOCKET_TIMEOUT = 5.0  # seconds; a blocking read must be shorter
CONNECT_TIMEOUT = 5.0
SENTINEL_TIMEOUT = 2.0  # a sentinel answers from memory; the next one is tried after this

_DEFAULT_PORTS = {"redis": 6379, "rediss": 6379, "redis+sentinel": 26379}
_OPTIONS: dict[str, tuple[str, ...]] = {
    "redis": (),
    "rediss": ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"),
    "redis+sentinel": ("sentinel_username", "sentinel_password"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """The parsed address of a Redis deployment. Its repr shows no password."""

    hosts: tuple[tuple[str, int], ...]
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    master_name: str | None = None
    """The sentinels' name for the primary; ``None`` without Sentinel."""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: dict[str, str | bool] | None = None
    """redis-py's ``ssl_*`` options; ``None`` for a plain connection."""

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Read ``redis://``, ``rediss://`` or ``redis+sentinel://[:password@]h1:p,h2:p/name/db``.

        Raises ``ValueError`` with a message that repeats no part of the URL.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ValueError("must begin with redis://, rediss:// or redis+sentinel://")
        if "#" in rest or any(character.isspace() for character in rest):
            raise ValueError("special characters in user name and password must be %-encoded")
        location, _, query = rest.partition("?")
        authority, _, path = location.partition("/")
        credentials, at, hosts = authority.rpartition("@")
        username, _, password = credentials.partition(":")
        if at and not password:
            raise ValueError("has a user name without a password; write ://:PASSWORD@HOST")
        sentinel = scheme == "redis+sentinel"
        options = _query(query, scheme)
        addresses = tuple(_host(text, _DEFAULT_PORTS[scheme]) for text in hosts.split(","))
        if len(addresses) > 1 and not sentinel:
            raise ValueError("names several hosts; only redis+sentinel:// may")
        master_name: str | None = None
        if sentinel:
            master_name, _, path = path.partition("/")
            if not master_name:
                raise ValueError("lacks the primary's name: redis+sentinel://HOST:PORT/NAME/DB")
        return cls(
            hosts=addresses,
            db=_database(path),
            username=unquote(username) or None,
            password=unquote(password) or None,
            master_name=unquote(master_name) if master_name else None,
            sentinel_username=options.get("sentinel_username"),
            sentinel_password=options.get("sentinel_password"),
            tls=_tls(options) if scheme == "rediss" else None,
        )

    @property
    def where(self) -> str:
        """Hosts and ports, for people."""
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The passwords in this address, to be kept out of logs."""
        return tuple(text for text in (self.password, self.sentinel_password) if text)

    @property
    def sentinel_credentials(self) -> dict[str, str]:
        """The credentials of the sentinels themselves, as redis-py's options."""
        named = {"username": self.sentinel_username, "password": self.sentinel_password}
        return {name: text for name, text in named.items() if text}

    def urls(self, scheme: str) -> list[str]:
        """One URL for each host, without options: the form kombu reads."""
        credentials = ""
        if self.password:
            credentials = f"{quote(self.username or '', safe='')}:{quote(self.password, safe='')}@"
        return [
            f"{scheme}://{credentials}{f'[{host}]' if ':' in host else host}:{port}/{self.db}"
            for host, port in self.hosts
        ]


def unfit(info: Mapping[str, Any]) -> str:
    """Why a server cannot be used, by its ``INFO``; empty if it can."""
    if info.get("cluster_enabled") == 1:
        return (
            "this Redis is a cluster, which neither the fleet's scripts nor Celery can use. "
            "Use a single server, or several under Sentinel (redis+sentinel://)."
        )
    if str(info.get("maxmemory_policy", "")).startswith("allkeys-"):
        return (
            f"this Redis evicts any key when it is full (maxmemory-policy "
            f"{info['maxmemory_policy']}); unfinished tasks would be lost. "
            "Set maxmemory-policy to noeviction."
        )
    return ""


def _query(query: str, scheme: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    allowed = ", ".join(_OPTIONS[scheme]) or "none"
    if not set(options) <= set(_OPTIONS[scheme]):
        raise ValueError(f"has an unknown option after '?'; for {scheme}:// there are: {allowed}")
    return options


def _tls(options: dict[str, str]) -> dict[str, str | bool]:
    check = options.setdefault("ssl_cert_reqs", "required")
    if check not in {"required", "optional", "none"}:
        raise ValueError("ssl_cert_reqs must be required, optional or none")
    return {**options, "ssl_check_hostname": check == "required"}


def _host(text: str, default_port: int) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError("has a malformed IPv6 address; write [ADDRESS]:PORT")
        port = port[1:]
    else:
        host, _, port = text.partition(":")
    if not host:
        raise ValueError("lacks a host name")
    if not port:
        return host, default_port
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(
            "has a malformed port (special characters in a password must be %-encoded)"
        )
    return host, int(port)


def _database(path: str) -> int:
    if not path:
        return 0
    if not (path.isascii() and path.isdecimal()):
        raise ValueError("the database after the last '/' must be a number")
    return int(path)
