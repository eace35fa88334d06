"""JSON passes through to the digit, and what is not JSON does not pass."""

from __future__ import annotations

import json
import math
import re

import pytest
import simplejson
from hypothesis import given
from hypothesis import strategies as st

from worker.core import jsontext

NUMBERS = st.from_regex(r"\A-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,6})?\Z")
ANY_TEXT = st.text(st.characters(exclude_categories=[]))  # lone surrogates too
STRINGS = ANY_TEXT.map(lambda text: _escaped(json.dumps(text, ensure_ascii=False)))
SCALARS = st.one_of(NUMBERS, STRINGS, st.sampled_from(["true", "false", "null"]))


def _escaped(text: str) -> str:
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def _lists(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(inner, max_size=4).map(lambda parts: "[" + ",".join(parts) + "]")


def _objects(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.dictionaries(STRINGS, inner, max_size=4)
    return members.map(lambda pairs: "{" + ",".join(f"{k}:{v}" for k, v in pairs.items()) + "}")


TEXTS = st.recursive(SCALARS, lambda inner: _lists(inner) | _objects(inner), max_leaves=20)


@given(TEXTS)
def test_compact_json_comes_back_to_the_digit(text: str) -> None:
    assert jsontext.dumps(jsontext.loads(text)) == text
    assert jsontext.dumps(jsontext.loads(text.encode())) == text


@pytest.mark.parametrize(
    "text",
    ["1", "-1", "-0", "0.10", "1E400", "1e-400", "123456789012345678901234567890", "1.0",
     "3.141592653589793238462643383279", "-0.0", "9007199254740993", "[]", "{}", '""',
     '"\\ud800"', '"\\u0000"', '"中"'],
)  # fmt: skip
def test_examples_come_back(text: str) -> None:
    assert jsontext.dumps(jsontext.loads(text)) == text


def test_short_integers_are_plain() -> None:
    assert jsontext.loads("[1,-20,999999999999999]") == [1, -20, 999999999999999]


@pytest.mark.parametrize(
    "text",
    ["", "NaN", "[Infinity]", "-Infinity", "{", "[1,]", "01", "+1", "1.", "'a'", '"\n"', "{1:2}",
     "1 2", "nul"],
)  # fmt: skip
def test_what_is_not_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        jsontext.loads(text)


def test_bytes_must_be_utf8() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        jsontext.loads(b'"\xff"')


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[NaN, Infinity, -Infinity, 1.50]", "[null,null,null,1.50]"),
        (b'"\xff\xed\xa0\x80"', '"\ufffd\ufffd\ufffd\ufffd"'),
        ('["\u56fe"]'.encode("utf-16"), '["\u56fe"]'),
        ('["\u56fe"]'.encode("utf-32-le"), '["\u56fe"]'),
        ('["\u56fe"]'.encode("utf-8-sig"), '["\u56fe"]'),
    ],
)
def test_what_other_programs_write_as_json_can_be_read(body: bytes, value: str) -> None:
    assert jsontext.dumps(jsontext.loads(body, lenient=True)) == value


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("shape", ["[]", '{"a":}'])
def test_depth_is_bounded(shape: str) -> None:
    opening, closing = shape[:-1], shape[-1]
    fits = opening * 31 + "[1]" + closing * 31
    assert jsontext.dumps(jsontext.loads(fits)) == fits
    with pytest.raises(ValueError, match="deeper than 32"):
        jsontext.loads(opening * 32 + "[1]" + closing * 32)
    with pytest.raises(jsontext.TooLargeError, match="deeper than 32"):
        jsontext.loads(opening * 32 + "[]" + closing * 32)


@pytest.mark.parametrize("levels", [1_000, 100_000, 4_000_000])
def test_very_deep_is_refused_not_crashed_on(levels: int) -> None:
    with pytest.raises(ValueError, match=r"deeper than 32|values"):
        jsontext.loads(nested(levels))


def test_size_is_bounded() -> None:
    assert jsontext.loads('"12345678"', max_bytes=10) == "12345678"
    with pytest.raises(ValueError, match="longer than 10"):
        jsontext.loads('"123456789"', max_bytes=10)
    with pytest.raises(ValueError, match="longer than 8388608"):
        jsontext.loads(b" " * (8 * 1024 * 1024 + 1))


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf], object(), {1, 2}])
def test_what_cannot_be_printed(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        jsontext.dumps(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1.0), ("-0", 0.0), ("1.5", 1.5), ("123456789012345678901", 1.2345678901234568e20),
     ("1e400", None), ("true", None), ("null", None), ('"1"', None), ("[]", None)],
)  # fmt: skip
def test_number(text: str, value: float | None) -> None:
    assert jsontext.number(jsontext.loads(text)) == value


def test_number_takes_plain_python_numbers() -> None:
    assert jsontext.number(2) == 2.0
    assert jsontext.number(math.nan) is None
    assert jsontext.number(math.inf) is None
    assert jsontext.number(True) is None
    assert jsontext.number(simplejson.RawJSON("7.0")) == 7.0


def test_a_number_too_large_for_a_float_is_none() -> None:
    assert jsontext.number(10**400) is None


@given(ANY_TEXT)
def test_text_is_printed_as_it_is_except_for_halves_of_characters(text: str) -> None:
    lone = sum("\ud800" <= c <= "\udfff" for c in text)
    printed = jsontext.dumps({"t": text}).encode()
    assert len(printed) <= len(json.dumps({"t": text}, separators=(",", ":")).encode())
    assert (b"\\ud" in printed.replace(b"\\\\", b"")) == bool(lone)
    if not lone:
        assert json.loads(printed) == {"t": text}
        assert jsontext.loads(printed) == {"t": text}


def test_a_half_of_a_character_is_escaped() -> None:
    assert jsontext.dumps(["é€😀\ud800x"]) == '["é€😀\\ud800x"]'
