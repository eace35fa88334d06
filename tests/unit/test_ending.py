"""How runs end, as values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import ending, finding, outputs
from worker.core.ending import Ending
from worker.core.layout import Layout
from worker.core.models import Reason, State, StoredFile
from worker.core.outputs import FileOutcome

LAYOUT = Layout(bucket="b", prefix="p/")
RECORD = {
    "task_id": "t1", "state": "copying", "reason": "", "error": "", "polls": "4", "run": "1",
    "metadata": '{"order":1.10}', "label": "poster", "options": '{"callbacks":[]}',
    "submitted_at": "1000", "updated_at": "1500", "finished_at": "", "upstream": "{}",
}  # fmt: skip


def stored(number: int) -> FileOutcome:
    file = StoredFile(key=f"p/t1/images/{number}.png", bytes=1, sha256="0", content_type="i/p")
    return FileOutcome(stored=file, stored_at=1)


def lost(reason: Reason = Reason.FILES_UNAVAILABLE, error: str = "gone") -> FileOutcome:
    return FileOutcome(error=error, reason=reason)


@pytest.mark.parametrize(
    ("outcomes", "state", "reason", "error"),
    [
        ([], State.STORED, Reason.NONE, ""),
        ([stored(0), stored(1)], State.STORED, Reason.NONE, ""),
        ([stored(0), lost()], State.PARTIAL, Reason.FILES_UNAVAILABLE, "gone"),
        ([lost(), lost()], State.FAILED, Reason.FILES_UNAVAILABLE, "gone"),
        (
            [lost(), stored(0), lost(Reason.FILES_REJECTED, "too large")],
            State.PARTIAL,
            Reason.FILES_REJECTED,
            "too large",
        ),
    ],
)
def test_files_decide_how_a_run_ends(
    outcomes: list[FileOutcome], state: State, reason: Reason, error: str
) -> None:
    found = ending.of_files(dict(enumerate(outcomes)))
    assert (found.state, found.reason, found.error) == (state, reason, error)


@pytest.mark.parametrize(
    ("count", "outcomes", "state"),
    [
        (0, {}, State.FAILED),
        (2, {}, State.FAILED),
        (2, {1: lost()}, State.FAILED),
        (2, {1: stored(1)}, State.PARTIAL),
        (2, {0: stored(0), 1: stored(1)}, State.STORED),
    ],
)
def test_a_run_that_goes_no_further_keeps_what_is_stored(
    count: int, outcomes: dict[int, FileOutcome], state: State
) -> None:
    found = ending.for_reason(Reason.CANCELED, "asked", count, outcomes)
    assert found.state is state
    whole = state is State.STORED
    assert (found.reason, found.error) == ((Reason.NONE, "") if whole else ("canceled", "asked"))
    assert sorted(found.outcomes) == list(range(count))
    assert {n: found.outcomes[n] for n in outcomes} == outcomes


def test_the_final_record() -> None:
    data = json.dumps({"images": ["https://h.example/0.png", "https://h.example/1.png"]})
    plan = outputs.plan_files(finding.find_files(json.loads(data)))
    how = ending.of_files({0: stored(0), 1: lost()})
    record = ending.final_record(RECORD, how, plan, data, LAYOUT, calls=3, now=2000)
    assert record["polls"] == "7"
    assert (record["state"], record["reason"], record["error"]) == (
        "partial", "files_unavailable", "gone",
    )  # fmt: skip
    assert record["finished_at"] == record["updated_at"] == "2000"
    assert record["manifest"] == "p/manifests/t1.json"
    assert record["metadata"] == RECORD["metadata"]
    assert json.loads(record["result"]) == {"images": ["s3://b/p/t1/images/0.png", None]}
    assert [file.get("key") for file in json.loads(record["files"])] == [
        "p/t1/images/0.png", None,
    ]  # fmt: skip


def test_a_run_that_never_had_a_reply_has_no_result() -> None:
    how = Ending(state=State.FAILED, reason=Reason.UPSTREAM_FAILED, error="line\nline")
    record = ending.final_record(RECORD, how, (), "", LAYOUT, calls=0, now=2000)
    assert "result" not in record
    assert record["error"] == "line line"
    assert record["files"] == "[]"


THERE = RECORD | {
    "state": "stored", "polls": "9", "submitted_at": "500", "finished_at": "900", "run": "2",
    "files": "[]", "result": "{}", "manifest": "p/manifests/t1.json", "metadata": '{"old":1}',
    "label": "old",
}  # fmt: skip


def test_a_restored_record_keeps_what_this_submission_says_of_itself() -> None:
    fields = ending.restored(RECORD, THERE, 0)
    assert "metadata" not in fields
    assert "label" not in fields
    assert fields["submitted_at"] == "500"
    bare = ending.restored(RECORD | {"metadata": "{}", "label": ""}, THERE, 0)
    assert (bare["metadata"], bare["label"]) == ('{"old":1}', "old")


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_a_restored_record_counts_every_call(ours: int, calls: int, theirs: int) -> None:
    def polls(submitted_at: str) -> int:
        record: dict[str, Any] = RECORD | {"polls": str(ours)}
        there = THERE | {"polls": str(theirs), "submitted_at": submitted_at}
        return int(ending.restored(record, there, calls)["polls"])

    assert polls("500") == ours + calls + theirs
    assert polls(RECORD["submitted_at"]) == max(ours + calls, theirs)
