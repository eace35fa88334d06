"""The event stream, followed: what the command line and the page's server-sent events read."""

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
"""Seconds between two looks for new entries."""


async def follow(
    registry: View, after: str, *, patience: float
) -> AsyncGenerator[list[tuple[str, dict[str, str]]] | None]:
    """Pages of entries after the entry id ``after``, oldest first, without end.

    What the stream holds comes page after page; an empty page says that there is nothing new, and
    is followed by a pause. ``None`` says that Redis is out of reach; once it has been for
    ``patience`` seconds, ``RegistryUnavailable`` is raised.
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
