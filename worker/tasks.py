"""The Celery tasks. Only ``harvester.submit`` carries anything; the others say "look now"."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Reject

from worker.app import app, engine
from worker.engine import Parts
from worker.errors import RegistryUnavailable
from worker.registry.records import Kind
from worker.work.claim import insist


@app.task(name="harvester.submit", typing=False)
def submit(*args: Any, **options: Any) -> None:
    """Accept task ids; what is refused is kept with its reason."""
    task_ids = args[0] if args else options.pop("task_ids", None)
    if len(args) > 1:
        task_ids = None

    async def accept(parts: Parts) -> None:
        await insist(lambda: parts.intake.submit(task_ids, options, source="celery"))

    try:
        engine().call(accept)
    except RegistryUnavailable as error:
        # back into the queue: the message is all there is of these ids
        raise Reject(str(error), requeue=True) from error


@app.task(name="harvester.poll", typing=False)
def poll(*_: Any, **__: Any) -> None:
    """Look for tasks to ask the upstream about."""
    engine().wake(Kind.POLL)


@app.task(name="harvester.copy", typing=False)
def copy(*_: Any, **__: Any) -> None:
    """Look for files to copy."""
    engine().wake(Kind.COPY)


@app.task(name="harvester.tell", typing=False)
def tell(*_: Any, **__: Any) -> None:
    """Look for endings to tell."""
    engine().wake(Kind.TELL)
