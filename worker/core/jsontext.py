"""JSON that keeps every number exactly as it was written.

The standard library's parser writes ``1.10`` as ``1.1`` and ``1e400`` as ``Infinity``.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import simplejson

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 32
MAX_VALUES = 500_000
"""A value takes up to a hundred times its text in memory, so values are counted before parsing."""

_SAFE_DIGITS = 15  # every JSON reader keeps integers up to this length exact; longer ones stay text

Json = Any


class TooLargeError(ValueError):
    """A JSON text has more bytes, values or levels than allowed."""


def _integer(digits: str) -> Json:
    plain = len(digits) <= _SAFE_DIGITS and digits != "-0"
    return int(digits) if plain else simplejson.RawJSON(digits)


def _constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


# made once: the module's functions make new ones at every call
_DECODER = simplejson.JSONDecoder(
    parse_float=simplejson.RawJSON, parse_int=_integer, parse_constant=_constant
)
_LENIENT = simplejson.JSONDecoder(
    parse_float=simplejson.RawJSON, parse_int=_integer, parse_constant=lambda name: None
)
# A string within a JSON text; signs in it start no values. It matches at every quote, closed or
# not: a quote that did not match would be searched from again and again.
_STRINGS = re.compile(r'"(?:[^"\\]|\\.?)*+"?', re.DOTALL)
_SIGNS = (",", "[", "{")
_ENCODER = simplejson.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_LONE = re.compile("[\ud800-\udfff]")  # surrogates, which UTF-8 cannot encode


def loads(
    text: str | bytes,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    max_values: int = MAX_VALUES,
    lenient: bool = False,
) -> Json:
    """Parse JSON (RFC 8259); fractions and long integers become ``RawJSON`` and print unchanged.

    ``lenient`` reads what other programs write as JSON: ``NaN`` and infinities, which become
    ``null``, UTF-16 and UTF-32, and bytes that are no text, which become U+FFFD.
    Raises ``ValueError`` on anything that is not JSON, and ``TooLargeError`` as :func:`check_size`
    does or if it is nested deeper than ``max_depth``.
    """
    if len(text) > max_bytes:
        raise TooLargeError(f"longer than {max_bytes} bytes")
    if isinstance(text, bytes):
        encoding = json.detect_encoding(text) if lenient else "utf-8"
        text = text.decode(encoding, "replace" if lenient else "strict")
    if len(text) > max_values:
        check_size(text, max_bytes=max_bytes, max_values=max_values)
    try:
        value = (_LENIENT if lenient else _DECODER).decode(text)
    except RecursionError:
        raise TooLargeError(f"nested deeper than {max_depth} levels") from None
    if _deeper_than(value, max_depth):
        raise TooLargeError(f"nested deeper than {max_depth} levels")
    return value


def check_size(text: str, *, max_bytes: int = MAX_BYTES, max_values: int = MAX_VALUES) -> None:
    """Raise ``TooLargeError`` if a JSON text is too long or holds too many values."""
    if len(text) > max_bytes:
        raise TooLargeError(f"longer than {max_bytes} bytes")
    if len(text) > max_values and _values(text) > max_values < _values(_STRINGS.sub("", text)):
        raise TooLargeError(f"more than {max_values} values")


def _values(text: str) -> int:
    """An upper bound for the number of values in a JSON text; close to it if it has no strings."""
    return sum(map(text.count, _SIGNS))


def dumps(value: Json) -> str:
    """Print compact JSON for UTF-8; numbers that :func:`loads` read come back digit for digit.

    Text is not escaped, since escapes take three times as many bytes; only lone surrogates are.
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
