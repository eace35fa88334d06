"""Ids handed in: over Celery, or over the intake stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from worker.core.submission import Refusal, read_body, read_submission, shown
from worker.errors import InvalidSubmission
from worker.registry.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.core.submission import Policy
    from worker.registry.registry import Registry

log = structlog.get_logger("harvester.intake")


class Intake:
    """Accepts what is valid, keeps why the rest was refused."""

    def __init__(self, registry: Registry, policy: Policy, *, wake: Callable[[Kind], None]) -> None:
        self._registry = registry
        self._policy = policy
        self._wake = wake

    async def submit(
        self, task_ids: object, options: Mapping[str, object], *, source: str
    ) -> tuple[dict[str, bool], list[Refusal]]:
        """Accept a message: the ids (and whether each is new), and what of it was refused."""
        submissions, refusals = read_submission(task_ids, options, self._policy)
        new, too_many = await self._registry.submit(submissions)
        refusals = [*refusals, *too_many]
        await self.refuse(refusals, source=source)
        if new:
            log.info("intake.accepted", source=source, ids=len(new), new=sum(new.values()))
            self._wake(Kind.COPY)
        return new, refusals

    async def refuse(self, refusals: list[Refusal], *, source: str) -> None:
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
        """Accept what stands in the intake stream; returns how many entries were settled.

        An entry is acknowledged only after its ids are accepted, or refused and noted.
        """
        entries = await self._registry.take_intake()
        for entry_id, fields in entries:
            try:
                task_ids, options = read_body(fields.get("body", ""))
            except InvalidSubmission as error:
                value = shown(fields.get("body", ""))
                refusal = Refusal(what="message", value=value, reason=str(error))
                await self.refuse([refusal], source="stream")
            else:
                await self.submit(task_ids, options, source="stream")
            await self._registry.ack_intake([entry_id])
        return len(entries)
