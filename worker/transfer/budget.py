"""The memory that a process uses for bytes of files."""

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

_EVERY = 5.0  # seconds between two calls of `waiting`
_USUAL_LIFE = 3600.0  # seconds that an address lives if it does not say

_QUICK = 10.0  # seconds within which a healthy host fills its room
_HOSTS = 1000  # with a known pace


@dataclass(slots=True, eq=False)
class _Waiting:
    """One waiter and the number of bytes it wants; served by rank, then by number."""

    host: str
    rank: float
    number: int
    size: int
    turn: asyncio.Future[None] = field(default_factory=asyncio.Future)


class Budget:
    """A fair semaphore that counts bytes.

    Waiters queue in one of two lines, which take turns: new files, soonest expiry first, and
    running files, in the order of their requests. So many small files do not hold up a huge one,
    nor huge files the small ones. In each line, files of the host that holds the least go first.

    A host that is not known to fill its room within seconds gets at most as much as it leaves free:
    half if it is alone, then a third, a quarter… So a slow host always leaves room for a later one.

    A waiter must not hold room meanwhile, so that room for one part is enough for all to continue.
    A request for more than the total gets the total.
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
        """The bytes in use now."""
        return self.total - self._free

    @property
    def waited_for(self) -> bool:
        """Whether a request is waiting."""
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

        ``host`` is the file's; an empty one is only bounded by the total. ``expires`` is when the
        file's address expires, in Unix seconds; an hour from now if unknown. It does not matter if
        the file has ``begun``. ``waiting`` is called every few seconds while the request waits.
        """
        return Room(self, size, host=host, expires=expires, begun=begun, waiting=waiting)

    def _fits(self, host: str, size: int) -> bool:
        """Whether a host's share allows so many bytes more."""
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
                self._give(host, 0)  # the next in line may fit now
            raise

    def _first(self) -> tuple[int, _Waiting] | None:
        """The next waiter and its line, even if too little is free."""
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
    """One part's share of a :class:`Budget`; ``size`` is the number of bytes held."""

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
        """Wait in line for the wanted bytes."""
        await self._budget._take(
            self._host, self._wanted, self._expires, self._begun, self._waiting
        )
        self._taken()

    def acquire_now(self) -> bool:
        """Take the wanted bytes if they are free and nobody waits; returns whether it did."""
        if not self._budget._take_now(self._host, self._wanted):
            return False
        self._taken()
        return True

    def _taken(self) -> None:
        self.size = self._wanted
        self._taken_at = time.monotonic()

    def filled(self) -> None:
        """Note that the file's host has filled the room; later delays are not the host's."""
        if self._taken_at is not None:
            quick = time.monotonic() - self._taken_at <= _QUICK
            self._budget._judge(self._host, quick=quick)
            self._taken_at = None

    def another(self, size: int) -> Room:
        """Room for another part of the same file, which counts as begun."""
        return Room(
            self._budget,
            size,
            host=self._host,
            expires=None,
            begun=True,
            waiting=self._waiting,
        )

    async def again(self, size: int) -> None:
        """Release everything, which must no longer be used, and wait for ``size`` bytes."""
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
        """Release everything; safe to call twice."""
        if self._taken_at is not None and time.monotonic() - self._taken_at > _QUICK:
            self._budget._judge(self._host, quick=False)
        self._taken_at = None
        self.shrink(0)
