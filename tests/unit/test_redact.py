"""Addresses never keep their secrets, and texts keep everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.redact import (
    has_signature,
    is_signing_parameter,
    one_line,
    redact,
    strip_query,
    strip_signatures,
)

SECRET = "Zm9vYmFyc2VjcmV0"
OSS = f"https://b.oss-cn-beijing.aliyuncs.com/a.png?Expires=1&OSSAccessKeyId=k&Signature={SECRET}"
BARE = "https://b.oss-cn-beijing.aliyuncs.com/a.png"

SIGNING = [
    "Expires", "OSSAccessKeyId", "Signature", "security-token", "x-oss-date", "x-oss-expires",
    "x-oss-signature", "x-oss-signature-version", "x-oss-credential", "x-oss-security-token",
    "x-oss-additional-headers", "X-Amz-Signature", "X-Amz-Anything",
]  # fmt: skip


@pytest.mark.parametrize("name", SIGNING)
def test_signing_parameters_are_known(name: str) -> None:
    assert is_signing_parameter(name)
    assert has_signature(f"https://h/p?a=b&{name}=1")
    assert strip_signatures(f"see https://h/p?a=b&{name}={SECRET} there") == "see https://h/p there"
    assert SECRET not in redact(f"GET /p?{name}={SECRET}")


@pytest.mark.parametrize(
    "name", ["expires", "signature", "x-oss-process", "x-oss-", "Expire", "token", "", "MyExpires"]
)
def test_other_parameters_are_not(name: str) -> None:
    url = f"https://h/p?{name}=1"
    assert not is_signing_parameter(name)
    assert not has_signature(url)
    assert strip_signatures(url) == url


def test_a_signature_is_looked_for_in_the_query_only() -> None:
    assert has_signature("https://h/p?security%2Dtoken=1")
    assert has_signature("https://h/?Signature")
    assert not has_signature("https://h/Signature=1")
    assert not has_signature("https://h/p#?Signature=1")
    assert not has_signature("https://h/p?x=Signature")
    assert not has_signature("")


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        (OSS, BARE),
        ("https://h/p#frag", "https://h/p"),
        ("https://h/p?a?b#c", "https://h/p"),
        ("https://user:pa:ss@h:8080/p?q", "https://h:8080/p"),
        ("https://u:p%40x@y@h/p@q", "https://h/p@q"),
        ("https://h", "https://h"),
        ("http://[::1", "http://[::1"),
        ("", ""),
    ],
)
def test_strip_query(url: str, bare: str) -> None:
    assert strip_query(url) == bare


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        (f"GET {OSS} failed", f"GET {BARE} failed"),
        (f"for url '{OSS}'", f"for url '{BARE}'"),
        (f"({OSS}).", f"({BARE})."),
        (f'{{"url": "{OSS}", "n": 1}}', f'{{"url": "{BARE}", "n": 1}}'),
        (f"<a>{OSS}</a>", f"<a>{BARE}</a>"),
        ("at redis://user:pw@h:6379/0?x=y now", "at redis://h:6379/0 now"),
        ("https://a/x,https://u:pw@b/y?s=1", "https://a/x,https://b/y"),
        (f"/a.png?Expires=1&Signature={SECRET}", "/a.png?Expires=&Signature="),
        (f'https://h/a b?x="1"&Signature={SECRET}', 'https://h/a b?x="1"&Signature='),
        ("what? a#b: c:/d?e", "what? a#b: c:/d?e"),
        ("s3://bucket/key", "s3://bucket/key"),
    ],
)
def test_redact(text: str, safe: str) -> None:
    assert redact(text) == safe


NAMES = st.sampled_from(SIGNING)
URL_CHARACTERS = st.text("abcXYZ019-._~!$'()*+,;:@%", max_size=12)
PROSE = st.text(max_size=20)


@given(PROSE, URL_CHARACTERS, URL_CHARACTERS, st.sampled_from("?#"), PROSE)
def test_no_query_survives(before: str, path: str, query: str, mark: str, after: str) -> None:
    text = f"{before}https://h/{path}{mark}{query}{SECRET}{query} {after}"
    assert SECRET not in redact(text)
    assert SECRET not in one_line(text)


@given(st.text(alphabet=st.sampled_from("a?#@:/&;=. \n\"'<>)Expires"), max_size=60))
def test_redacting_twice_is_redacting_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@given(st.text().filter(lambda text: "://" not in text and "=" not in text))
def test_text_without_addresses_is_left_alone(text: str) -> None:
    assert redact(text) == text
    assert strip_signatures(text) == text


@given(st.text())
def test_one_line_is_one_printable_line(text: str) -> None:
    line = one_line(text, 40)
    assert len(line) <= 40
    assert line.isprintable()
    assert line == line.strip()
    line.encode("utf-8")


def test_one_line_collapses_and_cuts() -> None:
    assert one_line("a\r\n\t b\x00c\u2028d\x1b[31m\ud800") == "a b c d [31m"
    assert one_line("x" * 600) == "x" * 499 + "…"
    assert one_line("x" * 500) == "x" * 500
    assert one_line("x" * 10_000_000, 10) == "x" * 9 + "…"


# -- signed addresses inside texts --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"see {OSS}, then", f"see {BARE}, then"),
        (f"![x]({OSS})", f"![x]({BARE})"),
        (f"'{OSS}'", f"'{BARE}'"),
        (f"{OSS}.", f"{BARE}."),
        (f"下载\uff1a{OSS}\uff0c谢谢", f"下载\uff1a{BARE}\uff0c谢谢"),
        (f"{OSS}\uff0c{OSS}", f"{BARE}\uff0c{BARE}"),
        (f"{OSS},{OSS}", f"{BARE},{BARE}"),
        (f"{OSS}#part", f"{BARE}#part"),
        (f'{{"url":"{OSS}","n":1.50}}', f'{{"url":"{BARE}","n":1.50}}'),
        (OSS.replace("&", "&amp;"), BARE),
        (OSS.replace("&", "\\u0026").replace("=", "\\u003d").replace("/", "\\/"),
         BARE.replace("/", "\\/")),
        (f"go to https://p/?u={OSS} now", f"go to https://p/?u={BARE} now"),
        (f"https://p/?Signature={SECRET}&u=//x", "https://p/"),
        ("https://p/?u=https%3A%2F%2Fh%2Fa%3FExpires%3D1%26Signature%3Dx", "https://p/"),
        (f"https://h/a(1)?x=(2)&Signature={SECRET}", "https://h/a(1)"),
        (f"https://h/a b.png?Expires=1&Signature={SECRET}", "https://h/a b.png"),
        (f"https://h/a?b?c&Signature={SECRET} d?", "https://h/a d?"),
        ("plain https://h/a?b=c&d=e#f stays", "plain https://h/a?b=c&d=e#f stays"),
        (f"both https://h/a?b=c and {OSS}", f"both https://h/a?b=c and {BARE}"),
        ("Expires=1&Signature=x is no address", "Expires=1&Signature=x is no address"),
        ("a&Signature=1 b", "a&Signature=1 b"),
    ],
)  # fmt: skip
def test_strip_signatures(text: str, kept: str) -> None:
    assert strip_signatures(text) == kept


@given(PROSE, URL_CHARACTERS, URL_CHARACTERS, NAMES, st.sampled_from(["?", "?a=b&"]), PROSE)
def test_no_signature_survives(
    before: str, path: str, more: str, name: str, start: str, after: str
) -> None:
    text = f"{before}https://h/{path}{start}{name}={SECRET}&{more}{after}"
    assert SECRET not in strip_signatures(text)


@given(st.text(alphabet="a?&=/:, %\\Expirsugnt3F6D0", max_size=80))
def test_stripping_never_adds(text: str) -> None:
    stripped = strip_signatures(text)
    remaining = iter(text)
    assert all(character in remaining for character in stripped)


@pytest.mark.parametrize(
    "unit",
    ["?Expires=1(", "//a?Expires=", "://", "?(", "https://", "a", ",https://a?Signature=1", "%3F"],
)
def test_hostile_texts_take_linear_time(unit: str) -> None:
    text = unit * (400_000 // len(unit))  # hours, if the time were quadratic
    assert len(strip_signatures(text)) <= len(text)
    assert len(redact(text)) <= len(text)
