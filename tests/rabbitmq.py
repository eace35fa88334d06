"""A RabbitMQ of the tests' own, where Debian's is installed: own ports, own data, loopback only."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

BIN = Path("/usr/lib/rabbitmq/bin")
INSTALLED = (BIN / "rabbitmq-server").exists() and shutil.which("epmd") is not None
_START_SECONDS = 90


class RabbitMQ:
    """One broker; ``with RabbitMQ(folder) as broker`` starts and ends it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port, distribution, self._epmd_port = _free_ports(3)
        self._environ = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(directory),  # the cookie
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} "
            "+S 2:2",
        }
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RabbitMQ:
        (self._directory / "plugins").write_text("[].\n")
        with ExitStack() as stack:
            stack.callback(self.close)
            # started here, since one that the server starts outlives it
            self._epmd = self._popen("epmd", "-address", "127.0.0.1", "-port",
                                     str(self._epmd_port))  # fmt: skip
            self.start()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the broker, with the data that it had, and wait until it takes connections."""
        self._server = self._popen("rabbitmq-server")
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            assert self._server.poll() is None, self._output()
            if self._ctl("await_startup", "--timeout", "10").returncode == 0:
                return
        raise AssertionError(f"RabbitMQ did not start: {self._output()}")

    def kill(self) -> None:
        """Kill the broker, as a crash would."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None

    def close(self) -> None:
        """End the broker and its port mapper."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def vhost(self, name: str, *, queue_type: str) -> str:
        """A new virtual host whose queues are of this type; its address."""
        self.ctl("add_vhost", name, "--default-queue-type", queue_type)
        self.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{name}"

    def queues(self, vhost: str) -> dict[str, str]:
        """The queues of a virtual host, and their types."""
        said = self.ctl(
            "list_queues", "-p", vhost, "--silent", "--no-table-headers", "name", "type"
        )
        rows = [line.split("\t") for line in said.splitlines() if "\t" in line]
        return {name: kind.rpartition("_")[2] for name, kind in rows}

    def noted(self, vhost: str, *queues: str) -> bool:
        """Whether these quorum queues outlive a kill: their list is written half a second late."""
        node = self._environ["RABBITMQ_NODENAME"]
        held = (self._directory / "data" / node / "quorum" / node / "names.dets").read_bytes()
        return all(f"{vhost}_{queue}".encode() in held for queue in queues)

    def ctl(self, *arguments: str) -> str:
        """What ``rabbitmqctl`` says."""
        done = self._ctl(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        node = self._environ["RABBITMQ_NODENAME"]
        return subprocess.run(
            [str(BIN / "rabbitmqctl"), "-n", node, *arguments], env=self._environ,
            cwd=self._directory, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def _popen(self, *command: str) -> subprocess.Popen[bytes]:
        with (self._directory / "output").open("ab") as log:
            return subprocess.Popen(
                command if command[0] == "epmd" else [str(BIN / command[0]), *command[1:]],
                env=self._environ, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def _output(self) -> str:
        return (self._directory / "output").read_text(errors="replace")[-3000:]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
