"""The trace that a submission belongs to, as W3C Trace Context writes it (``traceparent``)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BYTES = 512
"""Longest value that is looked at; version 00 has 55 characters, later ones may have more."""

# version, trace, parent and flags; a later version may put more behind them
_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}(-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?"
)


def traceparent(value: object) -> str:
    """The value in the form of version 00; empty if it cannot be read, and is to be ignored."""
    if not isinstance(value, str) or len(value) > MAX_BYTES:
        return ""
    match = _PARENT.fullmatch(value)
    if match is None or (match[2] and value.startswith("00")):
        return ""
    return f"00{match[1]}"


def trace_id(value: object) -> str:
    """The trace of a ``traceparent``; empty if it is none."""
    return traceparent(value)[3:35]


def of_options(options: object) -> str:
    """The ``traceparent`` in the options of a task; empty without one."""
    return traceparent(options.get("traceparent")) if isinstance(options, dict) else ""


def of_record(record: Mapping[str, str]) -> str:
    """The same, in the options of a task's record as Redis holds them."""
    text = record.get("options", "")
    if '"traceparent"' not in text:  # most have none, and this is asked at every poll
        return ""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):  # overwritten from outside
        return ""
    return of_options(options)
