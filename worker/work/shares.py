"""How the hosts of files and webhooks share a process' slots, and which hosts are slow."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LINGERS = 3.0
"""Seconds after which a job counts as one that takes long."""

FLOOR = 64 * 1024
"""Bytes a second that a host should send."""

FLOOR_SECONDS = 60.0
"""The seconds over which that is measured; doubled each time that a file has made room."""

FEW = 4
"""Concurrent calls to a target that has not answered promptly yet."""

_KNOWN = 1000
_MOST_DOUBLINGS = 3
_WEIGHT = 3  # slots that a host may hold for each free one


def crowd_wait(least: float, others: int, *, each: float) -> float:
    """Seconds until a task whose host has its share is due again: ``each`` for each of ``others``.

    ``others`` counts the tasks that wait for a slot; ``least`` is the shortest wait.
    """
    return max(least, each * others)


class Shares:
    """The shares of hosts in a process' slots.

    A host with jobs that take long may hold three of ``slots`` for each free one: three quarters if
    it is alone, three sevenths if there is another one. So a new host always finds a free slot.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._jobs: dict[str, list[float]] = {}

    def fits(self, host: str) -> bool:
        """Whether a host may have one more slot."""
        begun = self._jobs.get(host)
        if not begun or begun[0] > asyncio.get_running_loop().time() - LINGERS:
            return True
        free = self._slots - sum(map(len, self._jobs.values()))
        return len(begun) < _WEIGHT * (free - 1)

    @contextlib.contextmanager
    def taken(self, host: str) -> Iterator[None]:
        """Hold a slot for a host."""
        began = asyncio.get_running_loop().time()
        self._jobs.setdefault(host, []).append(began)
        try:
            yield
        finally:
            self._jobs[host].remove(began)
            if not self._jobs[host]:
                del self._jobs[host]


class Lanes:
    """The number of concurrent calls for each target: a few, and more once it answers promptly.

    A prompt target may use all ``slots``. The others share three quarters of them, whatever their
    number, and ``reserve`` more for calls that have taken long.
    """

    def __init__(self, slots: int, reserve: int) -> None:
        self._slots = slots
        self._strangers = max(1, slots * 3 // 4)
        self._reserve = reserve
        self._calls: dict[str, list[float]] = {}
        self._prompt: dict[str, int] = {}

    def fits(self, target: str) -> bool:
        """Whether a target may have one more call."""
        mine = len(self._calls.get(target, ()))
        if target in self._prompt:
            return mine < self._prompt[target]
        lately = asyncio.get_running_loop().time() - LINGERS
        strange = [
            at for each, calls in self._calls.items() if each not in self._prompt for at in calls
        ]
        fresh = sum(at > lately for at in strange)
        return (
            mine < FEW
            and fresh < self._strangers
            and len(strange) < self._strangers + self._reserve
        )

    @contextlib.contextmanager
    def taken(self, target: str) -> Iterator[None]:
        """Hold a slot during a call to a target, and learn from how long it takes."""
        began = asyncio.get_running_loop().time()
        self._calls.setdefault(target, []).append(began)
        ended = False
        try:
            yield
            ended = True
        finally:
            self._calls[target].remove(began)
            if not self._calls[target]:
                del self._calls[target]
            if ended:  # an interrupted call says nothing about its target
                self._learn(target, began)

    def _learn(self, target: str, began: float) -> None:
        prompt = asyncio.get_running_loop().time() - began < LINGERS
        allowed = self._prompt.pop(target, FEW)
        allowed = min(self._slots, 2 * allowed) if prompt else allowed // 2
        if prompt or allowed >= FEW:  # one slow answer does not demote a host
            self._prompt[target] = allowed
        if len(self._prompt) > _KNOWN:
            del self._prompt[next(iter(self._prompt))]


class Speed:
    """How fast a host sends while a transfer waits for it; ``doublings`` extend the window."""

    def __init__(self, doublings: int = 0) -> None:
        self._window = FLOOR_SECONDS * 2 ** min(doublings, _MOST_DOUBLINGS)
        self._bytes = 0
        self._seconds = 0.0
        self._begun: float | None = None

    def reading(self, now: bool) -> None:
        """Note whether the transfer waits for the host from now on."""
        time = asyncio.get_running_loop().time()
        if self._begun is not None:
            self._seconds += time - self._begun
        self._begun = time if now else None

    def arrived(self, count: int) -> None:
        """Note that ``count`` bytes have come from the host."""
        self._bytes += count

    @property
    def slow(self) -> bool:
        """Whether the host was slower than the floor in the last window; starts a new window."""
        if self._begun is None:
            return False
        self.reading(True)
        if self._seconds < self._window:
            return False
        slow = self._bytes < FLOOR * self._seconds
        self._bytes, self._seconds = 0, 0.0
        return slow
