"""Counts and measurements of one process, until a tick adds them to the fleet's in Redis.

Counting thus costs no round trip. A killed process loses its last counts; they are figures for
operators only.
"""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

HISTOGRAMS = MappingProxyType(
    {
        "poll_lag": _SECONDS,
        "detection_lag": _SECONDS,
        "copy": _SECONDS,
        "url_life_left": (0, 10, 60, 300, 900, 1800, 3600, 21_600, 86_400),
    }
)
"""Upper bounds of the buckets, in seconds; one more bucket holds the rest."""


def values(counters: Mapping[str, int], name: str) -> int:
    """The number of values in a histogram."""
    return sum(_counts(counters, name))


def _counts(counters: Mapping[str, int], name: str) -> list[int]:
    bounds = [f"{bound:g}" for bound in HISTOGRAMS[name]]
    return [counters.get(f"{name}:{bound}", 0) for bound in [*bounds, "inf"]]


def quantile(counters: Mapping[str, int], name: str, share: float) -> float | None:
    """The seconds that ``share`` (0 to 1) of a histogram's values do not exceed.

    ``None`` without any value; values beyond the last bound count as that bound.
    """
    counts = _counts(counters, name)
    rest, low = share * sum(counts), 0.0
    for count, bound in zip(counts, HISTOGRAMS[name], strict=False):
        if count and rest <= count:
            return low + (bound - low) * rest / count
        rest, low = rest - count, float(bound)
    return low if any(counts) else None


class Tally:
    """Counters by name, and histograms as counters ``<name>:<upper bound>`` and ``<name>:sum_ms``.

    All are whole numbers: the sum of a histogram is in milliseconds.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        self._counts[name] += by

    def observe(self, name: str, value: float) -> None:
        """Add a value, in seconds, to one of :data:`HISTOGRAMS`."""
        bound = next((bound for bound in HISTOGRAMS[name] if value <= bound), None)
        self.count(f"{name}:{'inf' if bound is None else f'{bound:g}'}")
        self.count(f"{name}:sum_ms", round(value * 1000))

    def take(self) -> dict[str, int]:
        """Return the counts, and reset them."""
        taken = dict(self._counts)
        self._counts.clear()
        return taken

    def put_back(self, counts: dict[str, int]) -> None:
        """Add counts back that could not be written."""
        self._counts.update(counts)
