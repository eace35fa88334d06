"""A cancellation that reaches its task although a library has swallowed it.

``asyncio.wait_for`` of Python 3.11 drops a cancellation that comes as its future is done, and
redis-py calls it with each command: the task goes on as if nobody had asked it to end. The request
is still counted by the task (``Task.cancelling``), and is raised from there.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def heed() -> None:
    """Raise if this task was asked to end: for each round of a loop that nothing else ends."""
    if _requests():
        raise asyncio.CancelledError


@contextmanager
def heeding() -> Iterator[None]:
    """Raise the cancellation that came during the block, unless the block raises it itself.

    An earlier one is not raised again: a task that is being cancelled may clean up.
    """
    before = _requests()
    try:
        yield
    finally:
        if _requests() > before and not isinstance(sys.exc_info()[1], asyncio.CancelledError):
            raise asyncio.CancelledError


def _requests() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
