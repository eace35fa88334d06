"""The Celery tasks. ``harvester.submit`` and ``harvester.look`` carry ids; others wake drains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from celery.exceptions import Reject

from worker.app import app, engine
from worker.core.looks import read_ids
from worker.core.models import Refusal
from worker.engine import Parts
from worker.errors import RegistryUnavailable
from worker.registry.records import DueSet
from worker.work.claim import insist

log = structlog.get_logger("harvester.look")


@app.task(name="harvester.submit", typing=False)
def submit(
    args: list[Any] | None, options: dict[str, Any], refusals: Sequence[Refusal] = ()
) -> None:
    """Accept the ids of a message, as read by ``core/message.py``; keep refusals."""

    async def accept(parts: Parts) -> None:
        if refusals:
            await insist(lambda: parts.intake.refuse(refusals, source="celery"))
        if args is not None:
            task_ids, given = _called(args, options)
            await insist(lambda: parts.intake.submit(task_ids, given, source="celery"))

    try:
        engine().call(accept)
    except RegistryUnavailable as error:
        # back into the queue: only the message has these ids
        raise Reject(str(error), requeue=True) from error


def _called(args: list[Any], options: dict[str, Any]) -> tuple[object, dict[str, Any]]:
    if not args:
        return options.get("task_ids"), {k: v for k, v in options.items() if k != "task_ids"}
    return args[0] if len(args) == 1 else None, options


@app.task(name="harvester.look", typing=False)
def look(args: list[Any] | None, options: dict[str, Any], refusals: Sequence[Refusal] = ()) -> None:
    """Poll some tasks at once; a look is lost if Redis does not accept it."""
    ids, refused = read_ids(_called(args or [], options)[0])

    async def ask(parts: Parts) -> None:
        if ids:
            await parts.registry.look(ids)
        await parts.intake.refuse([*refusals, *refused], source="celery")

    try:
        engine().call(ask)
    except RegistryUnavailable as error:
        log.info("look.lost", ids=len(ids), error=str(error))
    else:
        engine().wake(DueSet.POLL)


@app.task(name="harvester.poll", typing=False)
def poll(*_: Any, **__: Any) -> None:
    """Wake the drain of polls."""
    engine().wake(DueSet.POLL)


@app.task(name="harvester.copy", typing=False)
def copy(*_: Any, **__: Any) -> None:
    """Wake the drains of work with the bucket."""
    engine().wake(DueSet.COPY)
    engine().wake(DueSet.FETCH)


@app.task(name="harvester.tell", typing=False)
def tell(*_: Any, **__: Any) -> None:
    """Wake the drain of callbacks."""
    engine().wake(DueSet.TELL)
