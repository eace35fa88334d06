"""The whole fleet at one moment, at a cost that does not depend on the number of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.core.models import State
from worker.core.services import Outlook, Service, hosts, judge
from worker.errors import RegistryUnavailable
from worker.registry.client import each_answer
from worker.registry.lines import read_lines
from worker.registry.records import DueSet, Overview, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.registry.base import Base

CIRCUITS = ("upstream", "store")
"""The circuits that can be open."""
_LEAST = 1 / 64  # that throttling leaves of the rate, as in prelude.lua
_RECOVERY = 60  # seconds in which the full rate recovers, as in prelude.lua


async def read_overview(registry: Base) -> Overview:
    """Read the overview; raises ``RegistryUnavailable``."""
    redis, key = registry.redis, registry.key
    now = await registry.now()
    async with redis.pipeline(transaction=False) as pipe:
        for state in State:
            pipe.zcard(key("index", state))
        for kind in DueSet:
            pipe.zcard(key("due", kind))
            pipe.zrange(key("due", kind), 0, 0, withscores=True)
            pipe.zcount(key("due", kind), "-inf", now)
        pipe.zrange(key("workers"), 0, -1, withscores=True)
        pipe.hgetall(key("counters"))
        for name in CIRCUITS:
            pipe.hgetall(key("circuit", name))
        pipe.hgetall(key("clock"))
        answers = iter(await pipe.execute())
    counts = {state: int(next(answers)) for state in State}
    lines = await read_lines(registry, now)
    due: dict[DueSet, tuple[int, float]] = {}
    overdue: dict[DueSet, int] = {}
    for kind in DueSet:
        size, first = next(answers), next(answers)
        # a task in line also becomes due by itself if no worker claims
        overdue[kind] = max(int(next(answers)), lines.waiting[kind])
        late = max(0.0, (now - whole(first[0][1])) / 1000) if first else 0.0
        due[kind] = int(size), max(late, lines.late(kind))
    workers = {str(name): whole(score) for name, score in next(answers)}
    counters = {str(name): whole(value) for name, value in next(answers).items()}
    circuits = {name: fields for name in CIRCUITS if (fields := next(answers))}
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(key("services"))
        pipe.hgetall(key("webhooks"))
        pipe.hgetall(key("versions"))
        services, failing, versions = await each_answer(pipe)
    return Overview(
        now=now,
        counts=counts,
        due=due,
        overdue=overdue,
        workers=workers,
        counters=counters,
        rate=registry.poll_rate,
        rate_factor=await _rate(registry, now) / registry.poll_rate,
        circuits=circuits,
        clock=next(answers),
        lines=lines.lines,
        services=await _services(registry, now, services or {}, circuits),
        hosts=hosts(failing or {}, now),
        versions=versions or {},
        intake=await registry.intake.length(),
    )


async def _rate(registry: Base, now: int) -> float:
    """The calls a second that throttling leaves at ``now`` (ms)."""
    fields: Any = await registry.redis.hmget(registry.key("rate"), "factor", "at")
    kept, at = fields
    try:
        factor = min(1.0, max(_LEAST, float(kept)))
    except (TypeError, ValueError):  # there is none, or another program has overwritten it
        return registry.poll_rate
    passed = max(0, now - whole(at or 0)) / 1000
    return registry.poll_rate * min(1.0, factor + passed / _RECOVERY)


async def _services(
    registry: Base,
    now: int,
    fields: Mapping[str, str],
    circuits: Mapping[str, Mapping[str, str]],
) -> dict[Service, Outlook]:
    outlooks = judge(now, fields, circuits)
    outlooks[Service.REDIS] = await _redis(registry, now, outlooks[Service.REDIS].last_success)
    return outlooks


async def _redis(registry: Base, now: int, written_at: int | None) -> Outlook:
    """Whether Redis accepts a write; ``written_at`` is when a worker last wrote."""
    try:
        await registry.redis.set(registry.key("said", "writes"), "1", px=60_000)
    except RegistryUnavailable as error:
        return Outlook(
            service=Service.REDIS,
            last_success=written_at,
            since=written_at or now,
            trouble=str(error),
            trouble_at=now,
        )
    return Outlook(service=Service.REDIS, last_success=now)
