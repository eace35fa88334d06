"""Overdue tasks that wait in line for their label's turn: their number, labels and delays.

``lua/claim.lua`` puts them in line, and explains their places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.registry.records import DueSet, Line, whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.registry.base import Base

LOOKED_AT = 100
"""The number of labels of each due set, those whose turn is next, that are read."""
_SHIFT = 120_000  # claim.lua


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """``waiting`` counts the tasks in line, by due set; ``lines`` has the longest one first."""

    waiting: Mapping[DueSet, int]
    lines: Sequence[Line]

    def late(self, kind: DueSet) -> float:
        """Seconds for which the first task of a due set has been in line; 0 if none is."""
        return max((line.late for line in self.lines if line.kind is kind), default=0.0)


async def read_lines(registry: Base, now: int) -> Lines:
    """Read the lines at ``now`` (Unix milliseconds), at a bounded cost."""
    redis, key = registry.redis, registry.key
    async with redis.pipeline(transaction=False) as pipe:
        for kind in DueSet:
            pipe.hget(key("turn", kind), "waiting")
            pipe.zrange(key("turns", kind), 0, LOOKED_AT - 1)
        answers: list[Any] = await pipe.execute()
    waiting = {kind: whole(count or 0) for kind, count in zip(DueSet, answers[::2], strict=True)}
    labels = [
        (kind, str(label))
        for kind, some in zip(DueSet, answers[1::2], strict=True)
        for label in some
    ]
    if not labels:
        return Lines(waiting=waiting, lines=())
    async with redis.pipeline(transaction=False) as pipe:
        for kind, label in labels:
            pipe.zcard(key("overdue", kind, label))
            pipe.zrange(key("overdue", kind, label), 0, 0, withscores=True)
        answers = await pipe.execute()
    lines = [
        Line(
            kind=kind, label=label, count=int(count), late=max(0, now - _since(first[0][1])) / 1000
        )
        for (kind, label), count, first in zip(labels, answers[::2], answers[1::2], strict=True)
        if first
    ]
    return Lines(waiting=waiting, lines=sorted(lines, key=lambda line: -line.count))


def _since(place: float) -> int:
    """When a task was due, from its place; the fraction is its priority, which shifts the place."""
    shifted = whole(place)
    rank = round((place - shifted) * 4) if math.isfinite(place) else 1
    return shifted - (rank - 1) * _SHIFT
