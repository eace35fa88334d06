"""Endings over time, counted in the index of each final state at a bounded cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.core.models import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.registry.view import View

SLOTS = 60
"""The number of equal spans; each costs one count for each final state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endings:
    """How many tasks ended in each of :data:`SLOTS` spans of ``step`` milliseconds.

    The first span begins at ``begin`` and the last one contains ``now``, both in Unix milliseconds
    of Redis. Only tasks that are still in the state count: a retried task has not ended until it
    ends again.
    """

    now: int
    begin: int
    step: int
    counts: Mapping[State, list[int]]


async def look(registry: View, minutes: int) -> Endings:
    """The endings of the last ``minutes``; raises ``RegistryUnavailable``."""
    now = await registry.now()
    step = minutes * 60_000 // SLOTS
    begin = (now // step + 1 - SLOTS) * step  # spans do not shift between two reads
    states = [state for state in State if state.final]
    async with registry.redis.pipeline(transaction=False) as pipe:
        for state in states:
            for start in range(begin, begin + SLOTS * step, step):
                pipe.zcount(registry.key("index", state), start, f"({start + step}")
        answers = iter(await pipe.execute())
    return Endings(
        now=now,
        begin=begin,
        step=step,
        counts={state: [int(next(answers)) for _ in range(SLOTS)] for state in states},
    )
