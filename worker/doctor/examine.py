"""All checks of ``harvester doctor``, each with its own deadline."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from worker.core.redact import one_line, strip_query
from worker.core.services import REMEDIES
from worker.doctor import broker, bucket, fleet, limits, proxies, redis, upstream
from worker.doctor.finding import Finding, Level
from worker.wiring import make_registry

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from config.settings import Settings
    from worker.doctor.finding import Findings


async def examine(settings: Settings) -> list[Finding]:
    """Run all checks concurrently; takes no longer than one deadline."""
    registry = make_registry(settings)
    redis_host = redis.where(settings.redis_url)
    try:
        groups = await asyncio.gather(
            _within("Redis", redis_host, redis.check(settings, registry)),
            _within("Broker", broker.where(settings), broker.check(settings)),
            _within(
                "Upstream",
                strip_query(settings.speedpix_endpoint),
                upstream.check(settings, registry),
            ),
            _within("Bucket", bucket.where(settings), bucket.check(settings, registry)),
            _within("Workers", redis_host, fleet.check(registry)),
        )
    finally:
        await registry.close()
    findings = _agreed([finding for group in groups for finding in group])
    remark = proxies.remark(os.environ)
    return [
        replace(finding, remedy=f"{finding.remedy} {remark}".strip())
        if finding.level is Level.UNREACHABLE
        else finding
        for finding in findings
    ]


def _agreed(findings: list[Finding]) -> list[Finding]:
    """The findings, without remedies for what another finding has just seen to work."""
    if not any(f.name == "Upstream" and f.level is Level.GOOD for f in findings):
        return findings
    disproved = {REMEDIES[kind] for kind in ("credentials", "clock", "request")}
    remedy = "The upstream answers this machine now; the fleet's next probe closes the circuit."
    return [
        replace(finding, remedy=remedy)
        if finding.name == "Circuit" and finding.remedy in disproved
        else finding
        for finding in findings
    ]


async def _within(name: str, where: str, check: Awaitable[Findings]) -> Findings:
    limit = asyncio.timeout(limits.DEADLINE)
    try:
        async with limit:
            findings = await check
        if not limit.expired():  # redis-py sometimes turns a cancellation into its own error
            return findings
    except TimeoutError:
        pass
    except Exception as error:  # a check that crashes must not hide the other findings
        detail = one_line(f"{where}: {type(error).__name__}: {error}", 300)
        remedy = "Is something else answering there?"
        return [Finding(name=name, level=Level.WRONG, detail=detail, remedy=remedy)]
    detail = one_line(f"{where}: no answer within {limits.DEADLINE:.0f} s")
    remedy = "Is it up, and may this machine reach it (firewall, network)?"
    return [Finding(name=name, level=Level.UNREACHABLE, detail=detail, remedy=remedy)]
