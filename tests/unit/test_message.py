"""What is read of a Celery message: ids and options, whatever else is in it."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.message import SUBMIT, TASKS, Call, read_call
from worker.core.models import Refusal
from worker.core.submission import MAX_BODY_BYTES

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
LINK = {"task": "os.system", "args": ["x"], "options": {"queue": "shop"}}


def read(
    body: Any, kind: Any = "application/json", encoding: Any = "utf-8", **headers: Any
) -> Call:
    data = body if isinstance(body, bytes | str) else json.dumps(body).encode()
    return read_call({"task": SUBMIT, "id": "i"} | headers, kind, encoding, data)


def asked(call: Call) -> list[str]:
    """What of Celery the call was refused."""
    return [name for refusal in call.refusals for name in refusal.value.split(", ")]


def refused(call: Call) -> Refusal:
    assert (call.task, call.args, call.options) == (SUBMIT, None, {})
    (refusal,) = call.refusals
    assert refusal.what == "message"
    return refusal


def test_both_protocols_bring_the_same_call() -> None:
    call = read([["id1"], {"label": "x"}, EMBED])
    assert call == Call(ident="i", args=["id1"], options={"label": "x"})
    first = {"task": SUBMIT, "id": "i", "args": ["id1"], "kwargs": {"label": "x"}, "eta": None}
    assert read_call({}, "application/json", "utf-8", json.dumps(first)) == call
    assert read(first) == call  # between the two


def test_numbers_are_kept_to_the_digit() -> None:
    call = read(b'[["a"], {"metadata": {"n": 1.50}}, {}]')
    assert call.options["metadata"]["n"].encoded_json == "1.50"


@pytest.mark.parametrize("name", ["callbacks", "errbacks", "chain", "chord"])
def test_workflows_are_dropped_and_named(name: str) -> None:
    deep: Any = LINK
    for _ in range(60):
        deep = {"task": "t", "options": {"link": [deep]}}
    for value in ([LINK], LINK, [deep]):
        in_embed = read([["a"], {}, EMBED | {name: value}])
        first = {"task": SUBMIT, "args": ["a"], "kwargs": {}, name: value}
        in_body = read_call({}, "application/json", None, json.dumps(first))
        in_headers = read([["a"], {}, EMBED], **{name: value})
        for call in (in_embed, in_body, in_headers):
            assert (call.args, call.options, asked(call)) == (["a"], {}, [name])


@pytest.mark.parametrize(
    ("name", "value"),
    [("eta", "2999-01-01T00:00:00"), ("eta", {"a": 1}), ("timelimit", [1, None]), ("timelimit", 5)],
)
def test_times_are_dropped_and_named(name: str, value: Any) -> None:
    call = read([["a"], {}, EMBED], **{name: value})
    assert (call.args, asked(call)) == (["a"], [name])


def test_what_every_sender_writes_is_no_refusal() -> None:
    headers = {
        "eta": None, "expires": "2000-01-01T00:00:00", "timelimit": [None, None], "group": "g",
        "retries": 3, "root_id": "r", "shadow": "<b>", "ignore_result": False, "origin": "o",
    }  # fmt: skip
    assert read([["a"], {}, EMBED], **headers) == Call(ident="i", args=["a"])


@pytest.mark.parametrize("ident", [None, 7, ["i"], "", "a b", "x" * 129, "\n", {"a": 1}])
def test_an_id_that_is_no_name_is_replaced(ident: Any) -> None:
    assert len(read([["a"], {}, EMBED], id=ident).ident) == 36


@pytest.mark.parametrize(
    ("kind", "encoding", "reason"),
    [
        ("application/x-python-serialize", "binary", "not JSON by its content type"),
        (None, "utf-8", "not JSON by its content type"),
        (["application/json"], "utf-8", "not JSON by its content type"),
        ("application/json", "utf-16", "not UTF-8 by its content encoding"),
        ("application/json", "punycode", "not UTF-8 by its content encoding"),
        ("application/json", ["utf-8"], "not UTF-8 by its content encoding"),
    ],
)
def test_only_json_in_utf8_is_read(kind: Any, encoding: Any, reason: str) -> None:
    assert refused(read([["a"], {}, {}], kind, encoding)).reason == reason


@pytest.mark.parametrize("kind", ["application/json", "application/JSON; charset=utf-8"])
@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "", None])
def test_json_in_utf8_is_read(kind: str, encoding: str | None) -> None:
    assert read([["a"], {}, {}], kind, encoding).args == ["a"]


@pytest.mark.parametrize(
    "task", ["", "celery.chord", "harvester.nosuch", "os.system", None, 7, ["harvester.submit"]]
)
def test_other_tasks_are_refused(task: Any) -> None:
    assert refused(read([["a"], {}, {}], task=task)).reason == "not a harvester.* task"


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"null", b"7", b"[]", b"[[]]", b"[{}, [], {}]", b"[[], {}, {}, {}]", b"NaN",
     b"[" * 100_000, "\ud800", '{"args": 7, "kwargs": {}}', b"[[], 7, {}]"],
)  # fmt: skip
def test_what_is_no_call_is_refused(body: Any) -> None:
    refused(read(body))


@pytest.mark.parametrize("body", [None, 7, ["x"], {"args": []}])
def test_a_body_of_another_type_is_refused(body: Any) -> None:
    refused(read_call({"task": SUBMIT}, "application/json", "utf-8", body))


def test_a_body_that_is_too_large_is_not_decoded() -> None:
    bodies = (b"[" + b"[]," * MAX_BODY_BYTES, b"1" * (MAX_BODY_BYTES + 1))
    tracemalloc.start()
    try:
        for body in bodies:
            assert "longer than" in refused(read_call({}, "application/json", "", body)).reason
        assert tracemalloc.get_traced_memory()[1] < MAX_BODY_BYTES
    finally:
        tracemalloc.stop()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
NAMES = st.sampled_from(
    ["task", "id", "args", "kwargs", "eta", "timelimit", "callbacks", "chord", "compression"]
)


@given(
    headers=st.dictionaries(NAMES | st.text(), JSON | st.sampled_from(sorted(TASKS)), max_size=6),
    kind=JSON | st.just("application/json"),
    encoding=JSON | st.just("utf-8"),
    body=st.binary()
    | JSON
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(NAMES, JSON).map(json.dumps)
    | st.tuples(st.lists(JSON), st.dictionaries(st.text(), JSON), JSON).map(json.dumps),
)
def test_reading_never_raises_and_hands_on_nothing_else(
    headers: dict[str, Any], kind: Any, encoding: Any, body: Any
) -> None:
    call = read_call(headers, kind, encoding, body)
    assert call.task in TASKS
    assert isinstance(call.args, list | None)
    assert isinstance(call.options, dict)
    assert call.args is not None or call.refusals
    assert all(len(text) <= 500 for r in call.refusals for text in (r.what, r.value, r.reason))


@pytest.mark.parametrize("headers", [None, [], "text", 7])
def test_headers_of_another_type_are_none(headers: object) -> None:
    body = b'{"task": "harvester.submit", "args": ["a"], "kwargs": {}}'
    assert read_call(headers, "application/json", "utf-8", body).args == ["a"]
    assert read_call(headers, "application/json", "utf-8", b"[[], {}, {}]").args is None
