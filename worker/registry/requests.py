"""What is asked for from outside about tasks that exist: retry, cancel, notify."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import TYPE_CHECKING, Any

from worker.core.filters import Action
from worker.errors import RegistryUnavailable
from worker.registry.client import WRONG_TYPE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.registry.registry import Registry
    from worker.registry.scripts import Scripts

_AT_ONCE = 100


class Requests:
    """Carries out an action on some tasks, each by one script."""

    def __init__(self, registry: Registry, scripts: Scripts, *, deadline: float) -> None:
        self._registry = registry
        self._scripts = scripts
        self._deadline = round(deadline * 1000)

    async def ask(
        self, action: Action, task_ids: Sequence[str], *, until: int | None = None
    ) -> dict[str, str]:
        """What came of each task: ``ok``, ``unknown``, ``nobody`` (to notify) or its state.

        With ``until`` (Unix milliseconds of Redis) a run that ended later, or for a cancel began
        later, is left alone as ``changed``; and a task that was notified since then counts as done.
        So a call may be repeated. Among several, a task whose keys something else has overwritten
        is ``unknown``; asked for alone, it raises.
        """
        said: dict[str, str] = {}
        bound: tuple[int, ...] = () if until is None else (until,)
        ids = list(dict.fromkeys(task_ids))
        alone = len(ids) == 1 and until is None
        for start in range(0, len(ids), _AT_ONCE):
            chunk = ids[start : start + _AT_ONCE]
            words: list[tuple[str | int, ...]] = [()] * len(chunk)
            if action is Action.RETRY:
                rows = await self._registry.fields(chunk, ("options",))
                words = [(secrets.token_hex(16), self._deadline, _own(row)) for row in rows]
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


def _own(row: Mapping[str, str] | None) -> str | int:
    """The deadline that a task was submitted with, in milliseconds; empty without one."""
    try:
        own = json.loads(row["options"]).get("deadline") if row else None
        return "" if own is None else round(float(own) * 1000)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return ""  # something else has overwritten it


def _answer(said: Any) -> str:
    if not isinstance(said, BaseException):
        return str(said)
    if isinstance(said, RegistryUnavailable) and WRONG_TYPE in str(said):
        return "unknown"
    raise said
