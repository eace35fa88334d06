"""A worker does nothing with its rights that a message asks of it, and fills no memory with one."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from typing import Any

from celery import Celery, chain, group, signature

from tests.security.test_bounds import MIB, Target, envelope, target
from tests.support import eventually
from worker.errors import RegistryUnavailable

__all__ = ["target"]  # the fixture

GROWTH = 60 * MIB
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def call(queue: str) -> dict[str, Any]:
    """A signature as it lies in a message: any task, to any queue."""
    return {
        "task": "shop.pay", "args": [1], "kwargs": {}, "subtask_type": None, "immutable": False,
        "options": {"queue": queue},
    }  # fmt: skip


def first_protocol(task_id: str, **more: Any) -> dict[str, Any]:
    """A message of Celery's protocol 1: everything is in its body."""
    body = {"task": "harvester.submit", "id": "i", "args": [task_id], "kwargs": {}, **more}
    raw = envelope(json.dumps(body).encode())
    return raw | {"headers": {}, "content-encoding": "utf-8"}


async def accepted(target: Target, *ids: str) -> None:
    async def there() -> bool:
        found = [await target.redis.exists(f"{target.namespace}:task:{i}") for i in ids]
        return all(found)

    await eventually(there, what="the records")


async def test_nothing_is_published_that_a_message_names(target: Target) -> None:
    queue = f"{target.namespace}-shop"
    one = call(queue)
    known = target.simulator.submit
    messages = {
        name: envelope([[known()], {}, EMBED | {name: value}])
        for name, value in {
            "callbacks": [one, one], "errbacks": [one], "chain": [one], "chord": one,
        }.items()
    }  # fmt: skip
    messages["group"] = envelope([[known()], {}, EMBED], group="g", timelimit=[0.001, 0.001])
    messages["failing"] = envelope([[known()], {}, EMBED | {"errbacks": [one]}], timelimit="x")
    messages["first"] = first_protocol(known(), callbacks=[one], errbacks=[one], chord=one)
    messages["hybrid"] = envelope({"args": [known()], "kwargs": {}, "callbacks": [one]})
    ids = []
    for message in messages.values():
        # and a way back that is none of the fleet's
        message["properties"] |= {
            "reply_to": queue,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "delivery_tag": "the-same",
        }
        body = json.loads(base64.b64decode(message["body"]))
        (task_id,) = body["args"] if isinstance(body, dict) else body[0]
        ids.append(task_id)
        await target.celery(message)
    for name in ("celery.chord", "celery.map", "celery.group", "celery.accumulate", "celery.chain"):
        await target.celery(envelope([[one, [1]], {}, EMBED | {"callbacks": [one]}], task=name))
    await accepted(target, *ids)

    async def said() -> list[str]:
        return [entry["value"] for entry in await target.refused() if entry["what"] == "message"]

    async def all_said() -> bool:
        return len(await said()) == 8 + 5

    await eventually(all_said, what="the refusals")
    refused = await said()
    assert sorted(v for v in refused if not v.startswith("celery.")) == sorted(
        ["callbacks", "errbacks", "chain", "chord", "timelimit", "errbacks, timelimit",
         "callbacks, errbacks, chord", "callbacks"]
    )  # fmt: skip
    assert sum(v.startswith("celery.") for v in refused) == 5
    assert not await target.redis.exists(queue)
    assert [key async for key in target.redis.scan_iter(f"*{queue}*")] == []


async def test_what_celery_sends_with_a_workflow_is_accepted(
    target: Target, redis_url: str
) -> None:
    """As an application sends it that knows nothing of all this: no id is lost."""
    ids = [target.simulator.submit() for _ in range(6)]

    def send() -> None:
        with Celery("shop", broker=redis_url, set_as_current=False) as app:
            app.conf.task_default_queue = target.namespace
            pay = signature("shop.pay", app=app, queue=f"{target.namespace}-shop")

            def submit(number: int) -> Any:
                return signature(
                    "harvester.submit", args=(ids[number],), app=app, queue=target.namespace,
                    immutable=True,
                )  # fmt: skip

            submit(0).apply_async(link=pay, link_error=pay)
            submit(1).apply_async(countdown=3600)
            submit(2).apply_async(time_limit=1, soft_time_limit=1, expires=0.001)
            chain(submit(3), pay).apply_async()
            group(submit(4), submit(5)).apply_async()

    await asyncio.to_thread(send)
    await accepted(target, *ids)


def bomb() -> bytes:
    """Some kilobytes that unpack into four times what a worker may grow by."""
    return zlib.compress(bytes(4 * GROWTH), 9)


async def test_compressed_messages_are_refused_and_not_unpacked(target: Target) -> None:
    before = target.memory("VmRSS")
    packed = await asyncio.to_thread(bomb)
    for name in (
        "application/x-gzip",
        "zlib",
        "gzip",
        "application/x-bz2",
        "lzma",
        "zstd",
        7,
        ["x"],
    ):
        message = envelope(packed, compression=name) | {"content-encoding": "utf-8"}
        await target.celery(message)
        await target.redis.publish(f"/0.{target.namespace}.pidbox", json.dumps(message))

    async def all_refused() -> bool:
        reasons = [entry["reason"] for entry in await target.refused()]
        return len([r for r in reasons if "compressed messages are not read" in r]) == 8

    await eventually(all_refused, what="the refusals")
    assert target.memory("VmHWM") - before < GROWTH


async def test_messages_for_later_are_not_held(target: Target) -> None:
    before = target.memory("VmRSS")
    padding = "x" * 4000
    for start in range(0, 2000, 500):
        async with target.redis.pipeline(transaction=False) as pipe:
            for number in range(start, start + 500):
                later = envelope(
                    [[f"no/id/{number}"], {"padding": padding}, EMBED], eta="2999-01-01T00:00:00"
                )
                pipe.lpush(target.namespace, json.dumps(later))
            await pipe.execute()
    await target.emptied()
    assert target.memory("VmHWM") - before < GROWTH


async def test_large_headers_and_nested_bodies_are_dropped(target: Target) -> None:
    before = target.memory("VmRSS")
    nested = "[]," * 600_000
    for _ in range(2):
        await target.celery(envelope([["a b"], {}, EMBED], junk=[[]] * 500_000))
        await target.celery(json.dumps(envelope(f"[[{nested}1],{{}},{{}}]".encode())).encode())
        await target.celery(b'{"body": "", "headers": ' + b"[" * 3_000_000)
        await target.celery(b"x" * 20 * MIB)
    await target.emptied()
    assert target.memory("VmHWM") - before < 3 * GROWTH


async def test_remote_control_ends_no_worker(target: Target, redis_url: str) -> None:
    queue = f"{target.namespace}-shop"
    name = target.namespace

    def command(method: str, **arguments: Any) -> None:
        with Celery("operator", broker=redis_url, set_as_current=False) as app:
            app.conf.control_exchange = name
            app.control.broadcast(method, arguments=arguments)

    def ping() -> Any:
        with Celery("operator", broker=redis_url, set_as_current=False) as app:
            app.conf.control_exchange = name
            return app.control.ping(timeout=5, limit=1)

    await target.redis.lpush(queue, "theirs")
    for method, arguments in {
        "shutdown": {},
        "add_consumer": {"queue": queue},
        "cancel_consumer": {"queue": name},
        "pool_shrink": {"n": 4},
        "rate_limit": {"task_name": "harvester.submit", "rate_limit": "1/h"},
        "time_limit": {"task_name": "harvester.submit", "hard": 1},
        "revoke": {"task_id": "i"},
    }.items():
        await asyncio.to_thread(command, method, **arguments)
    stray = {
        "method": "ping", "arguments": {}, "ticket": "t",
        "reply_to": {"exchange": "", "routing_key": queue},
    }  # fmt: skip
    await target.redis.publish(f"/0.{name}.pidbox", json.dumps(envelope(stray)))
    assert await asyncio.to_thread(ping)
    assert await target.redis.lrange(queue, 0, -1) == ["theirs"]
    await target.still_works()
    await target.redis.delete(queue)


async def test_one_entry_of_the_stream_costs_no_worker(target: Target) -> None:
    before = target.memory("VmRSS")
    stream = f"{target.namespace}:intake"
    ids = [target.simulator.submit() for _ in range(2)]
    for task_id in ids:
        words = [part for _ in range(12) for part in ("x", b"y" * 15 * MIB)]
        await target.redis.execute_command("XADD", stream, "*", *words)
        await target.redis.xadd(stream, {"body": b'{"task_ids": ["a\xff"]}'})
        await target.stream(json.dumps({"task_ids": [task_id]}))
    await accepted(target, *ids)
    await target.redis.xadd(stream, {"body": "{}"}, id=f"{2**64 - 1}-{2**64 - 1}")

    async def open_again() -> bool:
        try:
            await target.stream("{}")
        except RegistryUnavailable:
            return False
        return True

    await eventually(open_again, what="an open stream")
    assert target.memory("VmHWM") - before < GROWTH


async def test_a_message_is_not_kept_larger_than_it_came(target: Target) -> None:
    """Many records each hold the metadata once, and not escaped."""
    for letter in ("é", "日", "😀"):
        metadata = {"note": letter * ((16 * 1024 - 16) // len(letter.encode()))}
        ids = [f"{ord(letter)}-{number}" for number in range(300)]
        size = len(json.dumps(metadata, ensure_ascii=False).encode())
        before = (await target.redis.info("memory"))["used_memory"]
        await target.stream(json.dumps({"task_ids": ids, "metadata": metadata}, ensure_ascii=False))
        await accepted(target, *ids)
        grown = (await target.redis.info("memory"))["used_memory"] - before
        assert grown < len(ids) * (size + 6 * 1024) + 2 * MIB
        record = await target.redis.hgetall(f"{target.namespace}:task:{ids[0]}")
        assert json.loads(record["metadata"]) == metadata
