"""Requests about existing tasks: retry, cancel, notify, look."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import TYPE_CHECKING, Any

from worker.core.answers import ActionAnswer
from worker.core.filters import Action
from worker.core.looks import Look
from worker.errors import RegistryUnavailable
from worker.registry.base import CHUNK
from worker.registry.client import WRONG_TYPE
from worker.registry.view import View

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Requests(View):
    """Actions of people and other applications on their tasks, each one script."""

    async def ask(
        self, action: Action, task_ids: Sequence[str], *, until: int | None = None
    ) -> dict[str, str]:
        """Each task's answer: an :class:`ActionAnswer`, or the state that rules the action out.

        With ``until`` (Unix milliseconds of Redis), runs that ended later, or for a cancel began
        later, are not touched (``CHANGED``), and a task that was notified since then counts as
        done. So a call may be repeated. Among several tasks, one whose keys another program has
        overwritten is ``UNKNOWN``; alone, it raises.
        """
        said: dict[str, str] = {}
        bound: tuple[int, ...] = () if until is None else (until,)
        ids = list(dict.fromkeys(task_ids))
        alone = len(ids) == 1 and until is None
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            words: list[tuple[str | int, ...]] = [()] * len(chunk)
            if action is Action.RETRY:
                rows = await self.fields(chunk, ("options",))
                words = [
                    (secrets.token_hex(16), round(self._deadline * 1000), _own(row)) for row in rows
                ]
            call = self._scripts.call if alone else self._scripts.call_together
            answers = await asyncio.gather(
                *(
                    call(action, task_id, *each, *bound)
                    for task_id, each in zip(chunk, words, strict=True)
                ),
                return_exceptions=not alone,
            )
            said |= {i: _answer(a) for i, a in zip(chunk, answers, strict=True)}
        return said

    async def retry(self, task_id: str) -> str:
        """Start a new run of a failed or partial task; returns ``ok``, ``unknown`` or its state."""
        return (await self.ask(Action.RETRY, [task_id]))[task_id]

    async def cancel(self, task_id: str) -> str:
        """Request a task's cancellation; returns ``ok``, ``unknown`` or the task's final state."""
        return (await self.ask(Action.CANCEL, [task_id]))[task_id]

    async def notify(self, task_id: str) -> str:
        """Call a final task's callbacks again: ``ok``, ``unknown``, ``nobody`` or its state."""
        return (await self.ask(Action.NOTIFY, [task_id]))[task_id]

    async def look(self, task_ids: Sequence[str]) -> dict[str, Look]:
        """Have waiting tasks polled at once, at a quarter of the rate; each task's answer."""
        said: dict[str, Look] = {}
        for start in range(0, len(task_ids), CHUNK):
            chunk = task_ids[start : start + CHUNK]
            answers = await self._scripts.call("look", self.poll_rate, self._burst, *chunk)
            said.update(zip(chunk, map(Look, answers), strict=True))
        return said


def _own(row: Mapping[str, str] | None) -> str | int:
    """The deadline that a task was submitted with, in milliseconds; empty without one."""
    try:
        own = json.loads(row["options"]).get("deadline") if row else None
        return "" if own is None else round(float(own) * 1000)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return ""  # another program has overwritten it


def _answer(said: Any) -> str:
    if not isinstance(said, BaseException):
        return str(said)
    if isinstance(said, RegistryUnavailable) and WRONG_TYPE in str(said):
        return ActionAnswer.UNKNOWN
    raise said
