"""Addresses without their secrets: no query, fragment or user name reaches a log or a record.

``urllib.parse`` splits an address that stands alone. These are found within any text, encoded,
cut off or misspelt.
"""

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
"""Parameters that belong to a signature only next to ``sig``: their names are too short."""

_NAMES = (
    "|".join(sorted(map(re.escape, SIGNING_PARAMETERS), reverse=True))
    + r"|X-(?:Amz|Goog|Tos)-[A-Za-z0-9-]{1,60}"
)
# In prose, an address ends at white space or at one of these characters.
_TOKEN = re.compile(r'[^\s"<>]+')
_END_OF_PATH = re.compile(r"[?#]")
_CLOSING = ")]}'.,;:!\\"
_USERINFO = re.compile(r"(?<=://)[^/\s]*@")


_BACKSLASH = r"(?:\\|%(?:25)*5[cC])"


def _sign(characters: str) -> str:
    """A regular expression for signs: plain, percent-encoded, escaped for JSON or for HTML."""
    codes = "|".join(f"{ord(character):02x}" for character in characters)
    codes = re.sub("[a-f]", lambda digit: f"[{digit[0]}{digit[0].upper()}]", codes)
    decimal = "|".join(f"{ord(character)}" for character in characters)
    html = rf"&#(?:[xX]0{{0,6}}(?:{codes})|0{{0,6}}(?:{decimal}));"
    json = rf"{_BACKSLASH}{{1,8}}(?:[uU]00|[xX])(?:{codes})"
    return rf"(?:{html}|[{re.escape(characters)}]|%(?:25)*(?:{codes})|{json})"


_SLASH = rf"(?:{_BACKSLASH}{{0,8}}{_sign('/')})"
# A name that may also mean something else counts only in its usual spelling.
_AMBIGUOUS = ("Expires", "Policy", "sig")
_OTHERS = "|".join(sorted(map(re.escape, SIGNING_PARAMETERS - {*_AMBIGUOUS})))
_OTHERS += "|X-(?:Amz|Goog|Tos)-[A-Za-z0-9-]+"

_START = re.compile(_sign("?"))
_SIGNED = re.compile(rf"{_sign('?&;')}(?:{'|'.join(_AMBIGUOUS)}|(?i:{_OTHERS})){_sign('=')}")
_REST_OF_QUERY = re.compile(r"(?:[A-Za-z0-9._~:/?@!$&*+,;=%-]|\\u00[0-9A-Fa-f]{2}|\\/)*")
_NEXT_ADDRESS = re.compile(r"(?<![A-Za-z0-9=/?&%:.#+_~\\-])(?=https?://)", re.IGNORECASE)

# The rest is for logs and errors, and errs on the side of cutting too much.
_SCHEME_END = re.compile(_sign(":") + _SLASH + _SLASH)
_QUERY = re.compile(_sign("?#"))
_AFTER_HOST = re.compile(rf"{_SLASH}|{_sign('?#')}")
_AT = re.compile(_sign("@"))
_COLON = re.compile(_sign(":"))
_PORT = re.compile(r"\d*\W*")
_WEB = ("http", "https")
_KNOWN = (*_WEB, "redis", "rediss", "sentinel", "amqp", "amqps", "s3")  # endings of schemes
_MARK = re.compile(rf"[\"']?[ ]{{0,2}}(?::|=?>|{_sign('=')})[ ]?")  # ">" ends an XML tag
_WORD = re.compile(r"[\w-]*")
_LONGEST_WORD = 64
_ENCODED = re.compile(r"(?:25|u00|x)*(?:3f|26|3b)")  # an encoded sign in front of a name
_WORDS = frozenset({*map(str.lower, _AMBIGUOUS), "sign", "pwd", "session", "sessionid"})
_ENDINGS = (
    *map(str.lower, SIGNING_PARAMETERS - {*_AMBIGUOUS}),
    *("signature", "secret", "token", "password", "passwd", "credential", "sessionid"),
    *("signatureprovided", "authorization"),
    *("apikey", "api_key", "api-key", "authkey", "auth_key", "auth-key", "accesskey"),
    *("access_key", "access-key", "access_key_id", "access-key-id"),
)
_STORES = ("x-amz-", "x-goog-", "x-tos-")
# names of headers, and of members of JSON
_HEADERS = (
    *("authorization", "cookie", "signature", "-token", "_token", "secret", "password", "passwd"),
    *("apikey", "api_key", "api-key", "accesskey", "access_key"),
)
# Each name contains one of these: most texts contain none and need no closer look.
_ROOTS = re.compile(
    "sig|secret|token|passw|pwd|credential|session|key|expires|policy|auth|cookie|q-|txtime|wstime"
    "|access|hdn|x-"
)
_QUOTED = r"[\"'](?:\\.|[^\"'\\])*[\"']?|(?:bearer|basic|oss|aws)[ ][^\s\"'<>]*"
_VALUE = re.compile(rf"{_QUOTED}|(?:(?!{_sign('?&;')})[^\s\"<>])*", re.IGNORECASE)
_HEADER_VALUE = re.compile(
    rf"{_QUOTED}|[^\s\"'<>]{{12,}}",  # a shorter one is prose
    re.IGNORECASE,
)


def is_signing_parameter(name: str) -> bool:
    """Whether a query parameter of this name, as written in the query, signs an address."""
    plain = unquote(name)
    return plain in SIGNING_PARAMETERS or plain.startswith(("X-Amz-", "X-Goog-", "X-Tos-"))


def unsigned(query: str) -> str:
    """A query without the parameters that sign an address; the rest is unchanged."""
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


def origin(url: str) -> str:
    """Return only scheme, host and port of a URL: its path may be a secret too."""
    scheme, mark, rest = strip_query(url).partition("://")
    return f"{scheme}{mark}{rest.partition('/')[0]}"


def redact(text: str) -> str:
    """Return a text in which every URL has lost its query, fragment and user name.

    This includes encoded URLs. It errs on the side of cutting too much: text directly after a query
    is cut with it, and so is a value after a name like ``token``.
    """
    if _SCHEME_END.search(text):
        text = _TOKEN.sub(_redact_token, text)
    return _without_values(text)


def _word_before(text: str, end: int) -> str:
    """The word that ends there, in lower case."""
    match = _WORD.match(text[max(0, end - _LONGEST_WORD) : end][::-1])
    return match[0][::-1].lower() if match else ""


def _without_values(text: str) -> str:
    if not _ROOTS.search(text.lower()):
        return text
    parts, at = [], 0
    for mark in _MARK.finditer(text):
        if mark.start() < at:
            continue
        word = _word_before(text, mark.start())
        if ":" in mark[0]:
            value = _HEADER_VALUE if word.endswith((*_HEADERS, *_ENDINGS)) else None
        else:
            plain = _ENCODED.sub("", word, count=1) if _ENCODED.match(word) else word
            names = plain in _WORDS or word.endswith(_ENDINGS) or any(s in word for s in _STORES)
            value = _VALUE if names else None
        if value is not None and (match := value.match(text, mark.end())):
            parts.append(text[at : mark.end()])
            at = match.end()
    return "".join((*parts, text[at:])) if parts else text


def _redact_token(match: re.Match[str]) -> str:
    token = match.group()
    words = [(end, _word_before(token, end.start())) for end in _SCHEME_END.finditer(token)]
    # a second one may belong to a password
    words = [
        (end, scheme)
        for end, scheme in words
        if (end, scheme) == words[0] or scheme.endswith(_KNOWN)
    ]
    if not words:
        return token
    parts = [token[: words[0][0].end()]]
    for (start, scheme), following in zip(words, [*words[1:], None], strict=True):
        rest = token[start.end() : following[0].start() if following else len(token)]
        word = "" if following is None else rest[max(0, len(rest) - len(following[1])) :]
        rest, cut = _without_query(_without_user(scheme, rest[: len(rest) - len(word)]))
        parts.append(rest)
        if cut:
            # the rest may be a part of the query
            parts.append(token[len(token.rstrip(_CLOSING)) :])
            break
        if following is not None:
            parts.append(word + following[0][0])
    return "".join(parts)


def _without_query(rest: str) -> tuple[str, bool]:
    cut = _QUERY.search(rest)
    return (rest, False) if cut is None else (rest[: cut.start()], True)


def _without_user(scheme: str, rest: str) -> str:
    """The text after ``://`` without user name and password, whose signs may be unescaped."""
    query = _QUERY.search(rest)
    path = len(rest) if query is None else query.start()
    host = _AFTER_HOST.search(rest)
    size = len(rest) if host is None else host.start()
    ats = [at.end() for at in _AT.finditer(rest)]
    before = [at for at in ats if at <= path]
    if scheme.endswith(_WEB) and _is_host(rest[:size]) and not (before and before[0] <= size):
        return rest  # a path or query that holds the sign
    if len(ats) > len(before) and not (before and before[0] <= size):
        return ""  # a query that holds the sign, or a password that holds a question mark
    return rest[before[-1] :] if before else rest


def _is_host(text: str) -> bool:
    """Whether a text can be a host with an optional port, rather than a user and password."""
    colons = [colon.end() for colon in _COLON.finditer(text)]
    if not colons or text.startswith("["):
        return True
    return len(colons) == 1 and _PORT.fullmatch(text, colons[0]) is not None


def one_line(text: str, limit: int = 500) -> str:
    """Return a text as one redacted, printable line of at most ``limit`` characters."""
    # cutting before redacting cannot separate an address from a query that stays
    safe = redact(text[: 16 * limit])
    line = " ".join("".join(c if c.isprintable() else " " for c in safe).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def strip_signatures(text: str) -> str:
    """Return a text in which signed addresses have lost their query; nothing else changes.

    The names of its parameters tell whether an address is signed. Its end is a guess, since prose
    does not mark it; the guess never leaves a signing parameter behind.
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
