"""Checks that workers are alive, and reports what they know of the services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.core.figures import moment, span
from worker.core.models import State
from worker.doctor.finding import SHOWN, Finding, Level, bad
from worker.errors import RegistryUnavailable
from worker.registry.stats import read_stats

if TYPE_CHECKING:
    from worker.core.services import Outlook
    from worker.doctor.finding import Findings
    from worker.registry.records import Overview
    from worker.registry.registry import Registry
    from worker.registry.stats import Stats


async def check(registry: Registry) -> Findings:
    """Read the fleet once, and report its problems."""
    try:
        fleet = await registry.overview()
        stats = await read_stats(registry, fleet)
    except RegistryUnavailable:
        detail = "not known without Redis"
        return [Finding(name="Workers", level=Level.WARNING, detail=detail)]
    findings = [ticking(fleet), rate(stats)]
    if fleet.clock_step:
        remedy = "Have NTP slew the clock of its machine instead of stepping it."
        findings.append(bad("Redis clock", Level.WARNING, fleet.clock_step, remedy))
    for outlook in stats.outages:
        findings.append(_outage(outlook, fleet.now))
    for host in fleet.hosts[:SHOWN]:
        since = span((fleet.now - host.since) / 1000)
        detail = f"{host.host} has accepted none for {since}: {host.trouble}"
        remedy = "Each is tried for three days; ask the owner of the host."
        findings.append(bad("Webhooks", Level.WARNING, detail, remedy))
    return findings


def rate(stats: Stats) -> Finding:
    """Whether the rate lets each waiting task be polled in time."""
    detail = (
        f"{stats.states[State.WAITING]:,} tasks wait; at {stats.rate:g} calls a second each is "
        f"polled once in {stats.once_round:.0f} s"
    )
    if not stats.too_slow:
        return Finding(name="Rate", detail=detail)
    detail = "; ".join([detail, *stats.too_slow])
    remedy = (
        "Raise HARVESTER_POLL_RATE if the upstream allows it: completions are noticed that much "
        "later, and addresses of files may expire meanwhile."
    )
    return bad("Rate", Level.WARNING, detail, remedy)


def _outage(outlook: Outlook, now: int) -> Finding:
    if outlook.kind:
        detail = f"waiting for the {outlook.service}: {outlook.trouble}"
        return bad("Circuit", Level.WRONG, detail, outlook.remedy)
    since = outlook.since or now
    detail = (
        f"the fleet has had no usable answer from the {outlook.service} since {moment(since)}, for "
        f"{span((now - since) / 1000)}: {outlook.trouble}"
    )
    return bad("Outage", Level.WRONG, detail, outlook.remedy)


def ticking(fleet: Overview) -> Finding:
    """Whether any worker is alive."""
    latest = (fleet.now - max(fleet.workers.values(), default=0)) / 1000
    alive, silent = len(fleet.alive), len(fleet.workers) - len(fleet.alive)
    if alive:
        detail = f"{alive} alive, the last tick {max(0.0, latest):.1f} s ago"
        return Finding(name="Workers", detail=detail + (f"; {silent} silent" if silent else ""))
    if silent:
        detail = f"none alive; the last tick was {span(latest)} ago"
    else:
        detail = "none is running: tasks are accepted and wait"
    remedy = "Start one: harvester worker"
    return bad("Workers", Level.WARNING, detail, remedy)
