"""The manifest: the final record as a JSON document, written and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from worker.core import jsontext
from worker.core.jsontext import Json
from worker.core.models import State
from worker.core.redact import one_line, origin, strip_query

if TYPE_CHECKING:
    from worker.core.services import Outlook

SCHEMA = 1
MAX_BYTES = 64 * 1024 * 1024
"""The largest manifest that is read; several times the largest reply with its files and links."""

# A reply's 32 levels, below the document and its field; its values, and those of its files.
_MAX_DEPTH = jsontext.MAX_DEPTH + 2
_MAX_VALUES = 4 * jsontext.MAX_VALUES
_TEXT = frozenset({"task_id", "label", "state", "reason", "error", "manifest"})
_NUMBERS = frozenset({"schema", "run", "submitted_at", "updated_at", "finished_at", "polls"})
_JSON = {
    "metadata": dict, "options": dict, "upstream": dict, "files": list, "result": dict,
    "told": list,
}  # fmt: skip
_MAX_DIGITS = 16
_ORDER = (
    "schema", "task_id", "run", "state", "reason", "error", "label", "metadata", "options",
    "submitted_at", "updated_at", "finished_at", "polls", "upstream", "files", "result",
    "manifest",
)  # fmt: skip
_REQUIRED = ("run", "metadata", "options", "submitted_at", "finished_at")


class NewerSchemaError(ValueError):
    """The manifest is of a newer schema; this version must not change it."""


def record_document(
    record: Mapping[str, str], *, address: Callable[[str], str] = strip_query
) -> dict[str, Json]:
    """A record as one JSON value: times and counts as numbers, JSON fields decoded exactly.

    Empty times and JSON fields are left out, and so are fields that manifests do not have, such as
    ``told``. ``address`` removes the secrets from callback URLs: their query, or also their path.
    Raises ``ValueError`` if a field is malformed.
    """
    document: dict[str, Json] = {}
    for name in _ORDER:
        text = record.get(name)
        if text is None:
            continue
        if name in _TEXT:
            document[name] = text
        elif not text:
            continue
        elif name in _NUMBERS:
            document[name] = int(text)
        else:
            document[name] = jsontext.loads(
                text, max_bytes=MAX_BYTES, max_depth=_MAX_DEPTH, max_values=_MAX_VALUES
            )
    if "options" in document:
        document["options"] = _without_secrets(document["options"], address)
    return document


def public(record: Mapping[str, str], outage: Outlook | None = None) -> dict[str, Json]:
    """A record as all callers see it: its document, with ``told`` and ``restored``.

    ``outage`` is the service out of reach that the task waits for, if any.
    """
    document = record_document(record) | last_error(record)
    if outage is not None and outage.since is not None:
        document |= {
            "last_error": one_line(f"waiting for the {outage.service}: {outage.trouble}"),
            "last_error_at": outage.since,
            "held_up_by": {
                "service": str(outage.service),
                "since": outage.since,
                "trouble": outage.trouble,
            },
        }
    document["told"] = jsontext.loads(record.get("told") or "[]", max_bytes=MAX_BYTES)
    if record.get("restored"):
        document["restored"] = True
    return document


def malformed(record: Mapping[str, str]) -> str:
    """The first field of a record that holds something else than the fleet writes; empty if none.

    A reader shows such a record as what it is, instead of failing with it.
    """
    return next((name for name, text in record.items() if not _holds(name, text)), "")


def _holds(name: str, text: str) -> bool:
    if name in _NUMBERS or name == "last_error_at":
        if not text:
            return name == "finished_at"
        return text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
    if name == "state":
        return text in set(State)
    if name not in _JSON or not text:
        return True
    try:
        value = jsontext.loads(
            text, max_bytes=MAX_BYTES, max_depth=_MAX_DEPTH, max_values=_MAX_VALUES
        )
    except ValueError:
        return False
    if name == "files":
        return isinstance(value, list) and all(
            isinstance(file, dict) and isinstance(file.get("key", ""), str) for file in value
        )
    if name == "options":
        return isinstance(value, dict) and isinstance(value.get("callbacks"), list)
    return isinstance(value, _JSON[name])


def for_targets(record: Mapping[str, str]) -> dict[str, Json]:
    """A record as callbacks get it, without the secrets in the other targets' addresses."""
    document = record_document(record, address=origin)
    document["told"] = _addressed(
        jsontext.loads(record.get("told") or "[]", max_bytes=MAX_BYTES), origin
    )
    if record.get("restored"):
        document["restored"] = True
    return document


def last_error(record: Mapping[str, str]) -> dict[str, Json]:
    """Why a task that is not final is held up, and since when; empty if all is well.

    Workers of older releases do not clear these fields. Therefore a later change of a waiting
    task's record cancels them, and a final record ignores them.
    """
    at = int(record.get("last_error_at") or 0)
    state = record.get("state")
    overcome = state == State.WAITING and at < int(record.get("updated_at") or 0)
    if not at or overcome or state not in (State.WAITING, State.COPYING):
        return {}
    return {"last_error": record.get("last_error", ""), "last_error_at": at}


def manifest_from_record(record: Mapping[str, str]) -> bytes:
    """The manifest of a final record; raises ``ValueError`` if a field is malformed."""
    return jsontext.dumps(record_document(record, address=origin)).encode()


def _without_secrets(options: Json, address: Callable[[str], str]) -> Json:
    _checked("options", isinstance(options, dict) and isinstance(options.get("callbacks"), list))
    return {**options, "callbacks": _addressed(options["callbacks"], address)}


def _addressed(entries: Json, address: Callable[[str], str]) -> Json:
    """Callbacks or entries of ``told``, with the secrets removed from their URLs."""
    return [
        {**entry, "target": address(entry["target"])}
        if isinstance(entry, dict)
        and entry.get("channel") == "webhook"
        and isinstance(entry.get("target"), str)
        else entry
        for entry in entries
    ]


def record_from_manifest(body: bytes, task_id: str) -> dict[str, str]:
    """The record that a manifest holds, all fields as text.

    Raises ``ValueError`` if it is not the manifest of a final record of this task, and
    :class:`NewerSchemaError` if its schema is newer than :data:`SCHEMA`. Older ones are read.
    """
    document = jsontext.loads(
        body, max_bytes=MAX_BYTES, max_depth=_MAX_DEPTH, max_values=_MAX_VALUES
    )
    _checked("the document", isinstance(document, dict))
    schema = document.get("schema")
    _checked("schema", type(schema) is int and schema >= 1)
    if schema > SCHEMA:
        raise NewerSchemaError(f"schema {schema} is newer than this version's, {SCHEMA}")
    record: dict[str, str] = {}
    for name in _ORDER:
        if name not in document:
            continue
        value = document[name]
        if name in _TEXT:
            _checked(name, isinstance(value, str))
            record[name] = value
        elif name in _NUMBERS:
            _checked(name, type(value) is int and value >= 0)
            record[name] = str(value)
        else:
            _checked(name, isinstance(value, list if name == "files" else dict))
            if name == "options":
                value = _with_addresses(value)
            record[name] = jsontext.dumps(value)
    if record.get("task_id") != task_id:
        raise ValueError("belongs to another task")
    state = record.get("state")
    if state not in set(State) or not State(state).final:
        raise ValueError("its state is not final")
    required = _REQUIRED if state == State.FAILED else (*_REQUIRED, "files")
    for name in required:
        _checked(name, name in record)
    for file in document.get("files", []):
        _check_file(file, whole=state == State.STORED)
    return record


def _with_addresses(options: dict[str, Json]) -> dict[str, Json]:
    """Options without the webhooks whose path was removed: nobody can call them."""
    callbacks = options.get("callbacks")
    if not isinstance(callbacks, list):
        return options
    kept = [
        entry
        for entry in callbacks
        if not isinstance(entry, dict)
        or entry.get("channel") != "webhook"
        or entry.get("target") != origin(str(entry.get("target")))
    ]
    return {**options, "callbacks": kept}


def _checked(name: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name} is missing or malformed")


def _check_file(file: Json, *, whole: bool) -> None:
    _checked("a file", isinstance(file, dict) and isinstance(file.get("name"), str))
    _checked("a file", isinstance(file.get("key"), str) or isinstance(file.get("error"), str))
    if whole and "key" not in file:
        raise ValueError("stored, but one of its files is not")


def stored_count(record: Mapping[str, str]) -> int:
    """How many files of a record are stored."""
    files = jsontext.loads(
        record.get("files") or "[]",
        max_bytes=MAX_BYTES,
        max_depth=_MAX_DEPTH,
        max_values=_MAX_VALUES,
    )
    return sum("key" in file for file in files)


def richer(existing: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    """Whether an existing manifest's record must be kept rather than replaced by ours.

    It has more stored files, or it is ``stored`` and ours is not.
    """
    if existing["state"] == State.STORED and ours["state"] != State.STORED:
        return True
    return stored_count(existing) > stored_count(ours)
