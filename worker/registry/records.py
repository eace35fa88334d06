"""What the registry hands out: claimed jobs and the answer to a claim."""

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
"""Seconds since its last tick for which a worker counts as alive."""


class DueSet(StrEnum):
    """A due set: what a task is due for.

    ``poll`` talks to the upstream, ``copy`` to the bucket (the first look for a manifest, and the
    writing of endings), ``fetch`` copies the bytes of files, and ``tell`` talks to those who asked
    to be told. Bytes have a set of their own, since they may take hours, and nothing else may wait
    for them.
    """

    POLL = "poll"
    COPY = "copy"
    FETCH = "fetch"
    TELL = "tell"


CIRCUIT_OF = {
    DueSet.POLL: "upstream", DueSet.COPY: "store", DueSet.FETCH: "store", DueSet.TELL: "tell",
}  # fmt: skip
"""The circuit that work of each kind waits for while it is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One claimed task: its record at the claim, and the fleet's own notes on it.

    ``record`` is what the public hash holds. ``work`` is private to the fleet. ``token`` fences
    every later write; ``claimed_at`` and ``due_at`` are Redis time in milliseconds; ``probe`` says
    that this job tests an open circuit; ``behind`` is the seconds that what is overdue of its label
    takes at the label's share of the fleet's rate.
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
        return int(self.record.get("run", "1"))

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
        """What it counts as in its label's share of the slots: a half, 1 or 2 by priority."""
        try:
            priority = self.options.get("priority")
        except (KeyError, ValueError, AttributeError, RecursionError):  # overwritten from outside
            return 1.0
        return 0.5 if priority == "high" else 2.0 if priority == "low" else 1.0

    @property
    def cap(self) -> int:
        """How many jobs, this one included, the process may run at once."""
        return int(self.work.get("cap") or 1)

    def note(self, name: str, default: int = 0) -> int:
        """A number among the notes."""
        return int(self.work.get(name) or default)


@dataclass(slots=True, kw_only=True)
class Unsaved:
    """What work on a job has come to and no script has written yet.

    ``calls`` are those made to the upstream, and ``usable`` says that it gave a usable answer: one
    that proves that it can be called. ``error`` is why the last try failed, as one line; empty if
    all is well, ``None`` if there is nothing new to say. ``notes`` are fields of the job's
    ``work``, where an empty value removes the note.
    """

    calls: int = 0
    usable: bool = False
    error: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The answer to a claim: jobs, and when it is worth asking again.

    ``wait`` is in seconds. ``held`` is not 0 if a due task waits until fewer jobs run. ``newer``
    counts the tasks handed back because only a newer version can read their records. ``aside`` are
    tasks whose keys something else has overwritten: they hold up no other any more. ``stepped`` is
    by how many seconds Redis' clock had stepped, which was repaired instead of claiming.
    """

    jobs: tuple[Job, ...]
    wait: float
    held: int
    newer: int = 0
    aside: tuple[str, ...] = ()
    stepped: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What is overdue of one label: how many tasks, and for how many seconds the first of them."""

    kind: DueSet
    label: str
    count: int
    late: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The whole fleet at one moment.

    ``now`` and the workers' last ticks are Unix milliseconds; ``due`` holds for each due set its
    size and by how many seconds its first task is late, ``overdue`` how many are; ``rate`` is calls
    a second, of which throttling leaves ``rate_factor``; ``circuits`` are the open ones. ``clock``
    is what is known of Redis' clock: its last step and when that was. ``lines`` are the labels
    whose overdue tasks wait for their turn, the longest first; of many labels only some.
    ``services`` says what is known of each service, ``hosts`` whose webhooks fail, the longest
    first; ``versions`` what each worker runs, as far as it says. ``intake`` is the length of the
    intake stream, ``None`` if Redis does not tell.
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
        """Seconds that the overdue polls take at the rate there is."""
        return self.overdue[DueSet.POLL] / (self.rate * self.rate_factor)

    @property
    def clock_step(self) -> str:
        """That Redis' clock has stepped within the last hour, for a person; empty if not."""
        if "stepped_at" not in self.clock:
            return ""
        ago = (self.now - int(self.clock["stepped_at"])) / 1000
        if not 0 <= ago < 3600:
            return ""
        by = int(self.clock.get("by", "0")) / 1000
        return f"the clock of Redis stepped by {by:+,.0f} s, {ago:,.0f} s ago"

    @property
    def alive(self) -> list[str]:
        """The workers whose last tick is no older than :data:`ALIVE`, by name."""
        since = self.now - ALIVE * 1000
        return sorted(name for name, tick in self.workers.items() if tick >= since)
