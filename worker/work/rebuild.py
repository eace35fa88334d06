"""Records from manifests, after Redis has been lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.core import manifest
from worker.work.group import first_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.core.layout import Layout
    from worker.registry.registry import Registry
    from worker.transfer.store import ObjectStore

_AT_ONCE = 16


@dataclass(slots=True, kw_only=True)
class Rebuilt:
    """What came of it; ``unreadable`` holds keys, each with its reason."""

    restored: int = 0
    known: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)


async def rebuild(
    registry: Registry,
    store: ObjectStore,
    layout: Layout,
    *,
    seen: Callable[[Rebuilt], None] = lambda _: None,
) -> Rebuilt:
    """Restore the record of every manifest that has none.

    Records that exist are left as they are; nothing is announced or told, since manifests hold no
    secrets of callbacks. ``seen`` is called after each manifest. Raises the errors of the store
    and the registry.
    """
    found = Rebuilt()
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(task_id: str) -> None:
        key = layout.manifest_key(task_id)
        try:
            body = await store.get(key, max_bytes=manifest.MAX_BYTES)
            if body is None:
                return
            try:
                record = manifest.record_from_manifest(body, task_id)
            except ValueError as error:
                found.unreadable.append((key, str(error)))
                return
            if await registry.restore(record):
                found.restored += 1
            else:
                found.known += 1
        finally:
            limit.release()
            seen(found)

    with first_error():
        async with asyncio.TaskGroup() as group:
            async for key in store.keys(layout.manifests):
                if (task_id := layout.task_of(key)) is not None:
                    await limit.acquire()
                    group.create_task(one(task_id))
    return found
