"""The end of a run: first the manifest, then the record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from worker.core import ending, manifest
from worker.core.models import State
from worker.offload import offload
from worker.registry.records import DueSet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.core.ending import Ending
    from worker.core.layout import Layout
    from worker.core.models import PlannedFile
    from worker.work.claim import Claim
    from worker.work.manifests import Manifests

log = structlog.get_logger("harvester.copy")

STORE_STEP = 60.0
"""Seconds within which one step with the store shows progress."""


class Endings:
    """Ends runs under their claims.

    ``wake`` is called when a task has become final and may have callbacks to deliver. Methods raise
    the errors of the store, ``NewerSchemaError``, and those of :class:`Claim`.
    """

    def __init__(
        self, manifests: Manifests, layout: Layout, *, wake: Callable[[DueSet], None]
    ) -> None:
        self._manifests = manifests
        self._layout = layout
        self._wake = wake

    async def restore_if_stored(self, claim: Claim) -> bool:
        """End the run with the record of a ``stored`` manifest; returns whether there is one."""
        there = await self._manifest(claim)
        if there is None or there["state"] != State.STORED:
            return False
        await self._restore(claim, there)
        return True

    async def end(self, claim: Claim, how: Ending, plan: Sequence[PlannedFile], data: str) -> str:
        """Write the manifest, then the record, event and due entry; returns the outcome.

        ``data`` is the upstream's reply as JSON text, or empty.
        """
        await claim.note()
        now = claim.now
        record = await offload(
            len(data),
            ending.final_record,
            claim.job.record,
            how,
            plan,
            data,
            self._layout,
            calls=claim.unsaved.calls,
            now=now,
        )
        there = await self._manifest(claim)
        if there and there["state"] == State.STORED and how.state is not State.STORED:
            await self._restore(claim, there)
            return "restored"
        if there is None or not manifest.richer(there, record):
            claim.alive(STORE_STEP)
            await claim.note()
            await self._manifests.write(record)
        await claim.finish(
            state=how.state,
            reason=how.reason,
            finished_at=now,
            record={name: record[name] for name in ending.PUBLIC if name in record},
        )
        log.info(
            "task.final", state=how.state, reason=how.reason, error=record["error"], files=len(plan)
        )
        self._wake(DueSet.TELL)
        return how.state

    async def _manifest(self, claim: Claim) -> dict[str, str] | None:
        """The record in the task's manifest; an unreadable manifest counts as missing."""
        task_id = claim.job.task_id
        try:
            return await self._manifests.load(task_id)
        except manifest.NewerSchemaError:
            raise
        except ValueError as error:
            log.warning("manifest.unreadable", key=self._manifests.key(task_id), error=str(error))
            return None

    async def _restore(self, claim: Claim, there: dict[str, str]) -> None:
        await claim.finish(
            state=State.STORED,
            reason="",
            finished_at=int(there["finished_at"]),
            record=ending.restored(claim.job.record, there, claim.unsaved.calls),
            restored=True,
        )
        log.info("task.final", state="stored", restored=True)
        self._wake(DueSet.TELL)
