"""Checks that Celery's broker can be reached and used."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from celery import Celery

from config.celery import celery_config
from config.environment import hide_bypassing_variables
from config.rules import BROKER_SCHEMES
from worker.core.redact import one_line
from worker.doctor import limits, redis
from worker.doctor.finding import Finding, Level, bad
from worker.errors import RegistryUnavailable, RegistryUnfit
from worker.offload import Aside
from worker.registry.client import outage
from worker.wiring import redis_fault

if TYPE_CHECKING:
    from config.settings import Settings
    from worker.doctor.finding import Findings


async def check(settings: Settings) -> Findings:
    """Connect once, as a producer does."""
    same = settings.celery_broker_url == settings.redis_url
    variable = "REDIS_URL" if same else "CELERY_BROKER_URL"
    hide_bypassing_variables()
    problem: Exception | None = None
    try:
        await Aside(1).run(_connect, settings)
    except Exception as error:  # each transport has its own errors
        problem = error
    if problem is None:
        if same:
            return [Finding(name="Broker", detail="the same Redis")]
        broker = settings.celery_broker_url
        if not broker.get_secret_value().startswith(BROKER_SCHEMES):
            try:
                fault = await redis_fault(broker)
            except RegistryUnavailable:  # its user has no right to INFO, but it answers
                fault = ""
            if fault:
                detail, _, remedy = fault.partition(". ")
                return [bad("Broker", Level.WRONG, detail, remedy)]
        return [Finding(name="Broker", detail="answers")]
    # errors of Redis and of RabbitMQ, which kombu wraps in its own
    causes = [cause for cause in (problem, problem.__cause__) if isinstance(cause, Exception)]
    refused = any(
        type(cause).__name__ == "AccessRefused" or isinstance(outage(cause), RegistryUnfit)
        for cause in causes
    )
    return [
        bad(
            "Broker",
            Level.WRONG if refused else Level.UNREACHABLE,
            one_line(f"{where(settings)}: {type(problem).__name__}: {problem}", 300),
            f"Correct {variable}." if refused else f"Start it, or correct {variable}.",
        )
    ]


def where(settings: Settings) -> str:
    """Hosts and ports of the broker, without credentials."""
    urls = settings.celery_broker_url.get_secret_value()
    if not urls.startswith(BROKER_SCHEMES):
        return redis.where(settings.celery_broker_url)
    return ", ".join(urlsplit(url).netloc.rpartition("@")[2] for url in urls.split(";"))


def _connect(settings: Settings) -> None:
    app = Celery("doctor", set_as_current=False)
    app.conf.update(celery_config(settings))
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=limits.CALL_SECONDS)
