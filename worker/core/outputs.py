"""The files of a task: their names, their outcomes, and the links that replace their addresses.

``data`` is the ``data`` of a succeeded reply as :func:`worker.core.jsontext.loads` returns it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from worker.core import jsontext, keys
from worker.core.finding import AWAITED, find_files
from worker.core.jsontext import Json
from worker.core.layout import Layout
from worker.core.models import FoundFile, PlannedFile, Reason, State, StoredFile
from worker.core.redact import one_line, strip_signatures

MAX_FILES = 1000
NOT_HTTP = "not an http(s) address"
TOO_MANY = f"more than {MAX_FILES:,} files"

_OWN_TEXT_BYTES = 64 * 1024 * 1024  # a plan repeats parts of its reply, and is bounded by it
_SHAPED = ("images", "result", "info", "parameters")
# A task that lost files for several reasons carries the first of these.
_PRECEDENCE = (
    Reason.CANCELED,
    Reason.FILES_REJECTED,
    Reason.FILES_UNAVAILABLE,
    Reason.STORAGE_ERROR,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOutcome:
    """The outcome of one file: stored at a time (Unix milliseconds), or lost for a reason.

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
            # outside "stored": workers of 0.1 ignore it here, and accept no unknown member there
            value["duration"] = value["stored"].pop("duration")
        return jsontext.dumps(value)

    @classmethod
    def from_json(cls, text: str) -> FileOutcome:
        """Read what :meth:`to_json` wrote; raises ``ValueError`` if it is not JSON."""
        value = json.loads(text)  # we wrote it, so fractions need not stay exact
        stored = value["stored"]
        return cls(
            stored=stored and StoredFile(**stored, duration=value.get("duration")),
            stored_at=value["stored_at"],
            error=value["error"],
            reason=Reason(value["reason"]),
        )


# -- planning ---------------------------------------------------------------------------------


def plan_files(files: Sequence[FoundFile]) -> list[PlannedFile]:
    """Fix the names and identities of a task's files.

    Files beyond the first 1,000 storable ones are rejected. Beyond 2,000 entries, all remaining
    files share one entry, which bounds the plan for every reply.
    """
    plan: list[PlannedFile] = []
    used: set[str] = set()
    storable = 0
    for position, file in enumerate(files):
        rejected = "" if file.url or file.awaited else NOT_HTTP
        if not rejected and storable == MAX_FILES:
            rejected = TOO_MANY
        refs, rest = file.refs, len(plan) == 2 * MAX_FILES
        if rest:
            rejected = TOO_MANY
            refs = tuple(ref for other in files[position:] for ref in other.refs)
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
    while name in used:  # repeats only for names that were made to collide
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


def _at_places(plan: Iterable[PlannedFile], matched: Container[str]) -> dict[str, PlannedFile]:
    """The planned file at each place, without the files that ``matched`` holds by identity."""
    return {_place(ref): file for file in plan if file.identity not in matched for ref in file.refs}


def _place(ref: str) -> str:
    # the same for a plain address and an object's
    return ref.removesuffix("/url")


def addresses(
    plan: Sequence[PlannedFile], files: Sequence[FoundFile], stored: Container[str]
) -> dict[str, str]:
    """The addresses that a reply gives for the planned files not yet stored, by name.

    Files are matched by identity, and the rest by place. A planned file that had no address is
    matched by its filename if only one file of the reply has that name, and by its place unless the
    file there has another filename. ``stored`` holds names.
    """
    wanted = {file.name for file in plan if not file.rejected and file.name not in stored}
    planned = {file.identity: file for file in plan}
    places = _at_places(plan, {file.identity for file in files})
    urls: dict[str, str] = {}
    others: dict[str, list[FoundFile]] = {}
    for file in files:
        if file.identity in planned:
            here = [planned[file.identity]]
        else:
            here = [places[spot] for spot in map(_place, file.refs) if spot in places]
            others.setdefault(file.filename, []).append(file)
        for its in here:
            # a later reply may name a file differently, but for a file that had no address yet, the
            # place alone is not enough to identify it
            awaited = its.identity.startswith(AWAITED) and its.identity != file.identity
            if file.url and its.name in wanted and not (awaited and _other_name(its, file)):
                urls.setdefault(its.name, file.url)
    for its in plan:
        if its.identity.startswith(AWAITED) and its.name in wanted and its.filename:
            named = others.get(its.filename, ())
            if len(named) == 1 and named[0].url:
                urls.setdefault(its.name, named[0].url)
    return urls


def _other_name(planned: PlannedFile, file: FoundFile) -> bool:
    return bool(planned.filename and file.filename) and planned.filename != file.filename


# -- endings ----------------------------------------------------------------------------------


def ending(outcomes: Collection[FileOutcome]) -> tuple[State, Reason]:
    """The final state and reason of a task whose files have these outcomes."""
    lost = [outcome.reason for outcome in outcomes if outcome.stored is None]
    if not lost:
        return State.STORED, Reason.NONE
    reason = next((reason for reason in _PRECEDENCE if reason in lost), lost[0])
    return (State.PARTIAL if len(lost) < len(outcomes) else State.FAILED), reason


def files_field(
    plan: Iterable[PlannedFile], outcomes: Mapping[str, FileOutcome], layout: Layout
) -> list[dict[str, Json]]:
    """The record's ``files``: one entry for each planned file; ``outcomes`` are by name.

    An entry has ``url`` only if the bucket is public, ``width``, ``height`` and ``duration`` only
    if known, and ``filename`` only if the upstream gave one. Raises ``KeyError`` if a file has no
    outcome.
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
    # member names of the record's result lose signatures too, and the pointer must match them
    return keys.pointer("", *map(strip_signatures, keys.pointer_segments(ref)))


def links(files: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
    """The link of each file of a record's ``files``, by name; ``None`` for a lost one."""
    return {file["name"]: file.get("url") or file.get("uri") for file in files}


def shape_result(
    data: Json,
    links: Mapping[str, str | None],
    plan: Sequence[PlannedFile],
    host: str = "",
) -> dict[str, Json]:
    """The record's ``result``: the outputs of a reply, with links to our copies.

    ``links`` maps a file's name to its link, or to ``None`` if it was lost. Signed addresses inside
    longer texts (and in names of members) lose their query; nothing else changes, and ``data``
    itself is not modified. Raises ``TooLargeError`` as :func:`find_files` does.
    """
    if not isinstance(data, dict):
        return {}
    files = find_files(data, host)
    planned = {file.identity: file for file in plan}
    places = _at_places(plan, {file.identity for file in files})
    replaced: _Links = {}
    for file in files:
        for ref in file.refs:
            its = planned.get(file.identity) or places.get(_place(ref))
            if its or not file.loose:
                _put(replaced, ref, links.get(its.name) if its else None)
    return {key: _replace(data[key], replaced.get(key)) for key in _SHAPED if key in data}


# Links, nested by the segments of their pointers.
_Links = dict[str, Any]


def _put(replaced: _Links, ref: str, link: str | None) -> None:
    *above, last = keys.pointer_segments(ref)
    for step in above:
        replaced = replaced.setdefault(step, {})
    replaced[last] = (link,)


def _replace(node: Json, replaced: Any) -> Json:
    if isinstance(replaced, tuple):
        return replaced[0]
    below = replaced or {}
    if isinstance(node, str):
        return strip_signatures(node)
    if isinstance(node, list):
        if not below:
            return [_replace(child, None) for child in node]
        return [_replace(child, below.get(str(index))) for index, child in enumerate(node)]
    if isinstance(node, dict):
        shaped = {
            strip_signatures(key): _replace(child, below.get(key)) for key, child in node.items()
        }
        if isinstance(link := below.get("url"), tuple):
            shaped["url"] = link[0]  # the file had no address, and no member for one
        return shaped
    return node
