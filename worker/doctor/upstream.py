"""Checks that the upstream answers and accepts the app key."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from worker.core.figures import span
from worker.core.models import NotFound
from worker.core.redact import strip_query
from worker.core.services import REMEDIES
from worker.doctor import limits
from worker.doctor.finding import Finding, Level, bad, clock
from worker.errors import (
    RegistryUnavailable,
    UpstreamBlocked,
    UpstreamRefused,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from worker.wiring import make_gateway, upstream_session

if TYPE_CHECKING:
    from config.settings import Settings
    from worker.doctor.finding import Findings
    from worker.registry.registry import Registry

_RECENTLY = 300.0  # seconds for which a usable answer to the fleet proves the endpoint right


async def check(settings: Settings, registry: Registry) -> Findings:
    """Make one call about an id that does not exist."""
    where = strip_query(settings.speedpix_endpoint)
    made_up = f"doctor-{secrets.token_hex(10)}"
    async with upstream_session() as session:
        gateway = make_gateway(settings, session, timeout=limits.CALL_SECONDS)
        try:
            answer = await gateway.get_result(made_up)
        except UpstreamThrottled as error:
            remedy = "If this lasts, lower HARVESTER_POLL_RATE."
            findings = [bad("Upstream", Level.WARNING, f"{where} is throttling: {error}", remedy)]
        except UpstreamRefused as error:
            findings = [await _refused(registry, where, error)]
        except UpstreamBlocked as error:
            remedy = REMEDIES[error.kind]
            findings = [bad("Upstream", Level.WRONG, f"{where}: {error}", remedy)]
        except UpstreamUnavailable as error:
            remedy = "Check SPEEDPIX_ENDPOINT and the network; the fleet waits until it is back."
            return [bad("Upstream", Level.UNREACHABLE, f"{where}: {error}", remedy)]
        else:
            findings = [Finding(name="Upstream", detail=f"{where} accepts the signature")]
            if not isinstance(answer.observation, NotFound):
                said = f"{where} gave an unexpected answer about a task id that does not exist"
                findings = [bad("Upstream", Level.WARNING, said, "Ask the vendor if tasks fail.")]
    if gateway.clock_skew is not None:
        findings.append(clock("Upstream clock", -gateway.clock_skew, "the upstream's"))
    return findings


async def _refused(registry: Registry, where: str, error: UpstreamRefused) -> Finding:
    """What a refusal of one made-up id means, given the upstream's answers to the fleet."""
    try:
        ago = await registry.since_usable("upstream")
    except RegistryUnavailable:
        ago = None
    if ago is None or ago > _RECENTLY:
        remedy = REMEDIES[error.kind]
        return bad("Upstream", Level.WRONG, f"{where}: {error}", remedy)
    detail = f"{where} refused an id that does not exist, and answered the fleet {span(ago)} ago: "
    remedy = "Nothing, unless tasks of your own are refused too (upstream.refused in the log)."
    return bad("Upstream", Level.WARNING, detail + str(error), remedy)
