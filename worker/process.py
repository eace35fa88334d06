"""This process: its name, its signals and its limit on open files."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import socket
from functools import cache
from typing import Any

import structlog
from celery.apps import worker as celery_worker

from worker.errors import SettingsError

log = structlog.get_logger("harvester.app")

FILES = 1024
"""Files and connections that a worker may need at once: up to 384 polls, 16 tasks with four files
that each read from a host and write to the store, callbacks, Redis, the broker."""


@cache
def name() -> str:
    """The name of this process on its host: the process id, with a random part if it is 1."""
    pid = os.getpid()
    return str(pid) if pid != 1 else f"1-{secrets.token_hex(3)}"


def worker_name() -> str:
    """The name of this process in the registry: ``host:pid``."""
    return f"{socket.gethostname()}:{name()}"


def raise_file_limit(needed: int = FILES) -> None:
    """Raise the limit on open files to what a worker needs.

    Raises ``SettingsError`` if the system does not allow that many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SettingsError(
            f"a worker needs {needed:,} open files, but this process may only have {hard:,}: raise "
            "the limit (ulimit -n, LimitNOFILE= of systemd, ulimits of a container)"
        )
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (OSError, ValueError) as error:  # a sandbox, or a system-wide limit
        raise SettingsError(
            f"a worker needs {needed:,} open files, but cannot raise its limit of {soft:,}: {error}"
        ) from None


def heed_signals() -> None:
    """Have SIGHUP stop a worker like SIGTERM, and no signal handler block on a full terminal.

    At SIGHUP, Celery would restart ``python -c`` without its program, and its handlers write to the
    terminal directly.
    """
    inside: Any = celery_worker
    inside.safe_say = lambda text, _file=None: log.info("worker.said", text=text.strip())
    inside.install_worker_restart_handler = lambda worker: inside.install_worker_term_handler(
        worker, sig="SIGHUP"
    )
    if os.getpid() == 1:  # until Celery has set its handlers, the system ignores it
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
