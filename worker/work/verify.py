"""Comparing objects with their manifests: whether stored files are still intact."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.core import jsontext, manifest
from worker.work.group import first_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from worker.core.jsontext import Json
    from worker.transfer.store import ObjectStore
    from worker.work.manifests import Manifests

_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One object that differs from its manifest; ``reason`` is for people."""

    task_id: str
    key: str
    reason: str


@dataclass(slots=True, kw_only=True)
class Verified:
    """The counts of what was read, and every difference found."""

    tasks: int = 0
    files: int = 0
    bytes: int = 0
    differences: list[Difference] = field(default_factory=list)


async def verify(
    store: ObjectStore,
    manifests: Manifests,
    task_ids: AsyncIterator[str],
    *,
    seen: Callable[[Verified], None] = lambda _: None,
) -> Verified:
    """Read every stored file of these tasks, and compare length and SHA-256 with the manifest.

    Redis is not used. ``seen`` is called after each task. Raises the errors of the store.
    """
    verified = Verified()
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(task_id: str) -> None:
        try:
            await _task(store, manifests, task_id, verified)
        finally:
            limit.release()
            seen(verified)

    with first_error():
        async with asyncio.TaskGroup() as group:
            async for task_id in task_ids:
                await limit.acquire()
                group.create_task(one(task_id))
    return verified


async def _task(store: ObjectStore, manifests: Manifests, task_id: str, verified: Verified) -> None:
    verified.tasks += 1
    reason = "there is no manifest"
    try:
        record = await manifests.load(task_id)
    except ValueError as error:
        record, reason = None, str(error)
    if record is None:
        key = manifests.key(task_id)
        verified.differences.append(Difference(task_id=task_id, key=key, reason=reason))
        return
    files = jsontext.loads(
        record.get("files") or "[]", max_bytes=manifest.MAX_BYTES, max_depth=jsontext.MAX_DEPTH
    )
    for file in files:
        if "key" not in file:
            continue  # lost for good, as the manifest says
        verified.files += 1
        if reason := await _file(store, file, verified):
            verified.differences.append(Difference(task_id=task_id, key=file["key"], reason=reason))


async def _file(store: ObjectStore, file: Json, verified: Verified) -> str:
    head = await store.head(file["key"])
    if head is None:
        return "is gone"
    if head.bytes != file.get("bytes"):
        return f"has {head.bytes} bytes, not {file.get('bytes')}"
    digest = await store.digest(file["key"])
    if digest is None:
        return "is gone"
    verified.bytes += head.bytes
    return "" if digest.hex() == file.get("sha256") else "has another SHA-256"
