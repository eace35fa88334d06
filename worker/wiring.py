"""Building the parts from the settings; the only module that builds adapters."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from config.redis import RedisAddress, unfit
from config.rules import BROKER_SCHEMES
from worker.core.layout import Layout
from worker.core.schedule import Gaps
from worker.core.submission import Policy
from worker.engine import Parts
from worker.errors import RegistryUnavailable, RegistryUnfit, SettingsError
from worker.http import connector, make_session
from worker.process import worker_name
from worker.registry.client import connect
from worker.registry.clock import Clock
from worker.registry.records import DueSet
from worker.registry.registry import Registry
from worker.telling.reply import CeleryReply
from worker.telling.webhook import Webhook
from worker.transfer.budget import Budget
from worker.transfer.copier import PART_BYTES, Copier
from worker.transfer.guard import Guard
from worker.transfer.source import Source
from worker.transfer.store import ObjectStore
from worker.transfer.wire import DEADLINE
from worker.upstream.gateway import Gateway
from worker.work.copy import CopyWork
from worker.work.endings import Endings
from worker.work.intake import Intake
from worker.work.learning import Learning
from worker.work.manifests import Manifests
from worker.work.poll import PollWork
from worker.work.tell import Channel, TellWork

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from pydantic import SecretStr

    from config.settings import Settings
    from worker.reach import Reach
    from worker.registry.client import Client

POLL_SLOTS = 384
LOOK_SLOTS = 16
COPY_SLOTS = 16
TELL_SLOTS = 16
TELL_RESERVE = 96  # a silent target holds a slot for 30 s, and is recognised after 3 s
_POLL_TIMEOUT = 30.0


async def build(settings: Settings, app: Celery, wake: Callable[[DueSet], None]) -> Parts:
    """Everything that runs on the loop; must be called on it, after any fork."""
    registry = make_registry(settings, owner=worker_name())
    upstream = upstream_session()
    gateway = make_gateway(settings, upstream, reach=registry.reach)
    files, source = make_source(settings)
    store = make_store(settings, reach=registry.reach)
    copier = Copier(
        source,
        store,
        Budget(settings.memory_budget),
        content_types=settings.content_types,
        put_options=settings.put_options,
    )
    channels: dict[str, Channel] = {"reply": CeleryReply(app)}
    learning = Learning(registry, store, prefix=settings.prefix)
    closing = [learning.close, files.close, upstream.close, store.close]
    if settings.webhook_secret is not None:
        guard = Guard(settings.webhook_hosts, settings.webhook_allow_private)
        hooks = guard.client()
        closing.append(hooks.aclose)
        channels["webhook"] = Webhook(hooks, guard, settings.webhook_secret.get_secret_value())

    async def close() -> None:
        for close_one in closing:
            await close_one()
        await registry.close()

    layout, gaps = make_layout(settings), Gaps(fresh=settings.fresh_address_gaps)
    endings = Endings(Manifests(store, layout), layout, wake=wake)

    def copying(kind: DueSet, slots: int) -> CopyWork:
        return CopyWork(
            registry,
            gateway,
            store,
            copier,
            endings,
            kind=kind,
            layout=layout,
            gaps=gaps,
            copy_deadline=settings.copy_deadline,
            grace=settings.unknown_task_grace,
            bound=_POLL_TIMEOUT,
            slots=slots,
            wake=wake,
        )

    return Parts(
        registry=registry,
        works=(
            PollWork(
                registry,
                gateway,
                gaps=gaps,
                grace=settings.unknown_task_grace,
                bound=_POLL_TIMEOUT,
                slots=POLL_SLOTS,
                wake=wake,
            ),
            copying(DueSet.COPY, LOOK_SLOTS),
            copying(DueSet.FETCH, copy_slots(settings.memory_budget)),
            TellWork(channels, slots=TELL_SLOTS, reserve=TELL_RESERVE, gaps=gaps),
        ),
        intake=Intake(registry, make_policy(settings), wake=wake),
        close=close,
    )


def make_gateway(
    settings: Settings,
    session: aiohttp.ClientSession,
    *,
    timeout: float = _POLL_TIMEOUT,
    reach: Reach | None = None,
) -> Gateway:
    """The upstream, over an :func:`upstream_session`; ``timeout`` in seconds bounds a call."""
    return Gateway(
        session,
        endpoint=settings.speedpix_endpoint,
        app_key=settings.speedpix_app_key,
        app_secret=settings.speedpix_app_secret.get_secret_value(),
        timeout=timeout,
        reach=reach,
    )


def make_source(settings: Settings) -> tuple[aiohttp.ClientSession, Source]:
    """The session and the source of files, behind the guard; must be called on the loop."""
    guard = Guard(settings.source_hosts, settings.source_allow_private, ports={443})
    session = guard.session()
    return session, Source(session, guard, max_file_bytes=settings.max_file_bytes)


def copy_slots(memory_budget: int) -> int:
    """The tasks that a process may copy at once: as many as parts fit into the budget."""
    return max(1, min(COPY_SLOTS, memory_budget // PART_BYTES))


def make_store(settings: Settings, *, reach: Reach | None = None) -> ObjectStore:
    """The bucket; credentials and endpoint come from boto3's chain."""
    return ObjectStore(
        settings.bucket,
        storage=settings.storage,
        presign_endpoint=settings.presign_endpoint or "",
        put_options=settings.put_options,
        deadline=min(DEADLINE, 0.75 * settings.lease),
        reach=reach,
    )


def make_redis(url: SecretStr) -> Client:
    """A client of the Redis at an address such as ``REDIS_URL``."""
    return connect(RedisAddress.parse(url.get_secret_value()))


def make_registry(settings: Settings, *, owner: str = "") -> Registry:
    """The registry alone: all that the commands need."""
    return Registry(
        make_redis(settings.redis_url),
        namespace=settings.namespace,
        lease=settings.lease,
        poll_rate=settings.poll_rate,
        deadline=settings.deadline,
        record_ttl=settings.record_ttl,
        events_maxlen=settings.events_maxlen,
        owner=owner,
        version=version("comfy-harvester"),
        clock=Clock(settled=settings.clock_settled),
    )


def make_policy(settings: Settings) -> Policy:
    """What submissions may ask for."""
    return Policy(
        reply_allow=settings.reply_allow,
        webhooks=settings.webhook_secret is not None,
        webhook_hosts=settings.webhook_hosts,
        namespace=settings.namespace,
        layout=make_layout(settings),
    )


def make_layout(settings: Settings) -> Layout:
    """Where objects go."""
    return Layout(
        bucket=settings.bucket,
        prefix=settings.prefix,
        manifest_prefix=settings.manifest_prefix,
        public_base=settings.public_base_url,
        upstream=urlsplit(settings.speedpix_endpoint).hostname or "",
    )


async def refuse_unfit_redis(settings: Settings) -> None:
    """Raise ``SettingsError`` if Redis, or a Redis broker, is unfit.

    A cluster is unfit, and so is a Redis that may evict unfinished records, or that refuses a key
    or command of the fleet. Raises ``RegistryUnavailable`` if Redis does not answer; Celery itself
    waits for a broker that does not.
    """
    try:
        fault = await redis_fault(settings.redis_url) or await _refused_key(settings)
    except RegistryUnfit as error:
        raise SettingsError(f"REDIS_URL: {error}") from error
    if fault:
        raise SettingsError(f"REDIS_URL: {fault}")
    broker = settings.celery_broker_url
    if broker == settings.redis_url or broker.get_secret_value().startswith(BROKER_SCHEMES):
        return
    try:
        fault = await redis_fault(broker)
    except RegistryUnavailable:
        return
    if fault:
        raise SettingsError(f"CELERY_BROKER_URL: {fault}")


async def redis_fault(url: SecretStr) -> str:
    """Why the server at an address cannot be used; empty if it can."""
    async with make_redis(url) as redis:
        return unfit(await redis.info())


async def _refused_key(settings: Settings) -> str:
    """The first key that the user of ``REDIS_URL`` may not use; empty if there is none.

    A key of another type does not stop the worker: ``harvester doctor`` names it.
    """
    registry = make_registry(settings)
    try:
        unusable = await registry.check()
    finally:
        await registry.close()
    return next((f"{key}: {said}" for key, said in unusable.items() if said), "")


def upstream_session() -> aiohttp.ClientSession:
    """A session for the configured upstream, at any address; must be called on the loop."""
    return make_session(connector)
