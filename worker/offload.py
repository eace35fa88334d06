"""Long computations away from the event loop, so that leases, timeouts and other tasks go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

LONG = 64 * 1024
"""Characters of foreign text from which on its reading leaves the loop."""

# Of its own: the loop's default threads look up names, and may all be waiting. One is enough,
# since Python runs one at a time, and bounds what is held in memory at once.
_READER = ThreadPoolExecutor(1, thread_name_prefix="reader")


async def offload(size: int, call: Callable[..., T], *args: Any, **options: Any) -> T:
    """The result of ``call``, from a thread if it reads ``size`` characters of a long text."""
    if size < LONG:
        return call(*args, **options)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_READER, partial(call, *args, **options))
