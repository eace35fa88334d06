"""The Celery reply: a task of the caller's, called with the record."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any

from worker.core import jsontext

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
            args=[plain(record)],
            queue=callback["queue"],
            retry=False,
        )


def plain(record: Mapping[str, Any]) -> Any:
    """The record in types that Celery's serializer knows; fractions become floats."""
    return json.loads(jsontext.dumps(dict(record)), parse_float=_finite)


def _finite(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text
