"""What ``harvester doctor`` looks at. Every check has a deadline of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from celery import Celery
from rich.table import Table
from rich.text import Text

from config.celery import celery_config
from config.environment import shut_side_doors
from config.redis import unfit
from config.rules import BROKER_SCHEMES
from worker.cli import proxies
from worker.cli.base import FAILED, UNREACHABLE, moment, redis_hosts, span
from worker.core.models import NotFound, State
from worker.core.redact import one_line, strip_query
from worker.core.services import REMEDIES
from worker.errors import (
    RegistryUnavailable,
    RegistryUnfit,
    StoreBlocked,
    StoreError,
    StoreUnavailable,
    UpstreamBlocked,
    UpstreamRefused,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from worker.registry.client import outage
from worker.registry.stats import read_stats
from worker.transfer.capabilities import Seen
from worker.transfer.probe import probe
from worker.transfer.store import ObjectStore
from worker.wiring import make_gateway, make_registry, redis_fault, upstream_session
from worker.work.learning import keep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from config.settings import Settings
    from worker.core.services import Outlook
    from worker.registry.records import Overview
    from worker.registry.registry import Registry
    from worker.registry.stats import Stats
    from worker.transfer.capabilities import Facts
    from worker.transfer.probe import Capabilities

DEADLINE = 10.0
"""Seconds that one check may take."""

OLDEST_REDIS = (6, 2)
_CALL_SECONDS = int(DEADLINE) - 1
_SKEW = 60.0  # seconds a clock may be off before it is worth saying
_ASIDE = 180.0  # seconds: what is still wrong is set aside once a minute
_SHOWN = 5  # findings of a kind; one cause makes many
_MAX_SKEW = 900.0  # signatures are refused beyond it


class Level(StrEnum):
    """How a check went. ``unreachable``: a service does not answer; ``wrong``: anything else."""

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


async def examine(settings: Settings) -> list[Finding]:
    """Carry out every check; takes no longer than the slowest one's deadline."""
    registry = make_registry(settings)
    redis, upstream = redis_hosts(settings), strip_query(settings.speedpix_endpoint)
    try:
        groups = await asyncio.gather(
            _within("Redis", redis, _redis(registry, settings)),
            _within("Broker", _broker_hosts(settings), _broker(settings)),
            _within("Upstream", upstream, _upstream(settings, registry)),
            _within("Bucket", _bucket_place(settings), _bucket(settings, registry)),
            _within("Workers", redis, _workers(registry)),
        )
    finally:
        await registry.close()
    found = _agreed([finding for group in groups for finding in group])
    remark = proxies.remark(os.environ)
    return [
        replace(finding, remedy=f"{finding.remedy} {remark}".strip())
        if finding.level is Level.UNREACHABLE
        else finding
        for finding in found
    ]


def _agreed(findings: list[Finding]) -> list[Finding]:
    """The findings, none of which advises to correct what another one has just seen to work."""
    if not any(found.name == "Upstream" and found.level is Level.GOOD for found in findings):
        return findings
    disproved = {REMEDIES[kind] for kind in ("credentials", "clock", "request")}
    remedy = "The upstream answers this machine now; the fleet's next probe closes the circuit."
    return [
        replace(found, remedy=remedy)
        if found.name == "Circuit" and found.remedy in disproved
        else found
        for found in findings
    ]


def exit_code(findings: Findings) -> int:
    """3 if a service is out of reach, 1 if something else is wrong, else 0."""
    levels = {finding.level for finding in findings}
    if Level.UNREACHABLE in levels:
        return UNREACHABLE
    return FAILED if Level.WRONG in levels else 0


def document(findings: Findings) -> dict[str, Any]:
    """The findings as a JSON object."""
    return {"ok": exit_code(findings) == 0, "checks": [asdict(finding) for finding in findings]}


_MARKS = {
    Level.GOOD: ("✓", "green"),
    Level.WARNING: ("!", "yellow"),
    Level.WRONG: ("✗", "red"),
    Level.UNREACHABLE: ("✗", "red"),
}


def show(out: Console, findings: Findings) -> None:
    """Print the findings for people."""

    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.level]
        said = Text(finding.detail)
        if finding.remedy:
            said.append(f"\n→ {finding.remedy}", style)
        table.add_row(Text(mark, f"bold {style}"), Text(finding.name, "bold"), said)
    out.print(table)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    wrong = sum(finding.level in (Level.WRONG, Level.UNREACHABLE) for finding in findings)
    problems = _count(wrong, "problem"), _count(warnings, "warning")
    summary = " and ".join(filter(None, problems)) or "All is well."
    out.print(f"\n{summary}", style="red" if wrong else "yellow" if warnings else "green")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}" if number else ""


async def _within(name: str, where: str, check: Awaitable[Findings]) -> Findings:
    limit = asyncio.timeout(DEADLINE)
    try:
        async with limit:
            found = await check
        if not limit.expired():  # redis-py takes a cancellation for an error of its own at times
            return found
    except TimeoutError:
        pass
    except Exception as error:  # a check that breaks must not hide what the others found
        detail = one_line(f"{where}: {type(error).__name__}: {error}", 300)
        remedy = "Is something else answering there?"
        return [Finding(name=name, level=Level.WRONG, detail=detail, remedy=remedy)]
    detail = one_line(f"{where}: no answer within {DEADLINE:.0f} s")
    remedy = "Is it up, and may this machine reach it (firewall, network)?"
    return [Finding(name=name, level=Level.UNREACHABLE, detail=detail, remedy=remedy)]


# -- Redis ---------------------------------------------------------------------------------------


async def _redis(registry: Registry, settings: Settings) -> Findings:
    where = redis_hosts(settings)
    try:
        asked_at = time.time()
        now = await registry.now()
        info = await registry.info()
        saves = await _snapshot_rule(registry)
    except RegistryUnfit as error:
        remedy = "Correct REDIS_URL, or the access list of its user."
        return [Finding(name="Redis", level=Level.WRONG, detail=f"{where}: {error}", remedy=remedy)]
    except RegistryUnavailable as error:
        return [
            Finding(
                name="Redis",
                level=Level.UNREACHABLE,
                detail=f"{where}: {error}",
                remedy="Start it, or correct REDIS_URL.",
            )
        ]
    if info.get("cluster_enabled") == 1:
        detail, _, remedy = unfit(info).partition(". ")
        return [Finding(name="Redis", level=Level.WRONG, detail=detail, remedy=remedy)]
    return [
        Finding(name="Redis", detail=f"{where} answers"),
        *await _keys(registry),
        _version(info),
        _eviction(info),
        _persistence(info, saves),
        _clock("Redis clock", now / 1000 - asked_at, "Redis's"),
        *await _stream(registry),
    ]


async def _keys(registry: Registry) -> Findings:
    """What is wrong with single keys of the fleet, if anything is."""
    try:
        unusable = await registry.check()
        aside = await registry.set_aside(seconds=_ASIDE)
    except RegistryUnavailable as error:
        remedy = "Make room, or wait until Redis takes writes again."
        return [Finding(name="Keys", level=Level.WRONG, detail=str(error), remedy=remedy)]
    found = []
    for key, said in list(unusable.items())[:_SHOWN]:
        remedy = "Give the user of REDIS_URL this key; docs/security.md has the access list."
        if not said:
            remedy = f"Find out what did, then remove the key: redis-cli DEL {key}"
        detail = one_line(f"{key}: {said or 'something else than the fleet has written it'}", 200)
        found.append(Finding(name="Keys", level=Level.WRONG, detail=detail, remedy=remedy))
    if aside:
        shown = ", ".join(aside[:_SHOWN])
        detail = f"{_count(len(aside), 'task')} set aside, since a key has a wrong type: {shown}"
        remedy = (
            "Find out what overwrites harvester:task:ID or harvester:work:ID, remove that key "
            "and submit the id again."
        )
        found.append(Finding(name="Keys", level=Level.WRONG, detail=detail, remedy=remedy))
    return found


async def _stream(registry: Registry) -> Findings:
    """Whether the intake stream takes entries; nothing if it does."""
    key = registry.intake.key
    try:
        if not await registry.intake.is_closed():
            return []
    except RegistryUnavailable as error:
        detail = f"whether {key} takes entries is not known: {error}"
        remedy = "Allow the workers' Redis user +xinfo|stream."
        return [_bad("Intake stream", Level.WARNING, detail, remedy)]
    detail = f"{key} holds or held the highest id there is: XADD fails"
    remedy = (
        f"Workers make it again once it is read to its end. Without them, when empty: DEL {key}"
    )
    return [_bad("Intake stream", Level.WRONG, detail, remedy)]


async def _snapshot_rule(registry: Registry) -> str | None:
    """When snapshots are made, or ``None`` if the server does not say."""
    try:
        found: dict[Any, Any] = await registry.redis.config_get("save")
    except RegistryUnavailable:  # hosted servers hide their configuration
        return None
    saves = found.get("save")
    return None if saves is None else str(saves)


def _version(info: Mapping[str, Any]) -> Finding:
    text = str(info.get("redis_version", ""))
    server = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {text}"
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers >= OLDEST_REDIS:
        return Finding(name="Version", detail=server)
    oldest = ".".join(map(str, OLDEST_REDIS))
    return Finding(
        name="Version",
        level=Level.WRONG,
        detail=server,
        remedy=f"Redis {oldest} or newer is needed.",
    )


def _eviction(info: Mapping[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys-"):
        return Finding(
            name="Eviction",
            level=Level.WRONG,
            detail=f"{policy}: a full Redis throws unfinished tasks away",
            remedy="Set maxmemory-policy noeviction; workers do not start before.",
        )
    if policy.startswith("volatile-"):
        return Finding(name="Eviction", detail=f"{policy}: may cost finished records only")
    return Finding(name="Eviction", detail=policy or "not told by the server")


def _persistence(info: Mapping[str, Any], saves: str | None) -> Finding:
    if int(info.get("aof_enabled", 0)):
        return Finding(name="Persistence", detail="append-only file")
    remedy = "Set appendonly yes, so that a restart loses no task."
    if saves == "":
        detail = "none: a restart of Redis loses every task"
    elif saves is None:
        detail = "no append-only file; the server does not tell of snapshots"
    else:
        detail = f"snapshots only ({saves}): a crash loses what came after the last one"
    return Finding(name="Persistence", level=Level.WARNING, detail=detail, remedy=remedy)


def _clock(name: str, skew: float, whose: str) -> Finding:
    """``skew``: seconds by which the other clock is ahead of ours."""
    if abs(skew) <= _SKEW:
        return Finding(name=name, detail="agrees with this machine's")
    way = "behind" if skew > 0 else "ahead of"
    return Finding(
        name=name,
        level=Level.WRONG if abs(skew) > _MAX_SKEW else Level.WARNING,
        detail=f"this machine's clock is {span(abs(skew))} {way} {whose}",
        remedy="Let NTP set the clocks.",
    )


# -- broker --------------------------------------------------------------------------------------


async def _broker(settings: Settings) -> Findings:
    same = settings.celery_broker_url == settings.redis_url
    variable = "REDIS_URL" if same else "CELERY_BROKER_URL"
    shut_side_doors()
    problem = await _in_thread(lambda: _reach_broker(settings))
    if problem is None:
        if same:
            return [Finding(name="Broker", detail="the same Redis")]
        broker = settings.celery_broker_url
        if not broker.get_secret_value().startswith(BROKER_SCHEMES):
            try:
                fault = await redis_fault(settings.model_copy(update={"redis_url": broker}))
            except RegistryUnavailable:  # its user may not ask; it has answered
                fault = ""
            if fault:
                detail, _, remedy = fault.partition(". ")
                return [Finding(name="Broker", level=Level.WRONG, detail=detail, remedy=remedy)]
        return [Finding(name="Broker", detail="answers")]
    # of Redis and of RabbitMQ; kombu wraps them in an error of its own
    causes = [cause for cause in (problem, problem.__cause__) if isinstance(cause, Exception)]
    refused = any(
        type(cause).__name__ == "AccessRefused" or isinstance(outage(cause), RegistryUnfit)
        for cause in causes
    )
    return [
        Finding(
            name="Broker",
            level=Level.WRONG if refused else Level.UNREACHABLE,
            detail=one_line(f"{_broker_hosts(settings)}: {type(problem).__name__}: {problem}", 300),
            remedy=f"Correct {variable}." if refused else f"Start it, or correct {variable}.",
        )
    ]


def _broker_hosts(settings: Settings) -> str:
    """Hosts and ports of the broker, without credentials."""
    urls = settings.celery_broker_url.get_secret_value()
    if not urls.startswith(BROKER_SCHEMES):
        return redis_hosts(settings.model_copy(update={"redis_url": settings.celery_broker_url}))
    return ", ".join(urlsplit(url).netloc.rpartition("@")[2] for url in urls.split(";"))


def _reach_broker(settings: Settings) -> Exception | None:
    """Connect once; what went wrong, or ``None``."""
    app = Celery("doctor", set_as_current=False)
    app.conf.update(celery_config(settings))
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_CALL_SECONDS)
    except Exception as error:  # each transport has its own
        return error
    return None


async def _in_thread(work: Callable[[], Exception | None]) -> Exception | None:
    """Run blocking work on a thread that nobody waits for at exit."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Exception | None] = loop.create_future()

    def settle(outcome: Exception | None) -> None:
        if not result.done():
            result.set_result(outcome)

    def run() -> None:
        outcome = work()
        try:
            loop.call_soon_threadsafe(settle, outcome)
        except RuntimeError:
            return  # the loop has ended: the check was over time

    threading.Thread(target=run, daemon=True).start()
    return await result


# -- upstream ------------------------------------------------------------------------------------

_RECENTLY = 300.0  # seconds for which a usable answer to the fleet speaks for the endpoint


async def _upstream(settings: Settings, registry: Registry) -> Findings:
    where = strip_query(settings.speedpix_endpoint)
    made_up = f"doctor-{secrets.token_hex(10)}"
    async with upstream_session() as session:
        gateway = make_gateway(settings, session, timeout=_CALL_SECONDS)
        try:
            answer = await gateway.get_result(made_up)
        except UpstreamThrottled as error:
            remedy = "If this lasts, lower HARVESTER_POLL_RATE."
            found = [_bad("Upstream", Level.WARNING, f"{where} is throttling: {error}", remedy)]
        except UpstreamRefused as error:
            found = [await _refused(registry, where, error)]
        except UpstreamBlocked as error:
            remedy = REMEDIES[error.kind]
            found = [_bad("Upstream", Level.WRONG, f"{where}: {error}", remedy)]
        except UpstreamUnavailable as error:
            remedy = "Check SPEEDPIX_ENDPOINT and the network; the fleet waits until it is back."
            return [_bad("Upstream", Level.UNREACHABLE, f"{where}: {error}", remedy)]
        else:
            found = [Finding(name="Upstream", detail=f"{where} accepts the signature")]
            if not isinstance(answer.observation, NotFound):
                said = f"{where} answered strangely to a task id that does not exist"
                found = [_bad("Upstream", Level.WARNING, said, "Ask the vendor if tasks fail.")]
    if gateway.clock_skew is not None:
        found.append(_clock("Upstream clock", -gateway.clock_skew, "the upstream's"))
    return found


async def _refused(registry: Registry, where: str, error: UpstreamRefused) -> Finding:
    """What a refusal of one made-up id proves, which depends on what the fleet was answered."""
    try:
        ago = await registry.since_usable("upstream")
    except RegistryUnavailable:
        ago = None
    if ago is None or ago > _RECENTLY:
        remedy = REMEDIES[error.kind]
        return _bad("Upstream", Level.WRONG, f"{where}: {error}", remedy)
    detail = f"{where} refused an id that does not exist, and answered the fleet {span(ago)} ago: "
    remedy = "Nothing, unless tasks of your own are refused too (upstream.refused in the log)."
    return _bad("Upstream", Level.WARNING, detail + str(error), remedy)


def _bad(name: str, level: Level, detail: str, remedy: str) -> Finding:
    return Finding(name=name, level=level, detail=one_line(detail), remedy=remedy)


# -- bucket --------------------------------------------------------------------------------------

_CREDENTIALS = (
    "Check HARVESTER_BUCKET and the credentials (AWS_*); they need PutObject, GetObject and "
    "AbortMultipartUpload."
)
_STORE_REMEDIES = {
    "clock": "Let NTP set this machine's clock.",
    "region": "Set AWS_REGION to the region of the bucket.",
    "bucket": "Check HARVESTER_BUCKET and AWS_ENDPOINT_URL_S3.",
    "address": "Check AWS_ENDPOINT_URL_S3: what answers there takes no objects this way.",
    "options": "Correct HARVESTER_PUT_OPTIONS: without it the store takes the object.",
}
_PROBE_SECONDS = 0.6  # of the check's; what is left is for the remedy
_OTHER_SECONDS = 0.2


async def _bucket(settings: Settings, registry: Registry) -> Findings:
    where = f"s3://{settings.bucket}/{settings.prefix}"
    store = ObjectStore.from_settings(settings)
    try:
        seen = await probe(store, settings.prefix, seconds=_PROBE_SECONDS * DEADLINE)
        if not seen.facts.unknown:
            with contextlib.suppress(RegistryUnavailable, TimeoutError):
                async with asyncio.timeout(_OTHER_SECONDS * DEADLINE):
                    await keep(registry, store)
    except StoreUnavailable as error:
        remedy = "Check AWS_ENDPOINT_URL_S3 and the network."
        detail = f"{_bucket_place(settings)}: {error}"
        return [_bad("Bucket", Level.UNREACHABLE, detail, remedy)]
    except StoreError as error:
        about = error.about if isinstance(error, StoreBlocked) else ""
        remedy = _STORE_REMEDIES.get(about, _CREDENTIALS)
        if about in ("address", "bucket", "credentials"):
            remedy = await _other_address(settings) or remedy
        return [_bad("Bucket", Level.WRONG, f"{where}: {error}", remedy)]
    finally:
        await store.close()
    return _describe(where, seen)


def _bucket_place(settings: Settings) -> str:
    """The bucket, and the address of its store unless that is AWS."""
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    place = f"s3://{settings.bucket}/{settings.prefix}"
    return f"{place} at {strip_query(address)}" if address else place


async def _other_address(settings: Settings) -> str:
    """What to set if the store takes objects at the bucket's other address; empty if not."""
    for style in ("virtual", "path"):
        storage = style if settings.storage == "auto" else f"{settings.storage},{style}"
        store = ObjectStore.from_settings(settings.model_copy(update={"storage": storage}))
        try:
            await probe(store, settings.prefix, seconds=_OTHER_SECONDS * DEADLINE / 2)
        except StoreError:
            continue
        finally:
            await store.close()
        return f"Set HARVESTER_STORAGE={storage}."
    return ""


def _describe(where: str, seen: Capabilities) -> Findings:
    facts = seen.facts
    found = [
        Finding(
            name="Bucket",
            detail=f"{where} at {strip_query(seen.endpoint)}: an object goes in and comes back",
        ),
        Finding(name="Profile", detail=f"{seen.provider}, {seen.addressing} style"),
        _checksums(facts),
        _conditional(facts),
    ]
    if facts.listing is not Seen.HONOURED:
        detail = {
            Seen.REFUSED: "the store refuses to list open uploads",
            Seen.IGNORED: "the store's list lacks an upload that is open",
        }.get(facts.listing, "whether open uploads are listed was not seen")
        remedy = (
            "Grant ListBucketMultipartUploads if it is missing; otherwise have a lifecycle rule "
            "end what a killed worker leaves open."
        )
        found.append(_bad("Uploads", Level.WARNING, detail, remedy))
    if seen.clock_skew is not None:
        found.append(_clock("Bucket clock", seen.clock_skew, "the store's"))
    return found


def _checksums(facts: Facts) -> Finding:
    """What proves the bytes of each operation."""
    said, proven = [], True
    for name, sha256, md5 in (
        ("objects", facts.put_sha256, facts.put_md5),
        ("parts of large ones", facts.part_sha256, facts.part_md5),
    ):
        proof = "SHA-256" if sha256 is Seen.HONOURED else "Content-MD5"
        if Seen.HONOURED in (sha256, md5):
            said.append(f"{name}: a wrong {proof} is refused")
        else:
            proven = False
            not_seen = Seen.UNKNOWN in (sha256, md5)
            said.append(f"{name}: {'no check was seen' if not_seen else 'nothing is checked'}")
    detail = "; ".join(said)
    if proven:
        return Finding(name="Checksums", detail=detail)
    remedy = "Nothing has to be done: such files are read back, which costs their traffic again."
    return _bad("Checksums", Level.WARNING, detail, remedy)


def _conditional(facts: Facts) -> Finding:
    """Whether objects are written over, as far as was seen."""
    seen = {"small": facts.put_condition, "large": facts.complete_condition}
    kept = [name for name, each in seen.items() if each is Seen.HONOURED]
    if len(kept) == len(seen):
        return Finding(name="Conditional", detail="an object is never written over")
    said = [f"a {name} object is never written over" for name in kept]
    unseen = [name for name, each in seen.items() if each is Seen.UNKNOWN]
    said += [f"whether a {name} one is was not seen" for name in unseen]
    if others := [name for name in seen if name not in (*kept, *unseen)]:
        said.append(f"{' and '.join(others)} ones can be; leases alone keep writers apart")
    return Finding(name="Conditional", detail="; ".join(said))


# -- the fleet -----------------------------------------------------------------------------------


def _rate(found: Stats) -> Finding:
    """Whether the rate allows each waiting task its look in time."""
    detail = (
        f"{found.states[State.WAITING]:,} tasks wait; at {found.rate:g} calls a second each is "
        f"asked about in {found.once_round:.0f} s"
    )
    if not found.too_slow:
        return Finding(name="Rate", detail=detail)
    detail = "; ".join([detail, *found.too_slow])
    remedy = (
        "Raise HARVESTER_POLL_RATE if the upstream allows it: tasks are seen done that much later, "
        "and addresses of their files may die meanwhile."
    )
    return _bad("Rate", Level.WARNING, detail, remedy)


async def _workers(registry: Registry) -> Findings:
    try:
        fleet = await registry.overview()
        stats = await read_stats(registry)
    except RegistryUnavailable:
        detail = "not known without Redis"
        return [Finding(name="Workers", level=Level.WARNING, detail=detail)]
    found = [_ticking(fleet), _rate(stats)]
    if fleet.clock_step:
        remedy = "Have NTP slew the clock of its machine instead of stepping it."
        found.append(_bad("Redis clock", Level.WARNING, fleet.clock_step, remedy))
    for outlook in stats.outages:
        found.append(_outage(outlook, fleet.now))
    for host in fleet.hosts[:_SHOWN]:
        since = span((fleet.now - host.since) / 1000)
        detail = f"{host.host} accepts none for {since}: {host.trouble}"
        remedy = "Each is tried for three days; ask the owner of the host."
        found.append(_bad("Webhooks", Level.WARNING, detail, remedy))
    return found


def _outage(outlook: Outlook, now: int) -> Finding:
    """What the workers say of a service that does not answer them, or refuses every call."""
    if outlook.kind:
        detail = f"waiting for the {outlook.service}: {outlook.trouble}"
        return _bad("Circuit", Level.WRONG, detail, outlook.remedy)
    since = outlook.since or now
    detail = (
        f"the fleet has no usable answer from the {outlook.service} since {moment(since)}, for "
        f"{span((now - since) / 1000)}: {outlook.trouble}"
    )
    return _bad("Outage", Level.WRONG, detail, outlook.remedy)


def _ticking(fleet: Overview) -> Finding:
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
    return Finding(name="Workers", level=Level.WARNING, detail=detail, remedy=remedy)
