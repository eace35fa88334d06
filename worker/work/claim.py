"""One claimed task, and the writes under its claim."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from worker.core.redact import one_line
from worker.errors import RegistryUnavailable
from worker.registry.records import Unsaved

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from worker.core.durations import Lesson
    from worker.core.models import State
    from worker.registry.records import DueSet, Job
    from worker.registry.registry import Registry

T = TypeVar("T")

_INSIST = 120.0


async def insist(call: Callable[[], Awaitable[T]], *, seconds: float = _INSIST) -> T:
    """Repeat a registry write until Redis accepts it; raise its error after ``seconds``.

    This is safe because every script answers a repeated call like the first.
    """
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + seconds, 0.1
    while True:
        try:
            return await call()
        except RegistryUnavailable:
            if loop.time() + pause > until:
                raise
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 2)


class Claim:
    """A claimed job, and the only way to write about it.

    Upstream calls and notes collect in :attr:`unsaved`, and the write that ends the claim saves
    them, whichever it is. Writes are repeated until Redis accepts them (``RegistryUnavailable``
    after two minutes) and raise ``LeaseLost`` once another worker owns the task.

    ``now`` is the last reading of Redis time in Unix milliseconds; ``clock`` says whether it can be
    trusted. ``cancel`` is set once cancellation was requested. ``reach`` and ``tally`` are those of
    this process.
    """

    def __init__(self, registry: Registry, job: Job) -> None:
        self.job = job
        self.now = job.claimed_at
        self.clock = registry.clock
        self.cancel = asyncio.Event()
        self.unsaved = Unsaved()
        self.reach = registry.reach
        self.tally = registry.tally
        self._registry = registry
        self._until = 0.0
        self.alive(registry.lease)

    def alive(self, bound: float) -> None:
        """Promise progress within ``bound`` seconds; the engine renews the lease until then."""
        self._until = asyncio.get_running_loop().time() + bound

    @property
    def overdue(self) -> bool:
        """Whether the promised progress is late."""
        return asyncio.get_running_loop().time() > self._until

    def failed(self, error: object) -> None:
        """Keep why this try failed; the write that ends the claim puts it into the record."""
        self.unsaved.error = one_line(str(error))

    def recovered(self) -> None:
        """Clear the error of earlier tries."""
        # most records have no error to remove, and each argument of a script costs time
        self.unsaved.error = "" if "last_error" in self.job.record else None

    async def note(self, name: str = "", value: str = "") -> str:
        """Renew the claim, and write one note now; returns the value that Redis keeps."""
        kept, self.now, cancel = await insist(
            lambda: self._registry.progress(self.job, name, value)
        )
        if cancel:
            self.cancel.set()
        return kept

    async def others(self, kind: DueSet) -> int:
        """The number of due tasks that wait for a slot."""
        return await insist(lambda: self._registry.overdue(kind))

    async def save(
        self,
        to: DueSet,
        *,
        delay: float = 0,
        state: State | None = None,
        record: Mapping[str, str] | None = None,
        work: Mapping[str, str] | None = None,
        learned: Lesson | None = None,
    ) -> None:
        """End the claim with a step that is not final; see :meth:`Registry.save`."""
        await insist(
            lambda: self._registry.save(
                self.job,
                to=to,
                delay=delay,
                state=state,
                calls=self.unsaved.calls,
                record=record,
                work={**self.unsaved.notes, **(work or {})},
                learned=learned,
                usable=self.unsaved.usable,
                error=self.unsaved.error,
            )
        )

    async def finish(self, **ending: Any) -> None:
        """End the run; see :meth:`Registry.finish`."""
        await insist(lambda: self._registry.finish(self.job, calls=self.unsaved.calls, **ending))

    async def told(self, **telling: Any) -> None:
        """Save the outcome of callbacks; see :meth:`Registry.told`."""
        await insist(lambda: self._registry.told(self.job, **telling))


class Work(Protocol):
    """The work of one kind. It ends the claim by a save, or raises.

    Returns a word for the report (``stored``, ``pending``…). ``reserve`` of the ``slots`` open only
    for jobs that take long, one for each.
    """

    kind: DueSet
    slots: int
    reserve: int

    async def __call__(self, claim: Claim) -> str:
        """Work on a claimed job."""
