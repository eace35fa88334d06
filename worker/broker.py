"""Kombu's Redis transport, made to survive garbage and lost connections.

A list item that is no message at all (not JSON, no envelope, a body of another shape) makes
kombu's consumer raise, and the worker exit, after the item is already popped. Here it is logged
and dropped: it carried nothing that could be accepted.

A channel whose connection is closed has forgotten the server's address. Used once more, for what
was not acknowledged, it raises ``'NoneType' object has no attribute 'hostname'`` (as in kombu#582),
and the worker exits. With Celery 5.7, which closes a lost connection twice, a restart of Redis does
that. Here it is an error of the connection, which Celery goes on from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from celery.app import amqp
from celery.worker.consumer.gossip import Gossip
from celery.worker.consumer.mingle import Mingle
from celery.worker.consumer.tasks import Tasks
from kombu import connection as kombu_connection
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.transport.virtual import Empty
from redis.exceptions import ConnectionError as RedisConnectionError

from worker.core.redact import one_line

if TYPE_CHECKING:
    _Base = kombu_redis.Channel
else:
    _Base = object

log = structlog.get_logger("harvester.broker")

_SHOWN = 200
_RETRY_SECONDS = 5


class _Tolerant(_Base):
    def _brpop_read(self, **options: Any) -> Any:
        before = set(self.qos._delivered or ())
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # kombu is untyped
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # one that got as far as being handed out would take up a place until it is acknowledged
            for tag in set(self.qos._delivered or ()) - before:
                self.qos.ack(tag)
            text = getattr(error, "doc", "")  # what a JSON decoder could not read
            log.warning(
                "intake.unreadable",
                source="celery",
                reason=one_line(f"no Celery message: {type(error).__name__}: {error}"),
                value=one_line(str(text), _SHOWN),
            )
            raise Empty from None

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the connection of this channel is closed")
        return super()._connparams(asynchronous)  # type: ignore[misc]  # kombu is untyped


class Channel(_Tolerant, kombu_redis.Channel):
    """A channel on one Redis."""


class SentinelChannel(_Tolerant, kombu_redis.SentinelChannel):
    """A channel on the primary that the sentinels name."""


class Transport(kombu_redis.Transport):
    """``redis://`` and ``rediss://``."""

    Channel = Channel


class SentinelTransport(kombu_redis.SentinelTransport):
    """``sentinel://``."""

    Channel = SentinelChannel


class Connection(kombu_connection.Connection):
    """Looks for a lost broker every few seconds; Celery would wait for up to half a minute."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """As kombu's, with shorter pauses."""
        return super().ensure_connection(*args, **{"interval_max": _RETRY_SECONDS, **options})


class AMQP(amqp.AMQP):
    """What a Celery application connects by."""

    Connection = Connection


def install() -> None:
    """Use these transports in this process; to be called before the first connection.

    On RabbitMQ the prefetch count then goes for each consumer: a quorum queue refuses the
    channel-wide one, and Celery looks for quorum queues in its own configuration only, while it is
    the virtual host that makes ours one. Nothing here changes the count at run time.

    Workers do not look for each other: they have neither revoked tasks nor clocks to compare. It
    would take a second of every connection, and Celery 5.7 logs an error when one is lost.
    """
    Tasks.qos_global = lambda self, c: False  # type: ignore[method-assign]
    Mingle.compatible_transports = Gossip.compatible_transports = set()
    TRANSPORT_ALIASES.update(
        redis="worker.broker:Transport",
        rediss="worker.broker:Transport",
        sentinel="worker.broker:SentinelTransport",
    )
