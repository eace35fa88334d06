"""Submissions over Celery and over the intake stream."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import structlog

from worker.core.models import Refusal
from worker.core.submission import MAX_BODY_BYTES, printable, read_body, read_submission, traced
from worker.core.trace import trace_id
from worker.errors import InvalidSubmission, RegistryUnavailable
from worker.registry.records import DueSet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from worker.core.submission import Policy
    from worker.registry.intake import Entry
    from worker.registry.registry import Registry

_AT_ONCE = 16  # entries in one tick
_SHOWN = 4000

log = structlog.get_logger("harvester.intake")


class Intake:
    """Accepts valid submissions, and keeps the reasons for refusals."""

    def __init__(
        self, registry: Registry, policy: Policy, *, wake: Callable[[DueSet], None]
    ) -> None:
        self._registry = registry
        self._policy = policy
        self._wake = wake
        self._in_hand: dict[str, Entry] = {}  # their strikes are still to be taken back

    async def submit(
        self, task_ids: object, options: Mapping[str, object], *, source: str
    ) -> tuple[dict[str, bool], list[Refusal]]:
        """Accept a message; returns its ids (and whether each is new), and the refusals."""
        submissions, refusals = read_submission(task_ids, options, self._policy)
        new, too_many = await self._registry.submit(submissions)
        refusals = [*refusals, *too_many]
        await self.refuse(refusals, source=source)
        if new:
            traces = {"trace_id": trace} if (trace := trace_id(options.get("traceparent"))) else {}
            log.info(
                "intake.accepted", source=source, ids=len(new), new=sum(new.values()), **traces
            )
            self._wake(DueSet.COPY)
        return new, refusals

    async def refuse(self, refusals: Sequence[Refusal], *, source: str) -> None:
        """Keep and log refusals."""
        for refusal in refusals:
            log.warning(
                "intake.refused",
                source=source,
                what=refusal.what,
                value=refusal.value,
                reason=refusal.reason,
            )
        await self._registry.refuse(refusals, source=source)

    async def drain_stream(self) -> int:
        """Accept entries of the intake stream; returns how many were settled.

        An entry is acknowledged only after its ids are accepted, or refused and noted. Entries are
        taken one by one, so one that kills the worker affects no other, and a strike in Redis warns
        the next worker.
        """
        await self._give_back()
        settled = 0
        while settled < _AT_ONCE:
            entry = await self._registry.intake.take()
            if entry == "gone":
                continue
            if isinstance(entry, str):
                await self._watch(entry)
                return settled
            self._in_hand[entry.id] = entry
            try:
                await self._settle(entry)
                del self._in_hand[entry.id]
                settled += 1
            finally:  # only a worker's death leaves a strike
                with contextlib.suppress(RegistryUnavailable):  # the next call tries again
                    await self._give_back()
        return settled

    async def _settle(self, entry: Entry) -> None:
        if entry.body is not None:
            try:
                task_ids, options = read_body(entry.body)
            except InvalidSubmission as error:
                reason = str(error)
            else:
                options = traced(options, entry.traceparent)
                await self.submit(task_ids, options, source="stream")
                reason = ""
        elif entry.verdict == "large":
            reason = f"larger than {MAX_BODY_BYTES:,} bytes"
        else:
            reason = f"{entry.strikes} workers died while processing this entry"
        if reason:
            start = (entry.body or b"")[:_SHOWN].decode("utf-8", "backslashreplace")
            value = printable(start) if entry.body is not None else entry.id
            refusal = Refusal(what="message", value=value, reason=reason)
            await self.refuse([refusal], source="stream")
        await self._registry.intake.settle([entry.id])

    async def _give_back(self) -> None:
        for entry in list(self._in_hand.values()):
            await self._registry.intake.give_back(entry)
            del self._in_hand[entry.id]

    async def _watch(self, seen: str) -> None:
        """Log what is unusual about an empty stream."""
        if seen == "reopened":
            log.warning("intake.reopened")
        elif seen == "blind" and await self._registry.say_once("intake.blind", seconds=3600):
            log.warning("intake.blind", remedy="allow the workers' Redis user +xinfo|stream")
