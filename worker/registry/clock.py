"""The clock of Redis as one worker reads it, compared with the worker's monotonic clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

STEP = 2.0
"""Seconds; a larger difference between the clocks counts as a step."""

SETTLED = 60.0
"""Seconds for which the clocks must have agreed before a task may end because of its age."""


class Clock:
    """Readings of Redis time.

    A worker cannot know whether the clock is right, but it can see whether the clock has stepped:
    then it no longer advances like ``monotonic`` (in seconds). Any disagreement restarts the
    ``settled`` seconds: a step, a suspended machine, or a process that was stopped between two
    readings.
    """

    def __init__(
        self, *, settled: float = SETTLED, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settled = settled
        self._monotonic = monotonic
        self._offset: float | None = None
        self._anchor = 0.0
        self._anchored_at = 0.0
        self._agrees_since = 0.0
        self._disturbed = False
        self.stepped = 0
        """Milliseconds by which the clock has stepped, not repaired yet."""

    def begin(self) -> float:
        """The time before a call to Redis, for :meth:`heard`."""
        return self._monotonic()

    def heard(self, now: int, begun: float) -> None:
        """Process Redis time (Unix ms) from the answer to a call that began at ``begun``.

        A slow answer proves nothing and is ignored; but if it is far from the expected time, that
        expectation is dropped.
        """
        ended = self._monotonic()
        if ended - begun > STEP / 2:
            expected = self.expected()
            if expected is not None and abs(now - expected) > 1000 * (STEP + ended - begun):
                self._offset, self._disturbed = None, True
            return
        before, offset = self._offset, now / 1000 - (begun + ended) / 2
        self._offset = offset
        if before is None or abs(offset - self._anchor) > STEP:
            self._disturbed = self._disturbed or before is not None
            self._anchor, self._anchored_at, self._agrees_since = offset, ended, ended
        elif ended - self._anchored_at > SETTLED:  # clocks may drift
            self._anchor, self._anchored_at = offset, ended
        if before is not None and abs(offset - before) > STEP:
            self.stepped += round((offset - before) * 1000)

    def expected(self) -> int | None:
        """Redis time (Unix ms) by the last reading; ``None`` before the first."""
        return None if self._offset is None else round((self._monotonic() + self._offset) * 1000)

    @property
    def settled(self) -> bool:
        """Whether the clocks are known to have agreed for long enough."""
        return self._offset is not None and self._monotonic() - self._agrees_since >= self._settled

    @property
    def steady(self) -> bool:
        """Whether no disagreement was seen in the last ``settled`` seconds."""
        return not self._disturbed or self.settled
