"""The Celery reply: a task of the caller's, called with the record."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Celery


class CeleryReply:
    """Sends ``task`` to ``queue`` with the record as its one argument."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    async def tell(self, callback: Mapping[str, str], record: Mapping[str, Any]) -> None:
        """Publish the call; raises what the broker raises."""
        await asyncio.to_thread(
            self._app.send_task,
            callback["task"],
            args=[dict(record)],
            queue=callback["queue"],
            retry=False,
        )
