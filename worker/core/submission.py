"""Submissions: ids and options, each checked and refused on its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

import simplejson

from worker.core import jsontext, trace
from worker.core.jsontext import Json
from worker.core.keys import check_prefix, short_hash
from worker.core.layout import Layout
from worker.core.models import Priority, Refusal
from worker.core.redact import one_line
from worker.errors import InvalidSubmission

MAX_IDS = 1000
MAX_CALLBACKS = 8
MAX_METADATA_BYTES = 16 * 1024
MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_LABEL = 128
MAX_URL = 2048

TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

_DAY = 86_400
_MAX_UNKNOWN = 50  # unknown options refused by name; one message may have 150,000
_MAX_SHOWN = 200
_CELERY_NAME = re.compile(r"[A-Za-z0-9._:@-]{1,200}")
# Printable ASCII without the characters that URL parsers disagree about.
_URL_TEXT = re.compile(r"[!#-;=?-\[\]_a-z~]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What this fleet accepts.

    ``reply_allow`` are globs ``queue/task``; ``webhooks`` says whether webhooks can be signed;
    ``webhook_hosts`` are globs of the hosts that they may go to, in lower case.
    """

    reply_allow: tuple[str, ...] = ()
    webhooks: bool = False
    webhook_hosts: tuple[str, ...] = ("*",)
    namespace: str = "harvester"
    layout: Layout = field(default_factory=Layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One accepted id. ``metadata`` and ``options`` are the record's fields, as JSON text."""

    task_id: str
    metadata: str
    label: str
    options: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The accepted options of one message; ``None`` and empty mean not given.

    ``metadata`` is JSON text; ``expected_seconds`` and ``deadline`` are in seconds.
    """

    metadata: str = "{}"
    label: str = ""
    prefix: str = ""
    deadline: float | None = None
    priority: Priority | None = None
    expected_seconds: float | None = None
    callback_url: str = field(default="", repr=False)
    reply_task: str = ""
    reply_queue: str = ""
    traceparent: str = ""

    def to_json(self) -> str:
        """The record's ``options``: those given, and ``callbacks``, which is always a list."""
        given = {
            "prefix": self.prefix or None,
            "deadline": self.deadline,
            "priority": self.priority,
            "expected_seconds": self.expected_seconds,
            "traceparent": self.traceparent or None,
        }
        callbacks: list[dict[str, str]] = []
        if self.callback_url:
            callbacks.append({"channel": "webhook", "target": self.callback_url})
        if self.reply_task:
            callbacks.append(
                {"channel": "reply", "task": self.reply_task, "queue": self.reply_queue}
            )
        chosen = {name: value for name, value in given.items() if value is not None}
        return jsontext.dumps({**chosen, "callbacks": callbacks})


def read_body(text: str | bytes) -> tuple[Json, dict[str, Json]]:
    """Read a message of the intake stream or the HTTP API: its ids and its options, unchecked.

    Raises :class:`InvalidSubmission` if it is not a JSON object with ``task_ids``.
    """
    try:
        # one level more than metadata may have
        body = jsontext.loads(text, max_bytes=MAX_BODY_BYTES, max_depth=jsontext.MAX_DEPTH + 1)
    except ValueError as error:
        raise InvalidSubmission(f"not a JSON document: {one_line(str(error), 200)}") from error
    if not isinstance(body, dict):
        raise InvalidSubmission("not a JSON object")
    if "task_ids" not in body:
        raise InvalidSubmission("task_ids is missing")
    return body["task_ids"], {name: value for name, value in body.items() if name != "task_ids"}


def read_submission(
    task_ids: object, options: Mapping[str, object], policy: Policy
) -> tuple[list[Submission], list[Refusal]]:
    """Check a message; returns what is accepted and what is refused.

    ``task_ids`` is one id or a list of up to 1,000; the same id twice counts once. A refused option
    counts as not given, and the ids are accepted with the others.
    """
    chosen, refusals = _read_options(options, policy)
    metadata, label, text = chosen.metadata, chosen.label, chosen.to_json()
    accepted: dict[str, Submission] = {}
    for value in _listed(task_ids, refusals):
        reason = _refuse_id(value, chosen.prefix, policy)
        if reason:
            refusals.append(Refusal(what="task_id", value=printable(value), reason=reason))
        else:
            accepted[value] = Submission(
                task_id=value, metadata=metadata, label=label, options=text
            )
    return list(accepted.values()), refusals


# -- ids --------------------------------------------------------------------------------------


def _listed(task_ids: object, refusals: list[Refusal]) -> Sequence[Json]:
    reason = ""
    if isinstance(task_ids, str):
        return [task_ids]
    if not isinstance(task_ids, list | tuple):
        reason = "must be a task id or a list of task ids"
    elif not task_ids:
        reason = "no task id"
    elif len(task_ids) > MAX_IDS:
        reason = f"more than {MAX_IDS:,} ids in one message"
    else:
        return task_ids
    refusals.append(Refusal(what="task_ids", value=printable(task_ids), reason=reason))
    return []


def _refuse_id(value: object, task_prefix: str, policy: Policy) -> str:
    if not isinstance(value, str):
        return "must be a string"
    if not TASK_ID.fullmatch(value):
        return "must be 1-128 of A-Z a-z 0-9 . _ : - and begin with a letter or digit"
    folder = policy.layout.folder(value, {"prefix": task_prefix})
    manifests = policy.layout.manifests
    if folder.startswith(manifests) or manifests.startswith(folder):
        return "its files would mix with the manifests"
    return ""


def printable(value: object) -> str:
    """A refused value for people: one redacted line of at most 200 characters.

    For lists and objects it is only the size.
    """
    if isinstance(value, str):
        return one_line(value, _MAX_SHOWN)
    if isinstance(value, Mapping):
        return f"object with {len(value)} members"
    if isinstance(value, list | tuple):
        return f"list of {len(value)}"
    if isinstance(value, bool) or value is None or _number(value) is not None:
        return one_line(jsontext.dumps(value), _MAX_SHOWN)
    return type(value).__name__


# -- options ----------------------------------------------------------------------------------


def _read_options(options: Mapping[str, object], policy: Policy) -> tuple[Options, list[Refusal]]:
    chosen: dict[str, Any] = {}
    refusals: list[Refusal] = []

    def refuse(name: str, reason: str) -> None:
        value = printable(options[name])
        refusals.append(Refusal(what=f"option {one_line(name, 64)}", value=value, reason=reason))

    unknown = 0
    for name, value in options.items():
        if value is None:
            continue
        reader = _READERS.get(name)
        if reader is None:
            unknown += 1
            if unknown <= _MAX_UNKNOWN:
                refuse(name, "unknown option")
            continue
        try:
            chosen[name] = reader(value, policy)
        except InvalidSubmission as error:
            refuse(name, str(error))
    if unknown > _MAX_UNKNOWN:
        more = str(unknown - _MAX_UNKNOWN)
        refusals.append(Refusal(what="options", value=more, reason="more options are unknown"))

    # a reply needs both names; if either was refused, the other means nothing
    task, queue = chosen.pop("reply_task", ""), chosen.pop("reply_queue", "")
    if task and queue:
        reason = _refuse_reply(task, queue, policy)
        if reason:
            refuse("reply_task", reason)
        else:
            chosen |= {"reply_task": task, "reply_queue": queue}
    elif task and options.get("reply_queue") is None:
        refuse("reply_task", "needs reply_queue too")
    elif queue and options.get("reply_task") is None:
        refuse("reply_queue", "needs reply_task too")
    return Options(**chosen), refusals


def _refuse_reply(task: str, queue: str, policy: Policy) -> str:
    """Why replies may not go to this task and queue, or empty."""
    if task == "harvester" or task.startswith("harvester."):
        return "harvester.* tasks cannot be reply tasks"
    if queue == policy.namespace or queue.startswith(
        (f"{policy.namespace}.", f"{policy.namespace}:")
    ):
        return "the fleet's own queues cannot receive replies"
    if not any(fnmatchcase(f"{queue}/{task}", allowed) for allowed in policy.reply_allow):
        return "not allowed by HARVESTER_REPLY_ALLOW"
    return ""


def _metadata(value: object, _: Policy) -> str:
    if not isinstance(value, dict):
        raise InvalidSubmission("must be a JSON object")
    level: list[object] = [value]
    for depth in range(jsontext.MAX_DEPTH + 1):
        if not all(isinstance(node, _JSON_TYPES) for node in level):
            raise InvalidSubmission("holds something that is not JSON")
        if depth == jsontext.MAX_DEPTH and any(isinstance(node, _CONTAINERS) for node in level):
            raise InvalidSubmission(f"nested deeper than {jsontext.MAX_DEPTH} levels")
        level = [child for node in level for child in _members(node)]
    try:
        text = jsontext.dumps(value)
        size = len(
            simplejson.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(
                "utf-8", "surrogatepass"
            )
        )
    except ValueError as error:  # NaN, or an integer too long to print
        raise InvalidSubmission("holds a number that is not JSON") from error
    if size > MAX_METADATA_BYTES:
        raise InvalidSubmission(f"larger than {MAX_METADATA_BYTES:,} bytes")
    return text


def _members(node: object) -> Iterable[object]:
    if isinstance(node, dict):
        if not all(isinstance(name, str) for name in node):
            raise InvalidSubmission("holds something that is not JSON")
        return node.values()
    return node if isinstance(node, list | tuple) else ()


def _prefix(value: object, policy: Policy) -> str:
    if not isinstance(value, str):
        raise InvalidSubmission("must be a string")
    try:
        prefix = check_prefix(value)
    except ValueError as error:
        raise InvalidSubmission(str(error)) from error
    if (policy.layout.prefix + prefix).startswith(policy.layout.manifests):
        raise InvalidSubmission("is inside the manifest prefix")
    return prefix


def _label(value: object, _: Policy) -> str:
    if not isinstance(value, str):
        raise InvalidSubmission("must be a string")
    if len(value) > MAX_LABEL or not value.isprintable():
        raise InvalidSubmission(f"must be at most {MAX_LABEL} printable characters")
    return value


def _number(value: object) -> float | None:
    try:
        return jsontext.number(value)
    except OverflowError:
        return None


def _expected_seconds(value: object, _: Policy) -> float:
    seconds = _number(value)
    if seconds is None or not 0 <= seconds <= 30 * _DAY:
        raise InvalidSubmission("must be a number of seconds from 0 to 30 days")
    return _whole(seconds)


def _deadline(value: object, _: Policy) -> float:
    seconds = _number(value)
    if seconds is None or not 0 < seconds <= 365 * _DAY:
        raise InvalidSubmission("must be a number of seconds above 0, up to 365 days")
    return _whole(seconds)


def _whole(seconds: float) -> float:
    return int(seconds) if seconds.is_integer() else seconds


def _priority(value: object, _: Policy) -> Priority:
    if not isinstance(value, str) or value not in set(Priority):
        raise InvalidSubmission(f"must be one of {', '.join(Priority)}")
    return Priority(value)


def _callback_url(value: object, policy: Policy) -> str:
    if not policy.webhooks:
        raise InvalidSubmission("webhooks are off: HARVESTER_WEBHOOK_SECRET is not set")
    if not isinstance(value, str):
        raise InvalidSubmission("must be a string")
    if len(value) > MAX_URL:
        raise InvalidSubmission(f"longer than {MAX_URL:,} characters")
    if not _URL_TEXT.fullmatch(value):
        raise InvalidSubmission("has characters that must be percent-encoded in a URL")
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or port malformed
        usable = False
    if not usable:
        raise InvalidSubmission("must be an http or https URL")
    if "@" in parts.netloc:
        raise InvalidSubmission("must not carry a user name or password")
    host = (parts.hostname or "").removesuffix(".")
    if not any(fnmatchcase(host, allowed) for allowed in policy.webhook_hosts):
        raise InvalidSubmission("not allowed by HARVESTER_WEBHOOK_HOSTS")
    return value


def _celery_name(value: object, _: Policy) -> str:
    if not isinstance(value, str) or not _CELERY_NAME.fullmatch(value):
        raise InvalidSubmission("must be 1-200 of A-Z a-z 0-9 . _ : @ -")
    return value


def _traceparent(value: object, _: Policy) -> str:
    parent = trace.traceparent(value)
    if not parent:
        raise InvalidSubmission("must be a traceparent of W3C Trace Context")
    return parent


def traced(options: Mapping[str, Json], parent: object) -> dict[str, Json]:
    """The options of a message with its ``traceparent`` header, which may be any value."""
    checked = trace.traceparent(parent)
    return {"traceparent": checked, **options} if checked else dict(options)


_CONTAINERS = (dict, list, tuple)
_JSON_TYPES = (*_CONTAINERS, str, int, float, type(None), simplejson.RawJSON)
_READERS: Mapping[str, Callable[[object, Policy], object]] = {
    "metadata": _metadata,
    "prefix": _prefix,
    "expected_seconds": _expected_seconds,
    "label": _label,
    "deadline": _deadline,
    "callback_url": _callback_url,
    "reply_task": _celery_name,
    "reply_queue": _celery_name,
    "priority": _priority,
    "traceparent": _traceparent,
}


# -- callbacks --------------------------------------------------------------------------------


def callback_id(callback: Mapping[str, str]) -> str:
    """A short name for one callback, always the same: its channel and a hash."""
    text = jsontext.dumps(sorted(callback.items()))
    return f"{callback['channel']}-{short_hash(text)}"


def merge_callbacks(options: str, new: Iterable[Mapping[str, str]]) -> str | None:
    """Add callbacks to a record's ``options``; ``None`` if it has them all.

    Raises :class:`InvalidSubmission`, with nothing added, if there would be more than 8, or if the
    record's cannot be read.
    """
    try:
        value = jsontext.loads(options)
        known = {callback_id(callback): callback for callback in value["callbacks"]}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InvalidSubmission("another program has changed the options of its record") from None
    merged = dict(known)
    for callback in new:
        merged.setdefault(callback_id(callback), dict(callback))
    if len(merged) == len(known):
        return None
    if len(merged) > MAX_CALLBACKS:
        raise InvalidSubmission(f"more than {MAX_CALLBACKS} callbacks for one task")
    return jsontext.dumps({**value, "callbacks": list(merged.values())})
