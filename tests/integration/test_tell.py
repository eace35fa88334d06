"""Telling: webhooks and Celery replies, each settled on its own."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from celery import Celery
from redis.asyncio import Redis
from standardwebhooks import Webhook as Oracle

from tests.integration.test_registry import claim_one, due, finish, make, submission
from tests.support import BOUND
from worker.core.schedule import Gaps
from worker.errors import TellError, TellRejected
from worker.registry.records import DueSet
from worker.registry.registry import Registry
from worker.telling.reply import CeleryReply
from worker.telling.webhook import Webhook, message_id
from worker.transfer.guard import Guard
from worker.work.claim import Claim
from worker.work.tell import TellWork

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
RECORD = {
    "task_id": "t1", "run": 1, "state": "stored", "finished_at": 1_700_000_000_000, "files": [],
}  # fmt: skip


class Listener:
    """A webhook's target."""

    def __init__(self) -> None:
        self.status = 200
        self.calls: list[tuple[dict[str, str], str]] = []
        self.url = ""
        self.answers = asyncio.Event()
        self.answers.set()

    async def handle(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.calls.append((headers, await request.text()))
        await self.answers.wait()
        return web.Response(status=self.status, headers={"location": "/elsewhere"})


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    found = Listener()
    app = web.Application()
    app.router.add_post("/{path:.*}", found.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}/hook?key=secret"
    yield found
    await runner.cleanup()


@pytest.fixture
async def webhook() -> AsyncIterator[Webhook]:
    guard = Guard(("*",), ("127.0.0.1/32",))
    client = guard.client()
    yield Webhook(client, guard, SECRET)
    await client.aclose()


@pytest.fixture
def registry(redis: Redis, namespace: str) -> Registry:
    return make(redis, namespace)


def to(url: str) -> dict[str, str]:
    return {"channel": "webhook", "target": url}


async def test_a_webhook_passes_the_specifications_own_check(
    listener: Listener, webhook: Webhook
) -> None:
    await webhook.tell(to(listener.url), RECORD)
    ((headers, body),) = listener.calls
    told = Oracle(SECRET).verify(body, headers)
    assert told == {"type": "task.stored", "timestamp": "2023-11-14T22:13:20+00:00", "data": RECORD}


def test_signatures_are_those_of_the_specification() -> None:
    """Its own example (standard-webhooks, libraries), so that the library is not its own judge."""
    signer = Oracle("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    at = datetime.fromtimestamp(1614265330, UTC)
    signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, '{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_a_receiver_that_does_not_answer_is_given_up(listener: Listener) -> None:
    listener.answers.clear()
    guard = Guard(("*",), ("127.0.0.1/32",))
    async with guard.client() as client:
        try:
            with pytest.raises(TellError, match="no answer in time"):
                await Webhook(client, guard, SECRET, timeout=2).tell(to(listener.url), RECORD)
        finally:
            listener.answers.set()
    assert len(listener.calls) == 1


async def test_while_secrets_are_replaced_both_receivers_are_content(listener: Listener) -> None:
    new = "whsec_" + base64.b64encode(b"a new secret of 24 bytes").decode()
    guard = Guard(("*",), ("127.0.0.1/32",))
    async with guard.client() as client:
        await Webhook(client, guard, f"{new} {SECRET}").tell(to(listener.url), RECORD)
    ((headers, body),) = listener.calls
    assert Oracle(SECRET).verify(body, headers) == Oracle(new).verify(body, headers)
    assert len(headers["webhook-signature"].split(" ")) == 2


async def test_the_id_is_the_same_for_each_attempt_and_new_for_each_run(
    listener: Listener, webhook: Webhook
) -> None:
    for run in (1, 1, 2):
        await webhook.tell(to(listener.url), {**RECORD, "run": run})
    ids = [headers["webhook-id"] for headers, _ in listener.calls]
    assert ids[0] == ids[1] == message_id(to(listener.url), RECORD)
    assert ids[2] != ids[0]


@pytest.mark.parametrize("status", [302, 400, 404, 500, 503])
async def test_anything_but_2xx_is_no_success(
    listener: Listener, webhook: Webhook, status: int
) -> None:
    listener.status = status
    with pytest.raises(TellError, match=str(status)):
        await webhook.tell(to(listener.url), RECORD)
    assert len(listener.calls) == 1


async def test_410_ends_it(listener: Listener, webhook: Webhook) -> None:
    listener.status = 410
    with pytest.raises(TellRejected):
        await webhook.tell(to(listener.url), RECORD)


async def test_a_private_address_is_not_called(listener: Listener) -> None:
    guard = Guard(("*",), ())
    client = guard.client()
    with pytest.raises(TellError, match="not allowed"):
        await Webhook(client, guard, SECRET).tell(to(listener.url), RECORD)
    await client.aclose()
    assert listener.calls == []


class Broken:
    """A channel that fails."""

    async def tell(self, callback: Mapping[str, str], record: Mapping[str, Any]) -> None:
        raise TellError("HTTP 500")


async def test_channels_are_settled_each_on_its_own(
    registry: Registry, redis: Redis, redis_url: str, namespace: str
) -> None:
    hook = {"channel": "webhook", "target": "https://a.example/x?key=secret"}
    reply = {"channel": "reply", "task": "orders.done", "queue": f"{namespace}-orders"}
    await registry.submit([submission(callbacks=[hook, reply])])
    await finish(registry, await claim_one(registry, DueSet.COPY))
    app = Celery("t", broker=redis_url)
    work = TellWork({"webhook": Broken(), "reply": CeleryReply(app)}, slots=1, gaps=Gaps())
    for _ in range(2):
        job = await claim_one(registry, DueSet.TELL)
        assert await work(Claim(registry, job)) == "again"
        await redis.zadd(registry.key("due", "tell"), {"t1": 0})
    app.close()
    record = await registry.record("t1")
    assert record is not None
    told = {entry["channel"]: entry for entry in json.loads(record["told"])}
    assert told["webhook"]["target"] == "https://a.example/x"
    assert told["webhook"]["last_error"] == "TellError: HTTP 500"
    assert told["webhook"]["done_at"] is None
    assert [attempt["error"] for attempt in told["webhook"]["log"]] == ["TellError: HTTP 500"]
    assert [attempt["error"] for attempt in told["reply"]["log"]] == [""]
    assert told["webhook"]["attempts"] == 1  # the second one is not due yet
    assert told["reply"]["attempts"] == 1
    assert told["reply"]["done_at"] is not None
    (message,) = await redis.lrange(f"{namespace}-orders", 0, -1)
    envelope = json.loads(message)
    assert envelope["headers"]["task"] == "orders.done"
    ((sent,), _, _) = json.loads(base64.b64decode(envelope["body"]))
    assert sent["task_id"] == "t1"
    assert sent["state"] == "stored"
    assert sent["metadata"] == {"order": 42, "exact": 1.1}
    assert "secret" not in json.dumps(sent)
    assert await redis.ttl(registry.key("task", "t1")) == -1


SHOP = """
import json, os, sys
import redis
from celery import Celery

app = Celery("shop", broker=os.environ["BROKER"])

@app.task(name="shop.pictures_ready")
def pictures_ready(record):
    ours = sorted({"worker", "config"} & set(sys.modules))
    called = json.dumps({"record": record, "imported": ours})
    redis.Redis.from_url(os.environ["BROKER"]).rpush(os.environ["CALLED"], called)
"""


async def test_another_application_that_knows_nothing_of_this_one_is_called(
    registry: Registry, redis: Redis, redis_url: str, namespace: str, tmp_path: Path
) -> None:
    reply = {"channel": "reply", "task": "shop.pictures_ready", "queue": f"{namespace}-shop"}
    await registry.submit([submission(callbacks=[reply])])
    await finish(registry, await claim_one(registry, DueSet.COPY))
    app = Celery("t", broker=redis_url)
    work = TellWork({"reply": CeleryReply(app)}, slots=1, gaps=Gaps())
    assert await work(Claim(registry, await claim_one(registry, DueSet.TELL))) == "told"
    app.close()

    (tmp_path / "shop.py").write_text(SHOP)
    called = f"{namespace}-called"
    shop = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "celery", "-A", "shop", "worker", "-P", "solo", "-Q",
        reply["queue"], "--without-gossip", "--without-mingle",
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "BROKER": redis_url, "CALLED": called},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        found = await redis.blpop([called], timeout=BOUND)
    finally:
        shop.kill()
        await shop.wait()
    assert found is not None
    told = json.loads(found[1])
    assert told["imported"] == []
    assert told["record"]["task_id"] == "t1"
    assert told["record"]["state"] == "stored"
    assert told["record"]["metadata"] == {"order": 42, "exact": 1.1}


async def test_a_settled_telling_starts_the_time_to_live(
    registry: Registry, redis: Redis, listener: Listener, webhook: Webhook
) -> None:
    await registry.submit([submission(callbacks=[to(listener.url)])])
    await finish(registry, await claim_one(registry, DueSet.COPY))
    work = TellWork({"webhook": webhook}, slots=1, gaps=Gaps())
    assert await work(Claim(registry, await claim_one(registry, DueSet.TELL))) == "told"
    assert await redis.ttl(registry.key("task", "t1")) > 0
    assert (await due(registry))[DueSet.TELL] == 0
    assert '"exact":1.10' in listener.calls[0][1]


async def test_attempts_are_counted_and_hosts_that_fail_are_named(
    registry: Registry, redis: Redis, listener: Listener, webhook: Webhook
) -> None:
    await registry.submit([submission(callbacks=[to(listener.url)])])
    await finish(registry, await claim_one(registry, DueSet.COPY))
    work = TellWork({"webhook": webhook}, slots=1, gaps=Gaps(webhook=(0.0,)))

    async def attempt(status: int) -> str:
        listener.status = status
        await redis.zadd(registry.key("due", "tell"), {"t1": 0})
        said = await work(Claim(registry, await claim_one(registry, DueSet.TELL)))
        await registry.tick("a:1")
        return said

    assert await attempt(503) == "again"
    (host,) = (await registry.overview()).hosts
    assert (host.host, host.trouble) == (urlsplit(listener.url).netloc, "HTTP 503")
    assert await attempt(503) == "told"  # given up
    assert await registry.notify("t1") == "ok"
    assert await attempt(410) == "told"
    assert (await registry.overview()).hosts == []  # it answers
    assert await registry.notify("t1") == "ok"
    assert await attempt(200) == "told"
    counters = (await registry.overview()).counters
    assert {n: v for n, v in counters.items() if n.startswith("callbacks:")} == {
        f"callbacks:webhook:{outcome}": 1 for outcome in ("failed", "given_up", "rejected", "told")
    }
