"""The rules for values of settings, one for each kind of value.

A rule returns the value to keep, and raises ``ValueError`` with a message that repeats no secret.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from config.redis import RedisAddress
from worker.core.keys import check_prefix
from worker.core.providers import choose

PUT_OPTIONS = frozenset(
    {"ServerSideEncryption", "SSEKMSKeyId", "StorageClass", "CacheControl", "ACL", "Tagging"}
)
BROKER_SCHEMES = ("amqp", "amqps")
_ADDRESS_GLOB = re.compile(
    r"(?=.*[0-9])[0-9.*?\[\]!-]+|[0-9a-f.:*?\[\]!-]*:[0-9a-f.:*?\[\]!-]*", re.I
)
TEN_YEARS = 315_360_000


def token(text: str) -> str:
    """Printable ASCII without spaces."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("must be printable ASCII without spaces")
    return text


def secret(text: SecretStr) -> SecretStr:
    """Printable characters: an end of a line, or a mark that nobody sees, is no part of it."""
    if not text.get_secret_value().isprintable():
        raise ValueError("must not hold line ends, control characters or invisible marks")
    return text


def http_url(text: str) -> str:
    """An http or https URL of a host, without user name, query and fragment."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not re.fullmatch(r"[!-~]+", text):
        raise ValueError("must be an http:// or https:// URL with a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must not hold a user name, a query or a fragment")
    return text


def redis_url(secret: SecretStr) -> SecretStr:
    """An address that :class:`RedisAddress` can parse."""
    RedisAddress.parse(secret.get_secret_value())
    return secret


def broker_url(secret: SecretStr) -> SecretStr:
    """As :func:`redis_url`, or one or several URLs of RabbitMQ."""
    urls = secret.get_secret_value().split(";")
    if urls[0].partition("://")[0] not in BROKER_SCHEMES:
        try:
            return redis_url(secret)
        except ValueError as exc:
            if "must begin" not in str(exc):
                raise
            raise ValueError(f"{exc}, amqp:// or amqps://") from None
    for url in urls:
        try:
            parts = urlsplit(url)
            valid = parts.scheme in BROKER_SCHEMES and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(
                "must be amqp://USER:PASSWORD@HOST:PORT/VHOST, several joined by ';'"
                " (special characters %-encoded)"
            )
    return secret


def bucket(text: str) -> str:
    """The bare name of a bucket."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", text):
        raise ValueError("must be the bare name of a bucket, without s3:// or a path")
    return text


def storage(text: str) -> str:
    """A row of the table of providers, and columns of it."""
    choose(text, "")
    return text


def put_options(value: object) -> object:
    """Some of :data:`PUT_OPTIONS`, as a mapping or its JSON."""
    try:
        options = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise ValueError("must be a JSON object") from None
    if not isinstance(options, dict):
        raise ValueError("must be a JSON object")  # noqa: TRY004  pydantic collects ValueError only
    if unknown := sorted(set(options) - PUT_OPTIONS):
        raise ValueError(
            f"accepts only {', '.join(sorted(PUT_OPTIONS))}; not {', '.join(map(repr, unknown))}"
        )
    if wrong := sorted(name for name, text in options.items() if not _filled(text)):
        raise ValueError(f"{', '.join(wrong)} must be printable ASCII that is not empty")
    return options


def _filled(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[ -~]+", value) is not None  # a header


def manifest_prefix(text: str) -> str:
    """A prefix of keys that is not empty."""
    prefix = check_prefix(text)
    if not prefix:
        raise ValueError("must not be empty")
    return prefix


def namespace(text: str) -> str:
    """The first part of every Redis key."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text):
        raise ValueError("must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    return text


def webhook_secrets(secrets: SecretStr) -> SecretStr:
    """Keys that webhooks are signed with, separated by spaces."""
    for text in secrets.get_secret_value().split() or [""]:
        try:
            size = len(base64.b64decode(text.removeprefix("whsec_"), validate=True))
        except (binascii.Error, ValueError):
            size = 0
        if not text.startswith("whsec_") or not 24 <= size <= 64:
            raise ValueError(
                "must be whsec_ followed by 24 to 64 bytes in base64; several are separated by "
                "spaces"
            )
    return secrets


def split(value: object) -> object:
    """The comma-separated entries of a text; anything else is unchanged."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        return value
    return tuple(item.strip() for item in items if item.strip())


def gaps(value: object) -> tuple[float, ...]:
    """Waits in seconds, separated by commas or as a list."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not 1 <= len(items) <= 10:
        raise ValueError("must be 1 to 10 numbers of seconds, separated by commas")
    try:
        gaps = tuple(float(item) for item in items)
    except (TypeError, ValueError):
        raise ValueError("must be numbers of seconds, separated by commas") from None
    if not all(0 <= gap <= 3600 for gap in gaps):  # also refuses nan
        raise ValueError("must be numbers from 0 to 3600")
    return gaps


def each(rule: Callable[[str], str]) -> AfterValidator:
    """Apply a rule to every entry; an error names the wrong one."""

    def check(items: tuple[str, ...]) -> tuple[str, ...]:
        checked = []
        for position, item in enumerate(items, start=1):
            try:
                checked.append(rule(item))
            except ValueError as exc:
                raise ValueError(f"entry {position} {exc}") from None
        return tuple(checked)

    return AfterValidator(check)


def some(items: tuple[str, ...]) -> tuple[str, ...]:
    """At least one entry."""
    if not items:
        raise ValueError("must hold at least one entry; * allows all")
    return items


def host_glob(text: str) -> str:
    """A host name or a glob of host names, in lower case."""
    if not re.fullmatch(r"[A-Za-z0-9._:*?\[\]!-]+", text):
        raise ValueError("must be a host name or a glob of host names, without scheme or path")
    return text.lower()


def host_or_network(text: str) -> str:
    """As :func:`host_glob`, or a network such as 10.0.0.0/8."""
    if "/" not in text:
        if re.search(r"[*?\[]", text) and _ADDRESS_GLOB.fullmatch(text):
            raise ValueError("must name a network instead of a glob of addresses, as in 10.0.0.0/8")
        return host_glob(text)
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ValueError("must be a host glob or a network such as 10.0.0.0/8") from None


def content_type(text: str) -> str:
    """A glob of content types, in lower case."""
    if not re.fullmatch(r"\*|[A-Za-z0-9.+*?\[\]!-]+/[A-Za-z0-9.+*?\[\]!-]+", text):
        raise ValueError("must be * or a glob such as image/*")
    return text.lower()


def reply_target(text: str) -> str:
    """A glob of the form ``queue/task``."""
    queue, slash, task = text.partition("/")
    if not slash or not queue or not task:
        raise ValueError("must be a glob of the form queue/task")
    return text


def web_token(token: SecretStr) -> SecretStr:
    """A bearer token, too long to be guessed."""
    if not re.fullmatch(r"[!-~]{16,512}", token.get_secret_value()):
        raise ValueError("must be 16 to 512 printable ASCII characters without spaces")
    return token


Seconds = Annotated[float, Field(gt=0, le=TEN_YEARS, allow_inf_nan=False)]
HttpUrl = Annotated[str, AfterValidator(http_url)]
Endpoint = Annotated[HttpUrl, AfterValidator(lambda url: url.rstrip("/"))]
BaseUrl = Annotated[HttpUrl, AfterValidator(lambda url: f"{url.rstrip('/')}/")]
Hosts = Annotated[tuple[str, ...], BeforeValidator(split), each(host_or_network)]
