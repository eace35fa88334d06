"""Files that a reply names in other ways than the vendor's page shows, and how much it may say."""

from __future__ import annotations

import json
import random
import tracemalloc
from typing import Any

import pytest

from tests.bench import fuzz
from worker.core import jsontext
from worker.core.copying import Files
from worker.core.finding import (
    MAX_POINTER,
    MAX_POINTERS,
    find_files,
    unfolded,
    unsure,
    url_expiry,
    usable,
)
from worker.core.models import Doubtful, Failed, Reason, Succeeded
from worker.core.outputs import (
    FileOutcome,
    addresses,
    links,
    plan_files,
    plan_to_json,
    shape_result,
)
from worker.core.reply import read_reply
from worker.errors import UpstreamUnavailable

OSS = "https://outputs.oss-cn-beijing.aliyuncs.com"
HOST = "openai.edu-aliyun.com"


def refs(data: Any, host: str = HOST) -> list[str]:
    return [ref for file in find_files(data, host) for ref in file.refs]


# -- texts that look like outputs -------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ({"images": [f"{OSS}/a", f"{OSS}/b"]}, ["/result/images/0", "/result/images/1"]),
        ({"node": {"images": [f"https://{HOST}/a"]}}, ["/result/node/images/0"]),
        ({"video": f"{OSS}/a.mp4"}, ["/result/video"]),
        ({"model": f"{OSS}/a.GLB?version=2"}, ["/result/model"]),
        ([f"{OSS}/a.safetensors"], ["/result/0"]),
        ({"images": [f" {OSS}/a\n"]}, ["/result/images/0"]),
        ({"images": [f"{OSS}/a".removeprefix("https:")]}, ["/result/images/0"]),
        # no files
        ({"images": ["https://elsewhere.example/a.png"]}, []),
        ({"images": ["https://aliyuncs.com.evil.example/a.png"]}, []),
        ({"images": [f"see {OSS}/a.png"]}, []),
        ({"images": [[f"{OSS}/a"]]}, []),
        ({"page": f"{OSS}/index.html"}, []),
        ({"page": f"{OSS}/a"}, []),
        ({"page": f"{OSS}/a.png.html"}, []),
        ({"page": f"{OSS}/a.object/b"}, []),
        ({"note": "// see a.png"}, []),
        ({"info": {"images": [f"{OSS}/a.png"]}}, []),
        ({"parameters": {"deep": [{"images": [f"{OSS}/a.png"]}]}}, []),
        ({"a": {"info": f"{OSS}/a.png"}, "b": f"{OSS}/b.png"}, ["/result/b"]),
    ],
)
def test_loose_addresses(result: Any, found: list[str]) -> None:
    data = {"images": [], "result": result}
    assert refs(data) == found
    assert all(file.loose for file in find_files(data, HOST))


def test_an_address_that_stands_in_a_sure_place_too_is_no_text() -> None:
    data = {"result": {"a": f"{OSS}/a.png"}, "images": [f"{OSS}/a.png"]}
    (file,) = find_files(data)
    assert (file.refs, file.loose) == (("/result/a", "/images/0"), False)


def test_a_text_that_never_gave_bytes_stays_a_text() -> None:
    data = {"images": [f"{OSS}/x.png"], "result": {"t": "https://openai.edu-aliyun.com/a.png?x=1"}}
    found = find_files(data, HOST)
    files = Files(plan=plan_files(found), found=found)
    files.loose = {file.identity for file in found if file.loose}
    lost = FileOutcome(error="gone", reason=Reason.FILES_UNAVAILABLE)
    files.outcomes = {0: lost, 1: lost}
    files.forget_texts()
    assert [file.refs for file in files.plan] == [("/images/0",)]
    assert files.outcomes == {0: lost}
    shaped = shape_result(data, {"images/0": None}, files.plan, HOST)
    assert shaped == {"images": [None], "result": data["result"]}


# -- files whose address is not there yet -----------------------------------------------------


@pytest.mark.parametrize("url", [{"url": None}, {"url": ""}, {"url": "  "}, {}])
@pytest.mark.parametrize("name", ["filename", "object_key"])
def test_an_object_that_names_a_file_awaits_its_address(url: dict[str, Any], name: str) -> None:
    data = {"images": [{name: "a.png", **url}]}
    (file,) = find_files(data)
    assert (file.refs, file.url, file.awaited) == (("/images/0/url",), "", True)
    (planned,) = plan_files([file])
    assert (planned.name, planned.rejected) == ("images/0", "")
    later = find_files({"images": [{name: "a.png", "url": f"{OSS}/a.png"}]})
    assert addresses([planned], later, set()) == {"images/0": f"{OSS}/a.png"}
    assert addresses([planned], find_files(data), set()) == {}
    shaped = shape_result(data, {"images/0": "s3://b/a"}, [planned])
    assert shaped["images"][0] == {name: "a.png", "url": "s3://b/a"}


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ({"a": {"filename": "a.png", "url": None}}, ["/result/a/url"]),
        ({"a": {"object_key": "k"}}, ["/result/a/url"]),
        ({"images": [{"filename": "a"}]}, ["/result/images/0/url"]),
        ({"a": {"filename": "workflow.json"}}, []),
        ({"a": {"filename": " ", "url": None}}, []),
        ({"a": {"filename": 5, "url": None}}, []),
        ({"info": {"filename": "input.png", "url": None}}, []),
        ({"a": {"url": {"filename": "x"}}}, []),
    ],
)
def test_objects_without_an_address_within_the_result(result: Any, found: list[str]) -> None:
    assert refs({"result": result}) == found


def test_an_object_whose_address_is_another_member_awaits_none() -> None:
    entry = {"filename": "a.png", "object_key": "k", "download": f"{OSS}/x?Signature=s"}
    (file,) = find_files({"images": [entry]})
    assert (file.refs, file.filename, file.awaited) == (("/images/0/download",), "a.png", False)
    (file,) = find_files({"result": {"poster": entry}})
    assert (file.refs, file.awaited) == (("/result/poster/download",), False)
    preview = {"filename": "a.png", "url": None, "preview": f"{OSS}/x?Signature=s"}
    (file,) = find_files({"images": [preview]})
    assert (file.refs, file.awaited) == (("/images/0/url",), True)


# -- what is left open ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "open_"),
    [
        ({"images": None}, "images is null"),
        ({"images": None, "result": None}, "images is null"),
        ({"images": None, "result": {}}, ""),
        ({"result": {}}, ""),
        ({}, ""),
        ({"images": []}, ""),
        ({"images": ["a", None]}, "images 1 of 2 name no file"),
        ({"images": ["", f"{OSS}/a", " "]}, "images 0, 2 of 3 name no file"),
        ({"images": [{}, 5, ["odd"], {"url": 5}]}, "images 0, 1, 2, 3 of 4 name no file"),
        ({"images": [[f"{OSS}/a"], {"src": f"{OSS}/a"}]}, ""),
        ({"images": {"count": 3}, "result": {}}, "images names no file"),
        ({"images": {"a": f"{OSS}/a"}, "result": {}}, ""),
        ({"images": {"a": f"{OSS}/a", "b": None, "c": ""}}, "2 of 3 images name no file"),
        ({"images": {"url": f"{OSS}/a", "preview": None}}, ""),
        ({"images": {}, "result": {}}, ""),
        ({"images": [{"url": "odd"}, {"filename": "a"}, "odd"]}, ""),
    ],
)
def test_what_only_a_repetition_can_settle(data: dict[str, Any], open_: str) -> None:
    assert unsure(data) == open_


def test_an_open_reply_has_the_same_text_only_if_it_leaves_the_same_open() -> None:
    many = {"images": [None] * 100_000}
    assert len(unsure(many)) < 1000
    assert unsure(many) != unsure({"images": [None] * 100_001})


@pytest.mark.parametrize(
    "text", ['{"poster": {"url": "https://h/a"}}', ' [{"url": "https://h/a"}]\n']
)
def test_a_result_that_is_json_text_is_read(text: str) -> None:
    data = unfolded({"result": text})
    assert len(find_files(data)) == 1
    assert shape_result(data, {}, [])["result"] == json.loads(text.replace('"https://h/a"', "null"))


def test_images_that_are_json_text_are_read() -> None:
    data = unfolded({"images": f'["{OSS}/a", {{"url": "{OSS}/b"}}]', "result": '{"images": "[1]"}'})
    assert refs(data) == ["/images/0", "/images/1/url"]
    assert data["result"] == {"images": "[1]"}
    packed = unfolded({"images": [json.dumps({"url": f"{OSS}/a"}), "plain"]})
    assert refs(packed) == ["/images/0/url", "/images/1"]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("name", ["images", "result"])
def test_texts_are_unpacked_up_to_three_times(name: str, times: int) -> None:
    value: Any = [{"url": f"{OSS}/a", "score": float("nan")}]
    for _ in range(times):
        value = " \ufeff" + json.dumps(value) + "\n"
    data = unfolded({name: value})
    assert refs(data) == [f"/{name}/0/url"]
    assert jsontext.loads(jsontext.dumps(data)) == data


def test_a_text_that_is_nested_too_deep_is_not_taken_for_a_mere_text() -> None:
    with pytest.raises(jsontext.TooLargeError):
        unfolded({"result": "[" * 40 + "]" * 40})


@pytest.mark.parametrize("shape", [("[", "]"), ('{"a":', "}")])
def test_whatever_is_unpacked_can_be_read_again(shape: tuple[str, str]) -> None:
    text = shape[0] * 29 + "[1]" + shape[1] * 29
    data = unfolded({"result": text, "images": [text]})
    assert jsontext.loads(jsontext.dumps(data)) == data


@pytest.mark.parametrize("text", ["plain", "5", '"x"', "{", "null", "[a cat]", '"[a cat]"', '""'])
def test_a_result_that_is_another_text_stays_one(text: str) -> None:
    assert unfolded({"result": text}) == {"result": text}


def test_info_and_parameters_are_kept() -> None:
    data = {"images": [], "info": {"seed": 1}, "parameters": {"a": f"{OSS}/a.png"}, "x": 1}
    assert find_files(data) == []
    assert shape_result(data, {}, []) == {
        "images": [], "info": {"seed": 1}, "parameters": {"a": f"{OSS}/a.png"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "query",
    [
        "auth_key=1700-0-0-abc",
        "X-Goog-Algorithm=a&X-Goog-Date=20260101T000000Z&X-Goog-Expires=60",
        "q-sign-algorithm=sha1&q-ak=k&q-sign-time=1;2&q-key-time=1;2&q-signature=f",
        "Policy=p&Signature=s&Key-Pair-Id=k", "sig=x&Expires=1",
    ],
)  # fmt: skip
def test_parameters_that_sign_are_no_part_of_a_file(query: str) -> None:
    names = [item.partition("=")[0] for item in query.split("&")]
    one, two = ({"images": [f"{OSS}/a?v=1&" + "&".join(f"{n}={x}" for n in names)]} for x in "12")
    assert [f.identity for f in find_files(one)] == [f.identity for f in find_files(two)]
    assert find_files(one)[0].identity == f"{OSS}/a?v=1"
    assert shape_result({"result": {"t": f"see {OSS}/a?{query}"}}, {}, [])["result"] == {
        "t": f"see {OSS}/a"
    }


def test_what_an_azure_signature_covers_is_no_part_of_a_file() -> None:
    one = {"images": [f"{OSS}/a?sv=1&se=2026-01-01&sp=r&sig=x&v=1"]}
    assert find_files(one)[0].identity == f"{OSS}/a?v=1"
    plain = {"images": [f"{OSS}/a?sv=1&se=2"]}
    assert find_files(plain)[0].identity == f"{OSS}/a?sv=1&se=2"


def test_an_address_may_be_written_as_in_html() -> None:
    text = f"{OSS}/a?v=1&amp;Expires=20&amp;Signature=s"
    for data in ({"images": [text]}, {"result": {"a": {"url": text}}}, {"result": text}):
        (file,) = find_files(data)
        assert (file.identity, url_expiry(file.url)) == (f"{OSS}/a?v=1", 20)


def test_google_says_when_an_address_expires() -> None:
    url = "https://storage.googleapis.com/a?X-Goog-Date=20260101T000000Z&X-Goog-Expires=60"
    assert url_expiry(url) == 1767225660


# -- how much a reply may say -----------------------------------------------------------------


def test_a_long_name_above_many_texts_costs_nothing() -> None:
    """300 KiB without a file took 592 MiB."""
    name = "n" * 4000
    data = {"result": {name: {name + "2": {name + "3": ["text"] * 20_000}}}}
    tracemalloc.start()
    try:
        assert find_files(data) == []
        shape_result(data, {}, [])
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        {"result": {"n" * MAX_POINTER: {"url": f"{OSS}/a"}}},
        {"result": {"~" * (MAX_POINTER // 2): {"url": f"{OSS}/a"}}},
        {"result": {"é" * (MAX_POINTER // 2): {"url": f"{OSS}/a"}}},
        {"result": {"n" * 1000: [{"url": f"{OSS}/{n}"} for n in range(1100)]}},
        {"images": [f"{OSS}/a"] * 100_000},
        {"images": [f"{OSS}/{n}" for n in range(100_000)]},
    ],
    ids=["one pointer", "escapes", "bytes", "long names", "one file", "many files"],
)
def test_pointers_that_are_too_long_are_refused_before_they_are_built(data: Any) -> None:
    with pytest.raises(jsontext.TooLargeError):
        find_files(data)
    body = json.dumps({"status": 10, "data": {"status": "succeeded", **data}}).encode()
    said = read_reply(http_status=200, headers={}, body=body, task_id="t").observation
    assert isinstance(said, Doubtful)
    assert "too large to record" in said.error


def test_a_plan_is_bounded_by_its_pointers() -> None:
    data = {"result": {"ä" * 200: [{"url": f"{OSS}/{n}", "filename": "é"} for n in range(2000)]}}
    found = find_files(data)
    assert len(plan_to_json(plan_files(found))) < 8 * MAX_POINTERS


def test_members_that_are_no_files_count_for_nothing() -> None:
    data = {"result": [{"url": "n/a"}] * 100_000, "info": {"images": [{"filename": "f"}] * 100_000}}
    assert find_files(data) == []


@pytest.mark.parametrize("text", ["https://" + "h" * 400, f"{OSS}/" + "p" * 20_000])
def test_an_address_is_bounded(text: str) -> None:
    """A host of two million combining characters took an hour to normalise."""
    (planned,) = plan_files(find_files({"images": [text]}))
    assert planned.rejected
    assert find_files({"result": {"images": [text]}}, HOST) == []


@pytest.mark.parametrize(
    "text", ['["' + '\\",' * 600_000, "[" * 600_000, "[" + "[[[[[]]]]]," * 200_000 + "1]"]
)
def test_values_are_counted_in_one_pass_whatever_the_text(text: str) -> None:
    """An open string with many quotes was searched from each of them: for hours."""
    with pytest.raises(ValueError, match=r"values|Unterminated|string"):
        jsontext.loads(text)


def test_texts_that_are_read_count_as_well() -> None:
    many = "[" + "1," * 300_000 + "1]"
    body = json.dumps({"status": 10, "data": {"status": "succeeded", "images": [], "result": many}})
    twice = body.replace('"images": []', f'"images": {many}').encode()
    said = read_reply(http_status=200, headers={}, body=twice, task_id="t").observation
    assert isinstance(said, Doubtful)
    assert "too large to record" in said.error


def test_members_that_are_json_text_are_read_if_they_name_files() -> None:
    result = {
        "a": json.dumps({"url": f"{OSS}/a"}),
        "b": json.dumps(json.dumps([f"{OSS}/b?Expires=1&Signature=s"])),
        "caption": '{"mood": "calm"}',
        "link": '["https://elsewhere.example/x"]',
        "deep": "[" * 40 + f'"{OSS}/b?Signature=s"' + "]" * 40,
        "parameters": json.dumps([f"{OSS}/in?Expires=1&Signature=s"]),
    }
    data = unfolded({"images": [], "result": result})
    assert refs(data) == ["/result/a/url", "/result/b/0"]
    texts = ("caption", "link", "deep", "parameters")
    assert [data["result"][name] for name in texts] == [result[name] for name in texts]
    assert unfolded({"result": {"a": result["a"] + " " * 600_000}}) != data


def test_packed_entries_count_together() -> None:
    entry = "[" + "1," * 40_000 + "1]"
    assert unfolded({"images": [entry]})["images"] != [entry]
    with pytest.raises(jsontext.TooLargeError):
        unfolded({"images": [entry] * 20})


def test_many_values_are_no_reply() -> None:
    with pytest.raises(ValueError, match="values"):
        jsontext.loads("[" + "0.5," * 600_000 + "1]")
    assert len(jsontext.loads(json.dumps(["a, b, c " * 100_000]))) == 1


@pytest.mark.parametrize("size", ["bytes", "values"])
def test_a_huge_reply_is_about_the_task_that_it_names(size: str) -> None:
    filler = "x" * jsontext.MAX_BYTES if size == "bytes" else [1] * 600_000
    body = json.dumps({"status": 10, "data": {"taskId": "the-task", "x": filler}}).encode()
    said = read_reply(http_status=200, headers={}, body=body, task_id="the-task").observation
    assert isinstance(said, Doubtful)
    with pytest.raises(UpstreamUnavailable, match="too large"):
        read_reply(http_status=200, headers={}, body=body, task_id="another")


@pytest.mark.parametrize("part", range(4))
def test_damaged_replies_break_no_rule(part: int) -> None:
    """``make fuzz`` reads ten thousand of them."""
    ends = {fuzz.read(fuzz.mutated(random.Random(part * 1000 + n))) for n in range(5)}
    assert len(ends) > 1


def test_reading_a_reply_takes_memory_in_proportion() -> None:
    body = json.dumps(
        fuzz.SEED | {"data": fuzz.SEED["data"] | {"result": {"n" * 99: [{"a": "b"}] * 5_000}}}
    ).encode()
    tracemalloc.start()
    try:
        fuzz.read(body)
        assert tracemalloc.get_traced_memory()[1] < 100 * len(body)
    finally:
        tracemalloc.stop()


# -- the upstream's own words -----------------------------------------------------------------


def answer(**data: Any) -> Any:
    body = json.dumps({"status": 10, "data": data}).encode()
    return read_reply(http_status=200, headers={}, body=body, task_id="t")


def test_what_a_failed_task_says_is_kept() -> None:
    said = answer(status="failed", message="Node 12 (KSampler): CUDA out of memory", code=7)
    assert isinstance(said.observation, Failed)
    assert said.observation.error == "failed upstream: Node 12 (KSampler): CUDA out of memory"
    assert json.loads(said.upstream)["other"] == {
        "message": "Node 12 (KSampler): CUDA out of memory"
    }


def test_the_words_are_bounded_and_redacted() -> None:
    words = {f"w{n}": f"{OSS}/x?Signature=secret " + "y" * 1000 for n in range(1000)}
    said = answer(status="failed", **words)
    other = json.loads(said.upstream)["other"]
    assert len(other) == 8
    assert max(map(len, other.values())) <= 300
    assert "secret" not in said.upstream + said.observation.error


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"error": {"node": 12, "message": "out of memory"}}, "failed upstream: out of memory"),
        ({"errCode": "OOM", "errMessage": "words"}, "failed upstream: OOM"),
        ({"result": "out of memory"}, "failed upstream: out of memory"),
        ({"result": {"caption": "a text"}, "taskId": "t"}, "failed upstream"),
    ],
)
def test_words_wherever_they_are(members: dict[str, Any], error: str) -> None:
    assert answer(status="failed", **members).observation.error == error


def test_words_join_the_code_of_the_reply() -> None:
    reply = {
        "status": 20,
        "errCode": "E",
        "subErrCode": "S",
        "data": {"status": "failed", "m": "w"},
    }
    body = json.dumps(reply).encode()
    said = read_reply(http_status=200, headers={}, body=body, task_id="t")
    assert said.observation == Failed(reason=Reason.UPSTREAM_FAILED, error="failed upstream: S: w")


def test_an_encoded_signature_is_no_word() -> None:
    said = answer(status="failed", m="https%3A%2F%2Fh%2Fa%3FExpires%3D1%26Signature%3Dsecret")
    assert "secret" not in said.upstream + said.observation.error


@pytest.mark.parametrize("code", ["P_Request_ContentSafe", "B_API_AuditFailed"])
@pytest.mark.parametrize("name", ["subErrCode", "errCode", "errorCode", "failCode"])
def test_a_content_check_within_the_task_counts(name: str, code: str) -> None:
    for members in ({name: code}, {"error": {name: code}}):
        said = answer(status="failed", **members).observation
        assert said.reason is Reason.CONTENT_REJECTED


def test_a_success_whose_outputs_are_elsewhere_names_its_members() -> None:
    said = answer(status="succeeded", currentImage=f"{OSS}/a.png", progress=1)
    assert said.observation.error.endswith("names no outputs; it has currentImage, progress")
    assert "currentImage" in json.loads(said.upstream)["other"]


def test_a_task_that_goes_on_shows_nothing_of_that() -> None:
    assert "other" not in json.loads(answer(status="running", message="busy").upstream)


def test_a_success_tells_when_its_first_address_dies() -> None:
    said = answer(status="succeeded", images=[f"{OSS}/a?Expires=20", f"{OSS}/b?Expires=10"])
    assert said.observation.expires == 10
    assert isinstance(said.observation, Succeeded)
    assert usable({"images": []})
    assert links([]) == {}
