"""How long tasks of one label take, as a small histogram, and when to poll next.

A poll costs a call; not polling costs lag after a task is done. The rule of optimum inspection
(Barlow, Hunter, Proschan 1963) balances both: poll again once the expected lag has reached the
price of a call. At a constant hazard ``h`` that is a gap of ``sqrt(2 * price / h)``.

No I/O. All times are seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Eight buckets an octave, from a quarter of a second to about 48 days.
_FIRST = 0.25
_AN_OCTAVE = 8
BUCKETS = 192
# The rule without history weighs as much as this many durations.
_PRIOR = 0.3


def bucket(seconds: float) -> int:
    """The bucket of a duration; the first and last hold all shorter and longer ones."""
    if not seconds > _FIRST:
        return 0
    place = math.log2(min(seconds, 2.0**40) / _FIRST) * _AN_OCTAVE
    return min(BUCKETS - 1, int(place))


def floor(number: int) -> float:
    """The shortest duration in a bucket."""
    return 0.0 if number <= 0 else _FIRST * 2.0 ** (number / _AN_OCTAVE)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Weights by bucket; a weight of 1 is one new duration."""

    weights: Mapping[int, float]

    @property
    def total(self) -> float:
        """The sum of all weights, in new durations."""
        return sum(self.weights.values())

    def quantile(self, share: float) -> float | None:
        """The duration that ``share`` (0 to 1) of the tasks do not exceed; ``None`` if empty."""
        rest = self.total * share
        for number in sorted(self.weights):
            weight = self.weights[number]
            if weight > 0 and rest <= weight:
                low, high = floor(number), floor(number + 1)
                return low + (high - low) * rest / weight
            rest -= weight
        return None

    def gap(
        self, age: float, *, price: float, unknown: Callable[[float], float], longest: float
    ) -> float:
        """The wait before polling a task that is not done at ``age``; at most ``longest``.

        ``price`` is what a call may cost in seconds of lag. ``unknown`` gives the gap at an age
        without any history. It weighs as much as a fraction of a duration, so that a task that
        outlives all others is polled as if nothing were known.
        """
        at_risk = sum(w for n, w in self.weights.items() if floor(n + 1) > age)
        passed, hazard_so_far, lag = 0.0, 0.0, 0.0
        now = max(0.0, age)
        number = bucket(now)
        while passed < longest:
            end = floor(number + 1) if number < BUCKETS - 1 else math.inf
            if end <= now:  # logarithms are rounded
                number += 1
                continue
            span = min(end - now, longest - passed)
            weight = self.weights.get(number, 0.0)
            width = floor(number + 1) - floor(number)
            prior = 2 * price / unknown(now) ** 2
            hazard = (weight / width + _PRIOR * prior) / (max(0.0, at_risk - weight / 2) + _PRIOR)
            grown = hazard_so_far * span + hazard * span * span / 2
            if lag + grown >= price:
                missing = price - lag
                root = math.sqrt(hazard_so_far**2 + 2 * hazard * missing)
                return min(longest, passed + 2 * missing / (hazard_so_far + root))
            lag += grown
            hazard_so_far += hazard * span
            passed += span
            at_risk -= weight
            now, number = end, number + 1
        return longest


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """The durations of a label: from submission to the end, in the queue, and running."""

    total: Histogram
    queued: Histogram
    running: Histogram


def from_fields(fields: Mapping[str, str], *, unit: float) -> Durations:
    """Read histograms kept as ``name:bucket`` → weight; ``unit`` is the weight of one duration."""
    kept: dict[str, dict[int, float]] = {"total": {}, "queued": {}, "running": {}}
    for field, weight in fields.items():
        name, _, number = field.partition(":")
        if name in kept and number.isdecimal() and weight.isdecimal():
            kept[name][int(number)] = int(weight) / unit
    return Durations(**{name: Histogram(weights) for name, weights in kept.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What one finished task adds: histogram fields to count, and the detection lag."""

    fields: tuple[str, ...]
    lag: float


def to_learn(
    *, asked_from: float, seen_at: float, now: float, began: float | None, ended: float | None
) -> Lesson:
    """What a task seen done at ``now`` adds to the history.

    ``began`` and ``ended`` are by the upstream's clock, if it gives them; the others by ours. The
    task was not done at ``seen_at``, the poll before: this bounds the effect of a wrong clock.
    """
    end = (seen_at + now) / 2 if ended is None else min(max(ended, seen_at), now)
    fields = [f"total:{bucket(end - asked_from)}"]
    if began is not None and ended is not None and ended >= began:
        ran = ended - began
        fields += [f"running:{bucket(ran)}", f"queued:{bucket(end - ran - asked_from)}"]
    return Lesson(fields=tuple(fields), lag=now - end)
