"""Long computations in threads, so that leases, timeouts and other tasks continue."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
S = TypeVar("S")

LONG = 64 * 1024
"""Characters; longer untrusted texts are read in a thread."""

# A separate thread, since the loop's default ones look up names, and may all be waiting. One is
# enough, since Python runs one at a time, and it bounds the memory in use.
_READER = ThreadPoolExecutor(1, thread_name_prefix="reader")
_HASHERS = ThreadPoolExecutor(2, thread_name_prefix="hashes")


async def offload(size: int, call: Callable[..., T], *args: Any, **options: Any) -> T:
    """The result of ``call``, which reads ``size`` characters; run in a thread if they are many."""
    if size < LONG:
        return call(*args, **options)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_READER, partial(call, *args, **options))


async def hashed(digest: Callable[[S], bytes], body: S) -> bytes:
    """The digest of a body, from other threads: hashing needs no GIL."""
    return await asyncio.get_running_loop().run_in_executor(_HASHERS, digest, body)


class Aside:
    """Runs calls that may never return, such as an operator's program, in separate threads.

    There are at most ``most`` of them; the process does not wait for them at its end.
    """

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """The result of ``call``; its thread continues even if the caller is cancelled."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def finish(settle: Callable[[Any], None], value: object) -> None:
            self._free.release()
            if not done.done():
                settle(value)

        def work() -> None:
            given: tuple[Callable[[Any], None], object]
            try:
                given = done.set_result, call(*args)
            except StopIteration as error:  # a future does not accept it
                wrapped = RuntimeError(f"StopIteration: {error}")
                wrapped.__cause__ = error
                given = done.set_exception, wrapped
            except Exception as error:  # raised in the caller, if it still waits
                given = done.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(finish, *given)

        try:
            threading.Thread(target=work, name="aside", daemon=True).start()
        except RuntimeError:  # no thread can be started
            self._free.release()
            raise
        return await done
