"""What the commands share: exit codes, settings, the registry, and output for people."""

# ruff: noqa: PLC0415  imports stand where they are needed, so that --help is quick

from __future__ import annotations

import os
import shutil
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import simplejson
from rich.console import Console

from worker.errors import RegistryUnavailable, SettingsError
from worker.sandbox.state import DIRECTORY, Home, filled, use_environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from config.settings import Settings
    from worker.registry.registry import Registry

FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130

STATE_STYLES = {
    "waiting": "cyan",
    "copying": "blue",
    "stored": "green",
    "partial": "yellow",
    "failed": "red",
}
_PLAIN_WIDTH = 200  # columns of a table that goes into a file or a pipe: nothing is cut there


def console(*, stderr: bool = False) -> Console:
    """A console for people; wide and without colours if nobody watches."""

    made = Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _PLAIN_WIDTH
    return made


def program() -> str:
    """This command as it can be typed here: by its path, unless the shell knows it by its name."""
    called = sys.argv[0]
    known = shutil.which("harvester") is not None or Path(called).name != "harvester"
    return "harvester" if known else called


def complain(text: str) -> None:
    """Say on stderr what is wrong."""
    print(text, file=sys.stderr)


def settings() -> Settings:
    """The settings; what is not set comes from a ``harvester up`` that runs in this directory.

    Raises ``SettingsError``.
    """
    from config.logging import configure
    from config.settings import environment, load_settings, unknown_settings

    running = Home(DIRECTORY).environment()
    if running:
        use_environment(filled(environment(), running))
    try:
        loaded = load_settings()
    except SettingsError as error:
        if running or "is not set" not in str(error):
            raise
        raise SettingsError(
            f"{error}\nOr start `{program()} up` in this directory: it supplies what is missing."
        ) from None
    configure(loaded, level="WARNING")
    for warning in unknown_settings(environment()):
        complain(warning)
    return loaded


@asynccontextmanager
async def registry(chosen: Settings) -> AsyncIterator[Registry]:
    """The registry, closed at the end. Its ``RegistryUnavailable`` names the host of REDIS_URL."""
    from worker.wiring import make_registry

    opened = make_registry(chosen)
    try:
        yield opened
    except RegistryUnavailable as error:
        raise type(error)(f"{error} (REDIS_URL: {redis_hosts(chosen)})") from error
    finally:
        await opened.close()


def redis_hosts(chosen: Settings) -> str:
    """Hosts and ports of ``REDIS_URL``, without credentials."""
    from config.redis import RedisAddress

    address = RedisAddress.parse(chosen.redis_url.get_secret_value())
    return ", ".join(f"{host}:{port}" for host, port in address.hosts)


def print_json(value: Any) -> None:
    """Print a JSON document, every digit of ``RawJSON`` numbers kept."""
    print(simplejson.dumps(value, indent=2, allow_nan=False))


def print_json_line(value: Any) -> None:
    """Print a JSON document as one line, at once, for programs that read as it goes."""
    print(simplejson.dumps(value, allow_nan=False), flush=True)


# -- numbers and times for people ----------------------------------------------------------------


def size(count: int) -> str:
    """``1536`` as ``1.5 KiB``."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def span(seconds: float, *, units: int = 2) -> str:
    """A duration in its largest units: ``3 min 20 s``, ``2 h 5 min``, ``4 d``."""
    if seconds < 1:
        return f"{max(0.0, seconds):.1f} s"
    left = round(seconds)
    parts: list[str] = []
    taken = 0
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, length)
        if amount:
            parts.append(f"{amount} {unit}")
        taken += bool(parts)
        if taken == units:
            break
    return " ".join(parts)


def ago(then_ms: int, now_ms: int) -> str:
    """How long ago a time was, both Unix milliseconds."""
    return f"{span((now_ms - then_ms) / 1000, units=1)} ago"


def moment(milliseconds: int) -> str:
    """A Unix time as local date and time."""
    local = datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S %Z")
