"""The manifest holds the final record, to the digit, and gives it back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import jsontext
from worker.core.manifest import (
    for_targets,
    manifest_from_record,
    record_document,
    record_from_manifest,
    richer,
    stored_count,
)

STORED_FILE = {
    "name": "result/poster", "refs": ["/result/poster/url", "/images/0"],
    "key": "id1/result/poster.webp", "uri": "s3://b/id1/result/poster.webp", "bytes": 5,
    "sha256": "ab", "content_type": "image/webp", "stored_at": 1_735_788_700_000,
}  # fmt: skip
LOST_FILE = {"name": "images/1", "refs": ["/images/1"], "error": "gone"}
RESULT = '{"images":[],"result":{"seed":123456789012345678901234567890,"cfg":7.50,"t":"\\ud800"}}'


def record(**fields: str) -> dict[str, str]:
    return {
        "schema": "1",
        "task_id": "id1",
        "label": "海报",
        "metadata": '{"order":42.0}',
        "options": '{"prefix":"a/","deadline":1.50,"callbacks":[]}',
        "run": "2",
        "state": "stored",
        "reason": "",
        "error": "",
        "submitted_at": "1735788600000",
        "updated_at": "1735788700001",
        "finished_at": "1735788700001",
        "polls": "7",
        "upstream": '{"status":"succeeded","taskDuration":49594}',
        "files": jsontext.dumps([STORED_FILE]),
        "result": RESULT,
        "manifest": "manifests/id1.json",
        **fields,
    }


def test_a_record_comes_back() -> None:
    assert record_from_manifest(manifest_from_record(record()), "id1") == record()


def test_a_failed_record_comes_back_without_files() -> None:
    failed = record(state="failed", reason="upstream_failed", error="no")
    del failed["files"], failed["result"]
    assert record_from_manifest(manifest_from_record(failed), "id1") == failed


def test_the_document() -> None:
    text = manifest_from_record(record()).decode()
    assert RESULT in text
    assert '"metadata":{"order":42.0}' in text
    document = json.loads(text)
    assert list(document)[:5] == ["schema", "task_id", "run", "state", "reason"]
    numbers = ("schema", "run", "polls", "finished_at")
    assert [document[name] for name in numbers] == [1, 2, 7, 1_735_788_700_001]
    assert document["label"] == "海报"
    assert document["files"] == [STORED_FILE]


def test_what_is_no_field_of_a_manifest_stays_out() -> None:
    more = record(told='[{"target":"https://h/x"}]', restored="true", secret="x")
    assert manifest_from_record(more) == manifest_from_record(record())


def test_empty_times_and_json_are_left_out() -> None:
    waiting = record(state="waiting", finished_at="", upstream="")
    assert not {"finished_at", "upstream"} & set(record_document(waiting))
    assert record_document(waiting)["reason"] == ""


def test_callback_urls_lose_what_may_be_secret() -> None:
    reply = {"channel": "reply", "task": "a", "queue": "b"}
    hook = {"channel": "webhook", "target": "https://u:s3cret@h:8/hooks/s3cret?token=s3cret#f"}
    options = {"deadline": 5, "callbacks": [hook, reply]}
    told = [{"id": "w", "channel": "webhook", "target": "https://h:8/hooks/s3cret"}]
    before = record(options=json.dumps(options), told=json.dumps(told))
    body = manifest_from_record(before)
    cut = {"channel": "webhook", "target": "https://h:8"}
    assert json.loads(body)["options"] == {"deadline": 5, "callbacks": [cut, reply]}
    sent = json.loads(jsontext.dumps(for_targets(before)))
    assert sent["options"]["callbacks"] == [cut, reply]
    assert sent["told"] == [{"id": "w", **cut}]
    assert "s3cret" in before["options"]
    # nobody can be told at what is left of an address
    restored = json.loads(record_from_manifest(body, before["task_id"])["options"])
    assert restored == {"deadline": 5, "callbacks": [reply]}


def test_a_manifest_of_an_earlier_release_keeps_its_callbacks() -> None:
    hook = {"channel": "webhook", "target": "https://h/x"}
    document = {**json.loads(manifest_from_record(record())), "options": {"callbacks": [hook]}}
    body = json.dumps(document).encode()
    restored = record_from_manifest(body, document["task_id"])
    assert json.loads(restored["options"]) == {"callbacks": [hook]}


@pytest.mark.parametrize(
    "fields",
    [{"run": "x"}, {"files": "{"}, {"result": "NaN"}, {"options": "[]"}, {"options": "{}"}],
)
def test_a_malformed_record_has_no_manifest(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        manifest_from_record(record(**fields))


def document(**changes: Any) -> bytes:
    changed = record_document(record()) | changes
    return jsontext.dumps({name: v for name, v in changed.items() if v != "-"}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2}, {"schema": "1"}, {"schema": True}, {"schema": "-"}, {"schema": 1.0},
        {"task_id": "id2"}, {"task_id": "-"}, {"task_id": 5},
        {"state": "waiting"}, {"state": "copying"}, {"state": "done"}, {"state": "-"},
        {"state": None}, {"run": "-"}, {"run": -1}, {"run": "2"}, {"run": 1.5},
        {"finished_at": "-"}, {"finished_at": None}, {"metadata": []}, {"metadata": "-"},
        {"options": None}, {"options": "-"}, {"upstream": "x"}, {"label": 5}, {"error": None},
        {"files": "-"}, {"files": {}}, {"files": [5]}, {"files": [{}]}, {"files": [{"name": "a"}]},
        {"files": [{"name": 5, "key": "k"}]}, {"files": [{"name": "a", "key": None}]},
        {"files": [STORED_FILE, LOST_FILE]}, {"result": []},
    ],
)  # fmt: skip
def test_what_is_no_manifest_of_the_task(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        record_from_manifest(document(**changes), "id1")


def test_unknown_fields_are_passed_over() -> None:
    assert record_from_manifest(document(told=[], more={"a": 1}), "id1") == record()


def test_a_partial_manifest_may_hold_lost_files() -> None:
    body = document(state="partial", reason="files_unavailable", files=[STORED_FILE, LOST_FILE])
    assert stored_count(record_from_manifest(body, "id1")) == 1


def test_a_partial_manifest_of_a_run_that_failed_upstream_has_no_result() -> None:
    body = document(state="partial", reason="upstream_failed", result="-")
    assert "result" not in record_from_manifest(body, "id1")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"5", b"<html>"])
def test_what_is_no_document(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        record_from_manifest(body, "id1")


@given(st.binary() | st.text().map(lambda text: json.dumps(text).encode()))
def test_rubbish_raises_nothing_else(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        record_from_manifest(body, "id1")


def test_stored_count() -> None:
    assert stored_count(record()) == 1
    assert stored_count({}) == 0
    assert stored_count({"files": ""}) == 0
    assert stored_count({"files": json.dumps([STORED_FILE, LOST_FILE, STORED_FILE])}) == 2


def ended(state: str, stored: int) -> dict[str, str]:
    return {"state": state, "files": json.dumps([STORED_FILE] * stored + [LOST_FILE])}


@pytest.mark.parametrize(
    ("existing", "ours", "keeps"),
    [
        (("stored", 2), ("stored", 2), False),
        (("stored", 2), ("partial", 1), True),
        (("stored", 2), ("partial", 3), True),
        (("stored", 0), ("failed", 0), True),
        (("partial", 1), ("stored", 2), False),
        (("partial", 1), ("partial", 1), False),
        (("partial", 2), ("partial", 1), True),
        (("partial", 1), ("failed", 0), True),
        (("failed", 0), ("failed", 0), False),
        (("failed", 0), ("stored", 0), False),
    ],
)
def test_richer(existing: tuple[str, int], ours: tuple[str, int], keeps: bool) -> None:
    assert richer(ended(*existing), ended(*ours)) is keeps


ENDINGS = st.tuples(st.sampled_from(["stored", "partial", "failed"]), st.integers(0, 3))


@given(st.lists(ENDINGS, min_size=1, max_size=6))
def test_a_manifest_never_gets_poorer(endings: list[tuple[str, int]]) -> None:
    manifest = endings[0]
    for ours in endings[1:]:
        if not richer(ended(*manifest), ended(*ours)):
            assert ours[1] >= manifest[1]
            assert manifest[0] != "stored" or ours[0] == "stored"
            manifest = ours


JSON_OBJECTS = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
).map(jsontext.dumps)


@given(JSON_OBJECTS, JSON_OBJECTS, st.text(st.characters(exclude_categories=["Cs"])))
def test_any_content_comes_back(metadata: str, result: str, error: str) -> None:
    given_ = record(metadata=metadata, result=result, error=error)
    assert record_from_manifest(manifest_from_record(given_), "id1") == given_
