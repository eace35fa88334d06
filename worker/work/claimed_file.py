"""One file of a claimed task while it is copied."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from worker.work.endings import STORE_STEP
from worker.work.shares import Speed

if TYPE_CHECKING:
    from worker.work.claim import Claim


class ClaimedFile:
    """The claim for the copier: it fixes a file's key, and says whether the task is still ours."""

    def __init__(self, claim: Claim, number: int) -> None:
        self.claim = claim
        self._number = number
        self.speed = Speed(claim.job.note(f"slow:{number}"))

    async def reserve(self, key: str) -> str:
        """Fix the file's object key, unless it is fixed already; returns the key in force."""
        self.progress()
        return await self.claim.note(f"key:{self._number}", key)

    async def check(self) -> None:
        """Renew the claim; raises ``LeaseLost`` if another worker owns the task.

        Raises ``CancelledError`` if a library has swallowed the file's cancellation.
        """
        self.progress()
        await self.claim.note()
        if self.claim.cancel.is_set():
            raise asyncio.CancelledError

    def progress(self) -> None:
        """Note that bytes have moved."""
        self.claim.alive(STORE_STEP)

    def reading(self, now: bool) -> None:
        """Note whether the transfer waits for the file's host from now on."""
        self.speed.reading(now)

    def arrived(self, count: int) -> None:
        """Note that ``count`` bytes have come from the file's host."""
        self.speed.arrived(count)
        self.progress()
