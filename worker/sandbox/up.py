"""A whole installation on one machine: embedded servers for what is not configured, and workers.

All processes end with the process that started them, for whatever reason that ends.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from worker.errors import HarvesterError, SettingsError
from worker.sandbox.child import Child, web_command, worker_command
from worker.sandbox.servers import SeaweedFS, Valkey
from worker.sandbox.simulator import Simulator
from worker.sandbox.state import REDIS, STORE, UPSTREAM, Home, filled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from worker.sandbox.servers import EmbeddedServer

LOOPBACK = "127.0.0.1"
BUCKET = "harvester"
PAGE_PORT = 8080  # unless it is taken

_SHARED = ("HARVESTER_", "SPEEDPIX_", "AWS_", "REDIS_URL", "CELERY_BROKER_URL")
_LOOK = 0.2  # seconds between two checks of the processes
_LONGEST_PAUSE = 30.0
_SETTLED = 60.0  # seconds; a process that lived this long restarts at once
_USAGE = 2  # exit code of a worker that cannot start with these settings
_STOP_MARGIN = 10.0


class _Process:
    """A process that is restarted when it ends, with backoff if it keeps ending."""

    def __init__(self, start: Callable[[], Child], what: str = "a worker") -> None:
        self._start = start
        self._what = what
        self._child: Child | None = None
        self._started_at = 0.0
        self._again_at = 0.0
        self._pause = 0.0

    @property
    def child(self) -> Child | None:
        return self._child

    def look(self) -> str:
        """Start or restart the process if it is time to; returns a message for people, or nothing.

        Raises ``SettingsError`` if the process refused its settings.
        """
        now = time.monotonic()
        if self._child is None:
            if now >= self._again_at:
                self._child, self._started_at = self._start(), now
            return ""
        code = self._child.process.poll()
        if code is None:
            return ""
        self._child.end()
        self._child = None
        if code == _USAGE:
            raise SettingsError(f"{self._what} does not start with these settings; see its output")
        lived = now - self._started_at
        self._pause = 1.0 if lived > _SETTLED else min(_LONGEST_PAUSE, max(1.0, self._pause * 2))
        self._again_at = now + self._pause
        return f"{self._what} ended with code {code}; it restarts in {self._pause:.0f} s"


class Installation:
    """Servers, workers and the page in ``directory``; a context manager.

    ``environ`` is the configuration; services that it lacks are started, with data, ports and
    credentials kept in ``directory``. ``page`` says whether to serve the page and the HTTP API too.
    ``logs`` is the folder for a log file of each process; without it they share this process'
    output. ``say`` is called with messages for people.
    """

    def __init__(
        self,
        directory: Path,
        environ: Mapping[str, str],
        *,
        workers: int = 1,
        page: bool = False,
        grace: float = 30.0,
        logs: Path | None = None,
        cwd: Path | None = None,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.home = Home(directory.absolute())
        self.environ = dict(environ)
        self.grace = grace
        """Seconds for workers to release their claims."""
        self.url = ""
        """Address of the page and the HTTP API, if they are served."""
        self._count = workers
        self._page = page
        self._logs = logs
        self._cwd = cwd
        self._say = say
        self._stack = contextlib.ExitStack()
        self._services = contextlib.ExitStack()
        self.valkey: Valkey | None = None
        self.store: SeaweedFS | None = None
        self._servers: list[EmbeddedServer] = []
        self._processes: list[_Process] = []
        self.simulator: Simulator | None = None
        """The simulated upstream, if there is one."""

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.home.locked())
            self._stack.callback(self._stop)
            self._start_services()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start_workers(self) -> None:
        """Start the workers and the page; the settings must have been checked."""
        if self._logs is not None:
            self._logs.mkdir(parents=True, exist_ok=True)
        self._processes = [
            _Process(partial(self._spawn, f"worker-{n}", worker_command(f"up{n}")))
            for n in range(1, self._count + 1)
        ]
        if self.url:
            port = int(self.url.rpartition(":")[2])
            start = partial(self._spawn, "web", web_command(LOOPBACK, port))
            self._processes.append(_Process(start, "the page"))
        self.look()

    def look(self) -> None:
        """Restart servers and processes that have ended; call it regularly.

        Raises ``SettingsError`` if the workers or the page refuse their settings.
        """
        for server in self._servers:
            if not server.running:
                self._say(f"{server.name} has ended; restarting it")
                with contextlib.suppress(HarvesterError):
                    server.start()
        for process in self._processes:
            said = process.look()
            if said:
                self._say(said)

    def supervise(self, stopping: threading.Event) -> None:
        """Keep everything running until ``stopping`` is set."""
        while not stopping.wait(_LOOK):
            self.look()

    # -- services --------------------------------------------------------------------------

    def _start_services(self) -> None:
        offered: dict[str, str] = {}
        saved = self.home.load()
        saved.pop("environment", None)
        if not REDIS.configured(self.environ):
            offered |= self._start_valkey(saved)
        if not STORE.configured(self.environ):
            offered |= self._start_store(saved)
        if not UPSTREAM.configured(self.environ):
            offered |= self._start_simulator(saved)
        self.environ = filled(self.environ, offered)
        shared = {n: v for n, v in self.environ.items() if n.startswith(_SHARED)}
        if self._page:
            port = _page_port(saved.setdefault("page", {}))
            self.url = f"http://{LOOPBACK}:{port}"
            shared["API_URL"] = self.url
        self.home.save(saved)
        self.home.publish(shared)

    def _start_valkey(self, saved: dict[str, Any]) -> dict[str, str]:
        kept = saved.setdefault("redis", {})
        password = kept.setdefault("password", secrets.token_urlsafe(24))
        server = Valkey(
            self.home.directory / "valkey", port=_still_free(kept.get("port")), password=password
        )
        self._run(server)
        self.valkey = server
        kept["port"] = server.port
        return {"REDIS_URL": server.url}

    def _start_store(self, saved: dict[str, Any]) -> dict[str, str]:
        kept = saved.setdefault("store", {})
        server = SeaweedFS(
            self.home.directory / "seaweedfs",
            BUCKET,
            access_key=kept.get("access_key", ""),
            secret_key=kept.get("secret_key", ""),
            port=_still_free(kept.get("port")),
        )
        kept |= {"access_key": server.access_key, "secret_key": server.secret_key}
        self.home.save(saved)  # before any data needs these credentials
        self._run(server)
        self.store = server
        kept["port"] = server.port
        return {
            "HARVESTER_BUCKET": server.bucket,
            "AWS_ENDPOINT_URL_S3": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_REGION": server.region,
            "AWS_DEFAULT_REGION": server.region,
        }

    def _start_simulator(self, saved: dict[str, Any]) -> dict[str, str]:
        kept = saved.setdefault("simulator", {})
        simulator = Simulator(LOOPBACK, _still_free(kept.get("port")), duration=5.0)
        self.simulator = self._services.enter_context(simulator)
        simulator.example()
        kept["port"] = simulator.port
        allowed = self.environ.get("HARVESTER_SOURCE_ALLOW_PRIVATE", "")
        hosts = ",".join(filter(None, (allowed, f"{LOOPBACK}/32")))
        return simulator.environ | {"HARVESTER_SOURCE_ALLOW_PRIVATE": hosts}

    def _run(self, server: EmbeddedServer) -> None:
        server.start()
        self._servers.append(server)

    # -- processes -------------------------------------------------------------------------

    def _spawn(self, name: str, command: list[str]) -> Child:
        with contextlib.ExitStack() as stack:
            log = None
            if self._logs is not None:
                log = stack.enter_context((self._logs / f"{name}.log").open("ab"))
            return Child(
                command,
                self.environ,
                grace=self.grace + _STOP_MARGIN,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
            )

    def _stop(self) -> None:
        """Stop the workers first, so that they can release their claims in Redis."""
        children = [each.child for each in self._processes if each.child is not None]
        self._processes = []
        for child in children:
            child.ask_to_end()
        for child in children:
            child.end()
        self._services.close()
        while self._servers:
            self._servers.pop().stop()


def _page_port(kept: dict[str, Any]) -> int:
    """The port of the last start if it is free, else the usual one, else any free one."""
    port = _still_free(kept.get("port")) or _still_free(PAGE_PORT)
    if not port:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
    kept["port"] = port
    return port


def _still_free(port: object) -> int:
    """``port``, or 0 if it is not a port or another program listens on it."""
    if not isinstance(port, int) or not 0 < port < 65536:
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return 0
    return port
