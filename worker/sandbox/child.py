"""Child processes that end when their parent does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ROOT = str(Path(__file__).parents[2])

# Ends a child when its parent and all its forks are gone for any reason: the pipe on stdin then
# closes. (PR_SET_PDEATHSIG would follow the starting thread, and only works on Linux.)
_WATCH = """
read -r _
kill -TERM "$1" || exit
left="$2"
while kill -0 "$1"; do
  [ "$left" -gt 0 ] || { kill -KILL "$1"; exit; }
  left=$((left - 1))
  sleep 1
done
"""


def worker_command(
    name: str, *, concurrency: int | None = None, loglevel: str = "INFO"
) -> list[str]:
    """The command that runs a Celery worker of this fleet; ``name`` is unique on this host.

    It is ``celery -A worker.app worker``, with ``worker.app`` imported first: Celery would search
    the working directory first, where a folder may be named ``worker``.
    """
    code = (
        # the first process of a container ignores signals that it has no handler for
        "import os, signal, sys; "
        "os.getpid() == 1 and signal.signal(signal.SIGTERM, lambda *_: os._exit(0)); "
        f"sys.path.append({_ROOT!r}); "  # this code, even if it is not installed
        "import worker.app; from celery.__main__ import main; main()"
    )
    command = [sys.executable, "-P", "-c", code, "-A", "worker.app", "--quiet", "worker"]
    command += [f"--loglevel={loglevel}", f"--hostname={name}@%h"]
    return command if concurrency is None else [*command, f"--concurrency={concurrency}"]


def web_command(host: str, port: int) -> list[str]:
    """The command that serves the page and the HTTP API: ``harvester web`` of this code."""
    code = f"import sys; sys.path.append({_ROOT!r}); from worker.cli.main import main; main()"
    return [sys.executable, "-P", "-c", code, "web", "--host", host, "--port", str(port)]


class Child:
    """A process that ends with this one; ``grace`` is the seconds it has to exit by itself.

    It shares this process' output, unless ``stdout`` or ``stderr`` name another file (as in
    ``subprocess.Popen``).
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        grace: float,
        stdout: IO[bytes] | int | None = None,
        stderr: IO[bytes] | int | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._grace = grace
        self.process = subprocess.Popen(  # noqa: S603  commands of ours
            list(command),
            env=dict(environ),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C in a terminal reaches the parent, which decides
        )
        try:
            self._watcher = subprocess.Popen(  # noqa: S603  a script of ours
                ["/bin/sh", "-c", _WATCH, "watch", str(self.process.pid), f"{grace:.0f}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def ask_to_end(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal if the process still runs."""
        if self.process.poll() is None:
            self.process.send_signal(by)

    def end(self, by: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait, and kill the process after the grace; returns the exit code."""
        self.ask_to_end(by)
        try:
            self.process.wait(self._grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._watcher.kill()
        self._watcher.wait()
        if self._watcher.stdin is not None:
            self._watcher.stdin.close()
        return self.process.returncode
