"""How many bytes of files a process holds in memory at once."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_EVERY = 5.0  # seconds between two signs of life of one who waits
_USUAL_LIFE = 3600.0  # seconds that an address is taken to live which does not say

_QUICK = 10.0  # seconds within which a host that is well fills its room
_HOSTS = 1000  # whose pace is remembered


@dataclass(slots=True, eq=False)
class _Waiting:
    """One waiter and the bytes it wants; served by rank, then by number."""

    host: str
    rank: float
    number: int
    size: int
    turn: asyncio.Future[None] = field(default_factory=asyncio.Future)


class Budget:
    """A fair semaphore that counts bytes.

    Waiters queue in one of two lines, which are served in turns: new files, soonest expiry first,
    and running files, in the order they asked. So many small files do not hold up a huge one, nor
    huge files the small ones. In each line, files of the host that holds the least go first.

    A host that was not seen to fill its room within seconds gets no more than what is left for
    others: half if it is alone, then a third, a quarter… So a host that is slow, whatever it holds,
    leaves room for one that comes later.

    A waiter may not hold room meanwhile, so that one part's room is enough for all to continue. A
    request for more than the total gets all of it.
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
        self._held: Counter[str] = Counter()
        self._quick: dict[str, bool] = {}

    @property
    def used(self) -> int:
        """Bytes given out now."""
        return self.total - self._free

    @property
    def waited_for(self) -> bool:
        """Whether anybody is waiting."""
        return any(self._lines)

    def room(
        self,
        size: int,
        *,
        host: str = "",
        expires: float | None = None,
        begun: bool = False,
        waiting: Callable[[], None] = lambda: None,
    ) -> Room:
        """Room for ``size`` bytes, to be entered with ``async with``.

        ``host`` is the file's; one without a name is bound by nothing but the total. ``expires`` is
        when its address does, in Unix seconds: in an hour if that is not known. ``begun``: the file
        has been begun, so that this does not matter any more.
        ``waiting`` is called every few seconds while one waits in line.
        """
        return Room(self, size, host=host, expires=expires, begun=begun, waiting=waiting)

    def _fits(self, host: str, size: int) -> bool:
        """Whether a host may take so much of what is free now, or would be."""
        held = self._held[host]
        if not host or not held or self._quick.get(host, False):
            return True
        return held + size <= self._free - size

    def _take_now(self, host: str, size: int) -> bool:
        if size > self._free or not self._fits(host, size) or self._first() is not None:
            return False
        self._grant(host, size)
        return True

    def _grant(self, host: str, size: int) -> None:
        self._free -= size
        self._held[host] += size

    async def _take(
        self,
        host: str,
        size: int,
        expires: float | None,
        begun: bool,
        waiting: Callable[[], None],
    ) -> None:
        if self._take_now(host, size):
            return
        if expires is None:
            expires = self._clock() + _USUAL_LIFE
        entry = _Waiting(host, 0.0 if begun else expires, next(self._count), size)
        self._lines[begun].append(entry)
        try:
            while not entry.turn.done():
                await asyncio.wait([entry.turn], timeout=_EVERY)
                waiting()
        except BaseException:
            if entry.turn.done():
                self._give(host, size)
            else:
                self._lines[begun].remove(entry)
                self._give(host, 0)  # the next in line may fit where this one did not
            raise

    def _first(self) -> tuple[int, _Waiting] | None:
        """The next waiter and its line, however much is free."""
        for served in (self._next, 1 - self._next):
            allowed = [one for one in self._lines[served] if self._fits(one.host, one.size)]
            if allowed:
                return served, min(
                    allowed, key=lambda one: (self._held[one.host], one.rank, one.number)
                )
        return None

    def _give(self, host: str, size: int) -> None:
        self._free += size
        self._held[host] -= size
        if not self._held[host]:
            del self._held[host]
        while (first := self._first()) is not None:
            served, entry = first
            if entry.size > self._free:
                return
            self._lines[served].remove(entry)
            self._next = 1 - served
            self._grant(entry.host, entry.size)
            entry.turn.set_result(None)

    def _judge(self, host: str, *, quick: bool) -> None:
        self._quick.pop(host, None)
        self._quick[host] = quick
        if len(self._quick) > _HOSTS:
            del self._quick[next(iter(self._quick))]


class Room:
    """One part's share of a :class:`Budget`; ``size`` is what is held of it."""

    def __init__(
        self,
        budget: Budget,
        size: int,
        *,
        host: str,
        expires: float | None,
        begun: bool,
        waiting: Callable[[], None],
    ) -> None:
        self._budget = budget
        self._host = host
        self._wanted = min(size, budget.total)
        self._expires = expires
        self._begun = begun
        self._waiting = waiting
        self._taken_at: float | None = None
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
        """Wait in line for what is wanted."""
        await self._budget._take(
            self._host, self._wanted, self._expires, self._begun, self._waiting
        )
        self._taken()

    def acquire_now(self) -> bool:
        """Take what is wanted if it is free and nobody waits; returns whether it was."""
        if not self._budget._take_now(self._host, self._wanted):
            return False
        self._taken()
        return True

    def _taken(self) -> None:
        self.size = self._wanted
        self._taken_at = time.monotonic()

    def filled(self) -> None:
        """The file's host has sent what goes in; what comes now is not its doing."""
        if self._taken_at is not None:
            quick = time.monotonic() - self._taken_at <= _QUICK
            self._budget._judge(self._host, quick=quick)
            self._taken_at = None

    def another(self, size: int) -> Room:
        """Room for another part of the same file, which has begun."""
        return Room(
            self._budget,
            size,
            host=self._host,
            expires=None,
            begun=True,
            waiting=self._waiting,
        )

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
            self._budget._give(self._host, back)

    def release(self) -> None:
        """Give everything back; done already is well."""
        if self._taken_at is not None and time.monotonic() - self._taken_at > _QUICK:
            self._budget._judge(self._host, quick=False)
        self._taken_at = None
        self.shrink(0)
