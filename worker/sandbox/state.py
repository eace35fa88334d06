"""The state that ``harvester up`` keeps in its directory, where other commands find it.

``harvester.json`` (mode 0600) holds the ports and credentials of the embedded servers, so that the
next start finds the same data at the same address, and, while they run, the environment that leads
to them. A lock says whether they run.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DIRECTORY = Path("var")
STATE_FILE = "harvester.json"
ENVIRONMENT_FILE = "environment"
_LOCK_FILE = "harvester.lock"
_LOCK_SECONDS = 1.0  # longer than other commands hold it to check

_OWN_STORE = ("HARVESTER_BUCKET",)
_STORE = (
    *_OWN_STORE,
    "HARVESTER_STORAGE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)
_UPSTREAM = ("SPEEDPIX_ENDPOINT", "SPEEDPIX_APP_KEY", "SPEEDPIX_APP_SECRET")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The variables of one service: ``names``, which are used together or not at all.

    If one of ``marks`` is set, the user has configured their own service.
    """

    marks: tuple[str, ...]
    names: tuple[str, ...]

    def configured(self, environ: Mapping[str, str]) -> bool:
        """Whether the environment configures such a service."""
        return any(environ.get(name) for name in self.marks)


REDIS = Group(marks=("REDIS_URL",), names=("REDIS_URL",))
STORE = Group(marks=_OWN_STORE, names=_STORE)
UPSTREAM = Group(marks=_UPSTREAM, names=(*_UPSTREAM, "HARVESTER_SOURCE_ALLOW_PRIVATE"))


def filled(environ: Mapping[str, str], offered: Mapping[str, str]) -> dict[str, str]:
    """``environ``, with the ``offered`` variables of every service that it does not configure.

    Credentials for one store do not work at another, so the variables of a service stay together.
    Other variables are filled one by one.
    """
    merged = dict(environ)
    grouped: set[str] = set()
    for group in (REDIS, STORE, UPSTREAM):
        grouped.update(group.names)
        if group.configured(offered) and not group.configured(environ):
            for name in group.names:
                merged.pop(name, None)
            merged.update({name: offered[name] for name in group.names if name in offered})
    for name, value in offered.items():
        if name not in grouped and not environ.get(name):
            merged[name] = value
    return merged


def use_environment(environ: Mapping[str, str]) -> None:
    """Make ``environ`` the environment of this process and of those it starts."""
    for name in set(os.environ) - set(environ):
        del os.environ[name]
    os.environ.update(environ)


class Home:
    """The directory of one installation."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def environment_file(self) -> Path:
        """The environment as a file for shells; it exists while the servers run."""
        return self.directory / ENVIRONMENT_FILE

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory; raises ``SettingsError`` if another process holds it.

        At the end, removes the published environment of the servers.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.directory / _LOCK_FILE).open("a") as lock:
            until = time.monotonic() + _LOCK_SECONDS
            while not _lock(lock.fileno(), fcntl.LOCK_EX):
                if time.monotonic() > until:
                    raise SettingsError(f"`harvester up` already runs in {self.directory}")
                time.sleep(0.05)
            try:
                yield
            finally:
                self.environment_file.unlink(missing_ok=True)
                saved = self.load()
                if saved.pop("environment", None) is not None:
                    self.save(saved)

    def environment(self) -> dict[str, str]:
        """The environment that leads to the servers running here; empty if none do."""
        path = self.directory / _LOCK_FILE
        try:
            with path.open() as lock:
                if _lock(lock.fileno(), fcntl.LOCK_SH):
                    return {}
        except OSError:
            return {}
        kept = self.load().get("environment", {})
        return {str(name): str(value) for name, value in kept.items()}

    def publish(self, environ: Mapping[str, str]) -> None:
        """Publish the environment of the servers for commands and shells."""
        self.save(self.load() | {"environment": dict(environ)})
        lines = (f"{name}={shlex.quote(value)}\n" for name, value in sorted(environ.items()))
        _write_private(self.environment_file, "".join(lines))

    def load(self) -> dict[str, Any]:
        """The saved state; empty at the first start. ``SettingsError`` if it cannot be read."""
        path = self.directory / STATE_FILE
        try:
            saved = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path} cannot be read: {type(error).__name__}") from error
        if not isinstance(saved, dict):
            raise SettingsError(f"{path} is not a state file of `harvester up`")
        return saved

    def save(self, state: Mapping[str, Any]) -> None:
        """Save ``state``, readable by this user only."""
        _write_private(self.directory / STATE_FILE, json.dumps(state, indent=2) + "\n")


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_private(path: Path, text: str) -> None:
    """Replace a file atomically."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    fresh.replace(path)
