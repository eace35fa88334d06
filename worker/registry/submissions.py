"""Ids accepted, and what was refused of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from worker.core.answers import ActionAnswer
from worker.core.models import Refusal
from worker.core.submission import merge_callbacks
from worker.errors import InvalidSubmission, RegistryUnconfirmed
from worker.registry.base import CHUNK, Base
from worker.registry.intake import REFUSED_KEPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.core.submission import Submission


class Submissions(Base):
    """What producers do."""

    async def submit(
        self, submissions: Sequence[Submission]
    ) -> tuple[dict[str, bool], list[Refusal]]:
        """Accept ids: for each whether it is new, and the callbacks that were refused.

        A known id is left as it is, except that a callback it does not have yet is added, as long
        as there are not too many. Raises ``RegistryUnconfirmed`` if it is done, and no replica
        confirms it.
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
            before: Any = await self.redis.hget(self.key("task", task_id), "options")
            after = merge_callbacks(before, callbacks) if before else None
            if before is None or after is None:
                return
            done = await self._scripts.call(
                "add_callbacks", task_id, before, after, len(json.loads(after)["callbacks"])
            )
            if done != ActionAnswer.CHANGED:
                return

    async def refuse(self, refusals: Sequence[Refusal], *, source: str) -> None:
        """Keep what was refused, newest first, the last 1,000 of them."""
        if refusals:
            await self.intake.refuse(refusals, source=source, at=await self.now())

    async def count_refused(self, count: int, *, source: str) -> None:
        """Count refusals that their sender has been told of, and that are not kept."""
        if count:
            await self.redis.hincrby(self.key("counters"), f"refused:{source}", count)

    async def refused(self, limit: int = REFUSED_KEPT) -> list[dict[str, Any]]:
        """What was refused lately, newest first (see :meth:`Stream.refused`)."""
        return await self.intake.refused(limit)
