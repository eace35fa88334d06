"""Celery's configuration, as Celery and kombu understand it."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.defaults import DEFAULTS
from kombu import Connection
from redis.connection import SSLConnection

from config.celery import VISIBILITY_TIMEOUT, celery_config
from config.redis import RedisAddress
from config.settings import Settings, load_settings
from worker.core.message import TASKS
from worker.wiring import make_redis


def settings(**overrides: Any) -> Settings:
    required = {
        "speedpix_app_key": "key",
        "speedpix_app_secret": "app-secret",
        "redis_url": "redis://localhost",
        "bucket": "media",
    }
    return load_settings(**required | overrides)


def broker(**overrides: Any) -> Connection:
    app = Celery("test", set_as_current=False)
    app.config_from_object(celery_config(settings(**overrides)))
    return app.connection_for_write()


def test_celery_knows_every_key() -> None:
    for url in ("redis://h", "rediss://h", "redis+sentinel://h/n", "amqp://h"):
        assert set(celery_config(settings(celery_broker_url=url))) <= set(DEFAULTS)


def test_messages_are_hints_in_json_for_threads_that_cannot_be_stopped() -> None:
    config = celery_config(settings(namespace="blue"))
    assert config["accept_content"] == ["json"]
    assert config["task_serializer"] == "json"
    assert config["task_acks_late"] is True
    assert config["task_reject_on_worker_lost"] is False
    assert config["task_ignore_result"] is True
    assert config["worker_prefetch_multiplier"] == 1
    assert config["worker_pool"] == "threads"
    assert config["worker_hijack_root_logger"] is False
    assert config["broker_connection_retry_on_startup"] is True
    assert config["broker_connection_max_retries"] is None
    assert "result_backend" not in config
    assert config["task_default_queue"] == "blue"


def test_fleets_of_two_namespaces_share_no_exchange_and_no_redis_key() -> None:
    one, two = (celery_config(settings(namespace=name)) for name in ("blue", "green"))
    for key in ("task_default_queue", "control_exchange", "event_exchange", "event_queue_prefix"):
        assert one[key] != two[key]
    for key in ("unacked_key", "unacked_index_key", "unacked_mutex_key"):
        assert one["broker_transport_options"][key].startswith("blue:")
        assert two["broker_transport_options"][key].startswith("green:")


def test_redis_broker_has_deadlines_on_every_socket() -> None:
    with broker(redis_url="redis://user:p%2Fw@redis.example:6380/3") as connection:
        assert (connection.hostname, connection.port) == ("redis.example", 6380)
        assert (connection.userid, connection.password) == ("user", "p/w")
        assert connection.virtual_host == "3"
        options = connection.transport_options
    assert options["visibility_timeout"] == VISIBILITY_TIMEOUT >= 3600
    assert options["socket_timeout"] > 1  # kombu's blocking pop waits for a second
    assert options["socket_connect_timeout"] > 0
    assert options["health_check_interval"] > 0
    assert options["socket_keepalive"] is True


def test_tls_checks_certificates_unless_told_not_to() -> None:
    with broker(redis_url="rediss://:p@h?ssl_ca_certs=/ca.pem") as connection:
        assert connection.transport_cls == "rediss"
        assert connection.ssl == {
            "ssl_cert_reqs": "required",
            "ssl_ca_certs": "/ca.pem",
            "ssl_check_hostname": True,
        }
        made = SSLConnection(**connection.ssl)
    assert made.cert_reqs == ssl.CERT_REQUIRED
    assert made.check_hostname is True
    with broker(redis_url="rediss://:p@h?ssl_cert_reqs=none") as connection:
        assert connection.ssl["ssl_check_hostname"] is False


def test_sentinel_url_becomes_kombus_form() -> None:
    url = "redis+sentinel://:p%40w@s1,s2:26380,[::1]:26381/primary/2?sentinel_password=sp"
    with broker(redis_url=url) as connection:
        assert connection.alt == [
            "sentinel://:p%40w@s1:26379/2",
            "sentinel://:p%40w@s2:26380/2",
            "sentinel://:p%40w@[::1]:26381/2",
        ]
        assert connection.password == "p@w"
        options = connection.transport_options
        assert "p@w" not in connection.as_uri()
    assert options["master_name"] == "primary"
    assert options["sentinel_kwargs"]["password"] == "sp"


def test_rabbitmq_keeps_its_url_and_gets_a_heartbeat() -> None:
    config = celery_config(settings(celery_broker_url="amqp://u:p@r1//;amqp://u:p@r2//"))
    assert config["broker_url"] == "amqp://u:p@r1//;amqp://u:p@r2//"
    assert config["broker_heartbeat"] > 0
    assert "visibility_timeout" not in config["broker_transport_options"]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", RedisAddress(hosts=(("h", 6379),))),
        (
            "redis://u%3A:p%23@[fd00::1]:7/5",
            RedisAddress(hosts=(("fd00::1", 7),), username="u:", password="p#", db=5),
        ),
        (
            "redis+sentinel://a,b:7/n",
            RedisAddress(hosts=(("a", 26379), ("b", 7)), master_name="n"),
        ),
    ],
)
def test_redis_addresses_are_read(url: str, address: RedisAddress) -> None:
    assert RedisAddress.parse(url) == address


def test_passwords_are_not_in_an_address_repr() -> None:
    url = "redis+sentinel://:hidden@h/n?sentinel_password=hidden2"
    address = RedisAddress.parse(url)
    assert "hidden" not in repr(address)
    assert address.secrets == ("hidden", "hidden2")


async def test_registry_client_over_tls_checks_certificates() -> None:
    async with make_redis(settings(redis_url="rediss://u:p@h:1/2").redis_url) as client:
        made = client.connection_pool.make_connection()
    assert (made.host, made.port, made.db) == ("h", 1, 2)
    assert made.cert_reqs == ssl.CERT_REQUIRED
    assert made.check_hostname is True


def test_only_the_harvesters_own_tasks_are_registered(tmp_path: Path) -> None:
    """Celery's own would run what their arguments name. Remote control keeps what looks."""
    program = (
        "import json; from celery.worker.control import Panel; from worker.app import app; "
        "app.loader.import_default_modules(); "
        "print(json.dumps([sorted(app.tasks), sorted(Panel.data)]))"
    )
    variables = {
        "PATH": os.environ["PATH"], "REDIS_URL": "redis://127.0.0.1:1/0",
        "SPEEDPIX_APP_KEY": "k", "SPEEDPIX_APP_SECRET": "s", "HARVESTER_BUCKET": "b",
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", program], env=variables, cwd=tmp_path, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    tasks, commands = json.loads(ran.stdout.splitlines()[-1])
    assert set(tasks) == TASKS
    assert {"ping", "stats", "active", "conf", "report", "enable_events"} <= set(commands)
    assert not {"shutdown", "add_consumer", "revoke", "terminate", "pool_grow"} & set(commands)
