"""How many bytes of files a process holds in memory at once."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_EVERY = 5.0  # seconds between two signs of life of one who waits


class Budget:
    """A fair semaphore that counts bytes: who asked first gets first.

    Nobody may hold room while standing in line for more, so that one part's room is enough for all
    to go on. Who asks for more than there is gets all there is.
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError("a budget holds at least one byte")
        self.total = total
        self._free = total
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def used(self) -> int:
        """Bytes given out now."""
        return self.total - self._free

    def room(self, size: int, *, waiting: Callable[[], None] = lambda: None) -> Room:
        """Room for ``size`` bytes, to be entered with ``async with``.

        ``waiting`` is called every few seconds while one waits in line.
        """
        return Room(self, size, waiting)

    def _take_now(self, size: int) -> bool:
        if size > self._free or self._line:
            return False
        self._free -= size
        return True

    async def _take(self, size: int, waiting: Callable[[], None]) -> None:
        if self._take_now(size):
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append((size, turn))
        try:
            while not turn.done():
                await asyncio.wait([turn], timeout=_EVERY)
                waiting()
        except BaseException:
            if turn.done():
                self._give(size)
            else:
                self._line.remove((size, turn))
                self._give(0)  # the next in line may fit where this one did not
            raise

    def _give(self, size: int) -> None:
        self._free += size
        while self._line and self._line[0][0] <= self._free:
            wanted, turn = self._line.popleft()
            self._free -= wanted
            turn.set_result(None)


class Room:
    """One part's share of a :class:`Budget`; ``size`` is what is held of it."""

    def __init__(self, budget: Budget, size: int, waiting: Callable[[], None]) -> None:
        self._budget = budget
        self._wanted = min(size, budget.total)
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
        await self._budget._take(self._wanted, self._waiting)
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
