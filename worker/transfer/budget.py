"""How many bytes of files a process holds in memory at once."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_EVERY = 5.0  # seconds between two signs of life of one who waits
_USUAL_LIFE = 3600.0  # seconds that an address is taken to live which does not say

_Waiting = tuple[float, int, int, asyncio.Future[None]]
"""Rank, number, bytes wanted, and what is done once they are given."""


class Budget:
    """A fair semaphore that counts bytes.

    Who has to wait stands in one of two lines, which are served in turns: files that begin, that
    whose address expires soonest first, and files that go on, in the order they asked. So neither
    many small files hold up a huge one, nor huge ones the small.

    Nobody may hold room while standing in line for more, so that one part's room is enough for all
    to go on. Who asks for more than there is gets all there is.
    """

    def __init__(self, total: int, *, clock: Callable[[], float] = time.time) -> None:
        if total < 1:
            raise ValueError("a budget holds at least one byte")
        self.total = total
        self._clock = clock
        self._free = total
        self._count = itertools.count()
        self._lines: tuple[list[_Waiting], list[_Waiting]] = ([], [])
        self._next = 0

    @property
    def used(self) -> int:
        """Bytes given out now."""
        return self.total - self._free

    def room(
        self,
        size: int,
        *,
        expires: float | None = None,
        begun: bool = False,
        waiting: Callable[[], None] = lambda: None,
    ) -> Room:
        """Room for ``size`` bytes, to be entered with ``async with``.

        ``expires`` is when the file's address does, in Unix seconds: in an hour if that is not
        known. ``begun``: the file has been begun, so that this does not matter any more.
        ``waiting`` is called every few seconds while one waits in line.
        """
        return Room(self, size, expires, begun, waiting)

    def _take_now(self, size: int) -> bool:
        if size > self._free or any(self._lines):
            return False
        self._free -= size
        return True

    async def _take(
        self, size: int, expires: float | None, begun: bool, waiting: Callable[[], None]
    ) -> None:
        if self._take_now(size):
            return
        turn = asyncio.get_running_loop().create_future()
        if expires is None:
            expires = self._clock() + _USUAL_LIFE
        rank = 0.0 if begun else expires
        line, entry = self._lines[begun], (rank, next(self._count), size, turn)
        heapq.heappush(line, entry)
        try:
            while not turn.done():
                await asyncio.wait([turn], timeout=_EVERY)
                waiting()
        except BaseException:
            if turn.done():
                self._give(size)
            else:
                line.remove(entry)
                heapq.heapify(line)
                self._give(0)  # the next in line may fit where this one did not
            raise

    def _give(self, size: int) -> None:
        self._free += size
        while any(self._lines):
            served = self._next if self._lines[self._next] else 1 - self._next
            _, _, wanted, turn = self._lines[served][0]
            if wanted > self._free:
                return
            heapq.heappop(self._lines[served])
            self._next = 1 - served
            self._free -= wanted
            turn.set_result(None)


class Room:
    """One part's share of a :class:`Budget`; ``size`` is what is held of it."""

    def __init__(
        self,
        budget: Budget,
        size: int,
        expires: float | None,
        begun: bool,
        waiting: Callable[[], None],
    ) -> None:
        self._budget = budget
        self._wanted = min(size, budget.total)
        self._expires = expires
        self._begun = begun
        self._waiting = waiting
        self.size = 0

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    async def acquire(self) -> None:
        """Stand in line for what is wanted."""
        await self._budget._take(self._wanted, self._expires, self._begun, self._waiting)
        self.size = self._wanted

    def acquire_now(self) -> bool:
        """Take what is wanted if it is free and nobody waits; returns whether it was."""
        if not self._budget._take_now(self._wanted):
            return False
        self.size = self._wanted
        return True

    async def again(self, size: int) -> None:
        """Give everything back and line up for ``size`` bytes; what was held must be let go of."""
        self.release()
        self._begun = True
        self._wanted = min(size, self._budget.total)
        await self.acquire()

    def shrink(self, size: int) -> None:
        """Keep no more than ``size`` bytes."""
        if size < self.size:
            back, self.size = self.size - size, size
            self._budget._give(back)

    def release(self) -> None:
        """Give everything back; done already is well."""
        self.shrink(0)
