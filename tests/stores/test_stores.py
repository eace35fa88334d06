"""The whole fleet against every real store that is installed here (``make stores``)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from redis.asyncio import Redis
from typer.testing import CliRunner

from tests.faults.http_proxy import Forward, HttpProxy, Seen
from tests.fleet import Fleet, all_final, environ, verify
from tests.stores.servers import STORES
from tests.stores.table import row
from tests.support import BOUND, ROOT, BucketEnv, eventually
from worker.cli.main import app
from worker.sandbox.simulator import Simulator
from worker.transfer.capabilities import Facts
from worker.transfer.capabilities import Seen as Fact

pytestmark = [pytest.mark.stores, pytest.mark.usefixtures("elsewhere", "patient_doctor")]
MIB = 1024 * 1024
SIZES = (1, 70_000, 8 * MIB, 8 * MIB + 1, 24_000_000)
CHOSEN = os.environ.get("STORES", "").split() or [*STORES]


@dataclass
class Way:
    """What happens to requests on their way to the store."""

    damage: int = 0
    holds: bool = False
    held: asyncio.Event = field(default_factory=asyncio.Event)
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, seen: Seen, forward: Forward) -> web.StreamResponse:
        if seen.step == "part" and self.holds:
            self.held.set()
            await self.goes_on.wait()
        if self.damage and seen.step in ("PUT", "part") and len(seen.body) > 60_000:
            self.damage -= 1
            seen.body = seen.body[:500] + bytes([seen.body[500] ^ 1]) + seen.body[501:]
        return await forward()


@dataclass(kw_only=True)
class Scene:
    """A fleet of one worker, its store, and what has become of each step so far."""

    simulator: Simulator
    redis: Redis
    bucket: BucketEnv
    namespace: str
    fleet: Fleet
    way: Way
    ids: list[str] = field(default_factory=list)
    steps: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step that fails is noted; the next one is tried all the same."""
        try:
            yield
        except AssertionError as error:
            self.steps[name] = f"✗ {str(error).splitlines()[0][:200]}"

    async def run(self, *arguments: str, code: int = 0) -> Any:
        """What a command says as JSON."""
        result = await asyncio.to_thread(lambda: CliRunner().invoke(app, [*arguments, "--json"]))
        assert result.exit_code == code, f"{arguments}: {result.output} {result.exception!r}"
        return json.loads(result.stdout)

    async def copied(self, *sizes: int) -> list[str]:
        """Have files of these sizes copied, each of a task of its own."""
        ids = [
            self.simulator.submit(
                {"simulate": {"duration": 0.2, "images": [{"file": "png", "size": max(size, 70)}]}}
            )
            for size in sizes
        ]
        self.ids += ids
        await self.run("submit", *ids)
        return ids

    async def stored(self, facts: Facts | None = None) -> None:
        """Wait for all tasks; every one is stored, byte for byte, and nothing else is there."""
        await all_final(self.redis, self.namespace, self.ids)
        lists = facts is None or facts.listing is Fact.HONOURED
        await verify(self.simulator, self.redis, self.bucket, self.namespace, self.ids, lists=lists)

    async def facts(self) -> Facts:
        """What the workers have seen of the store."""

        async def known() -> str | None:
            async for key in self.redis.scan_iter(f"{self.namespace}:store:*"):
                if not key.endswith(":lock"):
                    return str(await self.redis.get(key))
            return None

        return Facts.from_json(await eventually(known) or "")


@asynccontextmanager
async def scene(
    name: str,
    simulator: Simulator,
    redis: Redis,
    redis_url: str,
    namespace: str,
    folder: Path,
    patch: pytest.MonkeyPatch,
) -> AsyncIterator[Scene]:
    data, logs = folder / "store", folder / "logs"
    data.mkdir()
    logs.mkdir()
    serving = STORES[name][2](data)
    bucket = await asyncio.to_thread(serving.__enter__)
    try:
        way = Way()
        async with HttpProxy(bucket.endpoint, way) as proxy:
            settings = environ(simulator, redis_url, bucket, namespace)
            # commands reach the store directly, and sign for another name of this machine
            outside = bucket.endpoint.replace("127.0.0.1", "localhost")
            for variable, value in {**settings, "HARVESTER_PRESIGN_ENDPOINT": outside}.items():
                patch.setenv(variable, value)
            settings["AWS_ENDPOINT_URL_S3"] = proxy.endpoint
            async with Fleet(settings, logs, size=1) as fleet:
                yield Scene(
                    simulator=simulator,
                    redis=redis,
                    bucket=bucket,
                    namespace=namespace,
                    fleet=fleet,
                    way=way,
                )
    finally:
        await asyncio.to_thread(serving.__exit__, None, None, None)


def installed(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not STORES[name][1](), reason=f"{name} is not installed; see tests/stores/setup"
    )


@pytest.mark.parametrize("name", [pytest.param(n, marks=installed(n)) for n in CHOSEN])
async def test_a_real_store(
    name: str,
    simulator: Simulator,
    redis: Redis,
    redis_url: str,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    title, version, _ = STORES[name]
    async with scene(name, simulator, redis, redis_url, namespace, tmp_path, monkeypatch) as it:
        facts = await it.facts()
        with it.step("killed"):
            it.way.holds = True
            await it.copied(20_000_000)
            await eventually(it.way.held.is_set, what="a part on its way")
            (worker,) = it.fleet.processes
            worker.kill()
            it.way.holds = False
            it.way.goes_on.set()
            await it.stored(facts)
        with it.step("files"):
            await it.copied(*SIZES)
            await it.stored(facts)
        with it.step("damaged"):
            for size, count in ((100_000, 2), (20_000_000, 2)):
                it.way.damage = count
                await it.copied(size)
                await it.stored(facts)
                assert it.way.damage == 0
        with it.step("presigned"):
            await presigned(it)
        with it.step("verify"):
            await verified(it)
        with it.step("lost Redis"):
            await lost_redis(it)
        doctor = await it.run("doctor")
    said = row(title, version(), it.steps, facts, shown(doctor["checks"]))
    record_property("store_row", said)
    assert not it.steps
    assert doctor["ok"]
    documented = (ROOT / "docs/stores.md").read_text().splitlines()
    assert said in documented, "docs/stores.md needs the line that is printed below"


async def presigned(it: Scene) -> None:
    """Anybody can fetch a file, small or large, and gets the bytes that the record names."""
    async with httpx.AsyncClient(trust_env=False, timeout=BOUND) as client:
        for task_id in it.ids:
            (file,) = (await it.run("status", task_id))["files"]
            (made,) = (await it.run("url", task_id))["files"]
            assert made["url"].startswith("http://localhost:")
            body = (await client.get(made["url"])).content
            assert hashlib.sha256(body).hexdigest() == file["sha256"], "presigned: other bytes"


async def verified(it: Scene) -> None:
    """All is well; then one byte rots, and one object is lost."""
    found = await it.run("verify", "--all")
    assert (found["tasks"], found["differences"]) == (len(it.ids), [])
    (file,) = (await it.run("status", it.ids[0]))["files"]
    body = await asyncio.to_thread(it.bucket.read, file["key"])
    for broken in (body[:-1] + bytes([body[-1] ^ 1]), None):
        if broken is None:
            await asyncio.to_thread(
                it.bucket.client.delete_object, Bucket=it.bucket.bucket, Key=file["key"]
            )
        else:
            await asyncio.to_thread(
                it.bucket.client.put_object, Bucket=it.bucket.bucket, Key=file["key"], Body=broken
            )
        wrong = await it.run("verify", "--all", code=1)
        assert [each["key"] for each in wrong["differences"]] == [file["key"]]
    await asyncio.to_thread(
        it.bucket.client.put_object, Bucket=it.bucket.bucket, Key=file["key"], Body=body
    )


async def lost_redis(it: Scene) -> None:
    """Manifests give the records back: of one that is submitted again, and of all."""
    before = {task_id: await it.run("status", task_id) for task_id in it.ids}
    await it.redis.flushdb()
    await it.run("submit", it.ids[0])
    await all_final(it.redis, it.namespace, it.ids[:1])
    rebuilt = await it.run("rebuild")
    assert (rebuilt["restored"], rebuilt["unreadable"]) == (len(it.ids) - 1, [])
    for task_id, record in before.items():
        again = await it.run("status", task_id)
        assert (again["state"], again["files"]) == ("stored", record["files"])


def shown(checks: list[dict[str, Any]]) -> str:
    """What ``doctor`` says of the store, where that is more than that all is well."""
    of_the_store = ("Bucket", "Profile", "Checksums", "Conditional", "Uploads", "Bucket clock")
    found = [c["detail"] for c in checks if c["name"] in of_the_store and c["level"] != "good"]
    return "; ".join(found) or "all is well"
