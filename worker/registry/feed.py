"""Follow the event stream, for the command line and the page's server-sent events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from worker.cancelling import heed
from worker.core.services import Service
from worker.errors import RegistryUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from worker.registry.view import View

LOOK = 0.5
"""Seconds between two reads for new entries."""


async def follow(
    registry: View, after: str, *, patience: float
) -> AsyncGenerator[list[tuple[str, dict[str, str]]] | None]:
    """Yield pages of entries after the entry id ``after``, oldest first, without end.

    An empty page means that there is nothing new; a pause follows. ``None`` means that Redis is out
    of reach; after ``patience`` seconds of that, raises ``RegistryUnavailable``.
    """
    loop = asyncio.get_running_loop()
    answered = loop.time()
    while True:
        heed()
        try:
            page = await registry.events(after)
            answered = loop.time()
        except RegistryUnavailable as error:
            registry.reach.failed(Service.REDIS, error)
            if loop.time() - answered >= patience:
                raise
            yield None
        else:
            yield page
            if page:
                after = page[-1][0]
                continue
        await asyncio.sleep(LOOK)
