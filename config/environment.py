"""Reading the environment: ``.env``, secrets in files, and Celery's own variables.

This module does not know the individual settings. pydantic-settings reads ``.env`` and a folder of
secrets too, but no file that a variable names (``REDIS_URL_FILE``), as Docker's images have it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dotenv import dotenv_values

from worker.errors import SettingsError

ENV_FILE = ".env"
# Celery's command also reads these: one for each of its options, and five other names.
_BYPASSING = re.compile(
    r"CELERY_(?!BROKER_URL(_FILE)?$).*|BROKER_URL|CONFIG_MODULE|LOADER|RESULT_BACKEND|SKIP_CHECKS"
)
_SECRET_BYTES = 65_536


def read(secrets: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables that are set, and a reason for each of the ``secrets`` with an unusable file.

    Empty values are left out. The content of a secret's file (``REDIS_URL_FILE``) is returned under
    the secret's name (``REDIS_URL``). Raises :class:`SettingsError` if ``.env`` exists and cannot
    be read.
    """
    values: dict[str, str] = {}
    faults: dict[str, str] = {}
    for layer in (_dotenv(), {name: text for name, text in os.environ.items() if text.strip()}):
        for name in secrets:
            path = layer.pop(f"{name}_FILE", None)
            if path is None and name not in layer:
                continue
            values.pop(name, None)  # this layer wins, with a value or a file
            faults.pop(name, None)
            if path is None:
                continue
            if name in layer:
                faults[name] = f"is set, and so is {name}_FILE; set one of them"
                del layer[name]
                continue
            try:
                layer[name] = _secret_file(Path(path.strip()))
            except ValueError as exc:
                faults[name] = f"{name}_FILE names {path.strip()}, which {exc}"
        values |= layer
    return values, faults


def _secret_file(path: Path) -> str:
    try:
        # a pipe that nobody writes to is empty, and not waited for
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            os.set_blocking(file.fileno(), True)
            text = file.read(_SECRET_BYTES + 1).decode("utf-8-sig")
    except OSError as exc:
        raise ValueError(f"cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("is not text in UTF-8") from None
    if len(text) > _SECRET_BYTES:
        raise ValueError(f"is larger than {_SECRET_BYTES} bytes")
    if not text.strip():
        raise ValueError("is empty")
    return text.strip()


def _dotenv() -> dict[str, str]:
    path = Path(ENV_FILE)
    try:
        if not path.is_file():
            return {}
        values = dotenv_values(path, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path.absolute()} cannot be read: {type(exc).__name__}") from None
    if any("\0" in f"{name}{value}" for name, value in values.items()):
        raise SettingsError(f"{path.absolute()} holds a NUL, which no variable can") from None
    return {name: value for name, value in values.items() if value and value.strip()}


def hide_bypassing_variables() -> None:
    """Hide variables from Celery that would bypass the settings; call it after reading these."""
    for name in list(os.environ):
        if name == "CELERY_BROKER_URL" or _BYPASSING.fullmatch(name):
            del os.environ[name]


def bypasses_settings(name: str) -> bool:
    """Whether a variable would bypass the settings.

    Celery passes its ``CELERY_LOG_*`` to its children: these are not an operator's mistake.
    """
    foreign = name.startswith(("CELERY_", "BROKER_")) and not name.startswith("CELERY_LOG_")
    return foreign and _BYPASSING.fullmatch(name) is not None


def export_aws(values: Mapping[str, str]) -> None:
    """Export the given ``AWS_*`` variables for boto3, and remove all others."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        if name not in values:
            del os.environ[name]
    os.environ.update({name: text for name, text in values.items() if name.startswith("AWS_")})
    if "AWS_REGION" in values:
        os.environ.setdefault("AWS_DEFAULT_REGION", values["AWS_REGION"])
