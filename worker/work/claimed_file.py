"""One file of a claimed task while it is copied."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from worker.work.endings import STORE_STEP
from worker.work.shares import Speed

if TYPE_CHECKING:
    from worker.work.claim import Claim


class ClaimedFile:
    """The claim as the copier sees it: where a file goes, and whether it is still ours to write."""

    def __init__(self, claim: Claim, number: int) -> None:
        self.claim = claim
        self._number = number
        self.speed = Speed(claim.job.note(f"slow:{number}"))

    async def reserve(self, key: str) -> str:
        """Fix the file's object key; returns the first one ever fixed."""
        self.progress()
        return await self.claim.note(f"key:{self._number}", key)

    async def check(self) -> None:
        """Renew the claim; raises ``LeaseLost`` if it is not ours any more.

        A file whose cancellation a library has swallowed ends here.
        """
        self.progress()
        await self.claim.note()
        if self.claim.cancel.is_set():
            raise asyncio.CancelledError

    def progress(self) -> None:
        """Bytes have moved."""
        self.claim.alive(STORE_STEP)

    def reading(self, now: bool) -> None:
        """The file's host is waited for from now on, or no longer."""
        self.speed.reading(now)

    def arrived(self, count: int) -> None:
        """So many bytes have come from the file's host."""
        self.speed.arrived(count)
        self.progress()
