"""What comes from outside is bounded, and is data: nothing in it is run."""

from __future__ import annotations

import base64
import json
import pickle
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.fleet import Fleet, all_final, environ
from tests.support import BucketEnv, eventually
from worker.sandbox.simulator import Simulator

MIB = 1024 * 1024
GROWTH = 150 * MIB


class Target:
    """One worker, fed with what nobody should send."""

    def __init__(
        self, fleet: Fleet, simulator: Simulator, redis: Redis, namespace: str, folder: Path
    ) -> None:
        self.fleet = fleet
        self.simulator = simulator
        self.redis = redis
        self.namespace = namespace
        self.folder = folder

    @property
    def pid(self) -> int:
        (process,) = self.fleet.processes
        return process.pid

    def memory(self, name: str) -> int:
        """A size of the worker's process in bytes: ``VmRSS`` now, ``VmHWM`` at its highest."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(rf"^{name}:\s+(\d+) kB$", status, re.M)[0]) * 1024

    async def celery(self, message: dict[str, Any] | bytes) -> None:
        """Put a message into the fleet's queue, as whoever reaches Redis can."""
        raw = message if isinstance(message, bytes) else json.dumps(message)
        await self.redis.lpush(self.namespace, raw)

    async def stream(self, body: str) -> None:
        await self.redis.xadd(f"{self.namespace}:intake", {"body": body})

    async def still_works(self) -> None:
        """What is handed in now, over both ways, is accepted and stored."""
        ids = [self.simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(2)]
        await self.celery(envelope([[ids[0]], {}, {}]))
        await self.stream(json.dumps({"task_ids": [ids[1]]}))
        await all_final(self.redis, self.namespace, ids)
        states = [await self.redis.hget(f"{self.namespace}:task:{i}", "state") for i in ids]
        assert states == ["stored", "stored"]

    async def refused(self) -> list[dict[str, Any]]:
        entries = await self.redis.lrange(f"{self.namespace}:refused", 0, -1)
        return [json.loads(entry) for entry in entries]

    async def emptied(self) -> None:
        """Wait until nothing is left in either way in."""

        async def empty() -> bool:
            ways = [
                await self.redis.llen(self.namespace),
                await self.redis.xlen(f"{self.namespace}:intake"),
                await self.redis.hlen(f"{self.namespace}:unacked"),
            ]
            return not any(ways)

        await eventually(empty, what="an empty queue")


def envelope(
    body: Any,
    *,
    content_type: str = "application/json",
    task: str = "harvester.submit",
    **more: Any,
) -> dict[str, Any]:
    """A message as kombu lays it into Redis; ``body`` as bytes is taken as encoded."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    ident = str(uuid.uuid4())
    return {
        "body": base64.b64encode(data).decode(),
        "content-encoding": "binary" if isinstance(body, bytes) else "utf-8",
        "content-type": content_type,
        "headers": {"lang": "py", "task": task, "id": ident, "root_id": ident, **more},
        "properties": {
            "correlation_id": ident,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "harvester"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": ident,
        },
    }


@pytest.fixture
async def target(
    simulator: Simulator, redis: Redis, redis_url: str, bucket: BucketEnv, namespace: str,
    tmp_path: Path,
) -> AsyncIterator[Target]:  # fmt: skip
    async with Fleet(environ(simulator, redis_url, bucket, namespace), tmp_path, size=1) as fleet:
        one = Target(fleet, simulator, redis, namespace, tmp_path)
        await one.still_works()
        pid = one.pid
        yield one
        await one.emptied()
        await one.still_works()
        assert one.pid == pid, fleet.log_text()
    assert fleet.started == 1
    assert max(map(len, fleet.log_text().splitlines())) < 200_000


async def test_what_is_too_large_is_refused_within_bounded_memory(target: Target) -> None:
    before = target.memory("VmRSS")
    ids = [f"{n:04}-" + "x" * 120 for n in range(1001)]
    long = {"note": "x" * (5 * MIB)}
    known = target.simulator.submit({"simulate": {"images": ["png"]}})
    deep = "[" * 200_000 + "]" * 200_000

    await target.celery(envelope([[ids], {}, {}]))
    await target.celery(envelope([[known], {"label": "x" * (5 * MIB // 2)}, {}]))
    await target.celery(envelope([[ids], long, {}]))  # too large to be looked at
    await target.celery(envelope([[known], {"metadata": {"note": "x" * 20 * 1024}}, {}]))
    await target.celery(envelope(deep.encode()))
    await target.celery(deep.encode())  # no message at all
    await target.stream(json.dumps({"task_ids": ids}))
    await target.stream(json.dumps({"task_ids": ["a"], "metadata": long}))
    await target.stream('{"task_ids": ["a"], "metadata": {"a": ' + deep + "}}")
    for _ in range(50):
        await target.stream("x" * 5 * MIB)
    await target.emptied()

    huge = target.simulator.submit({"simulate": {"answers": ["huge_json", "deep_json"]}})
    oversized = target.simulator.submit(
        {"simulate": {"result": {"words": "x" * 9 * MIB}, "images": ["png"]}}
    )
    await target.stream(json.dumps({"task_ids": [huge, oversized]}))
    await all_final(target.redis, target.namespace, [huge, known])

    async def asked_twice() -> bool:
        return int(await target.redis.hget(f"{target.namespace}:task:{oversized}", "polls")) >= 2

    await eventually(asked_twice)
    assert await target.redis.hget(f"{target.namespace}:task:{oversized}", "state") == "waiting"
    record = await target.redis.hgetall(f"{target.namespace}:task:{known}")
    assert (record["state"], record["metadata"]) == ("stored", "{}")
    assert not await target.redis.exists(f"{target.namespace}:task:{ids[0]}")
    refused = [(entry["what"], entry["reason"]) for entry in await target.refused()]
    assert refused.count(("task_ids", "more than 1,000 ids in one message")) == 2
    assert ("option metadata", "larger than 16,384 bytes") in refused
    assert sum(what == "message" for what, _ in refused) == 54
    assert all(len(json.dumps(entry)) < 1000 for entry in await target.refused())
    assert target.memory("VmHWM") - before < GROWTH


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


async def test_only_json_is_read(target: Target) -> None:
    bomb, yaml = target.folder / "unpickled", target.folder / "yaml"
    bomb_bytes = pickle.dumps([[Bomb(bomb)], {}, {}])
    pickle.loads(bomb_bytes)
    assert bomb.exists()  # it would go off
    bomb.unlink()
    yaml_bytes = f"!!python/object/apply:os.mknod [{yaml}]".encode()
    for content_type, body in (
        ("application/x-python-serialize", bomb_bytes),
        ("application/x-yaml", yaml_bytes),
        ("application/x-msgpack", b"\x80"),
        ("application/data", bomb_bytes),
        ("application/json", bomb_bytes),
        ("", bomb_bytes),
        ("application/x-nobody-knows", bomb_bytes),
    ):
        await target.celery(envelope(body, content_type=content_type))
        control = envelope(body, content_type=content_type)
        await target.redis.publish(f"/0.{target.namespace}.pidbox", json.dumps(control))
    # as an argument of a task that is read with the wrong serializer by name
    await target.celery(envelope([[], {}, {}], serializer="pickle", task="celery.chord"))
    await target.emptied()
    await target.still_works()
    assert not bomb.exists()
    assert not yaml.exists()
    for name in ("pickle", "yaml"):
        refusal = rf"Refusing to deserialize (disabled|untrusted) content of type {name}"
        assert re.search(refusal, target.fleet.log_text()), name


async def test_what_is_no_message_is_dropped(target: Target) -> None:
    for raw in (
        b"", b"\xff\xfe", b"null", b"[]", b"{}", b"7", b'"text"', b'{"body": 7}', b"NaN",
        b"1" * 10_000, b"\x80\x04" + b"\x00" * 1000,
    ):  # fmt: skip
        await target.celery(raw)
    for kind, value in (("decimal", "x"), ("uuid", {}), ("date", 7), ("nosuch", None), (7, 7)):
        odd = {"__type__": kind, "__value__": value}  # what kombu would make something of
        await target.celery({**envelope([[], {}, {}]), "more": odd})
        await target.redis.publish(f"/0.{target.namespace}.pidbox", json.dumps(odd))
    for body in ([], [[]], {"a": 1}, "text", [[], {}], [[], [], {}], [[1, 2], {"a": None}, {}]):
        await target.celery(envelope(body))
    for task in ("", "harvester.nosuch", "os.system", "celery.backend_cleanup"):
        await target.celery(envelope([[], {}, {}], task=task))
    for _ in range(8):  # more than a worker holds at once
        await target.celery(envelope([]))


async def test_garbage_on_the_control_channel_ends_no_worker(target: Target) -> None:
    deep = envelope([])
    for raw in (
        b"\xff\xfe", b"7", b"[]", b"{}", b'"text"', b"null", b"[" * 200_000, b'{"a":' * 200_000,
        json.dumps({**deep, "headers": 7}), json.dumps({**deep, "properties": 7}),
        json.dumps({**deep, "properties": {}}), json.dumps({**deep, "body": 7}),
        json.dumps({**deep, "headers": {"compression": "zlib"}}),
        json.dumps({**envelope([[], {}, {}]), "headers": {"expires": {"a": 1}, "clock": "x"}}),
        json.dumps({**envelope([[], {}, {}]), "headers": {"expires": "x", "clock": {}}}),
        json.dumps(envelope({"method": "ping", "arguments": 7})),
        json.dumps(envelope({"method": ["ping"], "arguments": {}, "destination": 7})),
        json.dumps(envelope({"method": "ping", "pattern": "[", "matcher": "nosuch"})),
        json.dumps(envelope({"method": "ping", "pattern": "(.+)+\\x00", "matcher": "pcre"})),
        json.dumps(envelope({"method": "ping", "reply_to": 7, "ticket": []})),
        json.dumps(envelope({"method": "ping", "reply_to": {"exchange": 7, "routing_key": []}})),
        json.dumps(envelope("text")), json.dumps(envelope(7)),
    ):  # fmt: skip
        await target.redis.publish(f"/0.{target.namespace}.pidbox", raw)
    await target.still_works()
