"""Claims: taking, renewing and releasing them, and the steps of a claimed task."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from worker.core.manifest import SCHEMA
from worker.errors import LeaseLost, RegistryUnavailable
from worker.parsing import UNREADABLE
from worker.registry.base import Base, flat, pairs
from worker.registry.records import CIRCUIT_OF, Batch, DueSet, Job, Unsaved, whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.core.durations import Lesson
    from worker.core.models import State

_NEWER_DELAY = 5.0  # seconds, so that a newer worker can claim the task


def _batch(answer: Any, kind: DueSet, token: str) -> Batch:
    """Read what ``claim.lua`` answers."""
    now, wait, probe, held, _, *rows = answer
    jobs = tuple(
        Job(
            kind=kind,
            task_id=task_id,
            token=token,
            claimed_at=int(now),
            due_at=whole(due_at),
            record=pairs(record),
            work=pairs(work),
            probe=bool(probe),
            behind=int(behind[0]) / 1000,
        )
        for task_id, record, work, due_at, *behind in rows
        if record
    )
    aside = tuple(row[0] for row in rows if not row[1])
    return Batch(jobs=jobs, wait=int(wait) / 1000, held=int(held), aside=aside)


def _by_token(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    by_token: dict[str, list[Job]] = {}
    for job in jobs:
        by_token.setdefault(job.token, []).append(job)
    return by_token


class Claims(Base):
    """How the engine claims tasks, and how work on a claimed task is saved."""

    async def claim(
        self,
        kind: DueSet,
        *,
        limit: int,
        in_hand: int,
        slots: int,
        shares: Mapping[str, float] = MappingProxyType({}),
    ) -> Batch:
        """Claim up to ``limit`` due tasks for one lease; with 0, only put them in line.

        ``shares`` holds the slots that each label uses in this process, weighted by
        :attr:`Job.share`. Where no rate decides whose turn is next, a free slot goes to the label
        that uses the least.
        """
        if self.clock.stepped:
            return await self._repaired()
        token = secrets.token_hex(16)
        polling = kind is DueSet.POLL
        answer = await self._scripts.call(
            "claim",
            kind,
            token,
            limit,
            in_hand,
            slots,
            self._lease_ms,
            CIRCUIT_OF[kind],
            self.owner,
            self.poll_rate if polling else "",
            self._burst if polling else "",
            "" if (expected := self.clock.expected()) is None else expected,
            *(word for share in shares.items() for word in share),
        )
        try:
            batch = _batch(answer, kind, token)
        except UNREADABLE as error:
            raise RegistryUnavailable(f"Redis answers oddly: {type(error).__name__}") from error
        if batch.wait < 0:
            return await self._repaired()
        newer = [job for job in batch.jobs if whole(job.record.get("schema") or SCHEMA) > SCHEMA]
        if newer:
            await self.release(newer, delay=_NEWER_DELAY)
            known = tuple(job for job in batch.jobs if job not in newer)
            batch = replace(batch, jobs=known, newer=len(newer))
        return batch

    async def _repaired(self) -> Batch:
        """Repair the times after a step of Redis' clock, before anything is claimed."""
        await self.now()
        by = int(await self._scripts.call("clock", self._lease_ms, self.clock.stepped))
        self.clock.stepped = 0
        return Batch(jobs=(), wait=0, held=0, stepped=by / 1000)

    async def renew(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Renew claims of one kind; returns ``ok``, ``cancel`` or ``lost`` for each task id."""
        answers: dict[str, str] = {}
        by_token = _by_token(jobs)
        said = await asyncio.gather(
            *(
                self._scripts.call_together(
                    "renew",
                    claimed[0].kind,
                    token,
                    self._lease_ms,
                    *(j.task_id for j in claimed),
                )
                for token, claimed in by_token.items()
            )
        )
        for claimed, each in zip(by_token.values(), said, strict=True):
            answers.update(zip((job.task_id for job in claimed), each, strict=True))
        return answers

    async def release(
        self,
        jobs: Sequence[Job],
        *,
        delay: float = 0,
        unsaved: Mapping[str, Unsaved] = MappingProxyType({}),
    ) -> None:
        """Release claims of one kind; the tasks are due again after ``delay`` seconds.

        ``unsaved`` holds, by task id, the facts that the work on them has not saved yet.
        """
        nothing = Unsaved()
        calls = []
        for token, claimed in _by_token(jobs).items():
            words: list[str | int] = []
            for job in claimed:
                left = unsaved.get(job.task_id, nothing)
                notes = flat(left.notes)
                words += [job.task_id, left.calls, left.error or "", len(notes), *notes]
            calls.append(
                self._scripts.call_together(
                    "release", claimed[0].kind, token, round(delay * 1000), *words
                )
            )
        await asyncio.gather(*calls)

    async def save(
        self,
        job: Job,
        *,
        to: DueSet,
        delay: float = 0,
        state: State | None = None,
        calls: int = 0,
        record: Mapping[str, str] | None = None,
        work: Mapping[str, str] | None = None,
        learned: Lesson | None = None,
        usable: bool = False,
        error: str | None = None,
    ) -> None:
        """End a claim with a step that is not final; raises :class:`LeaseLost`.

        ``delay`` is in seconds and may be negative (sooner than others); a ``work`` value of ``""``
        removes the note. ``learned`` holds the durations of a task that is done upstream. ``error``
        is why the last try failed; empty if it succeeded.
        """
        fields = flat(record or {})
        if error is not None:
            fields += ["last_error", error]
        # a task that goes on to copying may carry megabytes, so it is sent alone
        call = self._scripts.call_together if to is DueSet.POLL else self._scripts.call
        said = await call(
            "save",
            job.task_id,
            job.token,
            job.kind,
            to,
            round(delay * 1000),
            state or "",
            calls,
            " ".join(learned.fields) if learned else "",
            round(learned.lag * 1000) if learned else 0,
            int(usable),
            len(fields),
            *fields,
            *flat(work or {}),
        )
        if said == "lost":
            raise LeaseLost(job.task_id)

    async def progress(self, job: Job, name: str = "", value: str = "") -> tuple[str, int, bool]:
        """Note progress under a claim and renew it; raises :class:`LeaseLost`.

        Returns the value now in force, Redis time in milliseconds, and whether the task's
        cancellation was requested.
        """
        said, stands, now = await self._scripts.call(
            "progress", job.task_id, job.token, self._lease_ms, name, value
        )
        if said == "lost":
            raise LeaseLost(job.task_id)
        return stands, int(now), said == "cancel"

    async def finish(
        self,
        job: Job,
        *,
        state: State,
        reason: str,
        finished_at: int,
        record: Mapping[str, str],
        calls: int = 0,
        restored: bool = False,
    ) -> None:
        """End the run: record, index, event and due entry for callbacks; or raise ``LeaseLost``."""
        said = await self._scripts.call(
            "finish",
            job.task_id,
            job.token,
            state,
            reason,
            finished_at,
            self._ttl,
            self._events_maxlen,
            int(restored),
            calls,
            *flat(record),
        )
        if said == "lost":
            raise LeaseLost(job.task_id)

    async def told(
        self, job: Job, *, told: str, settled: bool, delay: float, callbacks: int
    ) -> None:
        """Save the outcome of callbacks; raises :class:`LeaseLost`."""
        said = await self._scripts.call(
            "told",
            job.task_id,
            job.token,
            told,
            int(settled),
            round(delay * 1000),
            callbacks,
            self._ttl,
        )
        if said == "lost":
            raise LeaseLost(job.task_id)
