"""The state machine, decision by decision."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import machine
from worker.core.machine import Again, Copy, End, GiveUp, Trial, TryAgain, Waiting
from worker.core.models import Doubtful, Failed, NotFound, Pending, Reason, Succeeded
from worker.core.schedule import Gaps

GAPS = Gaps()
T0 = 1_700_000_000_000
TASK = Waiting(now=T0 + 10_000, asked_from=T0, deadline_at=T0 + 3_600_000, grace=120)


def decide(task: Waiting, said: object, chance: float = 0.5) -> Again | Copy | End:
    return machine.on_answer(task, said, GAPS, chance=chance)  # type: ignore[arg-type]


def test_success_is_copied_even_past_the_deadline() -> None:
    late = replace(TASK, now=TASK.deadline_at + 1)
    assert decide(late, Succeeded(data="{}")) == Copy(data="{}")


def test_failure_ends_with_its_reason() -> None:
    said = Failed(reason=Reason.CONTENT_REJECTED, error="no")
    assert decide(TASK, said) == End(reason=Reason.CONTENT_REJECTED, error="no")


@pytest.mark.parametrize("known", [True, False])
def test_pending_waits_and_ends_only_at_the_deadline(known: bool) -> None:
    said = Pending(status="running", known=known)
    again = decide(TASK, said)
    assert isinstance(again, Again)
    assert again.seen
    before = decide(replace(TASK, now=TASK.deadline_at - 1), said)
    assert isinstance(before, Again)
    end = decide(replace(TASK, now=TASK.deadline_at), said)
    assert isinstance(end, End)
    assert end.reason is Reason.DEADLINE_EXCEEDED
    assert "running" in end.error


def test_not_found_is_not_believed_within_the_grace() -> None:
    said = NotFound(error="Cannot find task")
    assert isinstance(decide(replace(TASK, now=T0 + 119_999), said), Again)
    assert decide(replace(TASK, now=T0 + 120_000), said) == End(
        reason=Reason.UNKNOWN_TASK, error="Cannot find task"
    )


def test_not_found_after_being_seen_starts_the_grace_anew() -> None:
    said = NotFound(error="")
    seen = replace(TASK, now=T0 + 400_000, seen_at=T0 + 300_000)
    assert isinstance(decide(seen, said), Again)
    assert isinstance(decide(replace(seen, now=T0 + 420_000), said), End)


def test_doubt_ends_a_task_only_after_many_answers_over_a_minute() -> None:
    said = Doubtful(error="B_WHAT_Ever")
    task, answers = TASK, 0
    while isinstance(again := decide(task, said), Again):
        assert again.doubt
        answers += 1
        task = replace(
            task,
            now=task.now + round(again.delay * 1000),
            doubts=task.doubts + 1,
            doubted_at=task.doubted_at or task.now,
        )
        assert answers < 50
    assert again == End(reason=Reason.UPSTREAM_ERROR, error="B_WHAT_Ever")
    assert answers + 1 >= machine.DOUBTS
    assert task.now - TASK.now >= 60_000


@given(
    age=st.integers(0, 10**9),
    left=st.integers(1, 10**9),
    expected=st.none() | st.floats(0, 10**6),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_a_pending_task_is_looked_at_again_in_bounded_time(
    age: int, left: int, expected: float | None, chance: float
) -> None:
    task = Waiting(
        now=T0 + age, asked_from=T0, deadline_at=T0 + age + left, expected=expected, grace=120
    )
    again = decide(task, Pending(status="running"), chance)
    assert isinstance(again, Again)
    assert 0.5 <= again.delay <= 66


def test_a_file_is_gone_after_three_fresh_addresses_over_about_a_minute() -> None:
    trial, delays = Trial(), []
    while isinstance(step := machine.on_gone(trial, "403", GAPS), TryAgain):
        trial = step.trial
        assert trial.stale
        delays.append(step.delay)
    assert step == GiveUp(reason=Reason.FILES_UNAVAILABLE, error="403")
    assert len(delays) == 3
    assert 30 <= sum(delays) <= 60


def test_a_fault_is_tried_again_until_the_copy_deadline() -> None:
    step = machine.on_fault(Trial(faults=50), "reset", GAPS, store=False, late=False, chance=0.5)
    assert isinstance(step, TryAgain)
    assert step.delay <= 132
    assert step.trial.faults == 51
    late = machine.on_fault(Trial(faults=50), "reset", GAPS, store=False, late=True, chance=0.5)
    assert late == GiveUp(reason=Reason.FILES_UNAVAILABLE, error="reset")


def test_a_store_out_of_reach_never_ends_a_file() -> None:
    step = machine.on_fault(Trial(), "503", GAPS, store=True, late=True, chance=0.5)
    assert isinstance(step, TryAgain)


def test_a_fault_between_gone_answers_does_not_forget_them() -> None:
    gone = machine.on_gone(Trial(), "403", GAPS)
    assert isinstance(gone, TryAgain)
    fault = machine.on_fault(gone.trial, "reset", GAPS, store=False, late=False, chance=0.5)
    assert isinstance(fault, TryAgain)
    assert fault.trial.gone == 1
    assert fault.trial.stale  # the dead address is not counted a second time


def test_a_refusal_between_gone_answers_does_not_forget_them() -> None:
    gone = machine.on_gone(Trial(), "403", GAPS)
    assert isinstance(gone, TryAgain)
    refused = machine.on_refused(gone.trial, "400", GAPS, chance=0.5)
    assert isinstance(refused, TryAgain)
    assert refused.trial.gone == 1
    assert refused.trial.stale


def test_refusals_of_a_reachable_store_end_as_storage_error() -> None:
    trial, steps = Trial(), 0
    while isinstance(step := machine.on_refused(trial, "400", GAPS, chance=0.5), TryAgain):
        trial, steps = step.trial, steps + 1
    assert step == GiveUp(reason=Reason.STORAGE_ERROR, error="400")
    assert steps == machine.REFUSALS - 1
