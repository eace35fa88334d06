"""What counts as a ``traceparent``, and where a submission's comes from."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.message import read_call
from worker.core.submission import Policy, read_submission, traced
from worker.core.trace import MAX_BYTES, of_record, trace_id, traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"

_hex = st.text("0123456789abcdef", min_size=1)


@pytest.mark.parametrize(
    "value",
    [
        None, 7, "", GOOD.upper(), GOOD[:-1], GOOD + "\n", f" {GOOD}", f"{GOOD}-more",
        f"ff{GOOD[2:]}", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"01{GOOD[2:]}x",
        f"01{GOOD[2:]}-{'x' * MAX_BYTES}", [GOOD], {"traceparent": GOOD},
    ],
)  # fmt: skip
def test_what_is_no_traceparent_is_ignored(value: object) -> None:
    assert traceparent(value) == trace_id(value) == ""
    assert traced({"label": "x"}, value) == {"label": "x"}


@pytest.mark.parametrize("value", [GOOD, f"01{GOOD[2:]}", f"cc{GOOD[2:]}-more-of-it"])
def test_later_versions_are_read_as_the_first(value: str) -> None:
    assert (traceparent(value), trace_id(value)) == (GOOD, TRACE)


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*"))
def test_what_is_passed_on_is_always_of_one_form(value: str) -> None:
    found = traceparent(value)
    assert found == "" or (len(found) == len(GOOD) and found.isascii() and "\n" not in found)
    assert traceparent(found) == found


@given(st.text() | st.sampled_from(["[]", "7", '{"traceparent": 7}', '["traceparent"]']))
def test_records_that_something_else_has_written_have_no_trace(options: str) -> None:
    assert of_record({"options": options}) == ""
    assert of_record({}) == ""


def test_a_submission_keeps_it_and_an_option_comes_first() -> None:
    other = GOOD.replace("4bf9", "ffff")
    for options, parent, kept in (
        ({}, GOOD, GOOD),
        ({"traceparent": other}, GOOD, other),
        ({"traceparent": other}, None, other),
        ({}, "nonsense", ""),
    ):
        (accepted,), refused = read_submission("id-1", traced(options, parent), Policy())
        assert refused == []
        assert of_record({"options": accepted.options}) == kept
        assert ("traceparent" in json.loads(accepted.options)) == bool(kept)
    (accepted,), (refusal,) = read_submission("id-1", {"traceparent": "nonsense"}, Policy())
    assert (refusal.what, of_record({"options": accepted.options})) == ("option traceparent", "")


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("value", [GOOD, "nonsense", 7, None])
def test_the_header_of_a_celery_message_is_read(protocol: int, value: object) -> None:
    headers = {"task": "harvester.submit", "id": "m1", "traceparent": value}
    body: object = [["id-1"], {}, {}]
    if protocol == 1:
        body = {"task": "harvester.submit", "id": "m1", "args": ["id-1"], "kwargs": {}}
        headers = {"traceparent": value}
    call = read_call(headers, "application/json", "utf-8", json.dumps(body))
    assert call.options == ({"traceparent": GOOD} if value == GOOD else {})
    assert call.refusals == ()
