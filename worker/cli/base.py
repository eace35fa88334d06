"""What the commands share: exit codes, settings, the registry, and output for people."""

# ruff: noqa: PLC0415  imports are where they are needed, so that --help is fast

from __future__ import annotations

import os
import shutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import simplejson
import typer
from rich.console import Console

from worker.errors import RegistryUnavailable, SettingsError
from worker.sandbox.state import DIRECTORY, Home, filled, use_environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from config.settings import Settings
    from worker.registry.registry import Registry
    from worker.transfer.store import ObjectStore

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

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
_PLAIN_WIDTH = 200  # columns of a table in a file or a pipe, so that nothing is cut


def console(*, stderr: bool = False) -> Console:
    """A console for people; wide and without colours unless it is a terminal."""
    made = Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _PLAIN_WIDTH
    return made


def program() -> str:
    """This command as one can type it here: its path, unless the shell finds it by name."""
    called = sys.argv[0]
    known = shutil.which("harvester") is not None or Path(called).name != "harvester"
    return "harvester" if known else called


def complain(text: str) -> None:
    """Print a problem on stderr."""
    print(text, file=sys.stderr)


def settings() -> Settings:
    """The settings; unset ones come from a ``harvester up`` that runs in this directory.

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
    """The registry, closed at the end. ``RegistryUnavailable`` then names the host of REDIS_URL."""
    from worker.wiring import make_registry

    opened = make_registry(chosen)
    try:
        yield opened
    except RegistryUnavailable as error:
        raise type(error)(f"{error} (REDIS_URL: {redis_hosts(chosen)})") from error
    finally:
        await opened.close()


@asynccontextmanager
async def bucket(chosen: Settings) -> AsyncIterator[ObjectStore]:
    """The bucket, its connections closed at the end."""
    from worker.wiring import make_store

    opened = make_store(chosen)
    try:
        yield opened
    finally:
        await opened.close()


def redis_hosts(chosen: Settings) -> str:
    """Hosts and ports of ``REDIS_URL``, without credentials."""
    from config.redis import RedisAddress

    return RedisAddress.parse(chosen.redis_url.get_secret_value()).where


def print_json(value: Any) -> None:
    """Print a JSON document with every digit of ``RawJSON`` numbers."""
    print(simplejson.dumps(value, indent=2, allow_nan=False))


def print_json_line(value: Any) -> None:
    """Print a JSON document as one line and flush it, for programs that read along."""
    print(simplejson.dumps(value, allow_nan=False), flush=True)
