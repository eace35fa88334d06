"""Logging: one JSON object per line on stderr, or readable lines on a terminal.

Records of the standard library (Celery, kombu, botocore …) pass through the same formatter, so that
redaction, its last step before rendering, misses nothing.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from html import escape
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus

import structlog
from structlog.typing import EventDict, Processor

from config import log_writer
from config.log_writer import LogWriter
from config.settings import Settings
from worker.core.redact import redact

_QUIET = (
    "aiohttp",
    "boto3",
    "botocore",
    "celery.app.trace",  # success of every hint
    "celery.worker.strategy",  # receipt of every hint
    "httpcore",
    "httpx",
    "s3transfer",
    "urllib3",
    "uvicorn",
)
_AWS_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SHORTEST_SECRET = 4  # hiding a shorter one would garble every line
_MAX_DEPTH = 16
_LONGEST = 32 * 1024  # characters of one value: libraries print whole messages
# what moves the cursor, begins a line, or turns the direction of what follows
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb]"
)


class Redactor:
    """A structlog processor: URLs lose their query and known secrets become ``***``.

    This covers nested values and keys; values that JSON cannot hold become their repr.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        texts = {text for text in secrets if len(text) >= _SHORTEST_SECRET}
        longest_first = sorted({way for text in texts for way in _ways(text)}, key=len)[::-1]
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if texts else None

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        """Return the event with every value redacted."""
        return {self.text(str(name)): self._value(value, 0) for name, value in event.items()}

    def text(self, text: str) -> str:
        """A text without queries and secrets, cut to at most 32 Ki characters."""
        # cut before redacting, for speed, and after it, since only whole secrets and addresses are
        # recognised
        text = text[: 16 * _LONGEST]
        if self._secrets is not None:
            text = self._secrets.sub("***", text)
        text = redact(text)
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

    def _value(self, value: object, depth: int) -> object:
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, str):
            return self.text(value)
        if depth < _MAX_DEPTH:
            if isinstance(value, Mapping):
                return {self.text(str(k)): self._value(v, depth + 1) for k, v in value.items()}
            if isinstance(value, list | tuple | set | frozenset):
                return [self._value(item, depth + 1) for item in value]
        try:
            return self.text(repr(value))
        except Exception as error:  # of a foreign object
            return f"<{type(value).__name__}: {type(error).__name__} in its repr>"


def _ways(text: str) -> set[str]:
    """The ways a secret may be written: plain, in an address, in JSON, in a repr."""
    quoted = {quote(text, safe=""), quote(text), quote_plus(text)}
    lower = {re.sub("%..", lambda match: match[0].lower(), way) for way in quoted}
    return {text, json.dumps(text)[1:-1], repr(text)[1:-1], escape(text)} | quoted | lower


def configure(
    settings: Settings, *, level: int | str = logging.INFO, background: bool = False
) -> None:
    """Send every log record of this process to stderr in the chosen format.

    Warnings and uncaught exceptions become records too. Calling it again replaces the earlier
    configuration. Celery calls it through its ``setup_logging`` signal. With ``background``,
    logging never blocks: a service continues even if nobody reads its log.
    """
    console = settings.log_format == "console" or (
        settings.log_format == "auto" and _on_a_terminal()
    )
    aws = (os.environ.get(name, "") for name in _AWS_SECRETS)
    handler = _handler(background)
    handler.setFormatter(_formatter(Redactor([*settings.secrets, *aws]), console=console))
    root = logging.getLogger()
    log_writer.flush()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addFilter(_no_advice)
    sys.excepthook = _log_uncaught
    if background:  # these would write to stderr themselves, and block on its reader
        threading.excepthook = lambda args: _log_unseen(args.exc_type, args.exc_value, args)
        sys.unraisablehook = lambda args: _log_unseen(args.exc_type, args.exc_value, args)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_common_processors(),
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


class _Formatter(structlog.stdlib.ProcessorFormatter):
    def format(self, record: logging.LogRecord) -> str:
        """Format a record; if that fails, return a line that says so.

        The library would print the record with its secrets to stderr, and block on its reader.
        """
        try:
            return super().format(record)
        except Exception as error:
            said = {"event": "log.failed", "level": "error", "logger": record.name}
            where = f"{record.filename}:{record.lineno}"
            return json.dumps({**said, "error": type(error).__name__, "where": where})


def _on_a_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # none if it was closed at the start


def _handler(background: bool) -> logging.Handler:
    if background:
        try:
            return LogWriter(sys.stderr.fileno())
        except (AttributeError, OSError, ValueError):  # no file: a test reads it
            pass
    return logging.StreamHandler(sys.stderr)


def _no_advice(record: logging.LogRecord) -> bool:
    """Drop Celery's advice at every reconnection about a setting that the threads pool lacks.

    Celery enables all its warnings, so a warnings filter has no effect.
    """
    return "In Celery 5.1 we introduced" not in record.getMessage()


def _common_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(redactor: Redactor, *, console: bool) -> logging.Formatter:
    rendering: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,  # plain, since locals in a traceback may hold secrets
        redactor,
    ]
    if console:
        colors = _on_a_terminal() and "NO_COLOR" not in os.environ
        rendering += [_escape_controls, structlog.dev.ConsoleRenderer(colors=colors)]
    else:
        rendering.append(structlog.processors.JSONRenderer())
    return _Formatter(foreign_pre_chain=_common_processors(), processors=rendering)


def _escape_controls(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Keep untrusted text from moving the terminal's cursor or faking lines."""
    return {
        _escaped(name): _lines(value)
        if name in {"exception", "stack"}
        else _escaped(value if isinstance(value, str) else repr(value))
        if isinstance(value, str | dict | list | tuple)
        else value
        for name, value in event.items()
    }


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def _lines(text: object) -> str:
    """A traceback, indented so that none of its lines looks like a line of the log."""
    return "\n".join(f"    {_escaped(line)}" for line in str(text).split("\n"))


def _log_unseen(kind: type[BaseException], error: BaseException | None, args: Any) -> None:
    if issubclass(kind, SystemExit):
        return
    trace = (kind, error or kind(), args.exc_traceback)
    structlog.get_logger("harvester").error("process.unseen_error", exc_info=trace)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger("harvester").critical("process.crashed", exc_info=(kind, error, trace))
