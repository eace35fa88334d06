"""One poll: what to write after an answer about a waiting task. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.core import durations, jsontext, machine, schedule
from worker.core.models import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.core.durations import Lesson
    from worker.core.models import Answer, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to save after a poll, and its ``outcome`` in one word for the report.

    ``copy`` says that the task goes on to copying, to have its files copied or its ending written;
    otherwise it is polled again after ``delay`` seconds (negative: sooner than others). ``record``
    and ``work`` are fields to write; an empty ``work`` value removes the note.
    """

    outcome: str
    copy: bool = False
    delay: float = 0.0
    state: State | None = None
    record: Mapping[str, str] = field(default_factory=dict)
    work: Mapping[str, str] = field(default_factory=dict)
    learned: Lesson | None = None


def ending_note(reason: Reason, error: str) -> dict[str, str]:
    """The note by which a poll has an ending written."""
    return {"ending": jsontext.dumps({"reason": reason, "error": error})}


def failed(outcome: str, faults: int, gap: schedule.Backoff, *, chance: float) -> Step:
    """The step after a call without an answer about the task, the ``faults``-th in a row."""
    delay = gap.after(faults, chance=chance)
    return Step(outcome=outcome, delay=delay, work={"faults": str(faults)})


def answered(
    task: machine.Waiting,
    answer: Answer,
    gaps: schedule.Gaps,
    *,
    upstream: str | None,
    first_run: bool,
    chance: float,
) -> Step:
    """The step after an answer about the task; ``upstream`` is that field of the record so far."""
    record = {} if upstream == answer.upstream else {"upstream": answer.upstream}
    match machine.on_answer(task, answer.observation, gaps, chance=chance):
        case machine.Again() as again:
            work = {"faults": ""}
            if again.seen:
                work |= {"seen_at": str(task.now), "doubts": "", "doubted_at": "", "unsure": ""}
            if again.doubt:
                first = task.doubted_at if again.doubts > 1 and task.doubted_at else task.now
                work |= {"doubts": str(again.doubts), "doubted_at": str(first)}
            if again.doubt or again.unsure:
                work["unsure"] = again.unsure
            outcome = "pending" if again.seen else "unsure"
            return Step(outcome=outcome, delay=again.delay, record=record, work=work)
        case machine.Copy() as copy:
            return Step(
                outcome="succeeded",
                copy=True,
                delay=schedule.copy_delay(copy.expires, task.now / 1000),
                state=State.COPYING,
                record=record,
                work={"data": copy.data, "succeeded_at": str(task.now), "faults": ""},
                # a retry adds no duration: its task was done long before
                learned=_lesson(task, answer) if first_run else None,
            )
        case machine.End() as end:
            note = ending_note(end.reason, end.error)
            return Step(outcome="ended", copy=True, record=record, work=note)


def _lesson(task: machine.Waiting, answer: Answer) -> Lesson | None:
    asked_from = task.asked_from / 1000
    return durations.to_learn(
        asked_from=asked_from,
        seen_at=max(asked_from, task.seen_at / 1000),
        now=task.now / 1000,
        began=answer.began_at,
        ended=answer.ended_at,
    )
