"""Accepting ids, and keeping what was refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from worker.core.answers import ActionAnswer
from worker.core.models import Refusal
from worker.core.submission import merge_callbacks
from worker.errors import InvalidSubmission, RegistryUnconfirmed
from worker.registry.base import CHUNK, Base
from worker.registry.client import each_answer
from worker.registry.intake import REFUSED_KEPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.core.submission import Submission


class Submissions(Base):
    """The actions of producers."""

    async def submit(
        self, submissions: Sequence[Submission]
    ) -> tuple[dict[str, bool], list[Refusal]]:
        """Accept ids; returns for each whether it is new, and the refused callbacks.

        A known id does not change, except that new callbacks are added up to the limit. Raises
        ``RegistryUnconfirmed`` if everything is written but no replica confirms it.
        """
        groups: dict[tuple[str, str, str], list[str]] = {}
        for item in submissions:
            groups.setdefault((item.metadata, item.label, item.options), []).append(item.task_id)
        new: dict[str, bool] = {}
        refused: list[Refusal] = []
        for (metadata, label, text), ids in groups.items():
            options = json.loads(text)
            callbacks = len(options["callbacks"])
            deadline = int(float(options.get("deadline", self._deadline)) * 1000)
            for start in range(0, len(ids), CHUNK):
                chunk = ids[start : start + CHUNK]
                flags = await self._scripts.call(
                    "submit", metadata, label, text, callbacks, deadline, *chunk
                )
                new.update(zip(chunk, map(bool, flags), strict=True))
            if callbacks:
                for task_id in ids:
                    if not new[task_id]:
                        try:
                            await self._add_callbacks(task_id, options["callbacks"])
                        except InvalidSubmission as error:
                            refused.append(
                                Refusal(what="callback", value=task_id, reason=str(error))
                            )
        if new:
            try:
                await self._replicas.confirm()
            except RegistryUnconfirmed as error:
                error.new, error.refused = new, refused
                raise
        return new, refused

    async def _add_callbacks(self, task_id: str, callbacks: list[dict[str, str]]) -> None:
        while True:
            async with self.redis.pipeline(transaction=False) as pipe:
                pipe.hget(self.key("task", task_id), "options")
                (before,) = await each_answer(pipe)
            after = merge_callbacks(before, callbacks) if before else None
            if before is None or after is None:
                return
            done = await self._scripts.call(
                "add_callbacks", task_id, before, after, len(json.loads(after)["callbacks"])
            )
            if done != ActionAnswer.CHANGED:
                return

    async def refuse(self, refusals: Sequence[Refusal], *, source: str) -> None:
        """Keep the last 1,000 refusals, newest first."""
        if refusals:
            await self.intake.refuse(refusals, source=source, at=await self.now())

    async def count_refused(self, count: int, *, source: str) -> None:
        """Count refusals that the sender got as its answer, and that are not kept."""
        if count:
            await self.redis.hincrby(self.key("counters"), f"refused:{source}", count)

    async def refused(self, limit: int = REFUSED_KEPT) -> list[dict[str, Any]]:
        """The newest refusals first (see :meth:`Stream.refused`)."""
        return await self.intake.refused(limit)
