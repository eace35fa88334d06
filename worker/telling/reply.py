"""The Celery reply: calls the caller's task with the record."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from amqp.exceptions import ChannelError
from kombu import Queue

from worker.core import jsontext, trace
from worker.core.redact import one_line
from worker.errors import TellError, TellFault
from worker.offload import Aside

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Celery


_NOT_FOUND = 404
_SENDERS = 8


class CeleryReply:
    """Sends ``task`` to ``queue`` with the record as its one argument."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._threads = Aside(_SENDERS)

    async def tell(self, callback: Mapping[str, str], record: Mapping[str, Any]) -> None:
        """Publish the call; raises ``TellError`` if the broker does not accept it.

        That is a ``TellFault`` if RabbitMQ refuses this queue, such as another connection's
        exclusive one.
        """
        parent = trace.of_options(record.get("options"))
        headers = {"traceparent": parent} if parent else {}
        given = callback["task"], callback["queue"], plain(record), headers
        try:
            await self._threads.run(self._send, *given)
        except Exception as error:  # each transport has its own errors, and kombu wraps only some
            said = one_line(f"{type(error).__name__}: {error}")
            of_queue = isinstance(error.__cause__ or error, ChannelError)
            raise (TellFault if of_queue else TellError)(said) from error

    def _send(self, task: str, queue: str, record: Any, headers: dict[str, str]) -> None:
        # RabbitMQ refuses to declare an existing queue with other arguments (as a quorum queue,
        # with a length limit), so an existing queue is used without declaring it
        target: Any = Queue(queue, no_declare=True) if self._is_there(queue) else queue
        self._app.send_task(task, args=[record], queue=target, headers=headers, retry=False)

    def _is_there(self, queue: str) -> bool:
        """Whether RabbitMQ has the queue; false with Redis, where queues need no declaration."""
        with self._app.connection_for_write() as connection:
            if connection.transport.driver_type != "amqp":
                return False
            channel: Any = connection.channel()
            try:
                channel.queue_declare(queue, passive=True)
            except connection.channel_errors as error:
                if getattr(error, "code", 0) == _NOT_FOUND:
                    return False
                raise
            return True


def plain(record: Mapping[str, Any]) -> Any:
    """The record in types that Celery can serialise; fractions become floats."""
    return json.loads(jsontext.dumps(dict(record)), parse_float=_finite)


def _finite(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text
