"""Addresses without their secrets: no query, fragment or user name reaches a log or a record."""

from __future__ import annotations

import re
from urllib.parse import unquote

SIGNING_PARAMETERS = frozenset(
    {
        # Aliyun CDN, Amazon CloudFront, Azure, Google, Tencent COS and CDN, Akamai, Huawei OBS
        "auth_key",
        "Key-Pair-Id",
        "Policy",
        "sig",
        "GoogleAccessId",
        "AWSAccessKeyId",
        "q-sign-algorithm",
        "q-ak",
        "q-sign-time",
        "q-key-time",
        "q-header-list",
        "q-url-param-list",
        "q-signature",
        "x-cos-security-token",
        "txSecret",
        "txTime",
        "wsSecret",
        "wsTime",
        "hdnts",
        "hdnea",
        "hdntl",
        "__token__",
        "AccessKeyId",
        "x-obs-security-token",
        # Alibaba Cloud OSS, V1 and V4
        "Expires",
        "OSSAccessKeyId",
        "Signature",
        "security-token",
        "x-oss-date",
        "x-oss-expires",
        "x-oss-signature",
        "x-oss-signature-version",
        "x-oss-credential",
        "x-oss-security-token",
        "x-oss-additional-headers",
    }
)
"""Query parameters that sign an address. So does every ``X-Amz-*``,
``X-Goog-*`` and ``X-Tos-*``."""

_AZURE = frozenset(
    re.findall(r"\w+", "sv ss srt sr st se sp sip spr si sdd skoid sktid skt ske sks skv")
)
"""Names that say what ``sig`` signs, and too little without it to be taken for that."""

_NAMES = (
    "|".join(sorted(map(re.escape, SIGNING_PARAMETERS), reverse=True))
    + r"|X-(?:Amz|Goog|Tos)-[A-Za-z0-9-]+"
)
# In prose an address ends at white space or at one of these.
_TOKEN = re.compile(r'[^\s"<>]+')
_END_OF_PATH = re.compile(r"[?#]")
_CLOSING = ")]}'.,;:!\\"
_USERINFO = re.compile(r"(?<=://)[^/\s]*@")
_SECRET_VALUE = re.compile(rf"(?<=[?&;])({_NAMES})=[^&\s\"<>]*", re.IGNORECASE)

# The signs ? & = may be written plainly, percent-encoded (an address inside an address) or
# JSON-escaped (an address inside JSON inside a text).
_START = re.compile(r"\?|%3f|\\u003f", re.IGNORECASE)
_SIGNED = re.compile(rf"(?:[?&;]|%3[Ff]|%26|\\u003[Ff]|\\u0026)(?:{_NAMES})(?:=|%3[Dd]|\\u003[Dd])")
_REST_OF_QUERY = re.compile(r"(?:[A-Za-z0-9._~:/?@!$&*+,;=%-]|\\u00[0-9A-Fa-f]{2}|\\/)*")
_NEXT_ADDRESS = re.compile(r"(?<![A-Za-z0-9=/?&%:.#+_~\\-])(?=https?://)", re.IGNORECASE)


def is_signing_parameter(name: str) -> bool:
    """Whether a query parameter of this name (as it stands in the query) signs an address."""
    plain = unquote(name)
    return plain in SIGNING_PARAMETERS or plain.startswith(("X-Amz-", "X-Goog-", "X-Tos-"))


def unsigned(query: str) -> str:
    """A query without the parameters that sign an address, the rest as it was."""
    parts = [(part.partition("=")[0], part) for part in query.split("&")]
    azure = _AZURE if any(name == "sig" for name, _ in parts) else frozenset()
    return "&".join(
        part for name, part in parts if not (is_signing_parameter(name) or name in azure)
    )


def has_signature(url: str) -> bool:
    """Whether a URL's query carries at least one signing parameter."""
    query = url.partition("#")[0].partition("?")[2]
    return any(is_signing_parameter(part.partition("=")[0]) for part in query.split("&"))


def strip_query(url: str) -> str:
    """Return a URL without its query, fragment and user information."""
    return _USERINFO.sub("", _END_OF_PATH.split(url, maxsplit=1)[0])


def redact(text: str) -> str:
    """Return a text in which every URL has lost its query, fragment and user information.

    Rather too much is cut than too little: what directly follows a query goes with it.
    """
    if "%" in text or "\\u" in text:  # an address that is encoded shows no "://"
        text = strip_signatures(text)
    if "://" in text:
        text = _TOKEN.sub(_redact_token, text)
    return _SECRET_VALUE.sub(r"\1=", text)


def _redact_token(match: re.Match[str]) -> str:
    token = match.group()
    start = token.find("://")
    if start < 0:
        return token
    cut = _END_OF_PATH.search(token, start)
    if cut is None:
        return _USERINFO.sub("", token)
    query = token[cut.end() :]
    return _USERINFO.sub("", token[: cut.start()]) + query[len(query.rstrip(_CLOSING)) :]


def one_line(text: str, limit: int = 500) -> str:
    """Return a text as one redacted, printable line of at most ``limit`` characters."""
    # what is cut off first cannot hold the beginning of an address whose query stays
    safe = redact(text[: 16 * limit])
    line = " ".join("".join(c if c.isprintable() else " " for c in safe).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def strip_signatures(text: str) -> str:
    """Return a text in which signed addresses have lost their query, and nothing else has changed.

    An address counts as signed by the names of its parameters; where it ends is a guess, since
    prose does not say. The guess never leaves a signing parameter behind.
    """
    if not _SIGNED.search(text):
        return text
    return _TOKEN.sub(
        lambda match: "".join(map(_strip_signed, _NEXT_ADDRESS.split(match.group()))), text
    )


def _strip_signed(part: str) -> str:
    query = _START.search(part)
    signed = list(_SIGNED.finditer(part, query.start())) if query else []
    if query is None or not signed:
        return part
    # an address inside another's query: only the inner one may be signed
    inner = part.rfind("//", query.start(), signed[0].start())
    if inner >= 0:
        query = _START.search(part, inner, signed[0].end()) or query
    rest = _REST_OF_QUERY.match(part, signed[-1].end())
    end = rest.end() if rest else signed[-1].end()
    cut = part[query.start() : end]
    return part[: query.start()] + cut[len(cut.rstrip(".,;:!?*")) :] + part[end:]
