"""The Celery application: ``celery -A worker.app worker``.

Celery delivers ids and hints; the engine does the work on its own loop. It runs in the process that
runs Celery tasks: the worker itself, or each child of the prefork pool.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import structlog
from celery import Celery, bootsteps, signals
from celery.utils import nodenames

from config import log_writer
from config import logging as log_config
from config.celery import celery_config
from config.environment import hide_bypassing_variables
from config.settings import environment, load_settings, unknown_settings
from worker import broker, memory, process, wiring
from worker.engine import Engine, Parts
from worker.errors import RegistryUnavailable, SettingsError
from worker.registry.records import DueSet

log = structlog.get_logger("harvester.app")

try:
    settings = load_settings()
except SettingsError as error:
    sys.stderr.write(f"{error}\n")
    raise SystemExit(2) from None

log_config.configure(settings, background=True)
for warning in unknown_settings(environment()):
    log.warning("settings.unknown", message=warning)
hide_bypassing_variables()
process.heed_signals()

memory.give_back()
broker.install()
app = Celery("harvester", amqp=broker.AMQP, include=["worker.tasks"])
app.conf.update(celery_config(settings))


@app.on_after_finalize.connect
def _only_ours(sender: Celery, **_: Any) -> None:
    broker.only_ours(sender)


_HINT_EVERY = 1.0


async def _build(wake: Callable[[DueSet], None]) -> Parts:
    parts = await wiring.build(settings, app, wake)
    broker.reports_to(parts.registry.reach)
    return parts


@cache
def engine() -> Engine:
    """The engine of this process, started at the first call."""
    started = Engine(
        _build,
        grace=settings.shutdown_grace,
        hint=_Hints().send,
        heartbeat=settings.heartbeat,
    )
    started.start()
    return started


class _Hints:
    """Tells other workers that this one cannot keep up; a lost hint costs them a tick."""

    def __init__(self) -> None:
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="hints")
        self._sent: dict[str, float] = {}

    def send(self, kind: DueSet) -> None:
        """Send ``harvester.<kind>``, at most once a second; never blocks.

        ``harvester.copy`` wakes both kinds of work with the bucket.
        """
        kind = DueSet.COPY if kind is DueSet.FETCH else kind
        now = time.monotonic()
        if now - self._sent.get(kind, -_HINT_EVERY) >= _HINT_EVERY:
            self._sent[kind] = now
            self._sender.submit(self._send, kind)

    @staticmethod
    def _send(kind: DueSet) -> None:
        try:
            app.send_task(f"harvester.{kind}", retry=False, expires=30)
        except Exception as error:
            log.info("hint.not_sent", kind=kind, error=type(error).__name__)


@signals.setup_logging.connect
def _logging(loglevel: int, **_: Any) -> None:
    # Celery's default is WARNING; the outcomes of tasks are logged at INFO
    level = logging.INFO if loglevel == logging.WARNING else loglevel
    log_config.configure(settings, level=level, background=True)


@signals.celeryd_init.connect
def _name(instance: Any, **_: Any) -> None:
    """Give workers of one host different names, unless ``--hostname`` does.

    Each has its own queue for remote control, which RabbitMQ gives to one connection only.
    """
    if instance.hostname == nodenames.default_nodename(None):
        instance.hostname = nodenames.default_nodename(f"celery-{process.name()}@")


@signals.worker_init.connect
def _check(**_: Any) -> None:
    try:
        process.raise_file_limit()
        asyncio.run(wiring.refuse_unfit_redis(settings))
    except SettingsError as error:
        log.critical("settings.unsafe", error=str(error))
        raise SystemExit(2) from None
    except RegistryUnavailable as error:
        log.warning("registry.unavailable", error=str(error))


class _StartEngine(bootsteps.StartStopStep):
    """Starts the engine after Celery's signal handlers.

    A SIGTERM before that ends the process at once, and its claims would last until their leases
    end.
    """

    def include_if(self, parent: Any) -> bool:
        return "prefork" not in str(parent.pool_cls)

    def start(self, parent: Any) -> None:
        engine()


app.steps["worker"].add(_StartEngine)


@signals.worker_process_init.connect
def _start_child(**_: Any) -> None:
    engine.cache_clear()
    engine()


@signals.worker_shutting_down.connect
def _stop(**_: Any) -> None:
    """SIGTERM: stop at once, without waiting for Celery's pool."""
    if engine.cache_info().currsize:
        engine().stop()
    watch = threading.Timer(settings.shutdown_grace, _give_up)
    watch.daemon = True
    watch.start()


def _give_up() -> None:
    log_writer.flush()
    os._exit(1)


@signals.worker_shutdown.connect
def _report(**_: Any) -> None:
    broker.report_kept()


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def _end(**_: Any) -> None:
    if engine.cache_info().currsize:
        engine().stop()
        engine().join(settings.shutdown_grace)
