"""Files of a reply: found as the contract says, named once, and replaced by links."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import jsontext
from worker.core.finding import find_files, url_expiry, usable
from worker.core.layout import Layout
from worker.core.models import FoundFile, PlannedFile, Reason, State, StoredFile
from worker.core.outputs import (
    NOT_HTTP,
    TOO_MANY,
    FileOutcome,
    addresses,
    ending,
    files_field,
    links,
    plan_files,
    plan_from_json,
    plan_to_json,
    shape_result,
)

HOST = "https://speed-pix-beijing-prod.oss-cn-beijing.aliyuncs.com"
PNG = f"{HOST}/example.png"


def sign(url: str, number: int = 1) -> str:
    mark = "&" if "?" in url else "?"
    return f"{url}{mark}Expires={number}&OSSAccessKeyId=k{number}&Signature=s%2B{number}%3D"


def refs(data: Any) -> list[tuple[str, ...]]:
    return [file.refs for file in find_files(data)]


def plan_of(data: Any) -> list[PlannedFile]:
    return plan_files(find_files(data))


# -- what is a file -----------------------------------------------------------------------------

SAMPLE = {
    "result": {
        "poster": {
            "filename": "a153c27e31ed4e0f8c8721af0984ca5a_00000_.webp",
            "object_key": "comfy/output/a153c27e31ed4e0f8c8721af0984ca5a_00000_.webp",
            "format": "webp",
            "width": 472,
            "subfolder": "",
            "type": "output",
            "url": PNG,
            "height": 1024,
        }
    },
    "images": [PNG],
    "taskDuration": 49594,
}


def test_the_vendors_sample_is_one_file() -> None:
    assert find_files(SAMPLE) == [
        FoundFile(
            identity=PNG,
            refs=("/result/poster/url", "/images/0"),
            url=PNG,
            filename="a153c27e31ed4e0f8c8721af0984ca5a_00000_.webp",
            format="webp",
        )
    ]
    assert [file.name for file in plan_of(SAMPLE)] == ["result/poster"]


def test_two_signings_are_one_file() -> None:
    data = {"images": [sign(PNG, 1), {"url": sign(PNG, 2), "filename": "x.png"}]}
    [file] = find_files(data)
    assert file.refs == ("/images/0", "/images/1/url")
    assert file.url == sign(PNG, 1)
    assert file.filename == "x.png"


def test_result_comes_before_images_and_in_document_order() -> None:
    data = {
        "images": [f"{HOST}/1"],
        "result": {
            "z": {"url": f"{HOST}/2"},
            "list": [{"url": f"{HOST}/3"}, [{"deep": {"url": f"{HOST}/4"}}]],
            "a": f"{HOST}/5",
            "url": f"{HOST}/6",
        },
    }
    assert refs(data) == [
        ("/result/z/url",),
        ("/result/list/0/url",),
        ("/result/list/1/0/deep/url",),
        ("/result/a",),
        ("/result/url",),
        ("/images/0",),
    ]
    assert [file.name for file in plan_of(data)] == [
        "result/z", "result/list/0", "result/list/1/0/deep", "result/a", "result", "images/0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ({"url": PNG}, ["/result/url"]),
        ([{"url": PNG}], ["/result/0/url"]),
        ({"url": {"url": PNG}}, ["/result/url/url"]),
        ({"a": {"url": f"{HOST}/1", "preview": f"{HOST}/2"}},
         ["/result/a/url", "/result/a/preview"]),
        ({"a": {"url": PNG}, "b": f"{HOST.upper()}:443/x"},
         ["/result/a/url", "/result/b"]),
        ({"a/b~c": {"url": PNG}}, ["/result/a~1b~0c/url"]),
        (sign(PNG), ["/result"]),
        ([sign("https://elsewhere/x")], ["/result/0"]),
        ({"x": "https://elsewhere/x?X-Amz-Signature=1"}, ["/result/x"]),
        (PNG, ["/result"]),
        # text
        (f"{HOST}/page", []),
        ("https://elsewhere/x", []),
        ({"caption": "see https://elsewhere/x"}, []),
        ({"a": {"url": PNG}, "b": f"see {PNG}"}, ["/result/a/url"]),
        ({"a": {"url": PNG}, "b": f" {PNG}"}, ["/result/a/url", "/result/b"]),
        ({"a": {"url": PNG}, "b": f"{PNG}\n"}, ["/result/a/url", "/result/b"]),
        ({"a": {"url": PNG}, "b": "https://elsewhere/x"}, ["/result/a/url"]),
        ({"url": "oss://bucket/key"}, []),
        ({"url": ""}, []),
        ({"url": None}, []),
        ({"url": 5}, []),
        ({"a": {"url": PNG}, "b": "HTTPS:speed-pix"}, ["/result/a/url"]),
        (5, []),
        (True, []),
        ({}, []),
        ([], []),
    ],
)  # fmt: skip
def test_files_of_result(result: Any, found: list[str]) -> None:
    assert [ref for file in find_files({"result": result}) for ref in file.refs] == found


@pytest.mark.parametrize(
    ("images", "found"),
    [
        ([PNG, {"url": f"{HOST}/2"}], ["/images/0", "/images/1/url"]),
        ([1, None, True, {}, {"url": 1}, ["see " + PNG], {"src": "n/a"}], []),
        ([[PNG], {"src": f"{HOST}/2"}], ["/images/0/0", "/images/1/src"]),
        (
            [{"url": [PNG]}, {"url": {"href": f"{HOST}/2"}}],
            ["/images/0/url/0", "/images/1/url/href"],
        ),
        (
            [{"file": {"url": PNG}}, {"file": {"filename": "a", "url": None}}],
            ["/images/0/file/url", "/images/1/file/url"],
        ),
        ([{"url": PNG, "thumbnail": f"{HOST}/t"}], ["/images/0/url"]),
        ({"url": PNG}, ["/images/url"]),
        ({"poster": PNG, "clip": {"url": f"{HOST}/2"}}, ["/images/poster", "/images/clip/url"]),
        ({"count": 3, "of": "n/a"}, []),
        (PNG, ["/images"]),
        (f" {PNG}\ufeff", ["/images"]),
        ("see " + PNG, []),
        (None, []),
    ],
)
def test_files_of_images(images: Any, found: list[str]) -> None:
    assert [ref for file in find_files({"images": images}) for ref in file.refs] == found


def test_a_host_seen_in_images_counts_in_result() -> None:
    data = {"images": [PNG], "result": {"x": f"{HOST}/other", "y": "https://elsewhere/other"}}
    assert refs(data) == [("/result/x",), ("/images/0",)]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("https://h/a", "HTTPS://H:443/a"),
        ("http://h:80/a", "http://h/a"),
        ("https://h/a", "https://user:pw@h/a#f"),
        ("https://h/a?x=1&Expires=1", "https://h/a?Expires=2&x=1&Signature=q"),
        ("https://h/a?X-Amz-Date=1&v=2", "https://h/a?v=2&X-Amz-Whatever=3"),
        ("https://h/a?x-oss-process=p&x-oss-date=1", "https://h/a?x-oss-process=p"),
        ("https://h/a?security%2Dtoken=1", "https://h/a?"),
        ("https://[::1]:443/a", "https://[::1]/a"),
    ],
)
def test_same_file(one: str, two: str) -> None:
    assert len(find_files({"images": [one, two]})) == 1


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("https://h/a", "http://h/a"),
        ("https://h/a", "https://h:444/a"),
        ("http://h:443/a", "http://h/a"),
        ("https://h/a", "https://h/A"),
        ("https://h/a%20b", "https://h/a b"),
        ("https://h/a?x=1", "https://h/a?x=2"),
        ("https://h/a?expires=1", "https://h/a?expires=2"),
        ("https://h/a?x-oss-process=p", "https://h/a?x-oss-process=q"),
        ("https://h/a?x=1&y=2", "https://h/a?y=2&x=1"),
        ("https://h", "https://i"),
        ("oss://b/1", "oss://b/2"),
        ("https://h:bad/1", "https://h:bad/2"),
    ],
)
def test_different_files(one: str, two: str) -> None:
    assert len(find_files({"images": [one, two]})) == 2


UNUSABLE = [
    "hello", "oss://bucket/key", "ftp://h/x", "https:/h/x", "https://", "https:///x",
    "https://h:99999/x", "https://h:x/", "https://[::1/x", "https://[zz]/x", "https://h:0/",
    "https://h/a\r\nHost: evil", "https://h/\x00", "https://h/\ud800", "https://@/x",
    "https://\u2100/x",
]  # fmt: skip


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_image_is_a_text(blank: str) -> None:
    data = {"images": [PNG, blank, {"url": blank}]}
    plan = plan_files(find_files(data))
    assert [file.refs for file in plan] == [("/images/0",)]
    assert shape_result(data, {"images/0": "x"}, plan) == {"images": ["x", blank, {"url": blank}]}


@pytest.mark.parametrize("url", UNUSABLE)
def test_an_image_without_a_usable_address_is_a_rejected_file(url: str) -> None:
    data = {"images": [url, PNG]}
    found = find_files(data)
    assert [(file.refs, file.url) for file in found] == [
        (("/images/0",), ""),
        (("/images/1",), PNG),
    ]
    plan = plan_files(found)
    assert [file.rejected for file in plan] == [NOT_HTTP, ""]
    assert addresses(plan, found, set()) == {"images/1": PNG}
    assert shape_result(data, {"images/1": "x"}, plan) == {"images": [None, "x"]}


@pytest.mark.parametrize("url", ["https://h:bad/x?Signature=1", "https://[::1/x", "http://"])
def test_a_malformed_address_in_result(url: str) -> None:
    [file] = find_files({"result": {"url": url}})
    assert (file.refs, file.url) == (("/result/url",), "")
    assert find_files({"result": {"caption": url}}) == []


@pytest.mark.parametrize("data", [None, [], "x", 5, {}, {"result": None}, {"images": None}])
def test_nothing_to_find(data: Any) -> None:
    assert find_files(data) == []
    assert not usable(data)
    assert plan_of(data) == []


@pytest.mark.parametrize(
    "data",
    [{"images": []}, {"result": {}}, {"result": []}, {"result": 0}, {"result": False},
     {"result": ""}, {"images": [], "result": None}, SAMPLE],
)  # fmt: skip
def test_usable(data: Any) -> None:
    assert usable(data)


def test_an_empty_result_is_stored() -> None:
    assert plan_of({"images": []}) == []
    assert ending([]) == (State.STORED, Reason.NONE)


def test_filename_and_format_come_from_the_object_that_holds_the_address() -> None:
    data = {
        "result": {
            "filename": "outer.png",
            "a": {"url": sign(PNG), "filename": 5, "format": "webp", "preview": f"{HOST}/p"},
        },
        "images": [{"url": PNG, "filename": "from-images.png", "format": "png"}],
    }
    file, preview = find_files(data)
    assert (file.filename, file.format) == ("from-images.png", "webp")
    assert (preview.filename, preview.format) == ("", "")


# -- plans --------------------------------------------------------------------------------------


def test_names_that_collide_are_told_apart() -> None:
    crafted = "a_b_" + hashlib.sha256(b"a.b").hexdigest()[:10]
    data = {"result": {"a.b": {"url": f"{HOST}/1"}, crafted: {"url": f"{HOST}/2"}}}
    suffix = hashlib.sha256(f"/result/{crafted}/url".encode()).hexdigest()[:10]
    assert [file.name for file in plan_of(data)] == [
        f"result/{crafted}",
        f"result/{crafted}_{suffix}",
    ]


def test_more_than_a_thousand_files() -> None:
    urls = ["oss://x", *(f"{HOST}/{number}" for number in range(1002))]
    data = {"images": urls}
    plan = plan_of(data)
    assert [file.rejected for file in plan] == [NOT_HTTP, *[""] * 1000, TOO_MANY, TOO_MANY]
    assert [file.name for file in plan] == [f"images/{number}" for number in range(1003)]
    assert len(addresses(plan, find_files(data), set())) == 1000


def test_a_plan_is_bounded() -> None:
    data = {"images": [f"{HOST}/{number}" for number in range(2500)]}
    plan = plan_of(data)
    assert len(plan) == 2001
    assert sum(len(file.refs) for file in plan) == 2500
    assert plan[-1].rejected == TOO_MANY
    made = {file.name: "s3://x" for file in plan if not file.rejected}
    assert shape_result(data, made, plan) == {"images": ["s3://x"] * 1000 + [None] * 1500}


def test_a_plan_comes_back_from_json() -> None:
    data = {
        "result": {"a.b": {"url": sign(PNG), "filename": "\ud800é", "format": "png"}},
        "images": ["oss://x", f"{HOST}/2"],
    }
    plan = plan_of(data)
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan_to_json(plan).encode()  # UTF-8 has no form for half a character
    assert "Signature" not in plan_to_json(plan)


def test_later_replies_are_matched_by_identity_then_by_ref() -> None:
    plan = plan_of({"images": [f"{HOST}/{name}" for name in "abc"]})
    later = find_files({"images": [sign(f"{HOST}/{name}", 2) for name in "cxa"]})
    urls = {"images/0": sign(f"{HOST}/a", 2), "images/2": sign(f"{HOST}/c", 2)}
    assert addresses(plan, later, set()) == urls | {"images/1": sign(f"{HOST}/x", 2)}
    assert addresses(plan, later, {"images/1"}) == urls
    assert addresses(plan, later, {"images/0", "images/1", "images/2"}) == {}
    assert addresses(plan, [], set()) == {}


def test_a_file_matched_by_identity_is_no_stand_in_for_another() -> None:
    plan = plan_of({"images": [f"{HOST}/a", f"{HOST}/b"]})
    later = find_files({"images": [f"{HOST}/b"]})
    assert addresses(plan, later, set()) == {"images/1": f"{HOST}/b"}
    assert addresses(plan, later, {"images/1"}) == {}


def test_a_match_by_ref_knows_every_ref() -> None:
    plan = plan_of(SAMPLE)
    assert addresses(plan, find_files({"images": [f"{HOST}/new"]}), set()) == {
        "result/poster": f"{HOST}/new"
    }
    both = find_files({"result": {"poster": {"url": f"{HOST}/1"}}, "images": [f"{HOST}/2"]})
    assert addresses(plan, both, set()) == {"result/poster": f"{HOST}/1"}
    assert addresses(plan, find_files({"images": ["oss://x"]}), set()) == {}


@given(st.permutations(range(6)), st.integers(2, 9))
def test_order_and_signatures_of_later_replies_do_not_matter(order: list[int], salt: int) -> None:
    plan = plan_of({"images": [sign(f"{HOST}/{number}") for number in range(6)]})
    later = find_files({"images": [sign(f"{HOST}/{number}", salt) for number in order]})
    expected = {f"images/{number}": sign(f"{HOST}/{number}", salt) for number in range(6)}
    assert addresses(plan, later, set()) == expected


# -- the record's result ------------------------------------------------------------------------


def test_a_later_reply_may_name_and_address_every_file_otherwise() -> None:
    """What is left to tell them by is their places."""

    def reply(run: int) -> Any:
        images = [
            {"url": sign(f"{HOST}/{run}/{n}.png"), "filename": f"{n + run}.png"} for n in range(3)
        ]
        return {"images": images}

    plan, later = plan_of(reply(0)), find_files(reply(1))
    assert addresses(plan, later, set()) == {
        planned.name: found.url for planned, found in zip(plan, later, strict=True)
    }


def test_only_addresses_are_replaced() -> None:
    data = jsontext.loads(
        json.dumps(SAMPLE)
        .replace('"width": 472', '"width": 472.10, "seed": 123456789012345678901234567890')
        .replace('"subfolder": ""', '"subfolder": "", "tags": [], "meta": {}, "none": null')
    )
    before = jsontext.dumps(data)
    shaped = shape_result(data, {"result/poster": "s3://b/k.webp"}, plan_of(data))
    expected = {"images": data["images"], "result": data["result"]}
    assert jsontext.dumps(shaped) == jsontext.dumps(expected).replace(PNG, "s3://b/k.webp")
    assert jsontext.dumps(data) == before


def test_a_lost_file_becomes_null() -> None:
    plan = plan_of(SAMPLE)
    shaped = shape_result(SAMPLE, {"result/poster": None}, plan)
    assert shaped["images"] == [None]
    assert shaped["result"]["poster"]["url"] is None
    assert shape_result(SAMPLE, {}, plan) == shaped


@pytest.mark.parametrize(
    ("data", "shaped"),
    [
        ({}, {}),
        ({"status": "succeeded"}, {}),
        ({"images": []}, {"images": []}),
        ({"images": None, "result": {}}, {"images": None, "result": {}}),
        ({"result": None}, {"result": None}),
        ({"result": f"see {sign(PNG)}!"}, {"result": f"see {PNG}!"}),
        ({"result": {"link": "https://h/x?a=1"}}, {"result": {"link": "https://h/x?a=1"}}),
        ({"result": {sign(PNG): 1}}, {"result": {PNG: 1}}),
        ({"images": [{"thumb": sign(PNG)}]}, {"images": [{"thumb": None}]}),
        ({"images": {"odd": sign(PNG)}}, {"images": {"odd": None}}),
        ({"images": sign(PNG)}, {"images": None}),
        ({"images": [{"thumb": f"see {sign(PNG)}"}]}, {"images": [{"thumb": f"see {PNG}"}]}),
        ([1], {}),
    ],
)
def test_shapes(data: Any, shaped: Any) -> None:
    assert shape_result(data, {}, plan_of(data)) == shaped


def test_a_reordered_reply_gets_the_right_links() -> None:
    plan = plan_of({"images": [f"{HOST}/{name}" for name in "abc"]})
    made: dict[str, str | None] = {"images/0": "A", "images/1": "B", "images/2": "C"}
    later = {"images": [sign(f"{HOST}/{name}") for name in "cxa"] + [f"{HOST}/new"]}
    assert shape_result(later, made, plan) == {"images": ["C", "B", "A", None]}


SECRET = "c2VjcmV0"
PATHS = st.sampled_from(["a.png", "b.mp4", "c%20d", "图.png"])
URLS = st.builds(
    lambda host, path, query: f"{host}/{path}{query}",
    st.sampled_from([HOST, "https://other.example", "http://h:8080"]),
    PATHS,
    st.sampled_from(["", "?v=1", f"?Expires=9&Signature={SECRET}", f"?X-Amz-Signature={SECRET}"]),
)
TEXTS = st.one_of(st.text(max_size=8), URLS, URLS.map(lambda url: f"看 {url}\uff0cok"))
NAMES = st.one_of(
    st.sampled_from(["url", "filename", "a", "b.c", "", "a/b~", f"https://h/n?Signature={SECRET}"]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    st.one_of(TEXTS, st.none(), st.booleans(), st.integers()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)
DATA = st.fixed_dictionaries(
    {},
    optional={
        "images": st.lists(URLS | st.fixed_dictionaries({"url": URLS, "filename": TEXTS}) | VALUES)
        | VALUES,
        "result": VALUES,
        "status": TEXTS,
    },
)


def leaves(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        for child in node.values():
            yield from leaves(child)
    elif isinstance(node, list):
        for child in node:
            yield from leaves(child)
    else:
        yield node


@given(DATA)
def test_every_file_is_linked_and_no_signature_is_left(data: Any) -> None:
    before = copy.deepcopy(data)
    found = find_files(data)
    plan = plan_files(found)
    assert len({file.name for file in plan}) == len(plan) == len({f.identity for f in found})
    everywhere = [ref for file in found for ref in file.refs]
    assert len(set(everywhere)) == len(everywhere)
    made = {file.name: f"s3://bucket/{number}" for number, file in enumerate(plan)}
    shaped = shape_result(data, made, plan)
    assert data == before
    assert set(shaped) == {"images", "result"} & set(data)
    assert SECRET not in json.dumps(shaped, ensure_ascii=False)
    for file in plan:
        used = list(leaves(shaped)).count(made[file.name])
        assert used == len(file.refs)


@given(DATA)
def test_names_do_not_depend_on_signatures(data: Any) -> None:
    again = _resigned(data)
    assert [f.name for f in plan_of(again)] == [f.name for f in plan_of(data)]
    assert [f.identity for f in plan_of(again) if not f.rejected] == [
        f.identity for f in plan_of(data) if not f.rejected
    ]


def _resigned(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _resigned(child) for name, child in node.items()}
    if isinstance(node, list):
        return [_resigned(child) for child in node]
    return node.replace(SECRET, "bmV3") if isinstance(node, str) else node


@given(st.text(st.characters(exclude_categories=[])), st.sampled_from(["", "http://", "https://["]))
def test_no_address_can_break_it(text: str, start: str) -> None:
    url = start + text
    data = {"images": [url, {"url": url}], "result": {"url": url, "x": url}}
    found = find_files(data)
    plan = plan_files(found)
    assert plan_from_json(plan_to_json(plan)) == plan
    assert addresses(plan, found, set()).keys() == {f.name for f in plan if not f.rejected}
    shape_result(data, {}, plan)
    assert url_expiry(url) is None or "?" in url


# -- the record's files -------------------------------------------------------------------------

STORED = FileOutcome(
    stored=StoredFile(
        key="id/result/poster.webp", bytes=5, sha256="ab", content_type="image/webp",
        width=472, height=1024,
    ),
    stored_at=1_735_788_700_000,
)  # fmt: skip
LOST = FileOutcome(error=f"GET {sign(PNG)}\nanswered 404", reason=Reason.FILES_UNAVAILABLE)


def lost(reason: Reason) -> FileOutcome:
    return FileOutcome(error="x", reason=reason)


def test_files_field() -> None:
    data = {**SAMPLE, "images": [PNG, f"{HOST}/2"]}
    files = files_field(
        plan_of(data), {"result/poster": STORED, "images/1": LOST}, Layout(bucket="b")
    )
    assert files == [
        {
            "name": "result/poster",
            "refs": ["/result/poster/url", "/images/0"],
            "key": "id/result/poster.webp",
            "uri": "s3://b/id/result/poster.webp",
            "bytes": 5,
            "sha256": "ab",
            "content_type": "image/webp",
            "width": 472,
            "height": 1024,
            "filename": "a153c27e31ed4e0f8c8721af0984ca5a_00000_.webp",
            "stored_at": 1_735_788_700_000,
        },
        {"name": "images/1", "refs": ["/images/1"], "error": f"GET {PNG} answered 404"},
    ]
    assert links(files) == {
        "result/poster": "s3://b/id/result/poster.webp",
        "images/1": None,
    }


def test_files_field_with_a_public_base() -> None:
    outcome = FileOutcome(
        stored=StoredFile(key="p/id:1/images/0.zip", bytes=1, sha256="", content_type="x/y"),
        stored_at=1,
    )
    [file] = files_field(
        plan_of({"images": [PNG]}),
        {"images/0": outcome},
        Layout(bucket="b", public_base="https://cdn.example/media"),
    )
    assert list(file) == [
        "name", "refs", "key", "uri", "url", "bytes", "sha256", "content_type", "stored_at",
    ]  # fmt: skip
    assert file["url"] == "https://cdn.example/media/p/id%3A1/images/0.zip"
    assert links([file]) == {"images/0": file["url"]}


def test_no_signature_reaches_the_files_field() -> None:
    data = {"result": {sign(PNG): {"url": f"{HOST}/1", "filename": f"from {sign(PNG)}"}}}
    plan = plan_of(data)
    text = json.dumps(
        files_field(plan, {plan[0].name: STORED}, Layout(bucket="b"))
        + files_field(plan, {plan[0].name: LOST}, Layout(bucket="b"))
    )
    assert "Signature" not in text
    shaped = shape_result(data, {plan[0].name: "x"}, plan)
    assert shaped == {"result": {PNG: {"url": "x", "filename": f"from {PNG}"}}}


CLIP = FileOutcome(
    stored=StoredFile(key="k", bytes=1, sha256="0", content_type="video/mp4", duration=2.5),
    stored_at=1,
)


@pytest.mark.parametrize("outcome", [STORED, CLIP, LOST, lost(Reason.CANCELED)])
def test_outcomes_come_back_from_json(outcome: FileOutcome) -> None:
    assert FileOutcome.from_json(outcome.to_json()) == outcome


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stored": STORED.stored},
        {"stored_at": 1},
        {"stored": STORED.stored, "stored_at": 1, "reason": Reason.CANCELED},
        {"stored_at": 1, "reason": Reason.CANCELED},
    ],
)
def test_an_outcome_is_one_of_two(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either"):
        FileOutcome(**fields)


@pytest.mark.parametrize(
    ("outcomes", "state", "reason"),
    [
        ([STORED, STORED], State.STORED, Reason.NONE),
        ([STORED, lost(Reason.STORAGE_ERROR)], State.PARTIAL, Reason.STORAGE_ERROR),
        ([lost(Reason.FILES_UNAVAILABLE)], State.FAILED, Reason.FILES_UNAVAILABLE),
        (
            [lost(Reason.STORAGE_ERROR), lost(Reason.FILES_UNAVAILABLE)],
            State.FAILED,
            Reason.FILES_UNAVAILABLE,
        ),
        (
            [lost(Reason.FILES_UNAVAILABLE), lost(Reason.FILES_REJECTED), STORED],
            State.PARTIAL,
            Reason.FILES_REJECTED,
        ),
        (
            [lost(Reason.FILES_REJECTED), STORED, lost(Reason.CANCELED)],
            State.PARTIAL,
            Reason.CANCELED,
        ),
        ([lost(Reason.POISONED)], State.FAILED, Reason.POISONED),
    ],
)
def test_ending(outcomes: list[FileOutcome], state: State, reason: Reason) -> None:
    assert ending(outcomes) == (state, reason)


@given(st.lists(st.sampled_from([STORED, *map(lost, set(Reason) - {Reason.NONE})])), st.randoms())
def test_the_order_of_files_does_not_decide(outcomes: list[FileOutcome], chance: Any) -> None:
    known = {Reason.CANCELED, Reason.FILES_REJECTED, Reason.FILES_UNAVAILABLE, Reason.STORAGE_ERROR}
    outcomes = [o for o in outcomes if o.stored or o.reason in known]
    shuffled = outcomes.copy()
    chance.shuffle(shuffled)
    assert ending(shuffled) == ending(outcomes)
    assert (ending(outcomes)[0] is State.STORED) == all(o.stored for o in outcomes)


# -- expiry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expiry"),
    [
        ("Expires=1735788708", 1735788708),
        ("a=b&Expires=1735788708#f", 1735788708),
        ("x-oss-date=20250102T030405Z&x-oss-expires=60", 1735787105),
        ("X-Amz-Date=20250102T030405Z&X-Amz-Expires=3600", 1735790645),
        ("Expires=5&X-Amz-Date=20250102T030405Z&X-Amz-Expires=3600", 5),
        ("X-Amz-Date=20250102T030405Z", None),
        ("X-Amz-Expires=60", None),
        ("X-Amz-Date=yesterday&X-Amz-Expires=60", None),
        ("X-Amz-Date=99999999T999999Z&X-Amz-Expires=60", None),
        ("Expires=soon", None),
        ("Expires=-5", None),
        ("Expires=" + "9" * 400, None),
        ("Expires=\u0661", None),
        ("Expires", None),
        ("expires=5", None),
        ("", None),
    ],
)
def test_url_expiry(query: str, expiry: float | None) -> None:
    assert url_expiry(f"{PNG}?{query}") == expiry
