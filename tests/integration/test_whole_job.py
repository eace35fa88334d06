"""One engine in this process, from the intake to the ending, on real servers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import boto3
import pytest
from celery import Celery
from moto.server import ThreadedMotoServer
from redis.asyncio import Redis

from config.celery import celery_config
from config.settings import load_settings
from tests.fleet import environ, verify
from tests.strict_store import StrictStore
from tests.support import BOUND, BucketEnv, eventually
from worker import wiring
from worker.engine import Engine, Parts
from worker.sandbox.simulator import Simulator

Start = Callable[..., AbstractAsyncContextManager["Harness"]]


class Harness:
    """An engine and what stands around it."""

    def __init__(
        self, engine: Engine, simulator: Simulator, redis: Redis, bucket: BucketEnv, namespace: str
    ) -> None:
        self._engine = engine
        self.simulator = simulator
        self.redis = redis
        self.bucket = bucket
        self.namespace = namespace

    async def ask(self, work: Callable[[Parts], Awaitable[Any]]) -> Any:
        """Run a coroutine with the engine's parts, on its loop."""

        async def run(parts: Parts) -> Any:
            return await work(parts)

        return await asyncio.to_thread(self._engine.call, run)

    async def submit(self, *ids: str, **options: Any) -> None:
        await self.ask(lambda parts: parts.intake.submit(list(ids), options, source="test"))

    async def record(self, task_id: str) -> dict[str, str]:
        found: dict[str, str] = await self.redis.hgetall(f"{self.namespace}:task:{task_id}")
        return found

    async def until(self, task_id: str, *states: str) -> dict[str, str]:
        async def there() -> dict[str, str] | None:
            record = await self.record(task_id)
            return record if record.get("state") in states else None

        return await eventually(there, what=f"{task_id} {states}")

    async def final(self, task_id: str) -> dict[str, str]:
        return await self.until(task_id, "stored", "partial", "failed")

    async def run(self, script: dict[str, Any], **options: Any) -> dict[str, str]:
        """Submit a script, wait for its end."""
        task_id = self.simulator.submit({"simulate": script})
        await self.submit(task_id, **options)
        return await self.final(task_id)

    async def check(self, *ids: str) -> dict[str, dict[str, str]]:
        return await verify(self.simulator, self.redis, self.bucket, self.namespace, list(ids))


@pytest.fixture
async def start(
    simulator: Simulator, redis_url: str, bucket: BucketEnv, namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Start]:  # fmt: skip
    redis = Redis.from_url(redis_url, decode_responses=True, protocol=2)

    @asynccontextmanager
    async def begin(**changes: str) -> AsyncIterator[Harness]:
        for name, value in environ(simulator, redis_url, bucket, namespace, **changes).items():
            monkeypatch.setenv(name, value)
        settings = load_settings()
        app = Celery("harvester")
        app.conf.update(celery_config(settings))
        engine = Engine(lambda wake: wiring.build(settings, app, wake), grace=5)
        engine.start()
        try:
            yield Harness(engine, simulator, redis, bucket, namespace)
        finally:
            engine.stop()
            assert await asyncio.to_thread(engine.join, BOUND)
            app.close()

    yield begin
    await redis.aclose()


def files(record: dict[str, str]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(record["files"])
    return listed


async def test_everything_untouched_in_the_result_stays_to_the_digit(start: Start) -> None:
    async with start() as harness:
        record = await harness.run(
            {
                "images": ["png"],
                "result": {
                    "big": 123456789012345678901234567890,
                    "none": None,
                    "empty": [],
                    "poster": {"file": "jpeg", "filename": "ü.jpg"},
                    "link": "https://example.com/page?a=b",
                },
            }
        )
        await harness.check(record["task_id"])
    assert '"big":123456789012345678901234567890' in record["result"]
    result = json.loads(record["result"])["result"]
    assert result["none"] is None
    assert result["empty"] == []
    assert result["link"] == "https://example.com/page?a=b"
    assert result["poster"]["filename"] == "ü.jpg"
    assert result["poster"]["url"].startswith("s3://")
    assert json.loads(record["upstream"])["status"] == "succeeded"
    assert int(record["polls"]) >= 1


async def test_public_addresses_and_options(start: Start) -> None:
    async with start(HARVESTER_PUBLIC_BASE_URL="https://cdn.example.com/media") as harness:
        record = await harness.run(
            {"images": ["webp"]}, prefix="customer-1", metadata={"n": 1}, label="poster"
        )
        await harness.check(record["task_id"])
    (file,) = files(record)
    assert file["key"] == f"{harness.namespace}/customer-1/{record['task_id']}/images/0.webp"
    assert file["url"] == f"https://cdn.example.com/media/{file['key']}"
    assert json.loads(record["result"])["images"] == [file["url"]]
    assert record["label"] == "poster"
    assert json.loads(record["options"])["prefix"] == "customer-1/"


async def test_addresses_that_have_died_are_asked_for_anew(start: Start) -> None:
    async with start() as harness:
        ids = [
            harness.simulator.submit({"simulate": script})
            for script in (
                {"stale_replies": 1, "images": ["png"]},
                {"images": [{"file": "png", "faults": [{"fault": "expired", "times": 1}]}]},
                {
                    "images": ["png", {"file": "jpeg", "faults": ["missing"]}],
                    "shuffle": True, "rename": True, "reorder": True,
                },
            )
        ]  # fmt: skip
        await harness.submit(*ids)
        for task_id in ids:
            assert (await harness.final(task_id))["state"] == "stored"
        await harness.check(*ids)


async def test_successes_in_shapes_that_nobody_documented(start: Start) -> None:
    loose = {"file": "png", "as": "url"}
    gone = {**loose, "faults": [{"fault": "gone", "times": "ever"}]}
    async with start(
        HARVESTER_FRESH_ADDRESS_GAPS="0.1,0.1,0.1", HARVESTER_UNKNOWN_TASK_GRACE="0"
    ) as harness:
        ids = [
            harness.simulator.submit({"simulate": script})
            for script in (
                {"signing": "none", "images": [], "result": {"images": [loose, loose]}},
                {"signing": "none", "images": [], "result": {"images": [loose, gone]}},
                {"images": ["png", {"file": "jpeg", "as": "object", "late": 1}]},
                {"result": {"a": {"file": "png", "late": 2, "unaddressed": "missing"}}},
                {"result": {"a": {"file": "png", "late": 1, "unaddressed": "empty"}}},
                {"images": [{"file": "png", "address": "padded"}]},
                {"result": {"a": {"file": "png"}}, "result_text": True, "info": {"seed": 1}},
                {"images": ["png"], "http_status": 404},
                {"end": "unknown", "http_status": 400},
                {"end": "failed_message", "error_message": "CUDA out of memory"},
                {"end": "content_refused_inside"},
                {"end": "long_names"},
            )
        ]  # fmt: skip
        await harness.submit(*ids)
        for task_id in ids:
            await harness.final(task_id)
        records = await harness.check(*ids)
    assert json.loads(records[ids[6]]["result"])["info"] == {"seed": 1}
    assert "CUDA out of memory" in records[ids[9]]["error"]


async def test_ids_that_the_upstream_refuses_do_not_stop_the_others(start: Start) -> None:
    async with start() as harness:
        bad = [
            harness.simulator.submit({"simulate": {"answers": [{"fault": fault, "times": "ever"}]}})
            for fault in ("bare_404", "proxy_403", "bad_request") * 4
        ]
        await harness.submit(*bad)
        good = [
            harness.simulator.submit({"simulate": {"images": ["png"], "duration": n / 20}})
            for n in range(60)
        ]
        await harness.submit(*good)
        for task_id in good:
            assert (await harness.final(task_id))["state"] == "stored"
        assert {(await harness.record(task_id))["state"] for task_id in bad} == {"waiting"}
        await harness.check(*good)


async def test_refused_by_policy(start: Start) -> None:
    async with start(HARVESTER_CONTENT_TYPES="image/*", HARVESTER_MAX_FILE_BYTES="100000") as h:
        scripts = {
            "type": {"images": ["png", "zip"]},
            "size": {"images": [{"file": "png", "size": 200_000}]},
            "redirect": {
                "images": [{"file": "png", "faults": [{"fault": "redirect_to", "times": "ever"}]}]
            },
            "origin": {"images": [{"file": "png", "origin": "http://10.0.0.1"}]},
        }
        ends = {name: await h.run(script) for name, script in scripts.items()}
    assert {name: (end["state"], end["reason"]) for name, end in ends.items()} == {
        "type": ("partial", "files_rejected"),
        "size": ("failed", "files_rejected"),
        "redirect": ("failed", "files_rejected"),
        "origin": ("failed", "files_rejected"),
    }


async def test_cancel_while_waiting_and_while_copying(start: Start) -> None:
    async with start() as harness:
        waiting = harness.simulator.submit({"simulate": {"duration": 600}})
        slow = {"file": "jpeg", "faults": [{"fault": "slow", "seconds": 60, "times": "ever"}]}
        copying = harness.simulator.submit({"simulate": {"images": ["png", slow]}})
        await harness.submit(waiting, copying)

        async def one_stored() -> bool:
            notes = await harness.redis.hkeys(f"{harness.namespace}:work:{copying}")
            return "file:0" in notes

        await eventually(one_stored)
        for task_id in (waiting, copying):
            assert await harness.ask(lambda p, t=task_id: p.registry.cancel(t)) == "ok"
        end = await harness.final(waiting)
        assert (end["state"], end["reason"]) == ("failed", "canceled")
        end = await harness.final(copying)
        assert (end["state"], end["reason"]) == ("partial", "canceled")
        assert [("key" in file) for file in files(end)] == [True, False]
        explained = {file["key"] for file in files(end) if "key" in file} | {end["manifest"]}
        assert explained <= set(harness.bucket.keys(f"{harness.namespace}/"))


async def test_what_is_gone_for_good_makes_a_task_partial_and_a_retry_may_store_it(
    start: Start,
) -> None:
    async with start(HARVESTER_FRESH_ADDRESS_GAPS="0,0,0") as harness:
        lost = {"file": "png", "faults": [{"fault": "gone", "times": 5}], "expect": "stored"}
        record = await harness.run({"images": ["png", lost]})
        assert (record["state"], record["reason"]) == ("partial", "files_unavailable")
        stored, missing = files(record)
        assert "410" in missing["error"]
        assert json.loads(record["result"])["images"] == [stored["uri"], None]
        assert await harness.ask(lambda p: p.registry.retry(record["task_id"])) == "ok"
        end = await harness.until(record["task_id"], "stored")
        assert end["run"] == "2"
        assert files(end)[0] == stored
        events = await harness.redis.xrange(f"{harness.namespace}:events")
        assert [event["state"] for _, event in events] == ["partial", "stored"]
        assert json.loads(harness.bucket.read(end["manifest"]))["state"] == "stored"


async def test_the_fleet_stays_under_its_rate(start: Start) -> None:
    async with start(HARVESTER_POLL_RATE="20") as harness:
        ids = [harness.simulator.submit({"simulate": {"images": []}}) for _ in range(80)]
        began = time.monotonic()
        await harness.submit(*ids)
        for task_id in ids:
            await harness.final(task_id)
        took = time.monotonic() - began
    assert 80 <= harness.simulator.counters.calls <= 20 * (took + 0.25) + 1


async def test_a_message_with_good_and_bad_ids(start: Start) -> None:
    async with start() as harness:
        good = harness.simulator.submit({"simulate": {"images": ["png"]}})
        body = json.dumps({"task_ids": [good, "../x", 7], "metadata": {"a": 1}, "colour": "red"})
        await harness.redis.xadd(f"{harness.namespace}:intake", {"body": body})
        await harness.final(good)
        refused = await harness.redis.lrange(f"{harness.namespace}:refused", 0, -1)
    assert {json.loads(entry)["what"] for entry in refused} >= {"task_id"}
    assert any("colour" in entry for entry in refused)


@pytest.fixture
async def strict_store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StrictStore]:
    store = StrictStore()
    await store.start(monkeypatch)
    yield store
    await store.stop()


async def test_a_store_as_strict_as_oss(start: Start, strict_store: StrictStore) -> None:
    options = {"CacheControl": "max-age=60", "StorageClass": "IA", "ACL": "private"}
    async with start(
        **strict_store.environ,
        HARVESTER_STORAGE="oss",
        HARVESTER_PUT_OPTIONS=json.dumps(options),
    ) as harness:
        record = await harness.run({"images": ["png", {"file": "png", "size": 20_000_001}]})
    assert record["state"] == "stored", record
    assert not strict_store.refused
    assert not strict_store.uploads
    whole, parts = (strict_store.objects[file["key"]] for file in files(record))
    for stored, file in zip((whole, parts), files(record), strict=True):
        assert hashlib.sha256(stored.body).hexdigest() == file["sha256"]
        assert stored.headers["x-amz-meta-task-id"] == record["task_id"]
        assert stored.headers["content-type"] == "image/png"
    assert whole.etag.isupper()
    assert parts.etag.endswith('-3"')
    for stored in strict_store.objects.values():  # the manifest too
        assert stored.headers["cache-control"] == "max-age=60"
        assert stored.headers["x-amz-storage-class"] == "IA"
        assert stored.headers["x-amz-acl"] == "private"
    manifest = strict_store.objects[record["manifest"]]
    assert json.loads(manifest.body)["task_id"] == record["task_id"]


@pytest.fixture
def moto_store() -> Iterator[dict[str, str]]:
    """The environment of a moto server, and a bucket in it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environ = {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "AK",
        "AWS_SECRET_ACCESS_KEY": "SK",
        "HARVESTER_BUCKET": "media",
    }
    reading(environ).create_bucket(Bucket="media")
    yield environ
    server.stop()


def reading(environ: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=environ["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id="AK",
        aws_secret_access_key="SK",
        region_name="us-east-1",
    )


async def test_moto_as_the_store(start: Start, moto_store: dict[str, str]) -> None:
    async with start(**moto_store, HARVESTER_PUT_OPTIONS='{"CacheControl": "no-cache"}') as harness:
        record = await harness.run({"images": ["png", {"file": "png", "size": 20_000_001}]})
    assert record["state"] == "stored", record
    client = reading(moto_store)
    for file in files(record):
        there = client.get_object(Bucket="media", Key=file["key"])
        assert hashlib.sha256(there["Body"].read()).hexdigest() == file["sha256"]
        assert there["Metadata"]["task-id"] == record["task_id"]
        assert there["CacheControl"] == "no-cache"
    manifest = client.get_object(Bucket="media", Key=record["manifest"])["Body"].read()
    assert json.loads(manifest)["task_id"] == record["task_id"]
    assert "Uploads" not in client.list_multipart_uploads(Bucket="media")
    client.close()


async def test_conditions_are_given_up_where_the_store_knows_none(
    start: Start, strict_store: StrictStore
) -> None:
    """A profile that promises more than the store keeps costs a few requests, and no file."""
    async with start(**strict_store.environ, HARVESTER_STORAGE="aws") as harness:
        record = await harness.run({"images": ["png", {"file": "png", "size": 20_000_001}]})
    assert record["state"] == "stored", record
    assert all("NotImplemented" in text for text in strict_store.refused)
    for file in files(record):
        body = strict_store.objects[file["key"]].body
        assert hashlib.sha256(body).hexdigest() == file["sha256"]
