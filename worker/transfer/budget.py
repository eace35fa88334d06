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

    A file asks for one part's room, uses it up and gives it back before it asks again. It never
    holds room while it waits for more, so that one part's room is enough for all to go on. Who
    asks for more than there is gets all there is.
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

    async def _take(self, size: int, waiting: Callable[[], None]) -> int:
        size = min(size, self.total)
        if size <= self._free and not self._line:
            self._free -= size
            return size
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
        return size

    def _give(self, size: int) -> None:
        self._free += size
        while self._line and self._line[0][0] <= self._free:
            wanted, turn = self._line.popleft()
            self._free -= wanted
            turn.set_result(None)


class Room:
    """One file's share of a :class:`Budget`."""

    def __init__(self, budget: Budget, size: int, waiting: Callable[[], None]) -> None:
        self._budget = budget
        self._wanted = size
        self._waiting = waiting
        self.size = 0

    async def __aenter__(self) -> Self:
        self.size = await self._budget._take(self._wanted, self._waiting)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def shrink(self, size: int) -> None:
        """Keep no more than ``size`` bytes."""
        if size < self.size:
            back, self.size = self.size - size, size
            self._budget._give(back)

    async def again(self, size: int) -> None:
        """Give everything back and line up for ``size`` bytes; what was held must be let go of."""
        self._release()
        self.size = await self._budget._take(size, self._waiting)

    def _release(self) -> None:
        self.shrink(0)
