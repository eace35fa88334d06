"""What a poll leads to, as values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import polling
from worker.core.machine import Open, Waiting
from worker.core.models import Answer, Doubtful, Failed, NotFound, Pending, Reason, State, Succeeded
from worker.core.polling import Step
from worker.core.schedule import Gaps

T0 = 1_700_000_000_000
NO_DOUBTS = {"doubts": "", "doubted_at": "", "unsure": ""}
TASK = Waiting(now=T0 + 50_000, asked_from=T0, deadline_at=T0 + 3_600_000, grace=120)
SIGNED = "https://host.example/a.png?Expires={}&OSSAccessKeyId=k&Signature=s"


def step(said: Any, task: Waiting = TASK, **changes: Any) -> Step:
    given = {"upstream": "{}", "first_run": True, "chance": 0.5} | changes
    times = {name: given.pop(name) for name in ("began_at", "ended_at") if name in given}
    answer = Answer(observation=said, upstream='{"status":10}', **times)
    return polling.answered(task, answer, Gaps(), **given)


def test_a_task_that_is_not_done_is_asked_about_again() -> None:
    found = step(Pending(status="running"), replace(TASK, doubts=3, doubted_at=T0))
    assert (found.outcome, found.copy, found.state) == ("pending", False, None)
    assert found.delay > 0
    assert found.work == {"faults": "", "seen_at": str(TASK.now), **NO_DOUBTS}
    assert found.record == {"upstream": '{"status":10}'}


def test_what_the_record_holds_already_is_not_written_again() -> None:
    assert step(Pending(status="running"), upstream='{"status":10}').record == {}


def test_doubts_are_counted_from_the_first_one() -> None:
    first = step(Doubtful(error="odd"))
    assert first.outcome == "unsure"
    assert first.work == {
        "faults": "", "doubts": "1", "doubted_at": str(TASK.now), "unsure": "",
    }  # fmt: skip
    later = step(Doubtful(error="odd"), replace(TASK, doubts=4, doubted_at=T0))
    assert (later.work["doubts"], later.work["doubted_at"]) == ("5", str(T0))


def test_an_unknown_task_is_no_doubt_within_its_grace() -> None:
    found = step(NotFound(error="no"))
    assert (found.outcome, found.work) == ("unsure", {"faults": ""})


def test_a_success_goes_to_be_copied_sooner_the_sooner_its_addresses_die() -> None:
    def delay(expires: int) -> float:
        data = json.dumps({"images": [SIGNED.format(expires), "https://host.example/b.png"]})
        found = step(Succeeded(data=data, expires=expires))
        assert (found.outcome, found.copy, found.state) == ("succeeded", True, State.COPYING)
        assert found.work == {"data": data, "succeeded_at": str(TASK.now), "faults": ""}
        return found.delay

    now = TASK.now // 1000
    assert -3600 <= delay(now + 60) < delay(now + 600) < delay(now + 7200) == 0
    assert step(Succeeded(data='{"images":[]}')).delay == 0


OPEN = Succeeded(data="{}", unsure="images is null")
OTHER = Succeeded(data="{}", unsure="images 0 of 1 name no file")


def noted(times: int, total: int, since: int, began: int) -> str:
    return Open(text=OPEN.unsure, times=times, total=total, since=since, began=began).note()


def test_a_success_that_leaves_something_open_is_believed_when_said_often_enough() -> None:
    first = step(OPEN)
    assert first.outcome == "unsure"
    assert first.work == {"faults": "", "unsure": noted(1, 1, TASK.now, TASK.now)}
    long_ago, recently = TASK.now - 60_000, TASK.now - 59_000

    def outcome(said: Succeeded, times: int, since: int, **changes: Any) -> str:
        note = noted(times, 99, since, long_ago)
        return step(said, replace(TASK, unsure=note, **changes)).outcome

    assert outcome(OPEN, 2, long_ago) == "succeeded"
    assert outcome(OPEN, 1, long_ago) == "unsure"
    assert outcome(OPEN, 9, recently) == "unsure"
    assert outcome(OPEN, 9, long_ago, steady=False) == "unsure"
    assert outcome(OTHER, 9, long_ago) == "unsure"
    assert (
        step(OTHER, replace(TASK, unsure=noted(9, 9, 1, 2))).work["unsure"]
        == replace(Open(text=OTHER.unsure, times=1, total=10, since=TASK.now, began=2)).note()
    )


@pytest.mark.parametrize("note", ["images is null", "1 2 3", "x y z a images is null", ""])
def test_a_note_that_is_none_counts_as_no_success_before(note: str) -> None:
    assert step(OPEN, replace(TASK, unsure=note)).work["unsure"].startswith("1 1 ")


def test_a_doubt_interrupts_successes_in_a_row_and_they_interrupt_no_doubts() -> None:
    task = replace(TASK, unsure=noted(2, 2, 1, 1), doubts=5, doubted_at=T0)
    assert step(Doubtful(error="odd"), task).work["unsure"] == ""
    assert "doubts" not in step(OTHER, task).work


ANSWERS = st.sampled_from([
    OPEN, OTHER, replace(OPEN, unsure="images 1 of 2 name no file"), Doubtful(error="odd"),
    Pending(status="running"), NotFound(error="no"),
])  # fmt: skip


@given(st.lists(ANSWERS, min_size=1, max_size=5))
def test_whatever_the_upstream_repeats_ends_a_task_and_one_answer_ends_none(said: Any) -> None:
    task, work = replace(TASK, deadline_at=T0 + 600_000), dict[str, str]()
    for number in range(1000):
        found = step(said[number % len(said)], task)
        if found.copy:
            break
        work |= found.work
        task = replace(
            task,
            now=task.now + max(1000, round(found.delay * 1000)),
            unsure=work.get("unsure", ""),
            **{name: int(work.get(name) or 0) for name in ("doubts", "doubted_at", "seen_at")},
        )
    assert found.copy
    assert number >= 1 + (found.outcome == "succeeded")


def test_a_success_teaches_how_long_it_took_but_a_retry_teaches_nothing() -> None:
    times = {"began_at": T0 / 1000 + 5, "ended_at": T0 / 1000 + 45}
    learned = step(Succeeded(data="{}"), **times).learned
    assert learned is not None
    assert learned.lag == pytest.approx(5)
    assert step(Succeeded(data="{}"), first_run=False, **times).learned is None


def test_an_ending_is_handed_over_with_its_reason() -> None:
    found = step(Failed(reason=Reason.CONTENT_REJECTED, error="refused"))
    assert (found.outcome, found.copy, found.state) == ("ended", True, None)
    assert json.loads(found.work["ending"]) == {"reason": "content_rejected", "error": "refused"}


def test_failed_calls_are_repeated_more_and_more_seldom() -> None:
    gap = Gaps().upstream
    steps = [polling.failed("throttled", n, gap, chance=0.5) for n in (1, 2, 3, 50)]
    assert {found.outcome for found in steps} == {"throttled"}
    assert [found.work for found in steps] == [{"faults": str(n)} for n in (1, 2, 3, 50)]
    delays = [found.delay for found in steps]
    assert delays == sorted(delays)
    assert delays[-1] <= 33


SAID = st.one_of(
    st.builds(Pending, status=st.text(max_size=9), known=st.booleans()),
    st.builds(Doubtful, error=st.text(max_size=9)),
    st.builds(NotFound, error=st.text(max_size=9)),
    st.builds(Failed, reason=st.sampled_from(list(Reason)), error=st.text(max_size=9)),
    st.just(Succeeded(data='{"images":["https://host.example/a.png"]}')),
)


@given(SAID, st.integers(0, 20), st.integers(-100_000, 100_000), st.floats(0, 1, exclude_max=True))
def test_every_answer_leads_somewhere(said: Any, doubts: int, left: int, chance: float) -> None:
    task = replace(TASK, doubts=doubts, doubted_at=T0, deadline_at=TASK.now + left)
    found = step(said, task, chance=chance)
    assert found.copy == (found.outcome in ("succeeded", "ended"))
    assert (found.state is State.COPYING) == (found.outcome == "succeeded")
    assert found.copy or found.delay > 0
    assert all(isinstance(value, str) for value in {**found.work, **found.record}.values())
