"""Celery's configuration, built from the settings.

Celery carries ids and hints; the records are in Redis. So a message may be lost or doubled, but a
worker must never hang on a dead broker, stop reconnecting to it, or accept anything but JSON.
"""

from __future__ import annotations

from typing import Any

from redis.backoff import NoBackoff
from redis.retry import Retry

from config.redis import CONNECT_TIMEOUT, SENTINEL_TIMEOUT, SOCKET_TIMEOUT, RedisAddress
from config.rules import BROKER_SCHEMES
from config.settings import Settings

VISIBILITY_TIMEOUT = 3600
"""Seconds after which Redis redelivers an unacknowledged message; messages take under a minute."""

# Seconds. A silent connection is detected after at most twice that plus a second.
_HEALTH_CHECK_INTERVAL = 5
_AMQP_HEARTBEAT = 30


def celery_config(settings: Settings) -> dict[str, Any]:
    """Build the configuration for ``Celery.config_from_object``. It holds the broker's password."""
    name = settings.namespace
    return {
        **_broker(settings),
        "broker_connection_timeout": CONNECT_TIMEOUT,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A full or read-only Redis answers with an error, which is no reason to exit.
        "broker_channel_error_retry": True,
        # Fleets and other applications on the same broker must not hear each other's commands.
        "control_exchange": name,
        "event_exchange": f"{name}.ev",
        "event_queue_prefix": f"{name}.ev",
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_default_queue": name,
        "task_create_missing_queues": True,  # replies go to queues of the callers
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,  # a task that kills its worker would run for ever
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "task_publish_retry_policy": {
            "max_retries": 2,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 1,
        },
        "enable_utc": True,
        "timezone": "UTC",
        "worker_pool": "threads",
        "worker_concurrency": 4,
        "worker_prefetch_multiplier": 1,
        # The threads pool cannot cancel a running task; leases decide which worker continues.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
        "worker_enable_remote_control": True,
    }


def _broker(settings: Settings) -> dict[str, Any]:
    url = settings.celery_broker_url.get_secret_value()
    if url.partition("://")[0] in BROKER_SCHEMES:
        return {
            "broker_url": url,
            "broker_heartbeat": _AMQP_HEARTBEAT,
            "broker_transport_options": {
                "confirm_publish": True,
                # A broker that does not answer, for example while it recovers, is tried again.
                "read_timeout": SOCKET_TIMEOUT,
            },
        }
    address = RedisAddress.parse(url)
    options: dict[str, Any] = {
        "visibility_timeout": VISIBILITY_TIMEOUT,
        "socket_timeout": SOCKET_TIMEOUT,  # the blocking pop returns every second
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_keepalive": True,
        "health_check_interval": _HEALTH_CHECK_INTERVAL,
        # Each consumer of a database restores the messages in these keys, by its own timeout.
        "unacked_key": f"{settings.namespace}:unacked",
        "unacked_index_key": f"{settings.namespace}:unacked_index",
        "unacked_mutex_key": f"{settings.namespace}:unacked_mutex",
    }
    if address.master_name is not None:
        options["master_name"] = address.master_name
        options["sentinel_kwargs"] = {
            **address.sentinel_credentials,
            "socket_timeout": SENTINEL_TIMEOUT,
            "socket_connect_timeout": SENTINEL_TIMEOUT,
            "retry": Retry(NoBackoff(), retries=0),  # the next sentinel is the retry
        }
        return {
            "broker_url": ";".join(address.urls("sentinel")),
            "broker_transport_options": options,
        }
    if address.tls is not None:
        return {
            "broker_url": address.urls("rediss")[0],
            "broker_use_ssl": address.tls,  # without it kombu accepts any certificate
            "broker_transport_options": options,
        }
    return {"broker_url": address.urls("redis")[0], "broker_transport_options": options}
