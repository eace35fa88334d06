"""The manifests in the bucket: listing, reading, and writing them with a check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.core import manifest
from worker.errors import StoreUnavailable
from worker.offload import offload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from worker.core.layout import Layout
    from worker.transfer.store import ObjectStore


class Manifests:
    """The manifests of one bucket. Every method raises the errors of the store."""

    def __init__(self, store: ObjectStore, layout: Layout) -> None:
        self._store = store
        self._layout = layout

    async def ids(self) -> AsyncIterator[str]:
        """The ids of all tasks that have a manifest."""
        async for key in self._store.keys(self._layout.manifests):
            if (task_id := self._layout.task_of(key)) is not None:
                yield task_id

    def key(self, task_id: str) -> str:
        """The key of a task's manifest."""
        return self._layout.manifest_key(task_id)

    async def load(self, task_id: str) -> dict[str, str] | None:
        """The record that a task's manifest holds, or ``None`` if there is no manifest.

        Raises ``ValueError`` if it cannot be read; see
        :func:`~worker.core.manifest.record_from_manifest`.
        """
        body = await self._store.get(self.key(task_id), max_bytes=manifest.MAX_BYTES)
        if body is None:
            return None
        return await offload(len(body), manifest.record_from_manifest, body, task_id)

    async def write(self, record: Mapping[str, str]) -> None:
        """Store the manifest of a final record and read it back.

        Raises ``StoreUnavailable`` if the store returns other bytes than were written.
        """
        task_id = record["task_id"]
        size = len(record.get("result", "")) + len(record.get("files", ""))
        key, body = self.key(task_id), await offload(size, manifest.manifest_from_record, record)
        await self._store.put_document(key, body, task_id=task_id)
        if await self._store.get(key, max_bytes=manifest.MAX_BYTES) != body:
            raise StoreUnavailable(f"the manifest {key} does not read back as it was written")
