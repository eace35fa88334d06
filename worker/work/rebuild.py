"""Restoring records from manifests, after Redis has lost them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.work.group import first_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.registry.registry import Registry
    from worker.work.manifests import Manifests

_AT_ONCE = 16


@dataclass(slots=True, kw_only=True)
class Rebuilt:
    """The result; ``unreadable`` holds keys, each with its reason."""

    restored: int = 0
    known: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)


async def rebuild(
    registry: Registry,
    manifests: Manifests,
    *,
    seen: Callable[[Rebuilt], None] = lambda _: None,
) -> Rebuilt:
    """Restore the record of every manifest that has none.

    Existing records do not change. There are no events and no callbacks, since manifests do not
    hold the secrets that callbacks need. ``seen`` is called after each manifest. Raises the errors
    of the store and the registry.
    """
    rebuilt = Rebuilt()
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(task_id: str) -> None:
        try:
            try:
                record = await manifests.load(task_id)
            except ValueError as error:
                rebuilt.unreadable.append((manifests.key(task_id), str(error)))
                return
            if record is None:  # removed since the list was read
                return
            if await registry.restore(record):
                rebuilt.restored += 1
            else:
                rebuilt.known += 1
        finally:
            limit.release()
            seen(rebuilt)

    with first_error():
        async with asyncio.TaskGroup() as group:
            async for task_id in manifests.ids():
                await limit.acquire()
                group.create_task(one(task_id))
    return rebuilt
