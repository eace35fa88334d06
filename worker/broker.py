"""Kombu's Redis transport, made to survive garbage and lost connections.

A list item that is no message at all (not JSON, no envelope, a body of another shape) makes
kombu's consumer raise, and the worker exit, after the item is already popped. Here it is logged
and dropped: it carried nothing that could be accepted.

A channel whose connection is closed has forgotten the server's address. Used once more, for what
was not acknowledged, it raises ``'NoneType' object has no attribute 'hostname'`` (as in kombu#582),
and the worker exits. With Celery 5.7, which closes a lost connection twice, a restart of Redis does
that. Here it is an error of the connection, which Celery goes on from.

A message is popped first and noted as unacknowledged second. When Redis refuses the note (it is
full, or read-only), kombu drops the message. Here the process keeps it, pops no other, and puts it
back when Redis takes writes again.
"""

from __future__ import annotations

import time
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
from redis.exceptions import RedisError, ResponseError

from worker.core.redact import one_line

if TYPE_CHECKING:
    _Base = kombu_redis.Channel
else:
    _Base = object

log = structlog.get_logger("harvester.broker")

_SHOWN = 200
_RETRY_SECONDS = 2
_PUT_BACK_EVERY = 1.0  # seconds


class _Kept:
    """Messages that Redis would neither let be worked on nor take back."""

    def __init__(self) -> None:
        self.unnoted: list[Any] = []  # only here; the payload tells the way back
        self.tags: list[str] = []  # in Redis, among the unacknowledged
        self._tried = 0.0

    def put_back(self, channel: Any) -> bool:
        """Put all back into their queues, at most once a second; whether nothing is left."""
        if not (self.unnoted or self.tags):
            return True
        if time.monotonic() - self._tried < _PUT_BACK_EVERY:
            return False
        self._tried = time.monotonic()
        try:
            while self.unnoted:
                payload = self.unnoted[-1]
                way = payload["properties"]["delivery_info"]
                with channel.conn_or_acquire() as client, client.pipeline() as pipe:
                    channel._do_restore_message(payload, way["exchange"], way["routing_key"], pipe)
                    pipe.execute()
                self.unnoted.pop()
            while self.tags:
                channel.qos.restore_by_tag(self.tags[-1])
                self.tags.pop()
        except ResponseError:
            return False
        log.info("intake.put_back")
        return True


_kept = _Kept()


class _QoS(kombu_redis.QoS):
    def append(self, message: Any, delivery_tag: str) -> None:
        try:
            super().append(message, delivery_tag)
        except (RedisError, OSError) as error:
            _kept.unnoted.append(message._raw)
            log.warning("intake.kept", reason=one_line(f"{type(error).__name__}: {error}"))
            if isinstance(error, ResponseError):
                raise Empty from None
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue)
        except ResponseError as error:
            _kept.tags.append(delivery_tag)
            log.warning("intake.kept", reason=one_line(f"{type(error).__name__}: {error}"))
            self._quick_ack(delivery_tag)  # type: ignore[attr-defined]  # bound at run time

    def restore_visible(self, *args: Any, **options: Any) -> None:
        try:
            super().restore_visible(*args, **options)
        except ResponseError as error:  # its lock is a write; there is a next time
            log.info("broker.not_restored", error=one_line(f"{type(error).__name__}: {error}"))


class _Tolerant(_Base):
    QoS = _QoS

    def _brpop_start(self, *args: Any, **options: Any) -> None:
        if _kept.put_back(self):
            super()._brpop_start(*args, **options)  # type: ignore[misc]  # kombu is untyped

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


def report_kept() -> None:
    """At the end of the process: say which messages it takes with it."""
    for payload in _kept.unnoted:
        log.critical("intake.lost", source="celery", value=one_line(str(payload), _SHOWN))


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
