"""The state machine: what to do with a task, given what the upstream said.

                submit               upstream succeeded         every file stored, verified
    (unknown) ─────────▶ waiting ─────────────────────▶ copying ───────────────────────▶ stored
                            │                             │ │ some lost for good
                            │                             │ ├──────────────────────────▶ partial
                            │                             │ │ all lost for good
                            └── failed, refused, unknown ─┴─┴──────────────────────────▶ failed
                                canceled, past deadline

Pure functions, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from worker.core import schedule
from worker.core.models import Doubtful, Failed, NotFound, Pending, Reason, Succeeded

if TYPE_CHECKING:
    from worker.core.durations import Durations
    from worker.core.models import Observation

DOUBTS = 8
DOUBTS_SECONDS = 60.0
UNSURE = 3
POISON_LAPSES = 6
POISONED_ERROR = "its worker died several times while working on this task alone"

REFUSALS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What is known of a waiting task. Times are Unix milliseconds of Redis.

    ``asked_from`` is the time of the submission or retry, and ``seen_at`` that of the last answer
    that knew the task (0: never). ``doubts`` counts the unusable answers in a row, the first at
    ``doubted_at``; ``unsure`` is the note of unclear successes in a row (:class:`Open`).
    ``expected`` is the caller's hint in seconds, ``known`` the durations of the label, ``running``
    the seconds that the task has run upstream, if known, and ``price`` what a call may cost (see
    :func:`worker.core.schedule.price`). No task ends because of its age unless the clock is
    ``steady``, and none by its deadline unless it is ``settled``.
    """

    now: int
    asked_from: int
    deadline_at: int
    seen_at: int = 0
    doubts: int = 0
    doubted_at: int = 0
    unsure: str = ""
    expected: float | None = None
    known: Durations | None = None
    running: float | None = None
    price: float = schedule.PRICE
    grace: float
    steady: bool = True
    settled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Poll again after ``delay`` seconds.

    ``seen``: the answer knew the task. ``doubt``: it was unusable; ``doubts`` counts those in a
    row. ``unsure`` is the note of an unclear success.
    """

    delay: float
    seen: bool = False
    doubt: bool = False
    doubts: int = 0
    unsure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Copy the files of ``data`` (JSON text); the first address ``expires`` then (Unix seconds)."""

    data: str = field(repr=False)
    expires: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """End the run as ``failed``, for ``reason``."""

    reason: Reason
    error: str


def on_answer(
    task: Waiting, said: Observation, gaps: schedule.Gaps, *, chance: float
) -> Again | Copy | End:
    """What follows from a conclusive answer about a waiting task."""
    match said:
        case Succeeded():
            if said.unsure:
                return _unsure(task, said, gaps, chance=chance)
            return Copy(data=said.data, expires=said.expires)
        case Failed():
            return End(reason=said.reason, error=said.error)
        case NotFound():
            believed_from = max(task.asked_from, task.seen_at) + task.grace * 1000
            if task.steady and task.now >= believed_from:
                return End(reason=Reason.UNKNOWN_TASK, error=said.error)
            gap = schedule.poll_gap(age=_age(task), expected=None, left=_left(task), chance=chance)
            return Again(delay=min(gap, max(1.0, (believed_from - task.now) / 1000 + 0.1)))
        case Doubtful():
            long_enough = task.steady and task.now - task.doubted_at >= DOUBTS_SECONDS * 1000
            if task.doubts + 1 >= DOUBTS and task.doubted_at and long_enough:
                return End(reason=Reason.UPSTREAM_ERROR, error=said.error)
            delay = gaps.doubt.after(task.doubts + 1, chance=chance)
            return Again(delay=delay, doubt=True, doubts=task.doubts + 1)
        case Pending():
            if task.settled and task.now >= task.deadline_at:
                waited = (task.deadline_at - task.asked_from) / 1000
                return End(
                    reason=Reason.DEADLINE_EXCEEDED,
                    error=f"still {said.status or 'not done'} upstream after {waited:.0f} s",
                )
            return Again(
                delay=schedule.poll_gap(
                    age=_age(task),
                    expected=task.expected,
                    left=_left(task),
                    chance=chance,
                    known=task.known,
                    running=task.running,
                    price=task.price,
                ),
                seen=True,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Unclear successes in a row.

    The last ``times`` of ``total`` were unclear for the same reason, ``text``. The first of these
    came at ``since``, the first of all at ``began`` (Unix milliseconds).
    """

    text: str
    times: int = 0
    total: int = 0
    since: int
    began: int

    def note(self) -> str:
        """This as a note in the task's record."""
        return f"{self.times} {self.total} {self.since} {self.began} {self.text}"

    @classmethod
    def after(cls, note: str, text: str, now: int) -> Open:
        """The series with one more success, which is unclear for the reason ``text``."""
        parts = note.split(" ", 4)
        try:
            times, total, since, began = map(int, parts[:4])
        except ValueError:
            return cls(text=text, times=1, total=1, since=now, began=now)
        if parts[4:] != [text]:
            times, since = 0, now
        return cls(text=text, times=times + 1, total=total + 1, since=since, began=began)


def _unsure(task: Waiting, said: Succeeded, gaps: schedule.Gaps, *, chance: float) -> Again | Copy:
    """Believe an unclear success once it has been repeated often enough.

    If the reason differs each time, believe it at the deadline.
    """
    now = Open.after(task.unsure, said.unsure, task.now)
    said_often = now.times >= UNSURE and task.now - now.since >= DOUBTS_SECONDS * 1000
    if task.settled and task.now >= task.deadline_at:
        over = task.now - now.began >= DOUBTS_SECONDS * 1000
        said_often = said_often or (now.total >= DOUBTS and over)
    if said_often and task.steady:
        return Copy(data=said.data, expires=said.expires)
    return Again(delay=gaps.doubt.after(now.times + 3, chance=chance), unsure=now.note())


def _age(task: Waiting) -> float:
    return max(0, task.now - task.asked_from) / 1000


def _left(task: Waiting) -> float:
    return (task.deadline_at - task.now) / 1000


# -- files ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The failures so far of a file that is not stored yet.

    ``gone`` counts addresses that answered 403, 404 or 410, the first one included; ``faults``
    counts failed transfers; ``refusals`` counts refusals of the object by the store. Once an
    address was gone, the kept ones are ``stale``: every later try needs a fresh one first.
    """

    gone: int = 0
    faults: int = 0
    refusals: int = 0
    error: str = ""
    stale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TryAgain:
    """Retry the file after ``delay`` seconds; ``trial`` is its new count of failures."""

    trial: Trial
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The file is lost for good."""

    reason: Reason
    error: str


def on_gone(trial: Trial, error: str, gaps: schedule.Gaps) -> TryAgain | GiveUp:
    """The address answered 403, 404 or 410, or the upstream no longer names the file.

    The file is lost once as many fresh addresses as there are gaps were gone too.
    """
    if trial.gone >= len(gaps.fresh):
        return GiveUp(reason=Reason.FILES_UNAVAILABLE, error=error)
    after = replace(trial, gone=trial.gone + 1, error=error, stale=True)
    return TryAgain(trial=after, delay=gaps.fresh[trial.gone])


def on_rejected(
    trial: Trial, error: str, gaps: schedule.Gaps, *, late: bool, chance: float
) -> TryAgain | GiveUp:
    """The file breaks a rule. It is lost once a second answer agrees: a host can err once.

    Answers that never agree are believed once the copy deadline has passed (``late``).
    """
    if trial.error == error or (late and trial.error):
        return GiveUp(reason=Reason.FILES_REJECTED, error=error)
    faults = trial.faults + 1
    delay = max(gaps.rejected, gaps.file.after(faults, chance=chance))
    return TryAgain(trial=replace(trial, faults=faults, error=error), delay=delay)


def on_fault(
    trial: Trial, error: str, gaps: schedule.Gaps, *, store: bool, late: bool, chance: float
) -> TryAgain | GiveUp:
    """The transfer failed: retry with backoff.

    A store out of reach is retried without end, a source until the copy deadline has passed
    (``late``).
    """
    if late and not store:
        return GiveUp(reason=Reason.FILES_UNAVAILABLE, error=error)
    faults = trial.faults + 1
    after = replace(trial, faults=faults, error=error)
    return TryAgain(trial=after, delay=gaps.file.after(faults, chance=chance))


def on_refused(
    trial: Trial, error: str, gaps: schedule.Gaps, *, chance: float
) -> TryAgain | GiveUp:
    """The store works and refused this object: give up after several refusals, with backoff."""
    refusals = trial.refusals + 1
    if refusals >= REFUSALS:
        return GiveUp(reason=Reason.STORAGE_ERROR, error=error)
    after = replace(trial, refusals=refusals, error=error)
    return TryAgain(trial=after, delay=gaps.refused.after(refusals, chance=chance))
