"""Kombu's transports, made to survive hostile messages, garbage and lost connections.

Nothing that a sender wrote reaches Celery, or Redis a second time. :class:`Consumer` gives Celery a
message made from the parts that ``core/message.py`` picks out. A Redis message is noted and put
back under our own tag and queue: kombu would put it into the queue that the sender has named. Sizes
are checked before decoding, nothing is decompressed, and properties that py-amqp cannot read are
dropped, since its error would close the connection and the message would come again.

A list item that is not a message (not JSON, no envelope, a body of another shape) makes kombu's
consumer raise, and the worker exit, after the item has been popped. Here it is logged and dropped:
it contains nothing that could be accepted.

A channel on a closed connection has lost the server's address. If it is used again, for
unacknowledged messages, it raises ``'NoneType' object has no attribute 'hostname'`` (as in
kombu#582), and the worker exits. With Celery 5.7, which closes a lost connection twice, a restart
of Redis does that. Here it raises a connection error, from which Celery recovers.

Kombu first pops a message, then notes it as unacknowledged. If Redis refuses the note (it is full,
or read-only), kombu drops the message. Here the process keeps it, pops no other, and puts it back
once Redis accepts writes again.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any, NoReturn

import redis
import structlog
from amqp import basic_message, method_framing
from celery.app import amqp
from celery.worker.consumer.gossip import Gossip
from celery.worker.consumer.mingle import Mingle
from celery.worker.consumer.tasks import Tasks
from celery.worker.control import Panel
from kombu import connection as kombu_connection
from kombu import matcher, messaging, pidbox
from kombu import message as kombu_message
from kombu.transport import TRANSPORT_ALIASES, pyamqp
from kombu.transport import redis as kombu_redis
from kombu.transport.virtual import Empty
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from worker.core.message import read_call, unreadable
from worker.core.redact import one_line
from worker.core.services import Service
from worker.core.submission import MAX_BODY_BYTES
from worker.core.trace import traceparent
from worker.parsing import readable
from worker.reach import Reach

if TYPE_CHECKING:
    from celery import Celery

    _Base = kombu_redis.Channel
    _TransportBase = kombu_redis.Transport
else:
    _Base = _TransportBase = object

log = structlog.get_logger("harvester.broker")

_SHOWN = 200
_RETRY_SECONDS = 2
_PUT_BACK_EVERY = 1.0  # seconds
_MAX_ITEM = 2 * MAX_BODY_BYTES  # bytes of a Redis message: the body grows by a third in base64
_MAX_HEADERS = 64 * 1024
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
# Commands of remote control that could stop the fleet or make it read other queues.
_NOT_BY_REMOTE = frozenset(
    {
        "add_consumer",
        "autoscale",
        "cancel_consumer",
        "election",
        "memdump",
        "memsample",
        "objgraph",
        "pool_grow",
        "pool_restart",
        "pool_shrink",
        "rate_limit",
        "revoke",
        "revoke_by_stamped_headers",
        "shutdown",
        "terminate",
        "time_limit",
    }
)


class _Kept:
    """Messages that Redis has refused to note or to take back."""

    def __init__(self) -> None:
        self.unnoted: list[Any] = []  # only in this process; the payload names the queue
        self.tags: list[str] = []  # in Redis, unacknowledged
        self._tried = 0.0

    def put_back(self, channel: Any) -> bool:
        """Put all back into their queues, at most once a second; returns whether none is left."""
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
_reach = Reach()


def reports_to(reach: Reach) -> None:
    """Report to ``reach`` from now on whether the broker answers."""
    global _reach  # noqa: PLW0603  kombu makes its connections by itself
    _reach = reach


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

    def restore_by_tag(self, tag: str, *args: Any, **options: Any) -> None:
        try:
            super().restore_by_tag(tag, *args, **options)
        except _MALFORMED as error:  # it would hold up all that lie below it
            _unreadable(error, source="unacked")
            with self.pipe_or_acquire() as pipe:
                self._remove_from_indices(tag, pipe).execute()  # type: ignore[attr-defined]

    def restore_visible(self, *args: Any, **options: Any) -> None:
        try:
            super().restore_visible(*args, **options)
        except ResponseError as error:  # its lock is a write; it will be tried again
            log.info("broker.not_restored", error=one_line(f"{type(error).__name__}: {error}"))


class _Tolerant(_Base):
    QoS = _QoS

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)  # type: ignore[misc]  # kombu is untyped
        client.set_response_callback("BRPOP", _popped)
        return client

    def _do_restore_message(
        self, payload: Any, exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        # an earlier release noted the queue that the sender had named
        queues = self.active_queues
        if queues and (exchange or routing_key not in queues):
            exchange, routing_key = "", next(iter(queues))
        super()._do_restore_message(payload, exchange, routing_key, pipe, leftmost)  # type: ignore[misc]  # kombu is untyped

    def _brpop_start(self, *args: Any, **options: Any) -> None:
        if _kept.put_back(self):
            super()._brpop_start(*args, **options)  # type: ignore[misc]  # kombu is untyped
            _reach.expect(Service.BROKER)  # within a second, even if there is no message
        else:
            _reach.failed(Service.BROKER, "the broker refuses writes: a message cannot be put back")

    def _brpop_read(self, **options: Any) -> Any:
        before = set(self.qos._delivered or ())
        # a busy worker may not call again for long
        _reach.expect(Service.BROKER, answer=False)
        try:
            delivered = super()._brpop_read(**options)  # type: ignore[misc]  # kombu is untyped
        except Empty:
            _reach.heard(Service.BROKER)
            raise
        except _MALFORMED as error:
            # a message that was already delivered would count until it is acknowledged
            for tag in set(self.qos._delivered or ()) - before:
                self.qos.ack(tag)
            _unreadable(error, source="celery")
            _reach.heard(Service.BROKER)
            raise Empty from None
        _reach.heard(Service.BROKER)
        return delivered

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the connection of this channel is closed")
        return super()._connparams(asynchronous)  # type: ignore[misc]  # kombu is untyped


def _unreadable(error: Exception, *, source: str) -> None:
    text = getattr(error, "doc", "")  # the text that the JSON decoder could not read
    log.warning(
        "intake.unreadable",
        source=source,
        reason=one_line(f"no Celery message: {type(error).__name__}: {error}"),
        value=one_line(str(text), _SHOWN),
    )


def _popped(answer: Any) -> Any:
    """The answer of ``BRPOP``; raises ``ValueError`` if it is too large to decode."""
    if answer and len(answer[1]) > _MAX_ITEM:
        raise ValueError(f"{len(answer[1]):,} bytes are more than {_MAX_ITEM:,}")
    return tuple(answer) if answer else None


def _envelope(payload: Any, queue: str) -> dict[str, Any]:
    """A Redis message from ``queue``, with our own tag and our own queue to put it back into.

    Raises ``ValueError``, ``TypeError`` or ``KeyError`` if it is not a message.
    """
    properties, headers = payload["properties"], payload["headers"]
    if not (isinstance(properties, dict) and isinstance(headers, dict)):
        raise TypeError("properties or headers are missing")
    if not isinstance(payload["body"], str):
        raise TypeError("the body is not text")
    if len(json.dumps(headers)) > _MAX_HEADERS:
        raise ValueError(f"headers of more than {_MAX_HEADERS:,} bytes")
    return {
        "body": payload["body"],
        "content-type": payload.get("content-type"),
        "content-encoding": payload.get("content-encoding"),
        "headers": headers,
        "properties": {
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
            "body_encoding": "base64" if properties.get("body_encoding") == "base64" else None,
        },
    }


class _Delivering(_TransportBase):
    def _deliver(self, message: Any, queue: str | None) -> None:
        channels: Any = self.channels
        if not any(queue in channel.active_fanout_queues for channel in channels):
            super()._deliver(_envelope(message, queue) if queue else message, queue)
            return
        # remote control, over pub/sub of Redis: nothing is popped, noted or put back
        try:
            super()._deliver(_envelope(message, str(queue)), queue)
        except _MALFORMED as error:
            _unreadable(error, source="control")


class Channel(_Tolerant, kombu_redis.Channel):
    """A channel on one Redis."""

    connection_class = readable(redis.Connection)
    connection_class_ssl = readable(redis.SSLConnection)


class SentinelChannel(_Tolerant, kombu_redis.SentinelChannel):
    """A channel on the primary that the sentinels name."""

    connection_class = readable(redis.sentinel.SentinelManagedConnection)


class Transport(_Delivering, kombu_redis.Transport):
    """``redis://`` and ``rediss://``."""

    Channel = Channel


class SentinelTransport(_Delivering, kombu_redis.SentinelTransport):
    """``sentinel://``."""

    Channel = SentinelChannel


class AMQPChannel(pyamqp.Channel):
    """A channel on RabbitMQ that does not decode bodies with the sender's codec."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "auto_decode": False})


class AMQPConnection(pyamqp.Connection):
    """A connection to RabbitMQ."""

    Channel = AMQPChannel


class AMQPTransport(pyamqp.Transport):
    """``amqp://``."""

    Connection = AMQPConnection


class AMQPSTransport(pyamqp.SSLTransport):
    """``amqps://``."""

    Connection = AMQPConnection


class _Received(basic_message.Message):
    """A message from RabbitMQ; only enough of a long body is kept to show that it is too long."""

    def _load_properties(self, *args: Any) -> Any:
        try:
            return super()._load_properties(*args)  # type: ignore[misc]  # amqp is untyped
        except Exception as error:  # endless nesting, invalid UTF-8, an impossible date
            self.properties = {}
            log.warning(
                "intake.unreadable",
                source="celery",
                reason=one_line(f"properties: {type(error).__name__}: {error}"),
                value="",
            )

    def inbound_body(self, buf: Any) -> None:
        chunks: Any = self._pending_chunks  # type: ignore[attr-defined]  # amqp is untyped
        kept = sum(len(chunk) for chunk in chunks)
        before = self.body_received
        super().inbound_body(buf[: max(0, MAX_BODY_BYTES + 1 - kept)])  # type: ignore[misc]
        self.body_received = before + len(buf)
        if not self.ready and self.body_received >= self.body_size:
            self.body, self.ready = b"".join(chunks), True


class Consumer(messaging.Consumer):
    """Gives Celery only messages that are made here."""

    def _receive_callback(self, message: Any) -> None:
        to_python = getattr(self.channel, "message_to_python", None)
        handle: Any = self.on_message
        handle(_plain(to_python(message) if to_python else message))


def _plain(message: Any) -> Any:
    """The message, reduced to a call of one of the harvester's tasks."""
    if message.errors:
        error = message.errors[0][1]
        call = unreadable("", f"{type(error).__name__}: {error}")
    else:
        call = read_call(
            message.headers, message.content_type, message.content_encoding, message.body
        )
    message.errors, message.body, message.properties = [], b"", {}
    message.content_type = message.content_encoding = None
    # Celery prints these instead of the arguments
    headers = {"task": call.task, "id": call.ident, "argsrepr": "-", "kwargsrepr": "-"}
    if parent := traceparent(call.options.get("traceparent")):
        headers["traceparent"] = parent  # for instrumentation in this process
    message.headers = headers
    # Celery takes an object with "args", as between its protocols, without decoding it again
    message._decoded_cache = {"args": [call.args, call.options, call.refusals], "kwargs": {}}
    return message


def _loads(text: str) -> Any:
    """Read JSON from Redis, without the types that kombu builds from ``__type__``.

    Building them may raise any error, and nothing here needs them. Raises ``ValueError``.
    """
    try:
        return json.loads(text)
    except RecursionError:  # kombu does not expect it everywhere
        raise ValueError("nested too deep") from None


def _decompress(*_: Any) -> NoReturn:
    raise ValueError("compressed messages are not read")


class _Node(pidbox.Node):
    def reply(self, data: Any, exchange: Any, *args: Any, **more: Any) -> None:
        # never to the exchange that the command names
        mailbox: Any = self.mailbox
        super().reply(data, mailbox.reply_exchange.name, *args, **more)


class Connection(kombu_connection.Connection):
    """Reconnects to a lost broker every few seconds; Celery would wait for up to half a minute."""

    _received = 0

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """As kombu's, with shorter pauses."""
        options = {"interval_max": _RETRY_SECONDS, **options}
        given = args[0] if args else options.pop("errback", None)

        def errback(error: Exception, interval: float) -> None:
            _reach.failed(Service.BROKER, described(error))
            if given is not None:
                given(error, interval)

        try:
            made = super().ensure_connection(errback, *args[1:], **options)
        except Exception as error:
            _reach.failed(Service.BROKER, described(error))
            raise
        _reach.heard(Service.BROKER)
        return made

    def heartbeat_check(self, *args: Any, **options: Any) -> None:
        """As kombu's, which raises if RabbitMQ has been silent for too long."""
        super().heartbeat_check(*args, **options)
        received = getattr(self.connection, "bytes_recv", 0)
        if received != self._received:
            self._received = received
            _reach.heard(Service.BROKER)


def described(error: Exception) -> str:
    """An error of the broker, as one line."""
    return one_line(f"the broker does not answer: {type(error).__name__}: {error}".rstrip(": "))


class AMQP(amqp.AMQP):
    """The connection and consumer of the Celery application."""

    Connection = Connection
    Consumer = Consumer


def only_ours(app: Celery) -> None:
    """Unregister Celery's own tasks, which run any call in their arguments."""
    for name in [name for name in app.tasks if not name.startswith("harvester.")]:
        app.tasks.unregister(name)


def report_kept() -> None:
    """At the end of the process, log the messages that are lost with it."""
    for payload in _kept.unnoted:
        log.critical("intake.lost", source="celery", value=one_line(str(payload), _SHOWN))


def install() -> None:
    """Use these transports in this process; call it before the first connection.

    On RabbitMQ the prefetch count then applies to each consumer. A quorum queue refuses a
    channel-wide count, and Celery looks for quorum queues only in its own configuration, while the
    virtual host may make ours one. Nothing here changes the count at run time.

    Workers do not look for each other: they have neither revoked tasks nor clocks to compare.
    Looking would delay every connection by a second, and Celery 5.7 logs an error when one is lost.

    Nothing is decompressed, and remote control only keeps commands that read or request events.
    """
    kombu_redis.loads = _loads  # type: ignore[attr-defined]  # the same
    kombu_message.decompress = _decompress  # type: ignore[attr-defined]  # imported there by name
    method_framing.Message = _Received  # type: ignore[misc]  # a class in place of its base
    pidbox.Mailbox.node_cls = _Node
    # matching a sender's regular expression with this worker's name may take for ever
    matcher.register("pcre", lambda *_: False)
    for name in _NOT_BY_REMOTE:
        Panel.data.pop(name, None)
    Tasks.qos_global = lambda self, c: False  # type: ignore[method-assign]
    Mingle.compatible_transports = Gossip.compatible_transports = set()
    TRANSPORT_ALIASES.update(
        redis="worker.broker:Transport",
        rediss="worker.broker:Transport",
        sentinel="worker.broker:SentinelTransport",
        amqp="worker.broker:AMQPTransport",
        amqps="worker.broker:AMQPSTransport",
    )
