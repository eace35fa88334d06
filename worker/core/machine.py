"""The state machine: what to do with a task, given what the upstream said.

                submit               upstream succeeded         every file stored, verified
    (unknown) ─────────▶ waiting ─────────────────────▶ copying ───────────────────────▶ stored
                            │                             │ │ some lost for good
                            │                             │ ├──────────────────────────▶ partial
                            │                             │ │ all lost for good
                            └── failed, refused, unknown ─┴─┴──────────────────────────▶ failed
                                canceled, past deadline

Everything here is a function of values; nothing is read or written.
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

    ``asked_from`` is the submission (or retry), ``seen_at`` the last answer that knew the task (0:
    never), ``doubts`` the answers in a row that could not be used, the first at ``doubted_at``, and
    ``unsure`` the note of successes in a row that left something open.
    ``expected`` is the caller's hint in seconds, ``known`` what its label has taught, ``running``
    for how many seconds the task has been running upstream, if it told, ``price`` what a call may
    cost (see :func:`worker.core.schedule.price`). Nothing ends because of its age unless the
    clock is ``steady``, and nothing by its deadline unless it is ``settled``.
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
    """Ask again after ``delay`` seconds. ``seen`` and ``doubt`` say what the answer was.

    ``doubts`` is how many there have been in a row; ``unsure`` the note of a success that left
    something open.
    """

    delay: float
    seen: bool = False
    doubt: bool = False
    doubts: int = 0
    unsure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Copy the files of ``data`` (JSON text), the first of which ``expires`` (Unix seconds)."""

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
    """Successes in a row that left something open.

    The last ``times`` of ``total`` left ``text`` open, the first of these at ``since``, the first
    of all at ``began`` (Unix milliseconds).
    """

    text: str
    times: int = 0
    total: int = 0
    since: int
    began: int

    def note(self) -> str:
        """This as a note of the task."""
        return f"{self.times} {self.total} {self.since} {self.began} {self.text}"

    @classmethod
    def after(cls, note: str, text: str, now: int) -> Open:
        """What there is with one more success, which leaves ``text`` open."""
        parts = note.split(" ", 4)
        try:
            times, total, since, began = map(int, parts[:4])
        except ValueError:
            return cls(text=text, times=1, total=1, since=now, began=now)
        if parts[4:] != [text]:
            times, since = 0, now
        return cls(text=text, times=times + 1, total=total + 1, since=since, began=began)


def _unsure(task: Waiting, said: Succeeded, gaps: schedule.Gaps, *, chance: float) -> Again | Copy:
    """A success that leaves something open is believed once it was said often enough.

    One that leaves something else open each time is believed at the deadline.
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
    """How a file that is not stored yet has fared.

    ``gone`` counts addresses that answered 403, 404 or 410, the first one included; ``faults``
    counts failures on the way; ``refusals`` those where the store refused the object. Once an
    address was gone, the kept ones are ``stale``: every later try asks for a fresh one first.
    """

    gone: int = 0
    faults: int = 0
    refusals: int = 0
    error: str = ""
    stale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TryAgain:
    """Try the file again after ``delay`` seconds; ``trial`` is what to remember."""

    trial: Trial
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The file is lost for good."""

    reason: Reason
    error: str


def on_gone(trial: Trial, error: str, gaps: schedule.Gaps) -> TryAgain | GiveUp:
    """The address answered 403, 404 or 410, or the upstream no longer names the file.

    Lost once as many fresh addresses as there are gaps have answered so too.
    """
    if trial.gone >= len(gaps.fresh):
        return GiveUp(reason=Reason.FILES_UNAVAILABLE, error=error)
    after = replace(trial, gone=trial.gone + 1, error=error, stale=True)
    return TryAgain(trial=after, delay=gaps.fresh[trial.gone])


def on_rejected(
    trial: Trial, error: str, gaps: schedule.Gaps, *, late: bool, chance: float
) -> TryAgain | GiveUp:
    """The file breaks a rule. A host can err once: a second answer has to say the same.

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
    """The transfer failed on the way: tried again, more and more seldom.

    A store out of reach is waited for without end; a source only until the copy deadline has
    passed (``late``).
    """
    if late and not store:
        return GiveUp(reason=Reason.FILES_UNAVAILABLE, error=error)
    faults = trial.faults + 1
    after = replace(trial, faults=faults, error=error)
    return TryAgain(trial=after, delay=gaps.file.after(faults, chance=chance))


def on_refused(
    trial: Trial, error: str, gaps: schedule.Gaps, *, chance: float
) -> TryAgain | GiveUp:
    """A reachable store refused this object: given up after several refusals, a minute apart."""
    refusals = trial.refusals + 1
    if refusals >= REFUSALS:
        return GiveUp(reason=Reason.STORAGE_ERROR, error=error)
    after = replace(trial, refusals=refusals, error=error)
    return TryAgain(trial=after, delay=gaps.refused.after(refusals, chance=chance))
