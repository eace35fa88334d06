"""Celery messages, read as untrusted data: only ids and options are taken from them.

Celery acts on much of what a message carries: it publishes callbacks, chains and chords to any
queue, holds messages with an ``eta`` in memory, and obeys time limits. Anyone who may publish to
the queue would have all of that done with the worker's rights. So Celery never sees the sender's
message: :func:`read_call` picks out what the harvester knows, from either of Celery's protocols,
and ``worker/broker.py`` gives Celery a message made from that.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.core import jsontext
from worker.core.jsontext import Json
from worker.core.models import Refusal
from worker.core.redact import one_line
from worker.core.submission import MAX_BODY_BYTES, traced

SUBMIT = "harvester.submit"
TASKS = frozenset({SUBMIT, "harvester.look", "harvester.poll", "harvester.copy", "harvester.tell"})

_IDENT = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_UTF8 = {"", "utf-8", "utf8"}
_MAX_DEPTH = 200  # embedded workflows are nested, and dropped; metadata has its own limit
# Members that change when or where something runs. ``expires`` is not among them: late ids are as
# good as others.
_COMMANDS = ("callbacks", "errbacks", "chain", "chord", "eta", "timelimit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a message asks of the harvester.

    ``ident`` is the message's name in logs. ``args`` and ``options`` are unchecked; ``args`` is
    ``None`` if the message could not be read. ``refusals`` lists what was refused while reading.
    """

    task: str = SUBMIT
    ident: str = field(default_factory=lambda: str(uuid.uuid4()))
    args: list[Json] | None = None
    options: dict[str, Json] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()


def unreadable(value: object, reason: str) -> Call:
    """The call of a message that cannot be accepted at all."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return Call(
        refusals=(Refusal(what="message", value=one_line(text, 200), reason=one_line(reason)),)
    )


def read_call(headers: object, content_type: object, encoding: object, body: object) -> Call:
    """Read a message of Celery's queue, in protocol 1 or 2. Never raises."""
    headers = headers if isinstance(headers, Mapping) else {}
    kind = content_type if isinstance(content_type, str) else "none"
    if kind.partition(";")[0].strip().lower() != "application/json":
        return unreadable(kind[:200], "not JSON by its content type")
    if not isinstance(encoding or "", str) or str(encoding or "").lower() not in _UTF8:
        return unreadable(str(encoding)[:200], "not UTF-8 by its content encoding")
    if not isinstance(body, str | bytes):
        return unreadable(type(body).__name__, "the body is not text")
    start = body[:4000]
    try:
        raw = body.encode() if isinstance(body, str) else body
        payload = jsontext.loads(raw, max_bytes=MAX_BODY_BYTES, max_depth=_MAX_DEPTH)
    except ValueError as error:
        return unreadable(start, f"not a JSON document: {one_line(str(error), 200)}")
    if isinstance(payload, dict):  # protocol 1: one object holds everything
        headers, embed = {**payload, **headers}, payload
        args, options = payload.get("args") or [], payload.get("kwargs") or {}
    elif isinstance(payload, list) and len(payload) in (2, 3):
        args, options, embed = (*payload, None)[:3]
    else:
        return unreadable(start, "not a Celery message")
    task = headers.get("task")
    if not isinstance(task, str) or task not in TASKS:
        return unreadable(task if isinstance(task, str) else "", "not a harvester.* task")
    if not isinstance(args, list) or not isinstance(options, dict):
        return unreadable(start, "not the arguments of a Celery task")
    ident = headers.get("id")
    if task == SUBMIT:
        options = traced(options, headers.get("traceparent"))
    return Call(
        task=task,
        ident=ident if isinstance(ident, str) and _IDENT.fullmatch(ident) else str(uuid.uuid4()),
        args=args,
        options=options,
        refusals=_refused(headers, embed if isinstance(embed, dict) else {}),
    )


def _refused(headers: Mapping[str, object], embed: Mapping[str, object]) -> tuple[Refusal, ...]:
    """One refusal for everything that the message asks of Celery."""
    asked = [name for name in _COMMANDS if _is_set(headers.get(name)) or _is_set(embed.get(name))]
    if not asked:
        return ()
    return (
        Refusal(
            what="message",
            value=", ".join(asked),
            reason="Celery options that are not carried out; the ids were read",
        ),
    )


def _is_set(value: object) -> bool:
    return any(value) if isinstance(value, list | tuple) else bool(value)
