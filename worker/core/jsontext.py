"""JSON that keeps what it does not understand: every number stays as it was written."""

from __future__ import annotations

import math
import re
from typing import Any

import simplejson

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 32
MAX_VALUES = 500_000
"""A value takes up to a hundred times its text in memory, so they are counted beforehand."""

_SAFE_DIGITS = 15  # integers up to this length survive every JSON reader; longer ones stay text

Json = Any


class TooLargeError(ValueError):
    """A JSON text has more bytes or values than are read."""


def _integer(digits: str) -> Json:
    plain = len(digits) <= _SAFE_DIGITS and digits != "-0"
    return int(digits) if plain else simplejson.RawJSON(digits)


def _constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


# made once: the functions of the module would make them anew for every call
_DECODER = simplejson.JSONDecoder(
    parse_float=simplejson.RawJSON, parse_int=_integer, parse_constant=_constant
)
# a text within a JSON text; commas in it part no values
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_STRINGS_IN_BYTES = re.compile(_STRINGS.pattern.encode(), re.DOTALL)
_ENCODER = simplejson.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_LONE = re.compile("[\ud800-\udfff]")  # halves of characters that UTF-8 has no form for


def loads(text: str | bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Json:
    """Parse JSON (RFC 8259); fractions and long integers become ``RawJSON`` and print unchanged.

    Raises ``ValueError`` on anything that is not JSON, is larger than ``max_bytes`` or nested
    deeper than ``max_depth``.
    """
    if len(text) > max_bytes:
        raise TooLargeError(f"longer than {max_bytes} bytes")
    if len(text) > MAX_VALUES and _values(text) > MAX_VALUES:
        raise TooLargeError(f"more than {MAX_VALUES} values")
    try:
        value = _DECODER.decode(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError(f"nested deeper than {max_depth} levels") from None
    if _deeper_than(value, max_depth):
        raise ValueError(f"nested deeper than {max_depth} levels")
    return value


def _values(text: str | bytes) -> int:
    """About how many values a JSON text holds."""
    comma, strings = (b",", _STRINGS_IN_BYTES) if isinstance(text, bytes) else (",", _STRINGS)
    if text.count(comma) <= MAX_VALUES:  # type: ignore[arg-type]
        return text.count(comma)  # type: ignore[arg-type]
    return strings.sub(comma[:0], text).count(comma)  # type: ignore[arg-type]


def dumps(value: Json) -> str:
    """Print compact JSON for UTF-8; what :func:`loads` read comes back digit for digit.

    Text stays as it is, since escapes take three times as much; only lone surrogates are escaped.
    """
    text: str = _ENCODER.encode(value)
    return _LONE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def number(value: Json) -> float | None:
    """The value of a JSON number, or ``None`` if ``value`` is something else or not finite."""
    if isinstance(value, simplejson.RawJSON):
        value = float(value.encoded_json)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def _deeper_than(value: Json, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return any(isinstance(node, dict | list) for node in level)
