"""Replies of the upstream as samples: how the fleet reads one, and a copy that is safe to share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from urllib.parse import quote

import simplejson

from worker.core import finding, jsontext, outputs
from worker.core.jsontext import Json
from worker.core.models import Answer, Doubtful, Failed, FoundFile, NotFound, Pending, PlannedFile
from worker.core.redact import one_line, redact
from worker.core.reply import read_reply
from worker.errors import (
    UpstreamBlocked,
    UpstreamError,
    UpstreamRefused,
    UpstreamThrottled,
)

MAX_BYTES = 8 * jsontext.MAX_BYTES  # indented, and every character may be escaped
_MAX_TEXT = 4000  # characters of a body that is not JSON
_WHAT = "One reply of the upstream, without secrets and ids; made by harvester doctor --save."

# -- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply as it came from the upstream at ``host``, to the question about ``task_id``."""

    task_id: str
    host: str = ""
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a reply means to the fleet.

    ``line`` says it in a few words, the same for every reply of its kind; ``said`` holds the
    upstream's own words. A call with this reply raises ``error`` or returns ``answer``. ``files``
    are the files of a success as they would be planned, each with its address.
    """

    line: str
    said: str = ""
    error: UpstreamError | None = None
    answer: Answer | None = None
    files: tuple[tuple[PlannedFile, str], ...] = ()


def answer(reply: Reply) -> Answer:
    """What a reply says about the task; raises as :func:`worker.core.reply.read_reply` does."""
    return read_reply(
        http_status=reply.status,
        headers=reply.headers,
        body=reply.body,
        task_id=reply.task_id,
        host=reply.host,
    )


def read(reply: Reply) -> Reading:
    """How the fleet reads a reply."""
    try:
        said = answer(reply)
    except UpstreamError as error:
        return Reading(line=_failure(error), said=str(error), error=error)
    return _reading(said, reply.host)


def _reading(answer: Answer, host: str) -> Reading:
    match answer.observation:
        case Pending(status=status, known=known):
            line = f"waiting: {status or 'no status'}" + ("" if known else ", undocumented")
            return Reading(line=line, answer=answer)
        case Failed(reason=reason, error=said):
            return Reading(line=f"failed: {reason}", said=said, answer=answer)
        case NotFound(error=said):
            return Reading(line="not found", said=said, answer=answer)
        case Doubtful(error=said):
            return Reading(line="doubtful", said=said, answer=answer)
        case done:
            places = finding.find_files(jsontext.loads(done.data), host)
            files = tuple(_with_addresses(outputs.plan_files(places), places))
            rejected = sum(bool(planned.rejected) for planned, _ in files)
            line = f"succeeded: {len(files)} file{'s' * (len(files) != 1)}"
            line += f", {rejected} of them rejected" if rejected else ""
            line += f", unsure: {done.unsure}" if done.unsure else ""
            return Reading(line=one_line(line), answer=answer, files=files)


def _failure(error: UpstreamError) -> str:
    if isinstance(error, UpstreamBlocked):
        word = "refused" if isinstance(error, UpstreamRefused) else "blocked"
        return f"{word}: {error.kind}"
    return "throttled" if isinstance(error, UpstreamThrottled) else "unavailable"


def _with_addresses(
    plan: Iterable[PlannedFile], files: Iterable[FoundFile]
) -> Iterable[tuple[PlannedFile, str]]:
    urls = {file.identity: file.url for file in files}
    return ((planned, urls.get(planned.identity, "")) for planned in plan)


# -- without secrets --------------------------------------------------------------------------

_ADDRESS = re.compile(
    r"((?:https?:)?//[^/?#\s]+)(/[^?#]*)?(?:\?([^#]*))?(?:#.*)?", re.IGNORECASE | re.DOTALL
)
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+")
_USER = re.compile(r"//[^/@\s]*@")
_RUN = re.compile(r"[A-Za-z0-9+/=_-]{16,}")  # judged as a whole first: in linear time
_ID = re.compile(
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![0-9a-zA-Z])|[A-Za-z0-9]{16,}"
)
_DIGIT, _LOWER, _UPPER = map(re.compile, ("[0-9]", "[a-z]", "[A-Z]"))
_LONG_RUN = 32
_SHORTEST_SECRET = 4
_LONG_NUMBER = 14  # digits: beyond a time in milliseconds
_PLAIN = re.compile(r"[A-Za-z0-9_.,:+-]{0,64}")
_WORD = re.compile(r"[A-Za-z0-9_./:-]{0,64}")
_HARMLESS_VALUE = re.compile(r"[0-9]{1,15}|[A-Za-z]{1,10}")
_EXPIRY = re.compile(r"(x-[a-z]+-)?(date|expires)", re.IGNORECASE)
_KEPT_HEADERS = re.compile(r"x-ca-[a-z-]+|content-type|date|location|retry-after|server|via")
_SIGNED_TEXT = re.compile(r"StringToSign.*", re.IGNORECASE | re.DOTALL)
_CONTENT = frozenset({"images", "result", "info", "parameters"})
"""Members with the user's own texts: only words that look like names are kept."""


def redacted(reply: Reply, secrets: Iterable[str]) -> Reply:
    """The reply without secrets, signatures, ids and texts of users.

    The fleet reads it as before. The same value always becomes the same alias. ``secrets`` are
    removed wherever they occur. Raises ``ValueError`` if the fleet would read it differently.
    """
    alias = _Alias(reply.task_id, secrets)
    headers = {
        name.lower(): alias.text(redact(_SIGNED_TEXT.sub("StringToSign", value)))
        for name, value in reply.headers.items()
        if _KEPT_HEADERS.fullmatch(name.lower())
    }
    try:
        value = jsontext.loads(reply.body, lenient=True)
    except ValueError:
        text = reply.body[: 8 * _MAX_TEXT].decode("utf-8", "replace")
        body = alias.text(redact(text))[:_MAX_TEXT].encode()
    else:
        body = jsontext.dumps(alias.value(value, content=False)).encode()
    safe = replace(reply, task_id=alias.text(reply.task_id), headers=headers, body=body)
    before, after = read(reply), read(safe)
    if (before.line, _shape(before)) != (after.line, _shape(after)):
        raise ValueError(f"without secrets it is read as {after.line}, not as {before.line}")
    return safe


def _shape(reading: Reading) -> list[tuple[int, float | None, bool]]:
    return [
        (len(planned.refs), finding.url_expiry(url), bool(planned.rejected))
        for planned, url in reading.files
    ]


class _Alias:
    """Replaces private values, the same value always by the same alias."""

    def __init__(self, task_id: str, secrets: Iterable[str]) -> None:
        self._task_id = task_id
        self._secrets = [
            form
            for secret in secrets
            if len(secret) >= _SHORTEST_SECRET
            for form in {secret, quote(secret, safe="")}
        ]
        self._known: dict[str, str] = {}

    def value(self, node: Json, *, content: bool) -> Json:
        """A JSON value without private values; ``content``: it is the user's own."""
        if isinstance(node, str):
            return self._string(node, content=content)
        if isinstance(node, list):
            return [self.value(child, content=content) for child in node]
        if isinstance(node, dict):
            return {
                self.text(redact(key)): self.value(child, content=content or key in _CONTENT)
                for key, child in node.items()
            }
        digits = "" if isinstance(node, bool) or node is None else jsontext.dumps(node)
        if digits == self._task_id or any(secret in digits for secret in self._secrets):
            return self.text(digits)
        return 0 if re.fullmatch(rf"-?[0-9]{{{_LONG_NUMBER},}}", digits) else node

    def _string(self, text: str, *, content: bool) -> str:
        bare = finding.bare(text)
        if not bare:
            return text
        if match := _ADDRESS.fullmatch(plain := bare.replace("&amp;", "&")):
            safe = self._address(match)
            return text.replace(bare, safe if plain == bare else safe.replace("&", "&amp;"), 1)
        with suppress(jsontext.TooLargeError):
            inside = finding.unpacked(text)
            if not isinstance(inside, str):
                return jsontext.dumps(self.value(inside, content=content))
        safe = self.text(redact(text))
        if content and not _WORD.fullmatch(text):
            return f"text of {len(text)} characters"
        return safe

    def _address(self, match: re.Match[str]) -> str:
        origin, path, query = match.groups(default="")
        origin = self.text(_USER.sub("//", origin))
        path = "/".join(map(self._segment, path.split("/")))
        parts = [part.partition("=") for part in query.split("&")] if query else []
        words = [
            self._parameter(name)
            + equals
            + (value if self._harmless(name, value) else self._named(value))
            for name, equals, value in parts
        ]
        return f"{origin}{path}{'?' if query else ''}{'&'.join(words)}"

    def _harmless(self, name: str, value: str) -> bool:
        return (bool(_EXPIRY.fullmatch(name)) or bool(_HARMLESS_VALUE.fullmatch(value))) and (
            self.text(value) == value
        )

    def _parameter(self, name: str) -> str:
        return name if _WORD.fullmatch(name) and self.text(name) == name else self._named(name)

    def _segment(self, text: str) -> str:
        safe = self.text(text)
        if _PLAIN.fullmatch(safe):
            return safe
        stem, dot, ending = safe.rpartition(".")
        plain = dot and re.fullmatch(r"[A-Za-z0-9]{1,5}", ending)
        return self._named(stem) + dot + ending if plain else self._named(safe)

    def text(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "secret")
        if text == self._task_id or len(self._task_id) >= 8:
            text = text.replace(self._task_id, "task-1")
        text = _EMAIL.sub("someone@example.com", text)
        return _RUN.sub(self._run, text)

    def _run(self, match: re.Match[str]) -> str:
        run = match.group()
        if len(run) >= _LONG_RUN and all(sort.search(run) for sort in (_DIGIT, _LOWER, _UPPER)):
            return self._named(run)
        return _ID.sub(self._id, run)

    def _id(self, match: re.Match[str]) -> str:
        return self._named(match.group()) if _DIGIT.search(match.group()) else match.group()

    def _named(self, value: str) -> str:
        if not value:
            return value
        return self._known.setdefault(value, f"id-{len(self._known) + 1}")


# -- as a file --------------------------------------------------------------------------------


def to_text(reply: Reply) -> str:
    """The text of a sample's file, with the line that says how it is read now."""
    document: dict[str, Json] = {
        "what": _WHAT,
        "reads_as": read(reply).line,
        "host": reply.host,
        "task_id": reply.task_id,
        "status": reply.status,
        "headers": dict(reply.headers),
    }
    try:
        document["json"] = jsontext.loads(reply.body, lenient=True)
    except ValueError:
        document["text"] = reply.body.decode("utf-8", "replace")
    text: str = simplejson.dumps(document, indent=2, allow_nan=False)
    return text + "\n"


def from_text(text: str | bytes) -> tuple[Reply, str]:
    """A sample and the line it should be read as; raises ``ValueError`` if it is malformed."""
    read_text = jsontext.loads(text, max_bytes=MAX_BYTES, max_depth=jsontext.MAX_DEPTH + 1)
    document = read_text if isinstance(read_text, dict) else {}
    headers, status = document.get("headers", {}), document.get("status")
    task_id, line = document.get("task_id"), document.get("reads_as")
    host = str(document.get("host", ""))
    if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
        raise ValueError("headers must be an object of strings")
    if type(status) is not int or not isinstance(task_id, str) or not isinstance(line, str):
        raise ValueError("status, task_id or reads_as is missing or malformed")
    if "json" in document:
        body = jsontext.dumps(document["json"])
    elif isinstance(document.get("text"), str):
        body = document["text"]
    else:
        raise ValueError("neither json nor text")
    encoded = body.encode("utf-8", "surrogatepass")
    return Reply(task_id=task_id, host=host, status=status, headers=headers, body=encoded), line


def members(reply: Reply) -> str:
    """The members of a reply's ``data``, as one line for people; empty if there is no data."""
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        return ""
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict):
        return ""
    return one_line(", ".join(f"{name} ({_kind(value)})" for name, value in data.items()))


def _kind(value: object) -> str:
    if isinstance(value, list | dict):
        number = len(value)
        return f"{'list' if isinstance(value, list) else 'object'} of {number}"
    return "null" if value is None else type(value).__name__.replace("str", "text")
