"""Secrets are planted wherever there are any; what the fleet leaves behind is searched for them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from celery import Celery
from redis.asyncio import Redis

from config.celery import celery_config
from config.redis import RedisAddress
from config.settings import load_settings
from tests.fleet import Fleet, all_final, environ
from tests.support import BucketEnv, Ran, command, eventually, run
from worker import wiring
from worker.core.models import FoundFile, Succeeded
from worker.core.reply import read_reply
from worker.core.submission import Policy, read_submission
from worker.registry.records import DueSet, Job
from worker.sandbox.servers import SeaweedFS, Valkey
from worker.sandbox.simulator import Simulator
from worker.telling.webhook import Webhook
from worker.transfer.copier import CopyJob
from worker.transfer.guard import Guard
from worker.transfer.store import Upload
from worker.upstream.gateway import Gateway

MARK = "PLANTED"
APP_SECRET = f"{MARK}-app-secret"
REDIS_PASSWORD = f"{MARK}-redis/pass@word"
AWS_SECRET = f"{MARK}-aws-secret-key"
AWS_TOKEN = f"{MARK}-aws-session-token"
WEBHOOK_SECRET = f"whsec_{base64.b64encode(f'{MARK}-webhook-secret-0'.encode()).decode()}"
SIGNED = f"https://files.example.com/a.png?Expires=1&OSSAccessKeyId=k&Signature={MARK}-signature"
SECRETS = re.compile(
    "|".join(
        [
            MARK,
            re.escape(WEBHOOK_SECRET.removeprefix("whsec_")),
            # what the simulator signs its own addresses with, and boto3 its requests
            r"(?:Signature|security-token|x-oss-signature|X-Amz-Signature)=[A-Za-z0-9%]",
        ]
    )
)
BASE64 = re.compile(r"[A-Za-z0-9+/]{24,}={0,2}")

# A worker that breaks over one file, with its address in the message and in local variables.
CRASHING = """
import sys
from celery.__main__ import main
from worker.transfer.copier import Copier
copy = Copier.copy
async def breaking(self, job, hold):
    if job.filename == "crash.png":
        address = job.url
        raise RuntimeError(f"cannot cope with {address} and PLANTED-app-secret")
    return await copy(self, job, hold)
Copier.copy = breaking
sys.argv[0] = "celery"
main()
"""


def leaks(text: str) -> list[str]:
    """The surroundings of each secret in a text, or in what it holds in base64."""
    found = [text[max(0, m.start() - 80) : m.end() + 40] for m in SECRETS.finditer(text)]
    for encoded in BASE64.findall(text):
        with contextlib.suppress(ValueError):
            inner = base64.b64decode(encoded).decode("utf-8", "replace")
            found += [f"(base64) {inner[:200]}"] if SECRETS.search(inner) else []
    return found


def test_the_search_finds_what_was_planted() -> None:
    for text in (APP_SECRET, REDIS_PASSWORD, AWS_SECRET, AWS_TOKEN, WEBHOOK_SECRET, SIGNED):
        assert leaks(f"x{text}x")
        assert leaks(base64.b64encode(f"x {text} x".encode()).decode())
    assert leaks("https://h/p?OSSAccessKeyId=a&Signature=abc%3D")
    assert not leaks("https://h/p?Expires=&Signature=")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey"), password=REDIS_PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    folder = tmp_path_factory.mktemp("seaweedfs")
    with SeaweedFS(folder, "media", secret_key=AWS_SECRET) as server:
        yield server


@pytest.fixture
async def upstream() -> AsyncIterator[Simulator]:
    async with Simulator(app_secret=APP_SECRET) as simulator:
        yield simulator


@pytest.fixture
async def redis(guarded: Valkey) -> AsyncIterator[Redis]:
    client = Redis.from_url(guarded.url, decode_responses=True, protocol=2)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def hook() -> AsyncIterator[str]:
    """A webhook target that refuses everything."""

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=500, text=SIGNED)

    app = web.Application()
    app.router.add_post("/{path:.*}", refuse)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def variables(
    upstream: Simulator, guarded: Valkey, store: SeaweedFS, namespace: str
) -> Iterator[dict[str, str]]:
    client = store.client()
    bucket = BucketEnv(
        endpoint=store.endpoint,
        access_key=store.access_key,
        secret_key=store.secret_key,
        bucket=store.bucket,
        region=store.region,
        client=client,
    )
    yield {
        **environ(upstream, guarded.url, bucket, namespace),
        "HARVESTER_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "HARVESTER_WEBHOOK_ALLOW_PRIVATE": "127.0.0.1/32",
        "HARVESTER_REPLY_ALLOW": "shop/*",
    }
    client.close()


def redirecting(to: str) -> dict[str, Any]:
    return {"file": "png", "faults": [{"fault": "redirect_to", "to": to, "times": "ever"}]}


SCRIPTS: dict[str, dict[str, Any]] = {
    "stored": {
        "images": ["png"],
        "result": {"text": f"see {SIGNED} and {{url}}", "clip": {"file": "mp4"}},
    },
    "signed_v4": {"images": ["png"], "signing": "oss_v4", "answers": ["throttled", "error_503"]},
    "partial": {
        "images": ["png", redirecting(f"https://169.254.169.254/a?Signature={MARK}-redirect")]
    },
    "failed": {"end": "failed"},
    "rejected": {"images": [redirecting(f"http://u:{MARK}-user@example.com/?token={MARK}-query")]},
}
UNFINISHED: dict[str, dict[str, Any]] = {
    "strange": {"end": "strange", "status_word": SIGNED[:90]},
    "doubtful": {"end": "service_error", "error_message": f"no node at {SIGNED}"},
    "retried": {"images": [redirecting(f"https://nowhere.invalid/a?Signature={MARK}-redirect")]},
    "crashing": {"result": {"picture": {"file": "png", "filename": "crash.png"}}},
}


def test_the_upstreams_words_lose_their_addresses() -> None:
    said = {"errMessage": f"no node at {SIGNED}", "subErrMessage": SIGNED, "errCode": SIGNED[:99]}
    for status in ("failed", "canceled", "succeeded", SIGNED[:90]):
        for code in (10, 20):
            reply = {"status": code, **said, "data": {"taskId": "a", "status": status}}
            answer = read_reply(
                http_status=200, headers={}, body=json.dumps(reply).encode(), task_id="a"
            )
            assert leaks(str(answer)) == []


async def everything_in(redis: Redis) -> dict[str, str]:
    """Every key of the server and its whole value, as text."""
    read = {
        "string": redis.get,
        "hash": redis.hgetall,
        "list": lambda key: redis.lrange(key, 0, -1),
        "set": redis.smembers,
        "zset": lambda key: redis.zrange(key, 0, -1),
        "stream": redis.xrange,
    }
    return {key: str(await read[await redis.type(key)](key)) async for key in redis.scan_iter()}


async def hand_in(upstream: Simulator, redis: Redis, namespace: str, hook: str) -> dict[str, str]:
    """Hand in all that a fleet can meet, over all ways; the ids of the tasks that will be final."""
    final, open_ = (
        {name: upstream.submit({"simulate": script}) for name, script in scripts.items()}
        for scripts in (SCRIPTS, UNFINISHED)
    )
    url = f"{hook}/hook?token={MARK}-callback"
    bodies: list[object] = [
        {"task_ids": list(final.values()), "callback_url": url, "reply_task": "shop.ready",
         "reply_queue": "shop"},
        {"task_ids": list(open_.values())},
        {"task_ids": [SIGNED, {"a": SIGNED}], "callback_url": f"https://u:{MARK}-user@h/?a=b"},
        {"task_ids": ["x/y"], "callbackurl": SIGNED, SIGNED: 1, "reply_task": SIGNED,
         "prefix": SIGNED, "label": f"\n{SIGNED}", "priority": SIGNED, "deadline": SIGNED},
        SIGNED,
    ]  # fmt: skip
    for body in [*map(json.dumps, bodies), f'{{"callback_url": "{SIGNED}", ', SIGNED]:
        await redis.xadd(f"{namespace}:intake", {"body": body})

    def send(broker: str) -> None:
        with Celery("shop", broker=broker) as app:
            for task in ("harvester.submit", "harvester.nosuch", "harvester.poll"):
                app.send_task(task, args=["x/y"], kwargs={"callback_url": url}, queue=namespace)
                app.send_task(task, args=[SIGNED, SIGNED], kwargs={"note": SIGNED}, queue=namespace)

    pool = redis.connection_pool.connection_kwargs
    password = pool["password"].replace("/", "%2F").replace("@", "%40")
    await asyncio.to_thread(send, f"redis://:{password}@{pool['host']}:{pool['port']}/0")
    for raw in (SIGNED, json.dumps(SIGNED), json.dumps({"body": SIGNED}), f'{{"a": "{SIGNED}"'):
        await redis.lpush(namespace, raw)
    return final


@pytest.mark.fleet
async def test_nothing_that_the_fleet_leaves_behind_holds_a_secret(
    upstream: Simulator, redis: Redis, store: SeaweedFS, namespace: str, hook: str,
    variables: dict[str, str], tmp_path: Path,
) -> None:  # fmt: skip
    empty = tmp_path / "empty"
    empty.mkdir()
    final = await hand_in(upstream, redis, namespace, hook)
    async with Fleet(variables, tmp_path, size=1, program=("-c", CRASHING)) as fleet:
        await all_final(redis, namespace, list(final.values()))
        wanted = {
            "job.crashed", "file.failed", "file.lost", "tell.failed", "task.told", "intake.refused",
            "intake.unreadable", "upstream.throttled", "upstream.unknown_status",
            "upstream.doubtful", "not a harvester.* task",
        }  # fmt: skip
        await eventually(
            lambda: all(event in fleet.log_text() for event in wanted),
            what=f"all of {wanted}",
        )
        # the upstream refuses the signature, and says what it would have signed
        upstream.control(app_secret="another")
        last = upstream.submit({"simulate": {}})
        await redis.xadd(f"{namespace}:intake", {"body": json.dumps({"task_ids": [last]})})
        await eventually(lambda: redis.exists(f"{namespace}:circuit:upstream"))
        shown = [
            await command(*words, environ=fleet.environ, cwd=empty)
            for words in (
                ("status", final["partial"]), ("status", "--json", final["failed"]), ("list",),
                ("list", "--json"), ("list", "--refused"), ("doctor",), ("doctor", "--json"),
                ("submit", "x/y", "--callback-url", SIGNED.replace("https", "ftp")),
            )
        ]  # fmt: skip
        report = await run("-m", "celery", "-A", "worker.app", "report", environ=fleet.environ,
                           cwd=empty)  # fmt: skip
        inspected = await asyncio.to_thread(inspect, variables)
    kept = await everything_in(redis)
    assert leaks(fleet.log_text()) == []
    assert [leaks(ran.said) for ran in [*shown, report]] == [[]] * 9
    assert leaks(inspected) == []

    # what the contract keeps: whom to call, whole; and the reply while there is work left in it
    states = {i: await redis.hget(f"{namespace}:task:{i}", "state") for i in final.values()}
    assert sorted(states.values()) == ["failed", "failed", "partial", "stored", "stored"]
    for key, text in kept.items():
        name, _, task_id = key.rpartition(":")
        if name == f"{namespace}:task" and task_id in final.values():
            record = await redis.hgetall(key)
            assert f"{MARK}-callback" in record.pop("options")
            assert leaks(str(record)) == [], key
        elif name == f"{namespace}:work" and states.get(task_id) not in ("stored", "failed"):
            notes = await redis.hgetall(key)
            notes.pop("data", None)
            assert leaks(str(notes)) == [], key
        else:
            assert leaks(text) == [], key
    assert f"{namespace}:work:{final['stored']}" in kept

    client = store.client()
    keys = BucketEnv(
        endpoint="", access_key="", secret_key="", bucket="media", region="", client=client
    ).keys(f"{namespace}/")
    assert len([key for key in keys if "/manifests/" in key]) == len(final)
    for key in keys:
        found = client.get_object(Bucket="media", Key=key)
        described = {k: v for k, v in found.items() if k not in ("Body", "ResponseMetadata")}
        assert leaks(f"{key} {described}") == [], key
        if key.endswith(".json"):
            assert leaks(found["Body"].read().decode()) == [], key
    client.close()


def inspect(variables: dict[str, str]) -> str:
    """What workers tell about themselves over remote control."""
    with Celery("operator", broker=variables["REDIS_URL"]) as app:
        app.conf.control_exchange = variables["HARVESTER_NAMESPACE"]
        asked = app.control.inspect(timeout=2, limit=1)
        said = [asked.conf(), asked.stats(), asked.report()]
    assert all(said)
    return str(said)


async def test_wrong_credentials_are_not_repeated(
    upstream: Simulator, redis: Redis, namespace: str, variables: dict[str, str], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    wrong_store = {
        **variables,
        "AWS_SECRET_ACCESS_KEY": f"{MARK}-another-key",
        "AWS_SESSION_TOKEN": AWS_TOKEN,
        "CELERY_BROKER_URL": f"amqp://user:{MARK}-rabbit@127.0.0.1:9//",
    }
    wrong_redis = {
        **variables,
        "REDIS_URL": variables["REDIS_URL"].replace(MARK, f"{MARK}-another"),
        "SPEEDPIX_APP_SECRET": f"{MARK}-another-secret",
    }
    malformed = {
        **variables,
        "REDIS_URL": f"redis://:{MARK} x@h:{MARK}/0",
        "CELERY_BROKER_URL": f"amqps//:{MARK}@",
        "HARVESTER_WEBHOOK_SECRET": f"{MARK}-webhook",
        "HARVESTER_PUT_OPTIONS": f'{{"SSECustomerKey": "{MARK}"}}',
        "SPEEDPIX_ENDPOINT": f"http://u:{MARK}@h:x",
        "HARVESTER_BUCKET": f"{MARK}/?",
    }
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    task_id = upstream.submit({"simulate": {}})
    await redis.xadd(f"{namespace}:intake", {"body": json.dumps({"task_ids": [task_id]})})
    async with (
        Fleet(wrong_store, folders[0], size=1) as one,
        Fleet(wrong_redis, folders[1], size=1) as two,
    ):
        await eventually(lambda: redis.exists(f"{namespace}:circuit:store"))
        await eventually(lambda: "Cannot connect to amqp://" in one.log_text())
        await eventually(lambda: "refuses the credentials" in two.log_text())
        doctors = [await command("doctor", environ=f.environ, cwd=empty) for f in (one, two)]
        circuit = await redis.hgetall(f"{namespace}:circuit:store")
    assert all(ran.code in (1, 3) for ran in doctors)
    logs = one.log_text() + two.log_text()
    assert leaks(logs) == []
    assert "circuit.open" in logs
    assert [leaks(ran.said) for ran in doctors] == [[], []]
    assert leaks(str(circuit)) == []
    refused = await command("list", environ={**one.environ, **malformed}, cwd=empty)
    assert refused.code == 2
    named = malformed.keys() - variables.keys() | {"REDIS_URL", "HARVESTER_WEBHOOK_SECRET"}
    assert all(name in refused.said for name in named), refused.said
    assert leaks(refused.said) == []


async def test_a_crash_of_a_command_shows_no_variables(
    variables: dict[str, str], tmp_path: Path
) -> None:
    crash = """
import sys, worker.wiring
def breaking(settings, **_):
    password = settings.redis_url.get_secret_value()
    raise RuntimeError(f"cannot cope with {password} and PLANTED-app-secret")
worker.wiring.make_registry = breaking
sys.argv[:] = ["harvester", "list"]
from worker.cli.main import main
main()
"""
    ran: Ran = await run(
        "-c", crash, environ={"PATH": "", **variables, "HARVESTER_LOG_FORMAT": "json"}, cwd=tmp_path
    )
    assert ran.code != 0
    assert "cannot cope with" in ran.said
    assert "Traceback" in ran.said
    assert leaks(ran.said) == []


async def test_no_repr_holds_a_secret(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**variables, "AWS_SESSION_TOKEN": AWS_TOKEN}.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    address = RedisAddress.parse(settings.redis_url.get_secret_value())
    store = wiring.make_store(settings)
    registry = wiring.make_registry(settings)
    app = Celery("harvester")
    app.conf.update(celery_config(settings))
    record = {"options": SIGNED, "state": "waiting"}
    guard = Guard(("*",))
    async with httpx.AsyncClient(trust_env=False) as client, wiring.upstream_session() as session:
        signer = await store.wire.ready()
        things: list[object] = [
            settings, address, store, store.wire, signer, registry, registry.redis, app,
            wiring.make_redis(settings.redis_url),
            app.conf.humanize(with_defaults=False), app.connection_for_read(),
            signer.sign("get_object", {"Bucket": "b", "Key": "k"}),
            Gateway(session, endpoint=f"https://u:{MARK}@h?a={MARK}", app_key="k",
                    app_secret=APP_SECRET),
            Webhook(client, guard, WEBHOOK_SECRET), Upload(key="k", id=f"{MARK}-upload"),
            Job(kind=DueSet.POLL, task_id="a", token="t", claimed_at=0, record=record, work=record),
            CopyJob(task_id="a", url=SIGNED, base="b"), Succeeded(data=SIGNED),
            FoundFile(identity=SIGNED, refs=(), url=SIGNED),
            read_submission("a", {"callback_url": SIGNED}, Policy(webhooks=True)),
            BucketEnv(endpoint="", access_key="", secret_key=AWS_SECRET, bucket="", region="",
                      client=None),
        ]  # fmt: skip
        for thing in things:
            assert leaks(f"{thing!r} {thing} {[thing]}") == [], type(thing)
    app.close()
    await store.close()
    await registry.close()
