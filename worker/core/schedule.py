"""When to poll or retry next: pure functions of ages, counts and chance.

All times are seconds. ``chance`` is a number in [0, 1) from the caller's random source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.core.durations import Durations

SHORTEST = 1.0
LONGEST = 60.0
# Where durations are known, a call is due once the expected lag has reached this.
PRICE = 0.031
_DOUBLING = 2.0  # seconds behind at which gaps are twice as long
_FAR_BEHIND = 10.0
_SHORTEST_KNOWN = 0.5
_ENOUGH = 5.0


def poll_gap(
    *,
    age: float,
    expected: float | None,
    left: float,
    chance: float,
    known: Durations | None = None,
    running: float | None = None,
    price: float = PRICE,
) -> float:
    """The wait before the next poll of a task that is not done.

    Without a history the gap grows with the task's age (a tenth of it, from 1 s to 60 s), since a
    task that has run for an hour is seldom done within the next second. With an ``expected``
    duration ahead, the next poll comes when most of it has passed. Once a few durations of its
    label are ``known``, the next poll comes when a completion is likely enough to be worth a call;
    for a task that has been ``running`` for so many seconds, only the running times count. The gap
    is at most 60 s, and no poll is planned far past the deadline, which is ``left`` seconds away.
    """
    gap = max(_growing(age), 0.0 if expected is None else min((expected - age) * 0.9, LONGEST))
    if known is not None:
        history, since = known.total, age
        if running is not None and known.running.total >= _ENOUGH:
            history, since = known.running, running
        if history.total >= _ENOUGH:
            learned = history.gap(since, price=price, unknown=_growing, longest=LONGEST)
            gap = max(_SHORTEST_KNOWN, learned)
    if left > 0:
        gap = min(gap, max(SHORTEST, left + 0.5))
    return jittered(gap, chance)


def price(behind: float) -> float:
    """What a call may cost in seconds of lag, in a fleet that is so many seconds ``behind``.

    Gaps grow with the root of the price: by half for every second behind, up to six times at ten.
    It rises no further, so that labels without a history do not get all the calls.
    """
    late = min(max(0.0, behind), _FAR_BEHIND)
    return PRICE * (1 + late / _DOUBLING) ** 2


def _growing(age: float) -> float:
    return min(LONGEST, max(SHORTEST, age / 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits that double from ``first`` to ``longest`` seconds."""

    first: float = 1.0
    longest: float = 60.0

    def after(self, faults: int, *, chance: float) -> float:
        """The wait after the ``faults``-th fault in a row (from 1), with jitter."""
        seconds = min(self.longest, self.first * 2.0 ** min(max(0, faults - 1), 30))
        return jittered(seconds, chance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """Every wait between one try and the next, in seconds.

    ``upstream``: after a failed call. ``bare``: after a refusal that may concern every call or this
    id only. ``doubt``: after an unusable answer. ``blocked``: while a circuit is open; it decides
    itself when to send a probe. ``store``: after the store failed with a manifest. ``file`` and
    ``refused``: after a transfer failed, or the store refused the object. ``fresh``: before the
    first, second, third… fresh address of a file that is gone. ``rejected``: before a file that
    breaks a rule is tried again. ``crowded``: while the file host has its share of the slots.
    ``busy``: while the target of a callback has its share. ``unsettled``: until the clock can be
    trusted. ``newer``: until a newer worker takes a task that only it can read. ``webhook``: after
    each failed attempt of a callback; three days in all.
    """

    upstream: Backoff = Backoff(longest=30)
    bare: Backoff = Backoff(first=2, longest=60)
    doubt: Backoff = Backoff(first=2, longest=15)
    blocked: float = 1.0
    store: Backoff = Backoff(longest=60)
    file: Backoff = Backoff(longest=120)
    refused: Backoff = Backoff(first=2, longest=60)
    fresh: tuple[float, ...] = (0.0, 15.0, 30.0)
    rejected: float = 2.0
    crowded: float = 10.0
    busy: float = 1.0
    unsettled: float = 10.0
    newer: float = 5.0
    webhook: tuple[float, ...] = (
        5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 43200, 43200, 43200, 43200, 43200
    )  # fmt: skip

    @classmethod
    def none(cls) -> Gaps:
        """No wait at all, for tests."""
        never = Backoff(first=0, longest=0)
        return cls(
            upstream=never,
            bare=never,
            doubt=never,
            blocked=0,
            store=never,
            file=never,
            refused=never,
            fresh=(0.0, 0.0, 0.0),
            rejected=0,
            crowded=0,
            busy=0,
            unsettled=0,
            newer=0,
            webhook=(0.0,) * 14,
        )


def jittered(seconds: float, chance: float) -> float:
    """``seconds`` plus or minus up to a tenth, so that a fleet does not act in step."""
    return seconds * (0.9 + 0.2 * chance)


def webhook_gap(attempts: int, gaps: Gaps, *, chance: float) -> float | None:
    """The wait after the ``attempts``-th failed webhook (from 1), or ``None`` after the last."""
    fits = attempts <= len(gaps.webhook)
    return jittered(gaps.webhook[attempts - 1], chance) if fits else None


def copy_delay(expiry: float | None, now: float) -> float:
    """How much sooner a task is due (0 to -3,600 s) because its addresses expire.

    ``expiry`` and ``now`` are Unix seconds.
    """
    return 0.0 if expiry is None else max(-3600.0, min(0.0, expiry - now - 3600.0))
