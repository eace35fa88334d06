"""The Celery tasks. Only ``harvester.submit`` carries anything; the others say "look now"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery.exceptions import Reject

from worker.app import app, engine
from worker.core.submission import Refusal
from worker.engine import Parts
from worker.errors import RegistryUnavailable
from worker.registry.records import Kind
from worker.work.claim import insist


@app.task(name="harvester.submit", typing=False)
def submit(
    args: list[Any] | None, options: dict[str, Any], refusals: Sequence[Refusal] = ()
) -> None:
    """Accept the ids of a message (as ``core/message.py`` reads it); keep what is refused."""

    async def accept(parts: Parts) -> None:
        if refusals:
            await insist(lambda: parts.intake.refuse(refusals, source="celery"))
        if args is not None:
            task_ids, given = _called(args, options)
            await insist(lambda: parts.intake.submit(task_ids, given, source="celery"))

    try:
        engine().call(accept)
    except RegistryUnavailable as error:
        # back into the queue: the message is all there is of these ids
        raise Reject(str(error), requeue=True) from error


def _called(args: list[Any], options: dict[str, Any]) -> tuple[object, dict[str, Any]]:
    if not args:
        return options.get("task_ids"), {k: v for k, v in options.items() if k != "task_ids"}
    return args[0] if len(args) == 1 else None, options


@app.task(name="harvester.poll", typing=False)
def poll(*_: Any, **__: Any) -> None:
    """Look for tasks to ask the upstream about."""
    engine().wake(Kind.POLL)


@app.task(name="harvester.copy", typing=False)
def copy(*_: Any, **__: Any) -> None:
    """Look for files to copy."""
    engine().wake(Kind.COPY)
    engine().wake(Kind.FETCH)


@app.task(name="harvester.tell", typing=False)
def tell(*_: Any, **__: Any) -> None:
    """Look for endings to tell."""
    engine().wake(Kind.TELL)
