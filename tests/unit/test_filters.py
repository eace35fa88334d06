"""Which records pass filters, and what makes two errors one group."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.filters import MAX_TEXT, Action, Filters, group_of
from worker.core.models import Reason, State

RECORD = {
    "task_id": "t1", "state": "failed", "reason": "upstream_error", "label": "poster",
    "error": "the Upstream answered 503", "submitted_at": "1000", "finished_at": "2000",
}  # fmt: skip
WORDS = st.text(st.characters(exclude_categories=("Nd", "Cs")), max_size=20)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, True),
        ({"states": (State.FAILED,)}, True),
        ({"states": (State.STORED, State.PARTIAL)}, False),
        ({"reasons": frozenset({Reason.UPSTREAM_ERROR, Reason.CANCELED})}, True),
        ({"reasons": frozenset({Reason.CANCELED})}, False),
        ({"left_out": frozenset({Reason.UPSTREAM_ERROR})}, False),
        ({"labels": frozenset({"", "poster"})}, True),
        ({"labels": frozenset({""})}, False),
        ({"since": 2000, "until": 2000}, True),
        ({"since": 2001}, False),
        ({"until": 1999}, False),
        ({"until": 0}, False),
        ({"error": "UPSTREAM answered"}, True),
        ({"error": "404"}, False),
        ({"group": "the Upstream answered 503"}, True),
        ({"group": "the Upstream answered"}, False),
        ({"group": ""}, False),
    ],
)
def test_a_record_passes(changes: dict[str, object], passes: bool) -> None:
    assert Filters(**changes).match(RECORD) is passes  # type: ignore[arg-type]


def test_why_a_waiting_task_could_not_go_on_counts_as_its_error() -> None:
    record = {
        "task_id": "t", "state": "copying", "reason": "", "submitted_at": "1", "updated_at": "1",
        "error": "", "last_error": "the file host answered 502", "last_error_at": "5",
    }  # fmt: skip
    assert Filters(error="502").match(record)
    assert group_of(record) == "the file host answered 502"


@given(st.dictionaries(st.sampled_from(sorted(RECORD)), st.text(max_size=40)))
def test_a_record_that_something_else_has_written_is_judged_like_any_other(
    written: dict[str, str],
) -> None:
    for filters in (Filters(since=1, until=5, error="x"), Filters(group="x"), Filters()):
        filters.match({**RECORD, **written})


@given(WORDS, st.integers(1000, 10**30), st.integers(1000, 10**30), WORDS)
def test_what_differs_from_task_to_task_makes_no_group(
    before: str, one: int, other: int, after: str
) -> None:
    ids = "01jgjgyaqh85f7rs23v0kbmtdb", "01jgjgyaqh85f7rs23v0kbmtdc"
    groups = {
        group_of({**RECORD, "task_id": task_id, "error": f"{before} {n} {task_id}: {after}"})
        for task_id, n in zip(ids, (one, other), strict=True)
    }
    assert len(groups) == 1


@pytest.mark.parametrize(
    ("error", "group"),
    [
        ("images/0: the host answered 404", "*: the host answered 404"),
        ("503 from a1.example.com.", "503 from *."),
        ("t1 is gone, t10 is not", "* is gone, * is not"),
        ("no digits at all", "no digits at all"),
        ("", ""),
    ],
)
def test_the_kind_of_an_error(error: str, group: str) -> None:
    assert group_of({**RECORD, "error": error}) == group


def test_an_id_without_a_digit_is_replaced_as_a_word_only() -> None:
    record = {**RECORD, "task_id": "e", "error": "there is no e here"}
    assert group_of(record) == "there is no * here"


@given(st.text(max_size=3 * MAX_TEXT))
def test_a_kind_is_never_longer_than_an_error(error: str) -> None:
    group = group_of({**RECORD, "error": error})
    assert len(group) <= MAX_TEXT
    assert not re.search(r"\b[0-9]{4,}\b", group)


def test_no_action_applies_to_what_another_state_needs() -> None:
    assert Action.RETRY.states == (State.PARTIAL, State.FAILED)
    assert Action.CANCEL.states == (State.WAITING, State.COPYING)
    assert Action.NOTIFY.states == (State.STORED, State.PARTIAL, State.FAILED)
