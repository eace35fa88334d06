"""The files of a reply: finding them, naming them, and putting links in their place.

``data`` is the ``data`` of a succeeded reply as :func:`worker.core.jsontext.loads` returns it. Of
its content this module knows ``images``, ``result``, ``url``, ``filename`` and ``format``
(vendor's page of ``comfy_get_result``), and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from worker.core import jsontext, keys
from worker.core.jsontext import Json
from worker.core.layout import Layout
from worker.core.models import FoundFile, PlannedFile, Reason, State, StoredFile
from worker.core.redact import has_signature, is_signing_parameter, one_line, strip_signatures

MAX_FILES = 1000
NOT_HTTP = "not an http(s) address"
TOO_MANY = f"more than {MAX_FILES:,} files"

_OWN_TEXT_BYTES = 64 * 1024 * 1024  # a plan repeats parts of its reply, and is bounded by it
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HTTP = re.compile(r"https?://", re.IGNORECASE)
# Characters that no request can carry, or that would split it.
_UNSENDABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_PROSE = re.compile(r'[\s"<>]')
# Worst first: which reason a task with several kinds of losses carries.
_PRECEDENCE = (
    Reason.CANCELED,
    Reason.FILES_REJECTED,
    Reason.FILES_UNAVAILABLE,
    Reason.STORAGE_ERROR,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOutcome:
    """How one file ended: stored at a time (Unix milliseconds), or lost for a reason.

    Raises ``ValueError`` if it is neither or both.
    """

    stored: StoredFile | None = None
    stored_at: int | None = None
    error: str = ""
    reason: Reason = Reason.NONE

    def __post_init__(self) -> None:
        kept = self.stored is not None
        if kept != (self.stored_at is not None) or kept != (self.reason is Reason.NONE):
            raise ValueError("a file is either stored at some time or lost for some reason")

    def to_json(self) -> str:
        """This outcome as JSON text."""
        value = asdict(self)
        if value["stored"] is not None:
            # beside the file: workers of 0.1 ignore it here, and take no unknown field there
            value["duration"] = value["stored"].pop("duration")
        return jsontext.dumps(value)

    @classmethod
    def from_json(cls, text: str) -> FileOutcome:
        """Read what :meth:`to_json` wrote; raises ``ValueError`` if it is not JSON."""
        value = json.loads(text)  # our own, so that fractions may become numbers
        stored = value["stored"]
        return cls(
            stored=stored and StoredFile(**stored, duration=value.get("duration")),
            stored_at=value["stored_at"],
            error=value["error"],
            reason=Reason(value["reason"]),
        )


# -- addresses --------------------------------------------------------------------------------


def _address(text: str) -> SplitResult | None:
    """The parts of an http(s) URL that a request can be made for, or ``None``."""
    if not _HTTP.match(text) or _UNSENDABLE.search(text):
        return None
    try:
        parts = urlsplit(text)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, port or host malformed
        return None
    return parts if usable else None


def _identity(parts: SplitResult) -> str:
    scheme, host = parts.scheme, parts.hostname or ""
    authority = f"[{host}]" if ":" in host else host
    if parts.port not in (None, _DEFAULT_PORTS[scheme]):
        authority += f":{parts.port}"
    query = "&".join(
        item for item in parts.query.split("&") if not is_signing_parameter(item.partition("=")[0])
    )
    return f"{scheme}://{authority}{parts.path}" + (f"?{query}" if query else "")


def url_expiry(url: str) -> float | None:
    """When a signed URL expires, in Unix seconds, or ``None`` if it does not say.

    Read from ``Expires`` (OSS V1), ``x-oss-date`` + ``x-oss-expires`` (OSS V4) and ``X-Amz-Date``
    + ``X-Amz-Expires`` (AWS V4); the earliest if there are several.
    """
    query = url.partition("#")[0].partition("?")[2]
    values = {
        unquote(name): unquote(value)
        for name, _, value in (item.partition("=") for item in query.split("&"))
    }
    ends = [_whole_number(values.get("Expires", ""))]
    for date, life in (("x-oss-date", "x-oss-expires"), ("X-Amz-Date", "X-Amz-Expires")):
        start, seconds = _basic_time(values.get(date, "")), _whole_number(values.get(life, ""))
        ends.append(None if start is None or seconds is None else start + seconds)
    return min((end for end in ends if end is not None), default=None)


def _whole_number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _basic_time(text: str) -> float | None:
    try:
        return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


# -- finding ----------------------------------------------------------------------------------


def usable(data: Json) -> bool:
    """Whether the ``data`` of a succeeded reply says what came out of the task."""
    return isinstance(data, dict) and (
        isinstance(data.get("images"), list) or data.get("result") is not None
    )


def _strings(node: Json, ref: str) -> Iterator[tuple[str, str, dict[str, Json] | None]]:
    """Every string below a node, in document order.

    Yields the pointer, the string, and the object whose ``url`` it is.
    """
    if isinstance(node, str):
        yield ref, node, None
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _strings(child, f"{ref}/{index}")
    elif isinstance(node, dict):
        for key, child in node.items():
            below = keys.pointer(ref, key)
            if key == "url" and isinstance(child, str):
                yield below, child, node
            else:
                yield from _strings(child, below)


def _images(node: Json) -> Iterator[tuple[str, str, dict[str, Json] | None]]:
    for index, entry in enumerate(node if isinstance(node, list) else ()):
        if isinstance(entry, str) and entry.strip():
            yield f"/images/{index}", entry, None
        elif isinstance(entry, dict) and isinstance(entry.get("url"), str) and entry["url"].strip():
            yield f"/images/{index}/url", entry["url"], entry


def find_files(data: Json) -> list[FoundFile]:
    """The files of a reply, in the order of their first refs; one file may have several refs.

    A file without a usable address has an empty ``url``.
    """
    if not isinstance(data, dict):
        return []
    in_result = list(_strings(data.get("result"), "/result"))
    in_images = list(_images(data.get("images")))
    sure = [entry for entry in in_result if entry[2] is not None] + in_images
    hosts = {parts.hostname for parts in (_address(text) for _, text, _ in sure) if parts}

    found: dict[str, FoundFile] = {}
    refs: dict[str, list[str]] = {}
    for ref, text, holder in in_result:
        if holder is not None:
            is_file = _HTTP.match(text) is not None
        else:
            is_file = _is_loose_file(text, hosts)
        if is_file:
            _add(found, refs, ref, text, holder)
    for ref, text, holder in in_images:
        _add(found, refs, ref, text, holder)
    return [
        FoundFile(
            identity=identity,
            refs=tuple(refs[identity]),
            url=file.url,
            filename=file.filename,
            format=file.format,
        )
        for identity, file in found.items()
    ]


def _is_loose_file(text: str, hosts: Container[str | None]) -> bool:
    """Whether a string that is no object's ``url`` is a file all the same."""
    if not _HTTP.match(text) or _PROSE.search(text):
        return False
    parts = _address(text)
    return parts is not None and (parts.hostname in hosts or has_signature(text))


def _add(
    found: dict[str, FoundFile],
    refs: dict[str, list[str]],
    ref: str,
    text: str,
    holder: Mapping[str, Json] | None,
) -> None:
    parts = _address(text)
    if parts is None:
        identity = "invalid:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    else:
        identity = _identity(parts)
    before = found.get(identity)
    found[identity] = FoundFile(
        identity=identity,
        refs=(ref,),
        url=before.url if before else (text if parts else ""),
        filename=(before and before.filename) or _own_string(holder, "filename"),
        format=(before and before.format) or _own_string(holder, "format"),
    )
    refs.setdefault(identity, []).append(ref)


def _own_string(holder: Mapping[str, Json] | None, key: str) -> str:
    value = holder.get(key) if holder else None
    return value if isinstance(value, str) else ""


# -- planning ---------------------------------------------------------------------------------


def plan_files(found: Sequence[FoundFile]) -> list[PlannedFile]:
    """Fix names and identities of a task's files.

    Files beyond the first 1,000 that could be stored are rejected; beyond as many rejected ones
    they share one entry, so that the plan is bounded whatever the reply.
    """
    plan: list[PlannedFile] = []
    used: set[str] = set()
    storable = 0
    for position, file in enumerate(found):
        rejected = "" if file.url else NOT_HTTP
        if not rejected and storable == MAX_FILES:
            rejected = TOO_MANY
        refs, rest = file.refs, len(plan) == 2 * MAX_FILES
        if rest:
            rejected = TOO_MANY
            refs = tuple(ref for other in found[position:] for ref in other.refs)
        storable += not rejected
        name = _unused_name(refs[0], used)
        used.add(name)
        plan.append(
            PlannedFile(
                name=name,
                identity=file.identity,
                refs=refs,
                filename=file.filename,
                format=file.format,
                rejected=rejected,
            )
        )
        if rest:
            break
    return plan


def _unused_name(ref: str, used: Container[str]) -> str:
    natural = name = keys.file_name(ref)
    tries = 0
    while name in used:  # more than once only for names made to collide
        tries += 1
        name = f"{natural}_{keys.short_hash(ref * tries)}"
    return name


def plan_to_json(plan: Iterable[PlannedFile]) -> str:
    """A plan as JSON text."""
    return jsontext.dumps([asdict(file) for file in plan])


def plan_from_json(text: str) -> list[PlannedFile]:
    """Read what :func:`plan_to_json` wrote; raises ``ValueError`` if it is not JSON."""
    return [
        PlannedFile(**{**file, "refs": tuple(file["refs"])})
        for file in jsontext.loads(text, max_bytes=_OWN_TEXT_BYTES)
    ]


def _names_by_ref(plan: Iterable[PlannedFile], matched: Container[str]) -> dict[str, str]:
    """Which planned file stood at a pointer, for those not matched by identity."""
    return {ref: file.name for file in plan if file.identity not in matched for ref in file.refs}


def addresses(
    plan: Sequence[PlannedFile], found: Sequence[FoundFile], stored: Container[str]
) -> dict[str, str]:
    """The addresses that a reply gives for the planned files still to be stored, by name.

    Matched by identity, and what is left over on both sides by ref. ``stored`` holds names.
    """
    wanted = {file.name for file in plan if not file.rejected and file.name not in stored}
    planned = {file.identity: file.name for file in plan}
    by_ref = _names_by_ref(plan, {file.identity for file in found})
    urls: dict[str, str] = {}
    for file in found:
        if file.identity in planned:
            names = [planned[file.identity]]
        else:
            names = [by_ref[ref] for ref in file.refs if ref in by_ref]
        for name in names:
            if file.url and name in wanted:
                urls.setdefault(name, file.url)
    return urls


# -- endings ----------------------------------------------------------------------------------


def ending(outcomes: Collection[FileOutcome]) -> tuple[State, Reason]:
    """The final state of a task whose files ended like this, and the reason it carries."""
    lost = [outcome.reason for outcome in outcomes if outcome.stored is None]
    if not lost:
        return State.STORED, Reason.NONE
    reason = next((reason for reason in _PRECEDENCE if reason in lost), lost[0])
    return (State.PARTIAL if len(lost) < len(outcomes) else State.FAILED), reason


def files_field(
    plan: Iterable[PlannedFile], outcomes: Mapping[str, FileOutcome], layout: Layout
) -> list[dict[str, Json]]:
    """The record's ``files``: one entry for each planned file, ``outcomes`` by name.

    ``url`` is there only if the bucket is public, ``width``, ``height`` and ``duration`` only if
    known, ``filename`` only if the upstream gave one. Raises ``KeyError`` if a file has no outcome.
    """
    return [_entry(file, outcomes[file.name], layout) for file in plan]


def _entry(file: PlannedFile, outcome: FileOutcome, layout: Layout) -> dict[str, Json]:
    entry: dict[str, Json] = {"name": file.name, "refs": [_safe_ref(ref) for ref in file.refs]}
    filename = {"filename": strip_signatures(file.filename)} if file.filename else {}
    stored = outcome.stored
    if stored is None:
        return entry | filename | {"error": one_line(outcome.error)}
    entry |= {"key": stored.key, "uri": layout.uri(stored.key)}
    if (url := layout.url(stored.key)) is not None:
        entry["url"] = url
    entry |= {
        "bytes": stored.bytes,
        "sha256": stored.sha256,
        "content_type": stored.content_type,
    }
    if stored.width is not None and stored.height is not None:
        entry |= {"width": stored.width, "height": stored.height}
    if stored.duration is not None:
        entry["duration"] = stored.duration
    return entry | filename | {"stored_at": outcome.stored_at}


def _safe_ref(ref: str) -> str:
    # keys of the record's result lose signatures too: the pointer has to fit them
    return keys.pointer("", *map(strip_signatures, keys.pointer_segments(ref)))


def links(files: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
    """From a record's ``files``: the link of each by name; ``None`` for one that was lost."""
    return {file["name"]: file.get("url") or file.get("uri") for file in files}


def shape_result(
    data: Json, links: Mapping[str, str | None], plan: Sequence[PlannedFile]
) -> dict[str, Json]:
    """The record's ``result``: ``images`` and ``result`` of a reply with links to our copies.

    ``links`` maps a file's name to its link, or to ``None`` if it was lost. Signed addresses
    inside longer texts (and in names of members) lose their query; nothing else changes, and
    ``data`` is left as it is.
    """
    if not isinstance(data, dict):
        return {}
    found = find_files(data)
    planned = {file.identity: file.name for file in plan}
    by_ref = _names_by_ref(plan, {file.identity for file in found})
    replaced = {
        ref: links.get(planned.get(file.identity) or by_ref.get(ref, ""))
        for file in found
        for ref in file.refs
    }
    return {
        key: _replace(data[key], f"/{key}", replaced) for key in ("images", "result") if key in data
    }


def _replace(node: Json, ref: str, replaced: Mapping[str, str | None]) -> Json:
    if isinstance(node, str):
        return replaced[ref] if ref in replaced else strip_signatures(node)
    if isinstance(node, list):
        return [_replace(child, f"{ref}/{index}", replaced) for index, child in enumerate(node)]
    if isinstance(node, dict):
        return {
            strip_signatures(key): _replace(child, keys.pointer(ref, key), replaced)
            for key, child in node.items()
        }
    return node
