"""Names and keys: derived, safe, unique and never too long."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.keys import (
    check_prefix,
    file_name,
    object_base,
    object_key,
    pointer,
    pointer_segments,
    safe_segment,
)

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=80)  # lone surrogates too
SEGMENT = re.compile(r"[A-Za-z0-9_-]{1,64}")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]


@pytest.mark.parametrize("segment", ["poster", "0", "_", "-", "A_b-9", "x" * 64])
def test_a_safe_segment_stays(segment: str) -> None:
    assert safe_segment(segment) == segment


@pytest.mark.parametrize(
    ("segment", "safe"),
    [
        ("", ""),
        (".", "_"),
        ("..", "__"),
        ("a.b", "a_b"),
        ("../../etc/passwd", "______etc_passwd"),
        ("封面", "__"),
        ("a b\n", "a_b_"),
        ("x" * 65, "x" * 53),
        ("😀", "_"),
        ("\ud800", "_"),
    ],
)
def test_any_other_segment_is_made_safe(segment: str, safe: str) -> None:
    assert safe_segment(segment) == f"{safe}_{digest(segment)}"


def test_the_hash_is_that_of_the_contract() -> None:
    assert safe_segment("") == "_e3b0c44298"


@given(ANY_TEXT)
def test_segments_are_safe(segment: str) -> None:
    assert SEGMENT.fullmatch(safe_segment(segment))


@given(st.lists(ANY_TEXT, unique=True))
def test_different_segments_stay_different(segments: list[str]) -> None:
    assert len({safe_segment(segment) for segment in segments}) == len(segments)


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("/result/poster/url", "result/poster"),
        ("/result/scenes/1/clip/url", "result/scenes/1/clip"),
        ("/result/url", "result"),
        ("/result/url/url", "result/url"),
        ("/result", "result"),
        ("/result/0", "result/0"),
        ("/images/0", "images/0"),
        ("/images/0/url", "images/0"),
        ("/result/url/x", "result/url/x"),
        ("/result/a~1b/url", f"result/a_b_{digest('a/b')}"),
        ("/result/a~01", f"result/a_1_{digest('a~1')}"),
        ("/result//url", "result/_e3b0c44298"),
        ("/result/..", f"result/___{digest('..')}"),
    ],
)
def test_file_name(ref: str, name: str) -> None:
    assert file_name(ref) == name


@pytest.mark.parametrize("ref", ["", "result", "result/poster"])
def test_what_is_no_pointer_has_no_name(ref: str) -> None:
    with pytest.raises(ValueError, match="JSON Pointer"):
        file_name(ref)


@given(st.lists(ANY_TEXT, min_size=1))
def test_pointers_round_trip(segments: list[str]) -> None:
    assert pointer_segments(pointer("", *segments)) == segments


TASK_IDS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")
PREFIXES = st.one_of(
    st.just(""),
    st.from_regex(r"\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,255}\Z"),
    st.just("p/" * 128),
).map(check_prefix)
REFS = st.lists(ANY_TEXT, min_size=1, max_size=31).map(lambda parts: pointer("/result", *parts))


def test_object_key() -> None:
    base = object_base("media/orders/id.1:2/", "result/poster")
    assert base == "media/orders/id.1:2/result/poster"
    assert object_key(base, ".webp") == base + ".webp"
    assert object_key(base, ".tar.gz") == base + ".tar.gz"


@pytest.mark.parametrize(
    "ext", ["", "png", ".", "./x", ".p/g", ".a b", ".png\n", "." + "x" * 16, ".é"]
)
def test_what_is_no_extension_is_left_out(ext: str) -> None:
    assert object_key("id/result", ext) == "id/result"


@given(PREFIXES, PREFIXES, TASK_IDS, REFS, st.sampled_from(["", ".mp4", "." + "x" * 15]))
def test_keys_fit(prefix: str, task_prefix: str, task_id: str, ref: str, ext: str) -> None:
    folder = f"{prefix}{task_prefix}{task_id}/"
    key = object_key(object_base(folder, file_name(ref)), ext)
    assert len(key.encode()) <= 1024
    assert key.endswith(ext)
    assert key.startswith(folder)
    name = key.removeprefix(folder).removesuffix(ext)
    assert all(part not in {"", ".", ".."} for part in name.split("/"))
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-/")


@given(st.lists(REFS, unique=True, max_size=20), PREFIXES, TASK_IDS)
def test_different_refs_have_different_keys(refs: list[str], prefix: str, task_id: str) -> None:
    refs = [ref for ref in refs if not ref.endswith("/url")]
    assert len({object_base(f"{prefix}{task_id}/", file_name(ref)) for ref in refs}) == len(refs)


def test_a_name_is_kept_as_long_as_it_fits() -> None:
    fits = "/".join(["s" * 64] * 15)
    assert object_base("id/", fits) == f"id/{fits}"
    longer = "/".join(["s" * 64] * 16)
    one, two = (object_base("id/", longer + end) for end in "ab")
    assert one != two
    assert len(one) == len(two) == 1024 - 16
    assert one.endswith("_" + digest(longer + "a"))


@pytest.mark.parametrize(
    ("given_", "checked"),
    [
        ("", ""),
        ("a", "a/"),
        ("a/", "a/"),
        ("a/b.c/_-", "a/b.c/_-/"),
        ("...", ".../"),
        ("a" * 256, "a" * 256 + "/"),
    ],
)
def test_prefixes(given_: str, checked: str) -> None:
    assert check_prefix(given_) == checked


@pytest.mark.parametrize(
    "prefix",
    ["/", "//", "/a", "a//", "a//b", ".", "..", "a/../b", "a/./b", "a b", "a\n", "é", "a\\b",
     "a" * 257, "%2e%2e", "a/\x00"],
)  # fmt: skip
def test_what_is_no_prefix(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"has|longer"):
        check_prefix(prefix)


@given(st.text(alphabet="ab._-/é ", max_size=12))
def test_a_checked_prefix_is_stable(text: str) -> None:
    try:
        prefix = check_prefix(text)
    except ValueError:
        return
    assert check_prefix(prefix) == prefix
    assert prefix == "" or prefix.endswith("/")
    assert not {"", ".", ".."} & set(prefix.split("/")[:-1])
