"""Checks that Redis can hold the records and loses none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from config.redis import RedisAddress, unfit
from worker.core.redact import one_line
from worker.doctor.finding import SHOWN, Finding, Level, bad, clock, count
from worker.errors import RegistryUnavailable, RegistryUnfit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from config.settings import Settings
    from worker.doctor.finding import Findings
    from worker.registry.registry import Registry

OLDEST_REDIS = (6, 2)
_ASIDE = 180.0  # seconds; tasks that are still wrong are set aside once a minute


def where(url: SecretStr) -> str:
    """Hosts and ports of an address, without credentials."""
    return RedisAddress.parse(url.get_secret_value()).where


async def check(settings: Settings, registry: Registry) -> Findings:
    """Check that the server answers, accepts writes, evicts nothing and survives a restart."""
    place = where(settings.redis_url)
    try:
        asked_at = time.time()
        now = await registry.now()
        info = await registry.info()
        saves = await _snapshot_rule(registry)
    except RegistryUnfit as error:
        remedy = "Correct REDIS_URL, or the access list of its user."
        return [bad("Redis", Level.WRONG, f"{place}: {error}", remedy)]
    except RegistryUnavailable as error:
        return [
            bad("Redis", Level.UNREACHABLE, f"{place}: {error}", "Start it, or correct REDIS_URL.")
        ]
    if info.get("cluster_enabled") == 1:
        detail, _, remedy = unfit(info).partition(". ")
        return [bad("Redis", Level.WRONG, detail, remedy)]
    return [
        Finding(name="Redis", detail=f"{place} answers"),
        *await _keys(registry),
        _version(info),
        _eviction(info),
        _persistence(info, saves),
        clock("Redis clock", now / 1000 - asked_at, "Redis's"),
        *await _stream(registry),
    ]


async def _keys(registry: Registry) -> Findings:
    try:
        unusable = await registry.check()
        aside = await registry.set_aside(seconds=_ASIDE)
    except RegistryUnavailable as error:
        remedy = "Make room, or wait until Redis takes writes again."
        return [bad("Keys", Level.WRONG, str(error), remedy)]
    findings = []
    for key, said in list(unusable.items())[:SHOWN]:
        remedy = "Give the user of REDIS_URL this key; docs/security.md has the access list."
        if not said:
            remedy = f"Find out what did, then remove the key: redis-cli DEL {key}"
        detail = one_line(f"{key}: {said or 'another program has written it'}", 200)
        findings.append(bad("Keys", Level.WRONG, detail, remedy))
    if aside:
        some = ", ".join(aside[:SHOWN])
        detail = f"{count(len(aside), 'task')} set aside, since a key has a wrong type: {some}"
        remedy = (
            "Find out what overwrites harvester:task:ID or harvester:work:ID, remove that key "
            "and submit the id again."
        )
        findings.append(bad("Keys", Level.WRONG, detail, remedy))
    return findings


async def _stream(registry: Registry) -> Findings:
    """A finding if the intake stream does not accept entries."""
    key = registry.intake.key
    try:
        if not await registry.intake.is_closed():
            return []
    except RegistryUnavailable as error:
        detail = f"it is unknown whether {key} accepts entries: {error}"
        remedy = "Allow the workers' Redis user +xinfo|stream."
        return [bad("Intake stream", Level.WARNING, detail, remedy)]
    detail = f"{key} has or had an entry with the highest possible id: XADD fails"
    remedy = (
        "Workers recreate it once it has been read to its end. Without workers, when it is empty: "
        f"DEL {key}"
    )
    return [bad("Intake stream", Level.WRONG, detail, remedy)]


async def _snapshot_rule(registry: Registry) -> str | None:
    """The rule for snapshots, or ``None`` if the server does not tell."""
    try:
        config: dict[Any, Any] = await registry.redis.config_get("save")
    except RegistryUnavailable:  # hosted servers hide their configuration
        return None
    saves = config.get("save")
    return None if saves is None else str(saves)


def _version(info: Mapping[str, Any]) -> Finding:
    text = str(info.get("redis_version", ""))
    server = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {text}"
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers >= OLDEST_REDIS:
        return Finding(name="Version", detail=server)
    oldest = ".".join(map(str, OLDEST_REDIS))
    return bad("Version", Level.WRONG, server, f"Redis {oldest} or newer is needed.")


def _eviction(info: Mapping[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys-"):
        return bad(
            "Eviction",
            Level.WRONG,
            f"{policy}: a full Redis evicts unfinished tasks",
            "Set maxmemory-policy noeviction; workers do not start until then.",
        )
    if policy.startswith("volatile-"):
        return Finding(name="Eviction", detail=f"{policy}: may only evict finished records")
    return Finding(name="Eviction", detail=policy or "the server does not say")


def _persistence(info: Mapping[str, Any], saves: str | None) -> Finding:
    if int(info.get("aof_enabled", 0)):
        return Finding(name="Persistence", detail="append-only file")
    remedy = "Set appendonly yes, so that a restart loses no task."
    if saves == "":
        detail = "none: a restart of Redis loses every task"
    elif saves is None:
        detail = "no append-only file; the server does not say whether it makes snapshots"
    else:
        detail = f"snapshots only ({saves}): a crash loses everything after the last one"
    return bad("Persistence", Level.WARNING, detail, remedy)
