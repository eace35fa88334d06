"""The access lists of docs/security.md: enough for each role, and no more."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from celery import Celery
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from config.settings import load_settings
from tests.fleet import Fleet, all_final, environ
from tests.integration.test_web import serving
from tests.security.kit import access_lists, login, set_users
from tests.support import BucketEnv, command, eventually
from worker.registry import scripts
from worker.sandbox.servers import Valkey
from worker.sandbox.simulator import Simulator
from worker.wiring import make_registry

FLEET = "harvester"  # the page is written for the default namespace


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("guarded")) as server:
        yield server


@pytest.fixture
async def admin(guarded: Valkey) -> AsyncIterator[Redis]:
    client = Redis.from_url(guarded.url, decode_responses=True, protocol=2)
    await client.flushall()
    await client.acl_log_reset()
    yield client
    await client.aclose()


@pytest.fixture
async def passwords(admin: Redis) -> dict[str, str]:
    return await set_users(admin)


async def refusals(admin: Redis) -> list[str]:
    """What the server has refused, whoever asked for it."""
    log = await admin.execute_command("ACL", "LOG")
    entries = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in log]
    return [f"{e['username']}: {e['reason']} {e['object']} in {e['context']}" for e in entries]


@pytest.mark.fleet
async def test_the_fleet_works_under_the_workers_list(
    simulator: Simulator, guarded: Valkey, admin: Redis, passwords: dict[str, str],
    bucket: BucketEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def as_user(name: str) -> str:
        return login(guarded.url, name, passwords[name])

    # what the page says of the server beside the lists
    await admin.config_set("proto-max-bulk-len", "16777216")
    scripted = {
        "by celery": {"images": ["png"], "answers": ["throttled", "error_503"]},
        "by stream": {"images": ["png", {"file": "png", "size": 20_000_000}]},
        "failed": {"end": "failed"},
        "canceled": {"end": "never"},
    }
    ids = {name: simulator.submit({"simulate": script}) for name, script in scripted.items()}
    variables = environ(
        simulator, as_user("harvester-worker"), bucket, FLEET, HARVESTER_REPLY_ALLOW="shop/shop.*"
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "cli").mkdir()

    async def cli(*arguments: str) -> str:
        ran = await command(*arguments, environ=fleet.environ, cwd=tmp_path / "cli")
        assert ran.code in (0, 1), ran.said
        return ran.said

    def send() -> None:
        with Celery("shop", broker=as_user("shop-celery")) as app:
            app.send_task(
                "harvester.submit",
                args=[ids["by celery"]],
                kwargs={"reply_task": "shop.ready", "reply_queue": "shop"},
                queue=FLEET,
            )

    await asyncio.to_thread(send)
    await leave_unacknowledged(admin)
    async with Fleet(variables, tmp_path, size=1) as fleet:
        async with Redis.from_url(as_user("shop-stream"), decode_responses=True) as producer:
            body = json.dumps({"task_ids": [ids["by stream"], ids["failed"], "not/an/id"]})
            await producer.xadd(f"{FLEET}:intake", {"body": body})
        await cli("submit", ids["canceled"])
        await cli("cancel", ids["canceled"])
        await all_final(admin, FLEET, list(ids.values()))
        assert "queued for retry" in await cli("retry", ids["failed"])
        await cli("notify", ids["by celery"])
        await cli("rebuild")
        await eventually(lambda: admin.llen("shop"), what="the reply")
        assert ids["by celery"] in await cli("list")
        assert "calls a second" in await cli("stats")
        assert ids["failed"] in await cli("events")
        await look_at_the_web(ids["failed"])
        assert "stored" in await cli("status", ids["by stream"])
        assert "✗" not in await cli("doctor")
        assert re.search(r"pong", await asyncio.to_thread(ping, as_user("harvester-worker")))

        async def run_twice() -> bool:
            return await admin.hget(f"{FLEET}:task:{ids['failed']}", "state") == "failed"

        await eventually(run_twice)
        async with Redis.from_url(as_user("shop-reader"), decode_responses=True) as reader:
            record = await reader.hgetall(f"{FLEET}:task:{ids['by celery']}")
            assert record["state"] == "stored"
            ((_, entries),) = await reader.xread({f"{FLEET}:events": "0"})
            told = {(fields["task_id"], fields["run"]) for _, fields in entries}
            assert told == {(i, "1") for i in ids.values()} | {(ids["failed"], "2")}
        running = fleet.started
    assert running == 1, fleet.log_text()
    # which shows the server's passwords; the doctor does without
    assert await refusals(admin) == ["harvester-worker: command config|get in toplevel"]
    assert await admin.hget(f"{FLEET}:task:{ids['by stream']}", "state") == "stored"
    await nothing_unused(admin)


async def look_at_the_web(task_id: str) -> None:
    """All that `harvester web` asks Redis for, with the settings of the environment."""
    async with serving() as web:
        page = (await web.get("/api/tasks", params={"limit": "1"})).json()
        rest = await web.get("/api/tasks", params={"cursor": page["next"]})
        assert len(rest.json()["tasks"]) == 3
        for path in ("/api/stats", "/metrics", "/readyz", f"/api/tasks/{task_id}"):
            assert (await web.get(path)).status_code == 200, path
        assert (await web.post(f"/api/tasks/{task_id}/notify")).status_code == 409
    registry = make_registry(load_settings())  # the stream of events never ends
    await registry.events(await registry.newest_event())
    await registry.close()


async def leave_unacknowledged(admin: Redis) -> None:
    """Put the one message in the queue where a worker that died two hours ago has left it."""
    message = json.loads(await admin.rpop(FLEET))
    left = json.dumps([message, FLEET, FLEET])
    await admin.hset(f"{FLEET}:unacked", "tag", left)
    await admin.zadd(f"{FLEET}:unacked_index", {"tag": time.time() - 7200})


def ping(broker: str) -> str:
    """Ask the workers over Celery's remote control, as an operator may."""
    with Celery("operator", broker=broker) as app:
        app.conf.control_exchange = FLEET
        return str(app.control.ping(timeout=2))


async def nothing_unused(admin: Redis) -> None:
    """Each command of the workers' list is one that the server has really carried out."""
    stats = await admin.info("commandstats")
    used = {name.removeprefix("cmdstat_") for name in stats}
    allowed = {rule[1:] for rule in access_lists()[0] if rule[0] == "+"}
    in_scripts = {call.lower() for name in scripts.NAMES for call in calls(name)}
    rare = {
        "select",  # a database other than 0
        "wait",  # replicas
        "unwatch",  # a message is given back while another consumer does the same
        "client|setinfo",
    }
    assert allowed - used - in_scripts - rare == set()


def calls(name: str) -> set[str]:
    return set(re.findall(r"redis\.call\('([A-Z]+)'", scripts.source(name)))


def test_every_command_of_the_scripts_is_allowed() -> None:
    allowed = {rule[1:].upper() for rule in access_lists()[0] if rule[0] == "+"}
    for name in scripts.NAMES:
        assert calls(name) - allowed == set(), name


DENIED = {
    "shop-stream": [
        ("XRANGE", f"{FLEET}:intake", "-", "+"),
        ("XREAD", "STREAMS", f"{FLEET}:intake", "0"),
        ("XDEL", f"{FLEET}:intake", "1-1"),
        ("XADD", f"{FLEET}:events", "*", "task_id", "x"),
        ("XADD", FLEET, "*", "a", "b"),
        ("LPUSH", FLEET, "x"),
        ("HGETALL", f"{FLEET}:task:x"),
    ],
    "shop-celery": [
        ("XADD", f"{FLEET}:intake", "*", "body", "x"),
        ("RPOP", FLEET),
        ("LRANGE", FLEET, "0", "-1"),
        ("SADD", FLEET, "x"),
        ("LPUSH", f"{FLEET}:refused", "x"),
        ("LPUSH", "_kombu.binding.harvester", "x"),
        ("LPUSH", "_kombu.binding.shop", "x"),
        ("SADD", "_kombu.binding.shop", "x"),
        ("SREM", "_kombu.binding.harvester", "x"),
        ("HGETALL", f"{FLEET}:task:x"),
        ("HGETALL", f"{FLEET}:unacked"),
        ("PUBLISH", f"/0.{FLEET}.pidbox", "x"),
        ("PSUBSCRIBE", "*"),
    ],
    "shop-reader": [
        ("HSET", f"{FLEET}:task:x", "state", "stored"),
        ("DEL", f"{FLEET}:task:x"),
        ("EXPIRE", f"{FLEET}:task:x", "1"),
        ("HGETALL", f"{FLEET}:work:x"),
        ("XADD", f"{FLEET}:events", "*", "a", "b"),
        ("XTRIM", f"{FLEET}:events", "MAXLEN", "0"),
        ("XDEL", f"{FLEET}:events", "1-1"),
        ("XRANGE", f"{FLEET}:intake", "-", "+"),
        ("LRANGE", FLEET, "0", "-1"),
        ("LPUSH", FLEET, "x"),
    ],
    "harvester-worker": [
        ("GET", "another:key"),
        ("SET", "another:key", "x"),
        ("LPUSH", "another", "x"),
        ("SADD", "_kombu.binding.another", "x"),
        ("GET", "harvester2:task:x"),
        ("PUBLISH", "another", "x"),
        ("PSUBSCRIBE", "*"),
    ],
}
ADMINISTRATIVE = [
    ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "GET", "*"), ("CONFIG", "SET", "dir", "/"),
    ("KEYS", "*"), ("SCAN", "0"), ("ACL", "LIST"), ("ACL", "SETUSER", "x", "on"), ("SHUTDOWN",),
    ("CLIENT", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"), ("MONITOR",), ("SAVE",),
    ("BGREWRITEAOF",), ("REPLICAOF", "NO", "ONE"), ("MODULE", "LIST"), ("SCRIPT", "FLUSH"),
    ("FUNCTION", "FLUSH"), ("EVAL", "return redis.call('KEYS', '*')", "0"),
    ("MIGRATE", "h", "1", "k", "0", "1"), ("SWAPDB", "0", "1"), ("SLOWLOG", "GET"),
    ("LATENCY", "RESET"), ("RESTORE", "k", "0", "x"),
]  # fmt: skip


@pytest.mark.parametrize("user", DENIED)
async def test_a_role_can_do_nothing_else(
    user: str, guarded: Valkey, admin: Redis, passwords: dict[str, str]
) -> None:
    assert passwords.keys() == DENIED.keys()
    await admin.hset(f"{FLEET}:task:x", mapping={"state": "waiting"})
    url = login(guarded.url, user, passwords[user])
    async with Redis.from_url(url, decode_responses=True, protocol=2) as client:
        assert await client.ping()
        for call in [*DENIED[user], *ADMINISTRATIVE]:
            with pytest.raises(redis_errors.NoPermissionError):
                await client.execute_command(*call)
    assert await admin.hgetall(f"{FLEET}:task:x") == {"state": "waiting"}


async def test_scripts_are_no_way_round_the_list(
    guarded: Valkey, admin: Redis, passwords: dict[str, str]
) -> None:
    await admin.set("another:key", "secret")
    url = login(guarded.url, "harvester-worker", passwords["harvester-worker"])
    async with Redis.from_url(url, decode_responses=True, protocol=2) as client:
        for body in ("redis.call('GET', 'another:key')", "redis.call('KEYS', '*')"):
            digest = await client.script_load(f"return {body}")
            with pytest.raises(redis_errors.ResponseError, match=r"(?i)permission|ACL"):
                await client.evalsha(digest, 0)


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (["resetkeys", "~another:*"], f"{FLEET}:"),
        (["-hset"], f"{FLEET}:task:"),
        (["-evalsha"], "evalsha"),
        (["%R~harvester:*", "resetkeys", "%R~harvester:*"], f"{FLEET}:"),
    ],
    ids=["no keys", "no HSET", "no scripts", "keys to read only"],
)
async def test_rights_that_are_missing_are_named_at_once(
    guarded: Valkey, admin: Redis, passwords: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    simulator: Simulator, bucket: BucketEnv, tmp_path: Path, rules: list[str], named: str,
) -> None:  # fmt: skip
    await admin.execute_command("ACL", "SETUSER", "harvester-worker", *rules)
    url = login(guarded.url, "harvester-worker", passwords["harvester-worker"])
    variables = environ(simulator, url, bucket, FLEET)
    for arguments in (["worker"], ["list"] if "evalsha" not in named else ["submit", "t1"]):
        if named == f"{FLEET}:task:" and arguments == ["list"]:
            continue  # reading needs no HSET
        ran = await command(*arguments, environ=variables, cwd=tmp_path)
        assert ran.code == 2 or arguments == ["list"], ran.said
        assert "Traceback" not in ran.said
    assert named in (await command("worker", environ=variables, cwd=tmp_path)).said
    doctor = await command("doctor", environ=variables, cwd=tmp_path)
    assert doctor.code in (1, 3), doctor.said
    assert "docs/security.md" in doctor.said
