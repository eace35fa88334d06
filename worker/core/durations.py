"""How long tasks of one label take, as a small histogram, and when it is worth asking next.

Asking costs a call; not asking costs waiting after a task is done. The rule of optimum inspection
(Barlow, Hunter, Proschan 1963) balances both: ask again once the lag to be expected has reached the
price of a call. At a constant hazard ``h`` that is a gap of ``sqrt(2 * price / h)``.

Pure functions of values. All times are seconds.
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
# The rule that needs no history counts as much as this many durations.
_PRIOR = 0.3


def bucket(seconds: float) -> int:
    """The bucket of a duration; what is shorter or longer than all is in the first or last."""
    if not seconds > _FIRST:
        return 0
    place = math.log2(min(seconds, 2.0**40) / _FIRST) * _AN_OCTAVE
    return min(BUCKETS - 1, int(place))


def floor(number: int) -> float:
    """The shortest duration in a bucket."""
    return 0.0 if number <= 0 else _FIRST * 2.0 ** (number / _AN_OCTAVE)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Weights by bucket; a weight of 1 is one duration as fresh as can be."""

    weights: Mapping[int, float]

    @property
    def total(self) -> float:
        """How many durations this is worth."""
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
        """The wait before asking about a task that is not done at ``age``; up to ``longest``.

        ``price`` is what a call may cost in seconds of lag. ``unknown`` gives the gap at an age
        without any history: it counts as a few more durations, so that a task which outlives all
        the others is polled as if nothing were known.
        """
        at_risk = sum(w for n, w in self.weights.items() if floor(n + 1) > age)
        passed, hazard_so_far, lag = 0.0, 0.0, 0.0
        now = max(0.0, age)
        number = bucket(now)
        while passed < longest:
            end = floor(number + 1) if number < BUCKETS - 1 else math.inf
            if end <= now:  # the rounding of a logarithm
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
    """What is known of a label: from submission to the end, in the queue, and running."""

    total: Histogram
    queued: Histogram
    running: Histogram


def from_fields(fields: Mapping[str, str], *, unit: float) -> Durations:
    """Read histograms kept as ``name:bucket`` → weight; ``unit`` is the weight of one duration."""
    kept: dict[str, dict[int, float]] = {"total": {}, "queued": {}, "running": {}}
    for field, weight in fields.items():
        name, _, number = field.partition(":")
        if name in kept and number.isdecimal():
            kept[name][int(number)] = int(weight) / unit
    return Durations(**{name: Histogram(weights) for name, weights in kept.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What one finished task teaches: histogram fields to count, and how late it was seen done."""

    fields: tuple[str, ...]
    lag: float


def to_learn(
    *, asked_from: float, seen_at: float, now: float, began: float | None, ended: float | None
) -> Lesson:
    """What a task found done at ``now`` teaches.

    ``began`` and ``ended`` are the upstream's, on its clock, if it told; the others are ours. The
    task was not done at ``seen_at``, the look before: this bounds what a clock that is off can do.
    """
    end = (seen_at + now) / 2 if ended is None else min(max(ended, seen_at), now)
    fields = [f"total:{bucket(end - asked_from)}"]
    if began is not None and ended is not None and ended >= began:
        ran = ended - began
        fields += [f"running:{bucket(ran)}", f"queued:{bucket(end - ran - asked_from)}"]
    return Lesson(fields=tuple(fields), lag=now - end)
