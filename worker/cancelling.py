"""Raising cancellations that a library has swallowed.

``asyncio.wait_for`` of Python 3.11 drops a cancellation that comes as its future is done, and
redis-py calls it with each command: the task continues as if it were not cancelled. The task still
counts the request (``Task.cancelling``), and these functions raise it.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def heed() -> None:
    """Raise if this task was cancelled; for each round of a loop that nothing else ends."""
    if _requests():
        raise asyncio.CancelledError


@contextmanager
def heeding() -> Iterator[None]:
    """Raise a cancellation that came during the block, unless the block raises it itself.

    An earlier one is not raised again, so that a cancelled task can clean up.
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
