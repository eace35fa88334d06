"""The clock of Redis as one worker hears it, compared with the worker's own monotonic clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

STEP = 2.0
"""Seconds by which the two may differ before the difference counts as a step."""

SETTLED = 60.0
"""Seconds for which they must have agreed before anything is ended because of its age."""


class Clock:
    """Readings of Redis time.

    Whether a clock is right cannot be known; whether it has stepped can: then it no longer moves
    on as ``monotonic`` (in seconds) does. A disagreement, be it a step, a suspended machine or a
    process that was stopped between two readings, starts the ``settled`` seconds again.
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
        """Milliseconds by which the clock has stepped and nobody has repaired yet."""

    def begin(self) -> float:
        """The moment before Redis is asked, for :meth:`heard`."""
        return self._monotonic()

    def heard(self, now: int, begun: float) -> None:
        """Take in Redis time (Unix ms) from the answer to a call that began at ``begun``.

        An answer that took long proves nothing. It is left out; if the clock was not as expected
        before, it is no longer known.
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
        """Whether the two are known to have agreed for long enough."""
        return self._offset is not None and self._monotonic() - self._agrees_since >= self._settled

    @property
    def steady(self) -> bool:
        """Whether no disagreement is known from the last ``settled`` seconds."""
        return not self._disturbed or self.settled
