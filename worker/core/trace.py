"""The trace that a submission belongs to: a ``traceparent`` of W3C Trace Context."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BYTES = 512
"""The longest value that is read; version 00 has 55 characters, later ones may have more."""

# version, trace, parent and flags; later versions may append more
_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}(-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?"
)


def traceparent(value: object) -> str:
    """The value in the form of version 00; empty if it is invalid, and thus ignored."""
    if not isinstance(value, str) or len(value) > MAX_BYTES:
        return ""
    match = _PARENT.fullmatch(value)
    if match is None or (match[2] and value.startswith("00")):
        return ""
    return f"00{match[1]}"


def trace_id(value: object) -> str:
    """The trace id of a ``traceparent``; empty if that is invalid."""
    return traceparent(value)[3:35]


def of_options(options: object) -> str:
    """The ``traceparent`` in the options of a task; empty without one."""
    return traceparent(options.get("traceparent")) if isinstance(options, dict) else ""


def of_record(record: Mapping[str, str]) -> str:
    """The same, in the options of a task's record as Redis holds them."""
    text = record.get("options", "")
    if '"traceparent"' not in text:  # most records have none, and every poll comes here
        return ""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):  # another program has changed it
        return ""
    return of_options(options)
