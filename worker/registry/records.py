"""What the registry returns: claimed jobs, the answer to a claim, the overview."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from worker.core.models import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.core.services import Host, Outlook, Service

ALIVE = 15.0
"""Seconds for which a worker counts as alive after its last tick."""


class DueSet(StrEnum):
    """A due set: what a task is due for.

    ``poll`` calls the upstream, ``copy`` uses the bucket (the first look for a manifest, and the
    writing of endings), ``fetch`` copies the bytes of files, and ``tell`` calls callbacks. Bytes
    have their own set, since they may take hours, and nothing else may wait for them.
    """

    POLL = "poll"
    COPY = "copy"
    FETCH = "fetch"
    TELL = "tell"


CIRCUIT_OF = {
    DueSet.POLL: "upstream", DueSet.COPY: "store", DueSet.FETCH: "store", DueSet.TELL: "tell",
}  # fmt: skip
"""The circuit that holds up work of each kind while it is open."""


def whole(text: str | float) -> int:
    """A number as Redis keeps it; 0 if something else has written what is there."""
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One claimed task: its record at the claim, and the fleet's own notes on it.

    ``record`` holds the public hash, ``work`` the notes. ``token`` fences every later write;
    ``claimed_at`` and ``due_at`` are Redis time in milliseconds; ``probe`` says that this job tests
    an open circuit; ``behind`` is how many seconds the overdue tasks of its label take at the
    label's share of the fleet's rate.
    """

    kind: DueSet
    task_id: str
    token: str
    claimed_at: int
    record: Mapping[str, str] = field(repr=False)
    work: Mapping[str, str] = field(repr=False)
    probe: bool = False
    due_at: int = 0
    behind: float = 0.0

    @property
    def state(self) -> State:
        """The state at the time of the claim."""
        return State(self.record["state"])

    @property
    def run(self) -> int:
        """The number of the run, from 1."""
        return whole(self.record.get("run", "1"))

    @property
    def options(self) -> dict[str, Any]:
        """The options of the submission."""
        options: dict[str, Any] = json.loads(self.record["options"])
        return options

    @property
    def label(self) -> str:
        """The label of the submission; empty without one."""
        return self.record.get("label", "")

    @property
    def share(self) -> float:
        """Its weight in its label's share of the slots: 0.5, 1 or 2 by priority."""
        try:
            priority = self.options.get("priority")
        except (KeyError, ValueError, AttributeError, RecursionError):  # changed by others
            return 1.0
        return 0.5 if priority == "high" else 2.0 if priority == "low" else 1.0

    @property
    def cap(self) -> int:
        """How many jobs the process may run at once, this one included."""
        return max(1, whole(self.work.get("cap") or 1))

    def note(self, name: str, default: int = 0) -> int:
        """A number among the notes."""
        return int(self.work.get(name) or default)


@dataclass(slots=True, kw_only=True)
class Unsaved:
    """What the work on a job has not saved yet.

    ``calls`` counts those made to the upstream; ``usable`` says that it gave a usable answer, which
    proves that it can be called. ``error`` is why the last try failed, as one line; empty if it
    succeeded, ``None`` if nothing has changed. ``notes`` are fields of the job's ``work``; an empty
    value removes the note.
    """

    calls: int = 0
    usable: bool = False
    error: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The answer to a claim: jobs, and when to claim next.

    ``wait`` is in seconds. ``held`` is not 0 if a due task waits until fewer jobs run. ``newer``
    counts the tasks released because only a newer version can read their records. ``aside`` are
    tasks set aside because another program has overwritten their keys. ``stepped`` is not 0 if
    Redis' clock had stepped by so many seconds; then the times were repaired and nothing was
    claimed.
    """

    jobs: tuple[Job, ...]
    wait: float
    held: int
    newer: int = 0
    aside: tuple[str, ...] = ()
    stepped: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The overdue tasks of one label: how many, and by how many seconds the first is late."""

    kind: DueSet
    label: str
    count: int
    late: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The whole fleet at one moment.

    ``now`` and the workers' last ticks are Unix milliseconds. For each due set, ``due`` holds its
    size and by how many seconds its first task is late, and ``overdue`` the number of late tasks.
    ``rate`` is in calls a second, of which throttling leaves the share ``rate_factor``;
    ``circuits`` are the open ones. ``clock`` holds the last step of Redis' clock and its time.
    ``lines`` are the labels whose overdue tasks wait for their turn, the longest first; if there
    are many labels, only some. ``services`` holds what is known of each service; ``hosts`` those
    whose webhooks fail, the longest first; ``versions`` the release that each worker reports.
    ``intake`` is the length of the intake stream, ``None`` if Redis does not tell.
    """

    now: int
    counts: Mapping[State, int]
    due: Mapping[DueSet, tuple[int, float]]
    overdue: Mapping[DueSet, int]
    workers: Mapping[str, int]
    counters: Mapping[str, int]
    rate: float
    rate_factor: float
    circuits: Mapping[str, Mapping[str, str]]
    clock: Mapping[str, str] = field(default_factory=dict)
    lines: Sequence[Line] = ()
    services: Mapping[Service, Outlook] = field(default_factory=dict)
    hosts: Sequence[Host] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    intake: int | None = None

    @property
    def behind(self) -> float:
        """Seconds that the overdue polls take at the present rate."""
        return self.overdue[DueSet.POLL] / (self.rate * self.rate_factor)

    @property
    def clock_step(self) -> str:
        """A message if Redis' clock has stepped within the last hour; else empty."""
        if "stepped_at" not in self.clock:
            return ""
        ago = (self.now - whole(self.clock["stepped_at"])) / 1000
        if not 0 <= ago < 3600:
            return ""
        by = whole(self.clock.get("by", "0")) / 1000
        return f"the clock of Redis stepped by {by:+,.0f} s, {ago:,.0f} s ago"

    @property
    def alive(self) -> list[str]:
        """The names of the workers whose last tick is at most :data:`ALIVE` seconds old."""
        since = self.now - ALIVE * 1000
        return sorted(name for name, tick in self.workers.items() if tick >= since)
