"""The registry's client and Celery's broker on real servers, found directly and by Sentinel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from config.celery import celery_config
from config.settings import Settings, load_settings
from tests.support import BOUND
from worker.broker import AMQP, SentinelTransport, Transport
from worker.core.models import State
from worker.errors import RegistryUnavailable
from worker.sandbox.servers import Valkey
from worker.wiring import make_policy, make_redis, make_registry
from worker.work.intake import Intake

PASSWORD = "p@ss/word:1"
SENTINEL_PASSWORD = "s3ntinel?#"


class Sentinel(Valkey):
    """A Valkey in Sentinel mode that watches one primary under the name ``main``."""

    def __init__(self, directory: Path, primary: Valkey) -> None:
        super().__init__(directory, password=SENTINEL_PASSWORD)
        self._primary = primary

    def _arguments(self) -> list[str]:
        config = self.directory / "sentinel.conf"
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir .\n"
            f'requirepass "{SENTINEL_PASSWORD}"\n'
            f"sentinel monitor main 127.0.0.1 {self._primary.port} 1\n"
            f'sentinel auth-pass main "{PASSWORD}"\n'
            "sentinel down-after-milliseconds main 60000\n"
        )
        return [config.name, "--sentinel"]


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("primary"), password=PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def sentinel_url(primary: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL whose first sentinel is dead: the second one must be asked."""
    with Sentinel(tmp_path_factory.mktemp("sentinel"), primary) as sentinel:
        yield (
            f"redis+sentinel://:{quote(PASSWORD, safe='')}@127.0.0.1:1,127.0.0.1:{sentinel.port}"
            f"/main/3?sentinel_password={quote(SENTINEL_PASSWORD, safe='')}"
        )


@pytest.fixture(params=["direct", "sentinel"])
def url(request: pytest.FixtureRequest, primary: Valkey, sentinel_url: str) -> str:
    return primary.url if request.param == "direct" else sentinel_url


def settings(url: str) -> Settings:
    return load_settings(
        speedpix_app_key="k", speedpix_app_secret="s", bucket="media", redis_url=url
    )


async def test_registry_client_reads_and_writes(url: str) -> None:
    async with make_redis(settings(url).redis_url) as client:
        await client.set("greeting", "grüß dich")
        assert await client.get("greeting") == "grüß dich"
        info = await client.client_info()
        assert info["db"] == (3 if "sentinel" in url else 0)


async def test_a_submission_that_is_not_utf8_is_refused_alone(url: str, namespace: str) -> None:
    given = settings(url).model_copy(update={"namespace": namespace})
    registry = make_registry(given)
    for body in (b'{"task_ids": ["a\xff"]}', b"\xff\xfe", b'{"task_ids": ["good"]}'):
        await registry.redis.xadd(f"{namespace}:intake", {"body": body})
    assert await Intake(registry, make_policy(given), wake=lambda _: None).drain_stream() == 3
    assert await registry.states(["good"]) == {"good": State.WAITING}
    refused = await registry.refused()
    assert [entry["value"] for entry in refused] == [r"\xff\xfe", r'{"task_ids": ["a\xff"]}']
    assert await registry.redis.xlen(f"{namespace}:intake") == 0
    await registry.close()


async def test_registry_client_comes_back_after_the_server_was_killed(tmp_path: Path) -> None:
    with Valkey(tmp_path) as server:
        async with make_redis(settings(server.url).redis_url) as client:
            await client.ping()
            server.kill()
            with pytest.raises(RegistryUnavailable):
                await client.ping()
            server.start()
            assert await client.ping()


def test_a_message_goes_through_the_broker(url: str) -> None:
    app = Celery("test", set_as_current=False)
    app.config_from_object(celery_config(settings(url)))
    with app.connection_for_write() as connection:
        app.send_task("harvester.submit", args=["t1"], queue="harvester", connection=connection)
        queue = connection.SimpleQueue(app.amqp.queues["harvester"], no_ack=True)
        try:
            message = queue.get(timeout=BOUND)
            with pytest.raises(Empty):
                queue.get(block=False)
        finally:
            queue.close()
    assert message.content_type == "application/json"
    assert message.payload[0] == ["t1"]
    app.close()


async def test_an_unacknowledged_message_waits_under_the_namespace(
    primary: Valkey, namespace: str
) -> None:
    given = settings(primary.url).model_copy(update={"namespace": namespace})
    app = Celery("test", set_as_current=False)
    app.config_from_object(celery_config(given))
    async with make_redis(given.redis_url) as client:
        with app.connection_for_write() as connection:
            app.send_task("harvester.submit", args=["t1"], connection=connection)
            assert await client.llen(namespace) == 1
            queue = connection.SimpleQueue(app.amqp.queues[namespace])
            message: Any = queue.get(timeout=BOUND)
            assert await client.exists(f"{namespace}:unacked") == 1
            assert await client.exists("unacked") == 0
            message.ack()
            queue.close()
        assert await client.exists(f"{namespace}:unacked") == 0
    app.close()


def raw(name: str, **properties: Any) -> dict[str, Any]:
    """A message as a sender lays it into Redis; it names another queue as the way back."""
    return {
        "body": name,
        "headers": {},
        "content-type": "application/json",
        "properties": {
            "delivery_info": {"exchange": "", "routing_key": "shop"},
            "delivery_tag": "the-same",
            **properties,
        },
    }


async def test_a_message_goes_back_into_the_queue_that_it_came_from(
    primary: Valkey, namespace: str
) -> None:
    """Whatever way its sender named: given back, put back at the end, or left by a dead worker."""
    given = settings(primary.url).model_copy(update={"namespace": namespace})
    config = celery_config(given)
    async with make_redis(given.redis_url) as client:
        for name in ("one", "two", "three"):
            await client.lpush(namespace, json.dumps(raw(name)))
        connection = Connection(
            config["broker_url"],
            transport=Transport,
            transport_options=config["broker_transport_options"],
        )
        channel: Any = connection.channel()
        # as the release before has noted it
        await client.hset(f"{namespace}:unacked", "old", json.dumps([raw("four"), "", "shop"]))
        await client.zadd(f"{namespace}:unacked_index", {"old": 0})
        got: list[Any] = []
        channel.basic_consume(namespace, False, got.append, "tag")
        for _ in range(3):
            connection.drain_events(timeout=BOUND)
        assert [message.body for message in got] == [b"one", b"two", b"three"]
        assert len({message.delivery_tag for message in got}) == 3
        got[0].reject(requeue=True)
        channel.qos.restore_visible(interval=1)
        connection.close()  # the other two are put back
        left = [json.loads(item)["body"] for item in await client.lrange(namespace, 0, -1)]
        assert sorted(left) == ["four", "one", "three", "two"]
        assert await client.exists("shop") == 0


@pytest.mark.parametrize("left", ["{", "null", "[1, 2]", "[" * 9999, "[null, 1, 2]", b"\xff"])
async def test_what_cannot_be_given_back_holds_up_no_other(
    primary: Valkey, namespace: str, left: str | bytes
) -> None:
    given = settings(primary.url).model_copy(update={"namespace": namespace})
    config = celery_config(given)
    async with make_redis(given.redis_url) as client:
        with Connection(
            config["broker_url"],
            transport=Transport,
            transport_options=config["broker_transport_options"],
        ) as connection:
            channel: Any = connection.channel()
            channel.basic_consume(namespace, False, None, "tag")
            unread = {"new": left, "old": json.dumps([raw("one"), "", namespace])}
            await client.hset(f"{namespace}:unacked", mapping=unread)
            await client.zadd(f"{namespace}:unacked_index", {"new": 2, "old": 1})
            channel.qos.restore_visible(interval=1)
            (back,) = await client.lrange(namespace, 0, -1)
            assert json.loads(back)["body"] == "one"
            assert await client.exists(f"{namespace}:unacked", f"{namespace}:unacked_index") == 0


def test_the_channel_of_a_closed_connection_raises_what_celery_goes_on_from(url: str) -> None:
    config = celery_config(settings(url))
    scheme = config["broker_url"].partition(":")[0]
    connection = Connection(
        config["broker_url"],
        transport=SentinelTransport if scheme == "sentinel" else Transport,
        transport_options=config["broker_transport_options"],
    )
    channel = connection.default_channel
    channel.queue_purge("hints")
    connection.close()
    with pytest.raises(connection.connection_errors, match="is closed"):
        channel.queue_purge("hints")


def test_a_broker_that_is_away_for_long_is_found_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _seconds: None)
    app = Celery("test", amqp=AMQP, broker="redis://127.0.0.1:1/0", set_as_current=False)
    pauses: list[float] = []
    with app.connection_for_read() as connection, pytest.raises(OperationalError):
        connection.ensure_connection(lambda _, pause: pauses.append(pause), max_retries=20)
    assert len(pauses) > 10
    assert max(pauses) <= 5
