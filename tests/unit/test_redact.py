"""Addresses never keep their secrets, and texts keep everything else."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import redact as redacting
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
    "name", ["expires", "policy", "x-oss-process", "x-oss-", "Expire", "token", "", "MyExpires"]
)
def test_other_parameters_are_not(name: str) -> None:
    url = f"https://h/p?{name}=1"
    assert not is_signing_parameter(name)
    assert not has_signature(url)
    assert strip_signatures(url) == url


@pytest.mark.parametrize("name", ["signature", "SIGNATURE", "ossaccesskeyid", "x-amz-signature"])
def test_a_text_loses_queries_that_are_signed_in_another_case(name: str) -> None:
    assert not is_signing_parameter(name)  # two addresses that differ in it are two files
    assert strip_signatures(f"see https://h/p?a=b&{name}={SECRET} there") == "see https://h/p there"


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
        (f"redis://:pa/{SECRET}@h:6379/0", "redis://h:6379/0"),
        (f"redis://u:a@b/{SECRET}@h:6379/0", "redis://h:6379/0"),
        (f"redis://:a://{SECRET}@h/0", "redis://h/0"),
        (f"redis://:{SECRET}://a@h/0", "redis://h/0"),
        (f"redis://:12/{SECRET}@h/0 x", "redis://h/0 x"),
        (f"redis://:pa?{SECRET}@h/0", "redis://"),
        (f"redis://:pa#{SECRET}@h/0", "redis://"),
        (f"redis://h/0?password=a@{SECRET}", "redis://"),
        (f"amqp://u:p//{SECRET}@h//", "amqp://h//"),
        (f"https://u:pa/{SECRET}@h/x?y", "https://h/x"),
        (f"https://u:a@b/{SECRET}@h/x", "https://h/x"),
        (f"https://u:pw@h/x?to=a@{SECRET}", "https://h/x"),
        (f"https://h/x?to=a@{SECRET}", "https://h/x"),
        (
            "https://h:8080/p@q and http://[::1]:80/p@q",
            "https://h:8080/p@q and http://[::1]:80/p@q",
        ),
        (
            f"https://p/https%3A%2F%2Fh%2Fa%3Fx%3D1%26signature%3D{SECRET}",
            "https://p/https%3A%2F%2Fh%2Fa",
        ),
        (
            f"https://p/https%253A%252F%252Fh%252Fa%253Ftoken%253D{SECRET}",
            "https://p/https%253A%252F%252Fh%252Fa",
        ),
        (f"https%3a%2f%2fu%3a{SECRET}%40h%2fa", "https%3a%2f%2fh%2fa"),
        (f"https:\\/\\/h\\/a?x={SECRET}", "https:\\/\\/h\\/a"),
        (f"https%3A%5C%2F%5C%2Fh%5C%2Fa%3Fx={SECRET}", "https%3A%5C%2F%5C%2Fh%5C%2Fa"),
        (f"https:\\\\/\\\\/h\\\\/a?x={SECRET}", "https:\\\\/\\\\/h\\\\/a"),
        (f"https%3A//h/a%5Cu003Fx%5Cu003D{SECRET}", "https%3A//h/a"),
        (f"HTTPS://H/A\\U003FX\\U003D{SECRET}", "HTTPS://H/A"),
        (f"signature={SECRET}", "signature="),
        (f"signature%3D{SECRET}, and", "signature%3D and"),
        (f"got token={SECRET}&n=1", "got token=&n=1"),
        (f"/a;jsessionid={SECRET};b", "/a;jsessionid=;b"),
        (f"{{'Signature': '{SECRET}', 'n': 1}}", "{'Signature': , 'n': 1}"),
        (f"Authorization: Bearer {SECRET} there", "Authorization:  there"),
        (f"authorization=OSS k:{SECRET}", "authorization="),
        (f'Signature="{SECRET}", n=1', "Signature=, n=1"),
        (f'{{"accessKeySecret" : "{SECRET}"}}', '{"accessKeySecret" : }'),
        (f"token = {SECRET} and", "token =  and"),
        (f"SecretAccessKey => {SECRET}", "SecretAccessKey => "),
        (f"SecretAccessKey: a-long-{SECRET}", "SecretAccessKey: "),
        (f"<Signature>{SECRET}</Signature>", "<Signature></Signature>"),
        (
            f"<SignatureProvided>{SECRET}</SignatureProvided>",
            "<SignatureProvided></SignatureProvided>",
        ),
        (f'{{"access_token":"{SECRET}","n":1}}', '{"access_token":,"n":1}'),
        (f"{{'client_secret': '{SECRET}'}}", "{'client_secret': }"),
        (f'"password": "{SECRET} and more"', '"password": '),
        (f"aws_secret_access_key = {SECRET}", "aws_secret_access_key = "),
        (f'keyId="k",Signature="{SECRET}"', 'keyId="k",Signature='),
        (f"X-Api-Key: {SECRET}", "X-Api-Key: "),
        ("nonce of the signature: HTTP 400", "nonce of the signature: HTTP 400"),
        ("unknown token: x", "unknown token: x"),
        ("what? a#b: c:/d?e", "what? a#b: c:/d?e"),
        ("s3://bucket/key", "s3://bucket/key"),
    ],
)
def test_redact(text: str, safe: str) -> None:
    assert redact(text) == safe


def encoded(text: str, how: int) -> str:
    """A text percent-encoded so often, or written as JSON in JSON."""
    for _ in range(how % 4):
        text = quote(text, safe="")
    return json.dumps(text)[1:-1].replace("/", "\\/") if how >= 4 else text


@given(
    st.text("abcXYZ019-._~!$'()*+,;:/@", max_size=12),
    st.sampled_from(["redis", "rediss", "amqp", "redis+sentinel", "https", "HTTP"]),
    st.sampled_from(["", "u"]),
    st.sampled_from(["h:6379/0", "h/p?x=1", "[::1]:1/0"]),
    st.integers(0, 7),
)
def test_no_password_survives(more: str, scheme: str, user: str, where: str, how: int) -> None:
    address = f"{scheme}://{user}:x{more}{SECRET}@{where}"
    assert SECRET not in redact(f"at {encoded(address, how)} now")


@given(st.text("abcXYZ019-._~!$'()*+,;:/@%", max_size=12), st.sampled_from("?#"), st.integers(0, 7))
def test_no_query_survives_however_it_is_encoded(more: str, mark: str, how: int) -> None:
    inner = encoded(f"https://h/{more.replace('%', '')}{mark}{more}{SECRET}", how)
    assert SECRET not in redact(f"at {inner} now")
    assert SECRET not in redact(f"at https://proxy/fetch/{inner} now")


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


@given(st.text().filter(lambda text: not set(text) & set("=:%\\>")))
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
        ("https://h/a&#x3f;Expires&#61;1&#38;Signature&#X3D;s", "https://h/a"),
        ("https://h/a\\\\u003fExpires\\\\u003d1\\\\u0026Signature\\\\u003ds", "https://h/a"),
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
    "name", sorted({*redacting._WORDS, *redacting._ENDINGS, *redacting._STORES})
)
def test_the_quick_look_overlooks_no_name(name: str) -> None:
    assert (
        redact(f"{name}x={SECRET}" if name in redacting._STORES else f"{name}={SECRET}")[-1] == "="
    )


@pytest.mark.parametrize(
    "unit",
    [
        "?Expires=1(", "//a?Expires=", "://", "?(", "https://", "a", ",https://a?Signature=1",
        "%3F", "a-", "a:", "X-Amz-", "%25", "\\/", "@", "a@", "://@", "://a:b/@", ".", "token",
        "[:", "signature:'", "\\u003a", "a%3A%2F%2F", "cookie: ", "://:a/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("around", [("", ""), ("http://", "/a:b@c=%"), ("x:", "://")])
def test_hostile_texts_take_linear_time(unit: str, around: tuple[str, str]) -> None:
    # hours, if the time were quadratic
    text = around[0] + unit * (200_000 // len(unit)) + around[1]
    assert len(strip_signatures(text)) <= len(text)
    assert len(redact(text)) <= len(text)
