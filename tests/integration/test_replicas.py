"""What reads replication without acknowledging is no replica; ``submit`` says what it knows."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from typer.testing import CliRunner

from config.redis import RedisAddress
from tests.integration.test_registry import make, submission
from tests.support import eventually
from worker.cli.main import app
from worker.errors import RegistryUnconfirmed
from worker.registry import replicas
from worker.registry.client import connect
from worker.registry.registry import Registry
from worker.registry.replicas import acknowledges
from worker.sandbox.servers import Valkey

NAMESPACE = "replicated"


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "primary") as server:
        yield server


@pytest.fixture
async def registry(primary: Valkey) -> AsyncIterator[Registry]:
    made = make(connect(RedisAddress.parse(primary.url)), NAMESPACE)
    yield made
    await made.close()


@asynccontextmanager
async def reading_along(server: Valkey, hello: bytes, ack: bytes = b"") -> AsyncIterator[None]:
    """A tool that reads replication; it sends ``ack`` ten times a second, or says nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

    async def read() -> None:
        while await reader.read(65536):
            pass

    async def answer() -> None:
        while ack:
            writer.write(ack)
            await asyncio.sleep(0.1)

    writer.write(hello)
    both = [asyncio.create_task(read()), asyncio.create_task(answer())]
    try:
        yield
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        writer.close()


async def replication(registry: Registry) -> dict[str, Any]:
    found: dict[str, Any] = await registry.redis.info("replication")
    return found


async def connected(registry: Registry) -> bool:
    slave = (await replication(registry)).get("slave0", {})
    return slave.get("state") in {"online", "send_bulk"}


@pytest.mark.parametrize("hello", [b"SYNC\r\n", b"PSYNC ? -1\r\n"])
async def test_a_tool_that_only_reads_stalls_no_intake(
    primary: Valkey, registry: Registry, hello: bytes
) -> None:
    async with reading_along(primary, hello):
        await eventually(lambda: connected(registry), what="a reader")
        assert (await replication(registry))["connected_slaves"] == 1
        assert (await registry.submit([submission()]))[0] == {"t1": True}


async def test_next_to_a_replica_it_is_the_replica_that_confirms(
    primary: Valkey, registry: Registry, tmp_path: Path
) -> None:
    with Valkey(tmp_path / "replica") as replica:
        copy = Redis.from_url(replica.url, decode_responses=True, protocol=2)
        async with reading_along(primary, b"SYNC\r\n"):
            await copy.replicaof("127.0.0.1", primary.port)

            async def both() -> bool:
                info = await replication(registry)
                return any(map(acknowledges, info.values())) and info["connected_slaves"] == 2

            await eventually(both, what="a replica")
            await registry.submit([submission()])
            assert await copy.hget(registry.key("task", "t1"), "state") == "waiting"
            os.kill(replica.pid, signal.SIGSTOP)
            try:
                with pytest.raises(RegistryUnconfirmed, match="the records exist") as caught:
                    await registry.submit([submission(), submission("t2")])
            finally:
                os.kill(replica.pid, signal.SIGCONT)
        assert caught.value.new == {"t1": False, "t2": True}
        await copy.aclose()


async def test_one_that_acknowledges_nothing_new_is_left_alone_after_a_while(
    primary: Valkey, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "_PATIENCE", 0.5)
    ack = b"*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$1\r\n1\r\n"
    async with reading_along(primary, b"PSYNC ? -1\r\n", ack):

        async def counted() -> bool:
            return any(map(acknowledges, (await replication(registry)).values()))

        await eventually(counted, what="an acknowledgement")
        with pytest.raises(RegistryUnconfirmed):
            await registry.submit([submission("first")])

        async def accepted() -> bool:
            try:
                await registry.submit([submission("later")])
            except RegistryUnconfirmed:
                return False
            return True

        await eventually(accepted, what="intake")
        assert await registry.submit([submission("at once")]) == ({"at once": True}, [])


LINE = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from(["online", "wait_bgsave", "send_bulk"]) | st.text(),
        "offset": st.integers() | st.text(),
        "lag": st.integers() | st.text(),
        "ip": st.text(),
    },
)


@given(LINE | st.integers() | st.text() | st.none())
def test_whatever_info_says_of_a_replica_is_read(line: Any) -> None:
    if acknowledges(line):
        assert line["state"] == "online"
        assert int(line["offset"]) > 0
        assert 0 <= int(line["lag"]) <= 10


@pytest.mark.parametrize("form", [[], ["--json"]])
async def test_submit_says_which_records_exist_if_no_replica_confirms_them(
    registry: Registry,
    primary: Valkey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: list[str],
) -> None:
    for name, value in {
        "SPEEDPIX_ENDPOINT": "http://127.0.0.1:9",
        "SPEEDPIX_APP_KEY": "key",
        "SPEEDPIX_APP_SECRET": "secret",
        "HARVESTER_BUCKET": "media",
        "REDIS_URL": primary.url,
        "HARVESTER_NAMESPACE": NAMESPACE,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    with Valkey(tmp_path / "replica") as replica:
        copy = Redis.from_url(replica.url, decode_responses=True, protocol=2)
        await copy.replicaof("127.0.0.1", primary.port)

        async def linked() -> bool:
            return any(map(acknowledges, (await replication(registry)).values()))

        await eventually(linked, what="a replica")
        await registry.submit([submission("old")])
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            done: Any = await asyncio.to_thread(
                CliRunner().invoke, app, ["submit", "fresh", "old", "not/an/id", *form]
            )
        finally:
            os.kill(replica.pid, signal.SIGCONT)
        await copy.aclose()
    assert done.exit_code == 3
    assert re.search(r"the records exist, but no replica .*REDIS_URL", done.stderr, re.DOTALL)
    if form:
        said = json.loads(done.stdout)
        assert said["tasks"] == [
            {"task_id": "fresh", "new": True},
            {"task_id": "old", "new": False},
        ]
        assert [each["value"] for each in said["refused"]] == ["not/an/id"]
    else:
        assert done.stdout == "fresh\tnew\nold\tknown\n"
        assert "not/an/id" in done.stderr
    assert await registry.record("fresh") is not None
