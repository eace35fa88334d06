"""The whole fleet at one moment, at the same cost however many tasks there are.

Overdue tasks may wait in line for their label's turn; ``lua/claim.lua`` puts them there, and
explains the places.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from worker.core.models import State
from worker.core.services import Outlook, Service, hosts, judge
from worker.registry.client import kept
from worker.registry.records import DueSet, Line, Overview, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.registry.base import Base

CIRCUITS = ("upstream", "store")
"""The circuits that can be open."""
LOOKED_AT = 100
"""The number of labels of each due set, those whose turn is next, that are read."""
_LEAST = 1 / 64  # that throttling leaves of the rate, as in prelude.lua
_RECOVERY = 60  # seconds in which the full rate recovers, as in prelude.lua
_SHIFT = 120_000  # claim.lua


async def read_overview(registry: Base) -> Overview:
    """Read it, in two round trips; raises ``RegistryUnavailable``."""
    redis, key, begun = registry.redis, registry.key, registry.clock.begin()
    async with redis.pipeline(transaction=False) as pipe:
        pipe.set(key("said", "writes"), "1", px=60_000)  # whether Redis takes writes
        pipe.xlen(registry.intake.key)
        for name in ("services", "webhooks", "versions"):
            pipe.hgetall(key(name))
        pipe.time()
        for state in State:
            pipe.zcard(key("index", state))
        pipe.zrange(key("workers"), 0, -1, withscores=True)
        for name in ("counters", "clock", *(f"circuit:{name}" for name in CIRCUITS)):
            pipe.hgetall(key(name))
        pipe.hmget(key("rate"), "factor", "at")
        for kind in DueSet:
            pipe.zcard(key("due", kind))
            pipe.zrange(key("due", kind), 0, 0, withscores=True)
            pipe.hget(key("turn", kind), "waiting")
            pipe.zrange(key("turns", kind), 0, LOOKED_AT - 1)
        written, intake, *parts = await pipe.execute(raise_on_error=False)
    heard, failing, versions = (kept(answer) or {} for answer in parts[:3])
    answers = iter([_certain(answer) for answer in parts[3:]])
    now = registry.heard(next(answers), begun)
    counts = {state: int(next(answers)) for state in State}
    workers = {str(name): whole(score) for name, score in next(answers)}
    counters = {str(name): whole(value) for name, value in next(answers).items()}
    clock = next(answers)
    circuits = {name: fields for name in CIRCUITS if (fields := next(answers))}
    rate_factor = _rate_factor(*next(answers), now=now)
    sets = {kind: [next(answers) for _ in range(4)] for kind in DueSet}
    async with redis.pipeline(transaction=False) as pipe:
        for kind, (*_, labels) in sets.items():
            pipe.zcount(key("due", kind), "-inf", now)
            for label in labels:
                pipe.zcard(key("overdue", kind, label))
                pipe.zrange(key("overdue", kind, label), 0, 0, withscores=True)
        answers = iter(await pipe.execute())
    due: dict[DueSet, tuple[int, float]] = {}
    overdue: dict[DueSet, int] = {}
    lines: list[Line] = []
    for kind, (size, first, waiting, labels) in sets.items():
        # a task in line also becomes due by itself if no worker claims
        overdue[kind] = max(int(next(answers)), whole(waiting or 0))
        late = _seconds(now, whole(first[0][1])) if first else 0.0
        for label in labels:
            count, head = next(answers), next(answers)
            if head:
                waits = _seconds(now, _since(head[0][1]))
                lines.append(Line(kind=kind, label=str(label), count=int(count), late=waits))
                late = max(late, waits)
        due[kind] = int(size), late
    return Overview(
        now=now,
        counts=counts,
        due=due,
        overdue=overdue,
        workers=workers,
        counters=counters,
        rate=registry.poll_rate,
        rate_factor=rate_factor,
        circuits=circuits,
        clock=clock,
        lines=sorted(lines, key=lambda line: -line.count),
        services=_services(now, heard, circuits, written),
        hosts=hosts(failing, now),
        versions=versions,
        # another program may have overwritten it, and the right to read it is a new one
        intake=None if isinstance(intake, Exception) else int(intake),
    )


def _certain(answer: Any) -> Any:
    """An answer of a pipeline; raises the error that it is."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def _seconds(now: int, since: float) -> float:
    return max(0.0, (now - since) / 1000)


def _since(place: float) -> int:
    """When a task was due, from its place; the fraction is its priority, which shifts the place."""
    shifted = whole(place)
    rank = round((place - shifted) * 4) if math.isfinite(place) else 1
    return shifted - (rank - 1) * _SHIFT


def _rate_factor(factor: str | None, at: str | None, *, now: int) -> float:
    """The part of the rate that throttling leaves at ``now`` (ms)."""
    try:
        kept_factor = min(1.0, max(_LEAST, float(factor or "")))
    except ValueError:  # there is none, or another program has overwritten it
        return 1.0
    return min(1.0, kept_factor + max(0, now - whole(at or 0)) / 1000 / _RECOVERY)


def _services(
    now: int, heard: Mapping[str, str], circuits: Mapping[str, Mapping[str, str]], written: object
) -> dict[Service, Outlook]:
    """What is known of each service; of Redis, whether it has ``written`` now."""
    outlooks = judge(now, heard, circuits)
    redis = Outlook(service=Service.REDIS, last_success=now)
    if isinstance(written, Exception):
        last = outlooks[Service.REDIS].last_success  # a worker's write
        redis = Outlook(
            service=Service.REDIS,
            last_success=last,
            since=last or now,
            trouble=str(written),
            trouble_at=now,
        )
    return outlooks | {Service.REDIS: redis}
