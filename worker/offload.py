"""Long computations away from the event loop, so that leases, timeouts and other tasks go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

LONG = 64 * 1024
"""Characters of foreign text from which on its reading leaves the loop."""


class Room:
    """Threads for one kind of work; the loop's own look up names, and may all be waiting."""

    def __init__(self, name: str, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The result of ``call``, from one of the threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(call, *args, **options))


# One is enough, since Python runs one at a time, and bounds what is held in memory at once.
_READER = Room("reader", 1)


async def offload(size: int, call: Callable[..., T], *args: Any, **options: Any) -> T:
    """The result of ``call``, from a thread if it reads ``size`` characters of a long text."""
    if size < LONG:
        return call(*args, **options)
    return await _READER.run(call, *args, **options)
