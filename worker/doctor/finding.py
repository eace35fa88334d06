"""What a check found, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from worker.core.figures import span
from worker.core.redact import one_line

SHOWN = 5
"""The most findings of one kind that are shown, since one cause makes many."""
_SKEW = 60.0  # seconds that a clock may be off without a warning
_MAX_SKEW = 900.0  # signatures are refused beyond it


class Level(StrEnum):
    """How a check went, from the best to the worst.

    ``unreachable``: a service does not answer; ``wrong``: anything else.
    """

    GOOD = "good"
    WARNING = "warning"
    WRONG = "wrong"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found, and what to do about it."""

    name: str
    level: Level = Level.GOOD
    detail: str
    remedy: str = ""


Findings = Sequence[Finding]


def worst(findings: Findings) -> Level:
    """The worst level of all."""
    return max((f.level for f in findings), key=list(Level).index, default=Level.GOOD)


def document(findings: Findings) -> dict[str, Any]:
    """The findings as a JSON object."""
    well = worst(findings) in {Level.GOOD, Level.WARNING}
    return {"ok": well, "checks": [asdict(finding) for finding in findings]}


def bad(name: str, level: Level, detail: str, remedy: str) -> Finding:
    """A finding whose detail may contain untrusted text."""
    return Finding(name=name, level=level, detail=one_line(detail), remedy=remedy)


def clock(name: str, skew: float, whose: str) -> Finding:
    """A finding about a clock; ``skew`` is how many seconds it is ahead of this machine's."""
    if abs(skew) <= _SKEW:
        return Finding(name=name, detail="agrees with this machine's")
    way = "behind" if skew > 0 else "ahead of"
    return Finding(
        name=name,
        level=Level.WRONG if abs(skew) > _MAX_SKEW else Level.WARNING,
        detail=f"this machine's clock is {span(abs(skew))} {way} {whose}",
        remedy="Let NTP set the clocks.",
    )


def count(number: int, noun: str) -> str:
    """``2 tasks``; nothing for 0."""
    return f"{number} {noun}{'s' if number > 1 else ''}" if number else ""
